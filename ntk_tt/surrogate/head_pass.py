"""The pass over the data that makes a problem with a real head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt import losses
from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import contrast_basis
from ntk_tt.features.dimension import default_num_projections, sketch_note
from ntk_tt.features.directions import head_directions
from ntk_tt.features.feature_options import Precision
from ntk_tt.features.plan import MAX_FEATURE_BYTES, plan_features
from ntk_tt.jacobian.bfloat16 import in_bfloat16
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
from ntk_tt.surrogate.head_parts import BLOCK, along, split_head
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
    num_projections: int | str = "auto",
    key: Key[Array, ""] | None = None,
    precision: Precision = "float32",
    memory: int | None = None,
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
            of the norm of the path that the head takes on fixed features (`HeadProblem.dropped`
            says how much), but no more than 3·(C−1). All F, and `exact` projections, leave nothing
            out.
        num_projections: D'; `auto` takes 2·N·(C−1), or what the memory holds; `exact` projects
            nothing.
        key, precision: see `jacobian_features`.
        memory: bytes that the features of both passes may take, besides one block; None takes half
            of what is free. With `auto`, D' is at most what it allows, and `HeadProblem.note` says
            what that means.
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
        kernel=parts.kernel.astype(dtype),
        bias=None if parts.bias is None else parts.bias.astype(dtype),
    )
    features, along_weights = (
        each.astype(dtype)
        for each in logits_and_tangent(
            parts.features, parts.backbone, inputs, parts.backbone, block_size=BLOCK
        )
    )
    check_logits(features)
    check_pass(
        in_bfloat16(parts.features) if precision == "bfloat16" else parts.features,
        parts.backbone,
        inputs,
        outputs=features,
    )
    targets = losses.encode_targets(labels, num_outputs, features.dtype, loss=loss)
    few = jax.jit(logits_of, static_argnums=0)(
        model.apply, model.params, jnp.asarray(inputs[:2])
    ).astype(dtype)
    if not np.allclose(
        few,
        features[:2] @ parts.kernel + (0 if parts.bias is None else parts.bias),
        rtol=1e-2,
        atol=1e-2 * (1 + float(jnp.abs(few).max())),
    ):
        raise ValueError(
            f"model: the logits of {model.name} are not its head times its features; take "
            "method='replay', the frozen kernel"
        )
    basis = (
        contrast_basis(num_outputs, features.dtype)
        if loss == "ce"
        else jnp.eye(num_outputs, dtype=features.dtype)
    )
    directions, dropped = head_directions(
        features, parts.kernel, parts.bias, targets, basis, loss=loss, num_directions=num_directions
    )
    passes = directions.shape[1] + (basis.shape[1] if curvature else 0)
    usable, num_params = (
        available_bytes() if memory is None else memory,
        sum(leaf.size for leaf in jax.tree.leaves(parts.backbone)),
    )
    wanted, num_rows, itemsize = 0, len(inputs) * passes, working_type(parts.backbone).itemsize
    if num_projections == "auto":
        wanted = min(
            max(_MIN_PROJECTIONS, ROWS_PER_PROJECTION * len(inputs) * basis.shape[1]), num_params
        )
        num_projections = (
            affordable_projections(num_rows, wanted, itemsize, usable, most=MAX_FEATURE_BYTES)
            if memory is None
            else min(
                wanted,
                default_num_projections(num_rows, num_params, itemsize=itemsize, max_bytes=memory),
            )
        )
    held = (
        num_rows
        * itemsize
        * (num_params if isinstance(num_projections, str) else min(num_projections, num_params))
    )
    if held > usable:
        refuse(
            f"features of {len(inputs)} samples × {passes} directions × D' = "
            f"{held // (num_rows * itemsize)}",
            held,
            usable,
            f"what would fit: num_projections = {max(1, usable // (num_rows * itemsize))}, "
            f"{'curvature=False, ' if curvature else ''}or fewer samples",
        )
    options: dict[str, Any] = {"key": key, "precision": precision, "memory": held}
    plan = plan_features(
        along(parts.features, directions),
        parts.backbone,
        inputs,
        num_projections=num_projections,
        **options,
    )
    total = len(inputs) * (2 if curvature else 1)
    jacobian = compute_features(
        plan, parts.backbone, inputs, progress=lambda done, _: progress(done, total)
    ).astype(dtype)
    check_features(jacobian)
    problem = HeadProblem(
        features,
        directions,
        jacobian,
        along_weights @ directions,
        parts.kernel,
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
        plan,
        options,
        fall=fall,
        progress=lambda done, _: progress(len(inputs) + done, total),
    )
