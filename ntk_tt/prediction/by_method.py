"""One prediction by any method that the command line names: which passes it takes, which real
steps, and what they cost.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Key

from ntk_tt.dynamics import Method, own_way
from ntk_tt.dynamics.trajectory import Trajectory
from ntk_tt.features.contrasts import Outputs
from ntk_tt.features.store import FeatureStore
from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.prediction.one_setting import Prediction, plateau_window, predict, summarize_runs
from ntk_tt.prediction.one_shot import check_beginning, predict_after
from ntk_tt.prediction.setup import Loaded, Setup, find_features
from ntk_tt.prediction.verdict import HOPELESS_MARGIN, Verdict
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.sharding import sample_mesh
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.linear_pass import linearize
from ntk_tt.surrogate.problem import Problem
from ntk_tt.times.calibration import Interval, has_interval, interval, slowdown, slowed
from ntk_tt.times.crossing import continued_time, smooth
from ntk_tt.times.online import Predictor
from ntk_tt.training import TrainingRun, finetune

CommandLineMethod = Literal[
    "curvature", "head", "one-shot", "replay", "ode", "sde", "sde-diagonal", "sde-diagonal-constant"
]


TRAINED = ("head", "curvature", "one-shot")  # by a small network, with any optimiser


@dataclasses.dataclass(frozen=True)
class Recording:
    """How curves are recorded and read, of prediction and truth alike."""

    num_steps: int
    record_every: int
    thresholds: tuple[float, ...]
    loss_thresholds: tuple[float, ...]
    smoothing: int

    @property
    def of_times(self) -> dict[str, Any]:
        return {
            "thresholds": self.thresholds,
            "loss_thresholds": self.loss_thresholds,
            "smoothing": self.smoothing,
        }


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A prediction and what came with it.

    Attributes:
        problem: that was replayed.
        prediction: its curve and times.
        features: the store that the features were found in, or None.
        real_steps: real training steps that the prediction has seen.
        slowdown: by which its times were multiplied.
        is_calibrated: whether runs with such an optimiser are among those that slowdown and
            intervals come from: SGD alone.
        watches: of the parts of the work.
    """

    problem: Problem
    prediction: Prediction
    features: FeatureStore | None
    real_steps: int
    watches: dict[str, Stopwatch]
    slowdown: float = 1.0
    is_calibrated: bool = True


def predict_by(
    method: CommandLineMethod,
    setup: Setup,
    loaded: Loaded,
    optimizer: OptimizerConfig,
    recording: Recording,
    *,
    num_seeds: int = 5,
    first_steps: int | None = None,
) -> Predicted:
    """The prediction of one setting; the feature pass is looked for on disk where the frozen kernel
    takes one.

    Raises:
        ValueError: an optimiser that the method does not know, or whatever is out of range.
    """
    if method not in TRAINED:
        check_sgd(optimizer, method)
    features, dynamics = Stopwatch(), Stopwatch()
    key, orders = jax.random.key(setup.seed), jax.random.key(setup.seed + 1)
    model, images, labels = loaded.model, loaded.images, loaded.task.labels
    stored = None
    dynamics_method: Method = "replay"
    if method == "one-shot":
        with features, progress_bar("features") as progress:
            shot = predict_after(
                model,
                images,
                labels,
                optimizer,
                recording.num_steps,
                first_steps=first_steps,
                loss=setup.loss,
                options=setup.options,
                num_seeds=num_seeds,
                record_every=recording.record_every,
                seed=setup.seed + 3,
                key=key,
                progress=progress,
            )
        with dynamics:
            prediction = summarize_runs(
                shot.trajectories, plateau_window(optimizer, len(labels)), **recording.of_times
            )
        return Predicted(
            shot.problem,
            prediction,
            None,
            int(shot.run.steps[-1]),
            {"features": features, "dynamics": dynamics},
            is_calibrated=optimizer.is_sgd,
        )
    if method in ("head", "curvature"):
        with features, progress_bar("features") as progress:
            problem = expand(
                model,
                images,
                labels,
                curvature=method == "curvature",
                way=own_way(optimizer, recording.num_steps, key=orders),
                loss=setup.loss,
                options=setup.options,
                key=key,
                progress=progress,
            )
            jax.block_until_ready(problem)
    else:
        dynamics_method = method
        # The paper's diagonal noise lives in the projected coordinates of all C logits.
        diagonal = method.startswith("sde-diagonal")
        outputs: Outputs = "contrasts" if setup.loss == "ce" and not diagonal else "logits"
        with features, progress_bar("features") as progress:
            stored = find_features(setup, loaded, outputs)
            problem = linearize(
                model.apply,
                model.params,
                images,
                labels,
                loss=setup.loss,
                outputs=outputs,
                options=setup.options,
                space="primal" if diagonal else "auto",
                key=key,
                mesh=sample_mesh() if stored is None and jax.device_count() > 1 else None,
                features=stored,
                progress=progress,
            )
            jax.block_until_ready(problem)
    with dynamics, progress_bar("dynamics") as progress:
        prediction = predict(
            problem,
            optimizer,
            recording.num_steps,
            method=dynamics_method,
            num_seeds=num_seeds,
            key=orders,
            record_every=recording.record_every,
            progress=progress,
            **recording.of_times,
        )
    watches = {"features": features, "dynamics": dynamics}
    return Predicted(problem, prediction, stored, 0, watches, is_calibrated=optimizer.is_sgd)


def as_slow_as(
    predicted: Predicted,
    method: CommandLineMethod,
    margin: float,
    recording: Recording,
    optimizer: OptimizerConfig,
    num_samples: int,
) -> Predicted:
    """The prediction with its time, after the real steps it begins with, as much slower as runs of
    this stability margin were (`ntk_tt.times.calibration`).
    """
    factor = slowdown(method, margin) if predicted.is_calibrated else 1
    if factor == 1:
        return predicted
    runs = []
    for run in predicted.prediction.runs:
        losses, errors = (
            slowed(run.steps, np.asarray(curve), factor, predicted.real_steps)
            for curve in (run.loss, run.error)
        )
        runs.append(Trajectory(run.steps, losses, errors))
    return dataclasses.replace(
        predicted,
        prediction=summarize_runs(
            runs, plateau_window(optimizer, num_samples), **recording.of_times
        ),
        slowdown=factor,
    )


def observed(
    predicted: Predicted,
    method: CommandLineMethod,
    run: TrainingRun,
    recording: Recording,
    optimizer: OptimizerConfig,
    num_samples: int,
) -> Predicted:
    """The prediction corrected by the first records of a real run (`ntk_tt.times.online`)."""
    before = predicted.prediction
    predictor = Predictor(
        before.steps,
        before.loss,
        error=before.error,
        method=method if has_interval(method) else "replay",
    )
    for step, loss in zip(run.steps, run.loss, strict=True):
        predictor.observe(int(step), float(loss))
    forecast = predictor.forecast()
    seen = int(run.steps[-1])
    error = np.where(
        before.steps <= seen,
        np.interp(before.steps, run.steps, run.error),
        np.asarray(forecast.error),
    )
    prediction = summarize_runs(
        [Trajectory(before.steps, forecast.loss, error)],
        plateau_window(optimizer, num_samples),
        **recording.of_times,
    )
    return dataclasses.replace(predicted, prediction=prediction, real_steps=seen)


def first_real_steps(
    setup: Setup, loaded: Loaded, optimizer: OptimizerConfig, num_steps: int, record_every: int
) -> TrainingRun:
    """The beginning of the real run, in the order of the data that `verify` takes.

    Raises:
        ValueError: it diverges.
    """
    with progress_bar("first real steps") as progress:
        run = finetune(
            loaded.model.apply,
            loaded.model.params,
            loaded.images,
            loaded.task.labels,
            optimizer,
            num_steps,
            loss=setup.loss,
            seed=setup.seed + 2,
            record_every=record_every,
            progress=progress,
        )
    check_beginning(run, "observed", setup.loss, loaded.task.labels)
    return run


def first_order(setup: Setup, num_runs: int) -> Key[Array, ""]:
    """The key of the order of the data of a prediction's first run, of so many."""
    return jax.random.split(jax.random.key(setup.seed + 1), num_runs)[0]


def is_hopeless(verdict: Verdict) -> bool:
    """Whether a refused prediction is so far past the bound, or so broken, that not even its times
    mean anything.
    """
    return verdict.trust == "none" and not (
        verdict.stability_margin >= HOPELESS_MARGIN and math.isfinite(verdict.stability_margin)
    )


def without_times(predicted: Predicted) -> Predicted:
    """The prediction with nothing reached."""

    def none(times: dict) -> dict:
        return {
            name: none(time) if isinstance(time, dict) else None for name, time in times.items()
        }

    before = predicted.prediction
    times, low, high = (none(each) for each in (before.times, before.times_low, before.times_high))
    return dataclasses.replace(
        predicted,
        prediction=dataclasses.replace(before, times=times, times_low=low, times_high=high),
    )


def diverged_at(prediction: Prediction) -> int | None:
    """The first record at which the predicted loss is not finite."""
    finite = np.isfinite(prediction.loss)
    return None if finite.all() else int(prediction.steps[int(finite.argmin())])


def intervals(
    method: CommandLineMethod,
    predicted: Predicted,
    num_steps: int,
    smoothing: int,
    verdict: Verdict,
) -> dict[str, dict[str, dict[str, Any]]] | None:
    """90 % intervals of the threshold times and the probability that they are reached within T;
    None for a method or an optimiser without calibration, and for a prediction that is refused.

    A level that is not reached within T has the probability of the time at which the curve,
    continued as it ends, reaches it: at most one half.
    """
    if not has_interval(method) or not predicted.is_calibrated or verdict.trust == "none":
        return None
    spread: Interval = interval(
        method,
        predicted.real_steps / num_steps if method != "one-shot" else 0.0,
        verdict.stability_margin,
    )

    prediction = predicted.prediction

    def of(family: str, curve: np.ndarray, level: float, step: Any) -> dict[str, Any]:
        time = step
        if step is None:
            smoothed, in_stairs = smooth(curve, smoothing), family == "error_below"
            continued = continued_time(prediction.steps, smoothed, level, in_stairs=in_stairs)
            # the mean curve may get there although the median run does not
            time = (
                None if continued is None else max(continued, math.nextafter(num_steps, math.inf))
            )
        if time is None:
            return {"low": None, "high": None, "probability": 0.0}
        if time <= predicted.real_steps:
            return {"low": round(time), "high": round(time), "probability": 1.0}
        low, high = (
            max(float(predicted.real_steps), time * factor) for factor in (spread.low, spread.high)
        )
        return {
            "low": round(low) if low <= num_steps else None,
            "high": round(high) if step is not None and high <= num_steps else None,
            "probability": spread.reached_within(num_steps, time),
        }

    return {
        family: {
            name: of(family, curve, float(name), step)
            for name, step in prediction.times[family].items()
        }
        for family, curve in (("loss_below", prediction.loss), ("error_below", prediction.error))
    }
