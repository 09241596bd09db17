"""The pass that makes a linear problem: logits, their tangent and the kernel at the start."""

from typing import get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import Outputs, contrast_basis, in_contrasts
from ntk_tt.features.dimension import sketch_note
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.features.plan import plan_features
from ntk_tt.features.store import FeatureStore
from ntk_tt.jacobian.network import (
    Apply,
    check_features,
    check_logits,
    check_network,
    logits_and_tangent,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.kernels.choice import Space, kernel_from, kernel_from_store
from ntk_tt.kernels.operators import ContrastKernel
from ntk_tt.losses import LossName, check_loss, encode_targets
from ntk_tt.runtime.input_trees import Inputs, num_samples
from ntk_tt.runtime.memory import available_bytes, format_bytes
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.runtime.sharding import replicate
from ntk_tt.surrogate.linear import LinearizedProblem


@takes_former_keywords
def linearize(
    apply: Apply,
    params: PyTree,
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
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own (batch norm frozen).
        params: the pre-trained weights w₀.
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
        features: computed before by `write_features` from `stored_outputs(apply, ...)`; instead of
            all options but `memory`: they are read into memory where they fit (into `memory`,
            where given), else streamed from disk.
        progress: called after each block of the feature pass.

    Raises:
        ValueError: an argument out of range, inputs and labels of different length, NaN in inputs,
            weights or logits, more memory than there is, or stored features of another shape.

    Cost: that of `jacobian_features`, and of Θ in the dual space.
    """
    check_loss(loss)
    count = num_samples(inputs)
    if count != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {count} inputs; give one each")
    num_outputs = check_network(apply, params, inputs)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")
    if space not in get_args(Space):
        raise ValueError(f"space: unknown {space!r}; give 'auto', 'primal' or 'dual'")
    if outputs not in get_args(Outputs) or (outputs == "contrasts" and loss != "ce"):
        raise ValueError(
            f"outputs: give 'logits', or 'contrasts' with loss='ce'; got {outputs!r} with {loss!r}"
        )
    # the dynamics run in one type, whatever those of parameters, logits and stored features
    dtype = working_type(params)
    initial_logits, weight_logits = (
        each.astype(dtype) for each in logits_and_tangent(apply, params, inputs, params)
    )
    check_logits(initial_logits)
    targets = encode_targets(labels, num_outputs, dtype, loss=loss)
    basis = contrast_basis(num_outputs, dtype) if outputs == "contrasts" else None
    usable, note = available_bytes(), ""
    if features is not None:
        num_kept = features.shape[2]
        kernel = kernel_from_store(
            features,
            (count, num_outputs if basis is None else basis.shape[1]),
            space,
            usable if options.memory is None else options.memory,
            usable,
            dtype,
        )
    else:
        check_pass(
            options.rounded(apply), params, inputs, path=options.path, outputs=initial_logits
        )
        plan = plan_features(
            apply if basis is None else in_contrasts(apply, basis),
            params,
            inputs,
            options=options,
            key=key,
            mesh=mesh,
        )
        found = compute_features(plan, params, inputs, progress=progress)
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
        num_kept = plan.num_projections
    if mesh is not None:
        initial_logits, weight_logits, targets = (
            replicate(each, mesh) for each in (initial_logits, weight_logits, targets)
        )
        basis = None if basis is None else replicate(basis, mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return LinearizedProblem(
        kernel if basis is None else ContrastKernel(kernel, basis),
        initial_logits,
        weight_logits,
        targets,
        loss,
        note=note,
        num_projections=num_kept if num_kept < num_params else None,
        num_params=num_params,
    )
