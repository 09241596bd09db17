"""The pass that makes a linear problem: logits, their tangent and the kernel at the start."""

from typing import Any, get_args

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import Outputs, contrast_basis, in_contrasts
from ntk_tt.features.dimension import sketch_note
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.features.plan import plan_features
from ntk_tt.features.store import FeatureStore
from ntk_tt.jacobian.network import (
    check_features,
    check_logits,
    check_network,
    logits_and_tangent,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.kernels.choice import Space, kernel_from, kernel_from_store
from ntk_tt.kernels.operators import AbstractKernel, ContrastKernel
from ntk_tt.losses import LossName, check_loss, encode_targets
from ntk_tt.models.former_network import takes_former_network
from ntk_tt.models.model import Model
from ntk_tt.runtime.input_trees import Inputs, num_samples
from ntk_tt.runtime.memory import available_bytes, format_bytes
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.runtime.sharding import replicate
from ntk_tt.surrogate.linear import LinearizedProblem


@takes_former_network
@takes_former_keywords
def linearize(
    model: Model,
    inputs: Inputs,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    *,
    loss: LossName = "ce",
    outputs: Outputs = "logits",
    options: FeatureOptions = DEFAULT_OPTIONS,
    space: Space = "auto",
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    features: FeatureStore | None = None,
    progress: Progress = silent,
) -> LinearizedProblem:
    """One pass over the data; the result prices every learning rate, momentum, batch size and
    schedule.

    Args:
        model: the network at its pre-trained weights w₀; one of a function is
            `ntk_tt.from_function(apply, params)`.
        inputs: (N, ...), as the network takes them.
        labels: (N,) class indices, or (N, C) real targets for `mse`.
        loss: `ce` or `mse` (½‖f − y‖²).
        outputs: `contrasts` takes the C−1 contrasts of the logits that cross-entropy sees instead
            of all C: the same curves for a C-th less work and up to half the memory of Θ, but saved
            logits lack each sample's common shift. Only for `ce`.
        options: how the features are computed. Of its `memory`, None takes half of what is free,
            for Θ too where it is formed: with `auto`, D' is at most what that allows, and Θ is
            formed (`space`) where it fits beside the features; `LinearizedProblem.note` says what
            had to give way.
        space: `dual` holds Θ, `primal` the features, `auto` the smaller.
        key: of the projection; key 0 where none is given.
        mesh: see `jacobian_features`. Features, and Θ where it is formed, stay where they were
            computed, and products with them are collectives.
        features: computed before by `write_features` from `stored_outputs(model.apply, ...)`;
            instead of all options but `memory`: they are read into memory where they fit (into
            `memory`, where given), else streamed from disk.
        progress: called after each block of the feature pass.

    Raises:
        ValueError: an argument out of range, inputs and labels of different length, NaN in inputs,
            weights or logits, more memory than there is, or stored features of another shape.

    Cost: that of `jacobian_features`, and of Θ in the dual space.
    """
    num_outputs = _checked_outputs(model, inputs, labels, loss, outputs, space)
    # the dynamics run in one type, whatever those of parameters, logits and stored features
    dtype = working_type(model.params)
    initial_logits, weight_logits = (
        each.astype(dtype)
        for each in logits_and_tangent(model.apply, model.params, inputs, model.params)
    )
    check_logits(initial_logits)
    targets = encode_targets(labels, num_outputs, dtype, loss=loss)
    basis = contrast_basis(num_outputs, dtype) if outputs == "contrasts" else None
    if features is not None:
        usable = available_bytes()
        kernel = kernel_from_store(
            features,
            (len(labels), num_outputs if basis is None else basis.shape[1]),
            space,
            usable if options.memory is None else options.memory,
            usable,
            dtype,
        )
        num_kept, note = features.shape[2], ""
    else:
        check_pass(
            options.rounded(model.apply),
            model.params,
            inputs,
            path=options.path,
            outputs=initial_logits,
        )
        kernel, num_kept, note = _kernel_of_pass(
            model, inputs, basis, options, space, key, mesh, progress
        )
    if mesh is not None:
        initial_logits, weight_logits, targets = (
            replicate(each, mesh) for each in (initial_logits, weight_logits, targets)
        )
        basis = None if basis is None else replicate(basis, mesh)
    return LinearizedProblem(
        kernel if basis is None else ContrastKernel(kernel, basis),
        initial_logits,
        weight_logits,
        targets,
        loss,
        note=note,
        num_projections=num_kept if num_kept < model.num_params else None,
        num_params=model.num_params,
    )


def _checked_outputs(
    model: Model, inputs: Inputs, labels: Any, loss: LossName, outputs: Outputs, space: Space
) -> int:
    """C, after a look at everything that was given."""
    check_loss(loss)
    count = num_samples(inputs)
    if count != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {count} inputs; give one each")
    num_outputs = check_network(model.apply, model.params, inputs)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")
    if space not in get_args(Space):
        raise ValueError(f"space: unknown {space!r}; give 'auto', 'primal' or 'dual'")
    if outputs not in get_args(Outputs) or (outputs == "contrasts" and loss != "ce"):
        raise ValueError(
            f"outputs: give 'logits', or 'contrasts' with loss='ce'; got {outputs!r} with {loss!r}"
        )
    return num_outputs


def _kernel_of_pass(
    model: Model,
    inputs: Inputs,
    basis: Float[Array, "c k"] | None,
    options: FeatureOptions,
    space: Space,
    key: Key[Array, ""] | None,
    mesh: Mesh | None,
    progress: Progress,
) -> tuple[AbstractKernel, int, str]:
    """Θ from a pass over the data, its D', and what had to give way to memory."""
    usable, count = available_bytes(), num_samples(inputs)
    plan = plan_features(
        model.apply if basis is None else in_contrasts(model.apply, basis),
        model.params,
        inputs,
        options=options,
        key=key,
        mesh=mesh,
    )
    found = compute_features(plan, model.params, inputs, progress=progress)
    check_features(found)
    note = sketch_note(found, count, plan.wanted_projections)
    kernel = kernel_from(found, count, space, mesh, usable)
    num_rows = count * plan.num_outputs
    if space == "auto" and kernel.space == "primal" and plan.num_projections > num_rows:
        note += (
            f"{note and '; '}memory: Θ of {num_rows} rows would take "
            f"{format_bytes(num_rows**2 * plan.dtype.itemsize)} beside its features and is not "
            "formed: "
            "the same curves, but each step takes longer"
        )
    return kernel, plan.num_projections, note
