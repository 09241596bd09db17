"""The pass over the data that makes a problem with a real head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt import losses
from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import contrast_basis
from ntk_tt.features.dimension import default_num_projections, sketch_note
from ntk_tt.features.directions import head_directions
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions
from ntk_tt.features.plan import MAX_FEATURE_BYTES, plan_features
from ntk_tt.jacobian.network import (
    check_features,
    check_logits,
    check_network,
    logits_and_tangent,
    logits_of,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.runtime.memory import affordable_projections, available_bytes, refuse
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.head_parts import BLOCK, Parts, along, split_head
from ntk_tt.surrogate.real_head import HeadProblem
from ntk_tt.surrogate.second_point import ANCHOR_FALL, with_curvature

# D' of `auto` over N·(C−1): the dynamics pass over the features at each full-batch step, and more
# tells times little better (experiments/studies/curvature.py)
ROWS_PER_PROJECTION = 2
_MIN_PROJECTIONS = (
    4096  # fewer cost more: the sketch of a narrow convolution then keeps more of its columns apart
)


def linearize_head(
    model: Model,
    inputs: Float[Array | np.ndarray, "n ..."],
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    *,
    curvature: bool = True,
    fall: float = ANCHOR_FALL,
    loss: LossName = "ce",
    num_directions: int | str = "auto",
    options: FeatureOptions = DEFAULT_OPTIONS,
    key: Key[Array, ""] | None = None,
    progress: Progress = silent,
) -> HeadProblem:
    """The feature passes of the head-aware prediction; the result prices every optimiser setting
    (`ntk_tt.predict`).

    Args:
        model: with a linear head that trains (`Model.head`) and `features` before it.
        inputs: (N, ...), as the network takes them.
        labels: (N,) classes, or (N, C) real targets for `mse`.
        curvature: expand the backbone to second order along its path, at the price of a second pass
            along C−1 directions (C for `mse`).
        fall: the second expansion point is where the predicted loss has fallen to this share of its
            start.
        loss: `ce` or `mse`.
        num_directions: r, outputs of the first pass; `auto` takes as many as leave out at most 0.3
            of the norm of the path that the head takes on fixed embeddings (`HeadProblem.dropped`
            says how much), but no more than 3·(C−1). All F, and `exact` projections, leave nothing
            out.
        options: how the features are computed. D' of `auto` is 2·N·(C−1), or what the memory
            holds; `memory` is for both passes, None takes half of what is free, and
            `HeadProblem.note` says what had to give way to it.
        key: see `jacobian_features`.
        progress: called after each block.

    Raises:
        ValueError: as `split_head` and `jacobian_features`.

    Cost: one forward and r backward passes through activations a sample; with curvature as much
    again for C−1 directions, and two passes of real training's kind. Memory N·(r + C−1)·D'.
    """
    losses.check_loss(loss)
    if not 0 < fall < 1:
        raise ValueError(f"fall: must lie strictly between 0 and 1, got {fall}")
    if len(inputs) != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {len(inputs)} inputs; give one each")
    num_outputs = check_network(model.apply, model.params, inputs)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")
    parts = split_head(model)
    # the dynamics run in one type, whatever those of backbone and head
    dtype = working_type(model.params)
    parts = dataclasses.replace(
        parts,
        weight=parts.weight.astype(dtype),
        bias=None if parts.bias is None else parts.bias.astype(dtype),
    )
    embeddings, along_weights = (
        each.astype(dtype)
        for each in logits_and_tangent(
            parts.embed, parts.backbone, inputs, parts.backbone, block_size=BLOCK
        )
    )
    check_logits(embeddings)
    check_pass(
        options.rounded(parts.embed),
        parts.backbone,
        inputs,
        outputs=embeddings,
    )
    targets = losses.encode_targets(labels, num_outputs, embeddings.dtype, loss=loss)
    few = jax.jit(logits_of, static_argnums=0)(
        model.apply, model.params, jnp.asarray(inputs[:2])
    ).astype(dtype)
    if not np.allclose(
        few,
        embeddings[:2] @ parts.weight + (0 if parts.bias is None else parts.bias),
        rtol=1e-2,
        atol=1e-2 * (1 + float(jnp.abs(few).max())),
    ):
        raise ValueError(
            f"model: the logits of {model.name} are not its head times its features; take "
            "method='replay', the frozen kernel"
        )
    basis = (
        contrast_basis(num_outputs, embeddings.dtype)
        if loss == "ce"
        else jnp.eye(num_outputs, dtype=embeddings.dtype)
    )
    directions, dropped = head_directions(
        embeddings,
        parts.weight,
        parts.bias,
        targets,
        basis,
        loss=loss,
        num_directions=num_directions,
    )
    passes = directions.shape[1] + (basis.shape[1] if curvature else 0)
    options, wanted = _fitting_options(
        options,
        parts,
        num_rows=len(inputs) * passes,
        wanted_rows=len(inputs) * basis.shape[1],
        what=f"features of {len(inputs)} samples × {passes} directions",
        remedy=f"{'curvature=False, ' if curvature else ''}or fewer samples",
    )
    plan = plan_features(
        along(parts.embed, directions), parts.backbone, inputs, options=options, key=key
    )
    total = len(inputs) * (2 if curvature else 1)
    jacobian = compute_features(
        plan, parts.backbone, inputs, progress=lambda done, _: progress(done, total)
    ).astype(dtype)
    check_features(jacobian)
    problem = HeadProblem(
        embeddings,
        directions,
        jacobian,
        along_weights @ directions,
        parts.weight,
        parts.bias,
        targets,
        dropped=dropped,
        projection=plan.projection,
        loss=loss,
        note=sketch_note(jacobian, len(inputs), wanted),
    )
    if not curvature:
        return problem
    return with_curvature(
        problem,
        parts,
        inputs,
        basis,
        dataclasses.replace(options, num_projections=plan.num_projections),
        key=key,
        fall=fall,
        progress=lambda done, _: progress(len(inputs) + done, total),
    )


def _fitting_options(
    options: FeatureOptions,
    parts: Parts,
    *,
    num_rows: int,
    wanted_rows: int,
    what: str,
    remedy: str,
) -> tuple[FeatureOptions, int]:
    """The options with the D' that both passes have memory for and the bytes that takes, and the D'
    that `auto` would take where memory does not matter (0 where it is not `auto`).

    Raises:
        ValueError: there is not enough memory.
    """
    num_params = sum(leaf.size for leaf in jax.tree.leaves(parts.backbone))
    itemsize = working_type(parts.backbone).itemsize
    usable = available_bytes() if options.memory is None else options.memory
    num_projections, wanted = options.num_projections, 0
    if num_projections == "auto":
        wanted = min(max(_MIN_PROJECTIONS, ROWS_PER_PROJECTION * wanted_rows), num_params)
        num_projections = (
            affordable_projections(num_rows, wanted, itemsize, usable, most=MAX_FEATURE_BYTES)
            if options.memory is None
            else min(
                wanted,
                default_num_projections(
                    num_rows, num_params, itemsize=itemsize, max_bytes=options.memory
                ),
            )
        )
    kept = num_params if isinstance(num_projections, str) else min(num_projections, num_params)
    held = num_rows * itemsize * kept
    if held > usable:
        refuse(
            f"{what} × D' = {kept}",
            held,
            usable,
            f"what would fit: num_projections = {max(1, usable // (num_rows * itemsize))}, "
            f"{remedy}",
        )
    return dataclasses.replace(options, num_projections=num_projections, memory=held), wanted
