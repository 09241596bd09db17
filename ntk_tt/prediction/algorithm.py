"""Algorithm 1: from a network, its data and an optimiser setting to training times, without
training.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt.dynamics import Method, Trajectory, is_random, simulate
from ntk_tt.features.compute import Precision, compute_features, in_contrasts, plan_features
from ntk_tt.features.projections import ProjectionName, sketch_note
from ntk_tt.features.store import FeatureStore
from ntk_tt.jacobian.bfloat16 import in_bfloat16
from ntk_tt.jacobian.network import (
    Apply,
    check_features,
    check_logits,
    check_network,
    logits_and_tangent,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.kernels.empirical import ntk_tensor_from_features
from ntk_tt.kernels.operators import (
    AbstractKernel,
    ContrastKernel,
    DualKernel,
    PrimalKernel,
    contrast_basis,
)
from ntk_tt.kernels.sharded import sharded_kernel
from ntk_tt.kernels.streaming import StreamedKernel, in_memory
from ntk_tt.losses import LossName, check_loss, encode_targets
from ntk_tt.optimizer import OptimizerConfig, check_num_seeds, check_num_steps
from ntk_tt.runtime.memory import available_bytes, format_bytes, refuse
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.runtime.sharding import replicate
from ntk_tt.surrogate.head import HeadProblem
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS, combine_times, training_times

Space = Literal["auto", "primal", "dual"]
Outputs = Literal["logits", "contrasts"]


class Prediction(eqx.Module):
    """A predicted training curve with its times.

    Attributes:
        steps: (S,) optimiser steps at each record, 0 … T.
        loss, error: (S,) on the training set, averaged over the seeds.
        times: as `training_times` gives them: the median over the seeds (`combine_times`); None is
            "not reached within T".
        times_low, times_high: the least and the greatest over the seeds.
        runs: the curve of each seed (one, where the dynamics have no noise).
    """

    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    times: dict
    times_low: dict
    times_high: dict
    runs: tuple[Trajectory, ...]


def linearize(
    apply: Apply,
    params: PyTree,
    inputs: Float[Array | np.ndarray, "n ..."],
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    *,
    loss: LossName = "ce",
    outputs: Outputs = "logits",
    num_projections: int | str = "auto",
    projection: ProjectionName = "fold",
    space: Space = "auto",
    key: Key[Array, ""] | None = None,
    precision: Precision = "float32",
    memory: int | None = None,
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
        num_projections: D', `auto` or `exact`; see `jacobian_features`.
        projection: which one; see `ntk_tt.projection`.
        space: `dual` holds Θ, `primal` the features, `auto` the smaller.
        key: of the projection; key 0 where none is given.
        precision, mesh: see `jacobian_features`.
        memory: bytes that the features may take on each device. None takes half of what is free,
            for Θ too where it is formed: with `auto`, D' is at most what that allows, and Θ is
            formed (`space`) where it fits beside the features; `LinearizedProblem.note` says what
            had to give way. Over a mesh the features, and Θ where it is formed, stay where they
            were computed, and products with them are collectives.
        features: computed before by `write_features` from `stored_outputs(apply, ...)`; instead of
            all the settings above. They are read into memory where they fit (into `memory`, where
            given), else streamed from disk.
        progress: called after each block of the feature pass.

    Raises:
        ValueError: an argument out of range, inputs and labels of different length, NaN in inputs,
            weights or logits, more memory than there is, or stored features of another shape.

    Cost: that of `jacobian_features`, and of Θ in the dual space.
    """
    check_loss(loss)
    if len(inputs) != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {len(inputs)} inputs; give one each")
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
        kernel = _stored_kernel(
            features,
            (len(inputs), num_outputs if basis is None else basis.shape[1]),
            space,
            usable if memory is None else memory,
            usable,
            dtype,
        )
    else:
        check_pass(
            in_bfloat16(apply) if precision == "bfloat16" else apply,
            params,
            inputs,
            outputs=initial_logits,
        )
        plan = plan_features(
            apply if basis is None else in_contrasts(apply, basis),
            params,
            inputs,
            num_projections=num_projections,
            projection=projection,
            key=key,
            precision=precision,
            memory=memory,
            mesh=mesh,
        )
        found = compute_features(plan, params, inputs, progress=progress)
        check_features(found)
        note = sketch_note(found, len(inputs), plan.wanted_projections)
        kernel = _kernel(found, len(inputs), space, mesh, usable)
        num_rows = len(inputs) * plan.num_outputs
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


def stored_outputs(apply: Apply, num_outputs: int, outputs: Outputs) -> Apply:
    """The network whose features `linearize(..., outputs=outputs, features=...)` takes."""
    return apply if outputs == "logits" else in_contrasts(apply, contrast_basis(num_outputs, float))


def _stored_kernel(
    store: FeatureStore,
    expected: tuple[int, int],
    space: Space,
    budget: int,
    usable: int,
    dtype: Any,
) -> AbstractKernel:
    if tuple(store.shape[:2]) != expected:
        raise ValueError(
            f"features: the store holds (samples, outputs) = {tuple(store.shape[:2])}, but the "
            f"task has {expected}; build it from the same data and outputs"
        )
    if int(np.prod(store.shape)) * dtype.itemsize > budget:
        if space == "dual":
            raise ValueError(
                "space: 'dual' needs the features in memory, and they are too large for it; use "
                "'primal', which streams them"
            )
        return StreamedKernel(store, memory_bytes=budget)
    missing = store.missing()
    if missing:
        raise ValueError(
            f"features: {len(missing)} blocks are missing or damaged, the first is block "
            f"{missing[0]}; run write_features again, it computes only those"
        )
    return _kernel(in_memory(store).astype(dtype), expected[0], space, None, usable)


def _kernel(
    features: Float[Array, "padded c d"],
    num_samples: int,
    space: Space,
    mesh: Mesh | None,
    usable: int,
) -> AbstractKernel:
    """The kernel of these features; `usable` bytes are for them and Θ, which is formed beside
    them.
    """
    num_rows, num_projections = num_samples * features.shape[1], features.shape[2]
    devices = 1 if mesh is None else mesh.size
    needed, held = num_rows**2 * features.dtype.itemsize // devices, features.nbytes // devices
    if space == "dual" and needed + held > usable:
        refuse(
            f"Θ of {num_rows} rows ({format_bytes(needed)}) and the features it is made of",
            needed + held,
            usable,
            "use space='primal', which does not form it",
        )
    dual = space == "dual" or (
        space == "auto" and num_projections > num_rows and needed + held <= usable
    )
    if mesh is not None:
        return sharded_kernel(features, num_samples, mesh, dual=dual)
    if not dual:
        return PrimalKernel(features)
    return DualKernel(ntk_tensor_from_features(features))


def predict(
    problem: LinearizedProblem | HeadProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    method: Method = "replay",
    num_seeds: int = 5,
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    loss_thresholds: Sequence[float] = (),
    smoothing: int = 1,
    progress: Progress = silent,
) -> Prediction:
    """The training curve and times of one optimiser setting.

    Args:
        problem: from `linearize`, or from `linearize_head`.
        optimizer: the setting.
        num_steps: T.
        method: see `ntk_tt.dynamics.simulate`.
        num_seeds: orders of the data (or noise paths) to average; one is run where there is no
            noise.
        key: of those; key 0 where none is given.
        record_every: steps between records: the resolution of the times.
        thresholds, loss_thresholds, smoothing: see `training_times`.
        progress: called after each seed.

    Raises:
        ValueError: an argument out of range, or a batch larger than the data.
    """
    check_num_steps(num_steps)
    check_num_seeds(num_seeds)
    count = num_seeds if is_random(method, optimizer, problem.num_samples) else 1
    runs = []
    for seed_key in jax.random.split(jax.random.key(0) if key is None else key, count):
        runs.append(
            simulate(
                problem,
                optimizer,
                num_steps,
                method=method,
                key=seed_key,
                record_every=record_every,
            )
        )
        progress(len(runs), count)
    return summarize_runs(
        runs,
        plateau_window(optimizer, problem.num_samples),
        thresholds=thresholds,
        loss_thresholds=loss_thresholds,
        smoothing=smoothing,
    )


def summarize_runs(
    runs: Sequence[Trajectory],
    window: int,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    loss_thresholds: Sequence[float] = (),
    smoothing: int = 1,
) -> Prediction:
    """The prediction that the curves of several seeds make; see `training_times`."""
    times = [
        training_times(
            run.steps,
            run.loss,
            run.error,
            thresholds=thresholds,
            loss_thresholds=loss_thresholds,
            smoothing=smoothing,
            plateau_window=window,
        )
        for run in runs
    ]
    return Prediction(
        steps=runs[0].steps,
        loss=np.mean([run.loss for run in runs], 0),
        error=np.mean([run.error for run in runs], 0),
        times=combine_times(times, 0.5),
        times_low=combine_times(times, 0.0),
        times_high=combine_times(times, 1.0),
        runs=tuple(runs),
    )


def plateau_window(optimizer: OptimizerConfig, num_samples: int) -> int:
    """Steps over which a plateau is judged: one epoch, but at least 10 steps."""
    return max(10, optimizer.steps_per_epoch(num_samples))
