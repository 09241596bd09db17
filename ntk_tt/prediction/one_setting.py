"""The training curve and the times of one optimiser setting."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from ntk_tt.dynamics import Method, Trajectory, is_random, simulate
from ntk_tt.optimizer import OptimizerConfig, check_num_seeds, check_num_steps
from ntk_tt.runtime.progress import Progress, part_of, silent
from ntk_tt.surrogate.problem import Problem
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS, combine_times, training_times


class Prediction(eqx.Module):
    """A predicted training curve with its times.

    Attributes:
        steps: (S,) optimiser steps at each record, 0 … T.
        loss, error: (S,) on the training set, averaged over the seeds.
        times: as `training_times` gives them: the median over the seeds (`combine_times`); None is
            "not reached within T".
        times_low, times_high: the least and the greatest over the seeds.
        runs: the curve of each seed (one, where the dynamics have no noise).
        validation_loss, validation_error: (S,) of samples that are not trained on, averaged over
            the seeds; None where there are none.
    """

    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    times: dict
    times_low: dict
    times_high: dict
    runs: tuple[Trajectory, ...]
    validation_loss: np.ndarray | None = None
    validation_error: np.ndarray | None = None


def predict(
    problem: Problem,
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
    beside: Problem | None = None,
    progress: Progress = silent,
) -> Prediction:
    """The training curve and times of one optimiser setting.

    Args:
        problem: from `linearize`, or from `expand`.
        optimizer: the setting.
        num_steps: T.
        method: see `ntk_tt.dynamics.simulate`.
        num_seeds: orders of the data (or noise paths) to average; one is run where there is no
            noise.
        key: of those; key 0 where none is given.
        record_every: steps between records: the resolution of the times.
        thresholds, loss_thresholds, smoothing: see `training_times`.
        beside: of samples that are not trained on, see `ntk_tt.dynamics.replay`.
        progress: called as `progress(done, total)`, in steps of all seeds.

    Raises:
        ValueError: an argument out of range, or a batch larger than the data.
    """
    check_num_steps(num_steps)
    check_num_seeds(num_seeds)
    count = num_seeds if is_random(method, optimizer, problem.num_samples) else 1
    runs = []
    keys = jax.random.split(jax.random.key(0) if key is None else key, count)
    for number, seed_key in enumerate(keys):
        runs.append(
            simulate(
                problem,
                optimizer,
                num_steps,
                method=method,
                key=seed_key,
                record_every=record_every,
                beside=beside,
                progress=part_of(progress, number, count),
            )
        )
        progress(len(runs) * num_steps, count * num_steps)
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
        validation_loss=_mean([run.validation_loss for run in runs]),
        validation_error=_mean([run.validation_error for run in runs]),
    )


def _mean(curves: list[np.ndarray | None]) -> np.ndarray | None:
    known = [curve for curve in curves if curve is not None]
    return np.mean(known, 0) if known else None


def plateau_window(optimizer: OptimizerConfig, num_samples: int) -> int:
    """Steps over which a plateau is judged: one epoch, but at least 10 steps."""
    return max(10, optimizer.steps_per_epoch(num_samples))
