"""What is made of a prediction once it is there: slowed, corrected by real steps, refused, and with
its intervals.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from ntk_tt.dynamics.trajectory import Trajectory
from ntk_tt.features.store import FeatureStore
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.one_setting import Prediction, plateau_window, summarize_runs
from ntk_tt.prediction.one_shot import check_beginning
from ntk_tt.prediction.verdict import HOPELESS_MARGIN, Verdict
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.problem import Problem
from ntk_tt.times.calibration import Interval, has_interval, interval, slowdown, slowed
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS, continued_time, smooth
from ntk_tt.times.online import Predictor
from ntk_tt.training import TrainingRun, finetune

PredictionMethod = Literal[
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

    @classmethod
    def usual(
        cls, num_steps: int, is_full: bool, record_every: int | None, smoothing: int | None
    ) -> "Recording":
        """As it is where nothing else is asked for, with full batches or with mini-batches."""
        return cls(
            num_steps,
            record_every or (1 if is_full else max(1, num_steps // 50)),
            DEFAULT_THRESHOLDS,
            (),
            smoothing or (1 if is_full else 3),
        )

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
        misfit: of a subset, mean |log| of the loss that its halves predict over its own; intervals
            are so much wider.
    """

    problem: Problem
    prediction: Prediction
    features: FeatureStore | None
    real_steps: int
    watches: dict[str, Stopwatch]
    slowdown: float = 1.0
    is_calibrated: bool = True
    misfit: float = 0.0


def as_slow_as(
    predicted: Predicted,
    method: PredictionMethod,
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
        slow: dict[str, Any] = {
            name: slowed(run.steps, np.asarray(curve), factor, predicted.real_steps)
            for name in ("loss", "error", "validation_loss", "validation_error")
            if (curve := getattr(run, name)) is not None
        }
        runs.append(Trajectory(run.steps, **slow))
    return dataclasses.replace(
        predicted,
        prediction=summarize_runs(
            runs, plateau_window(optimizer, num_samples), **recording.of_times
        ),
        slowdown=factor,
    )


def observed(
    predicted: Predicted,
    method: PredictionMethod,
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
    what: Finetuning, optimizer: OptimizerConfig, num_steps: int, record_every: int
) -> TrainingRun:
    """The beginning of the real run, in the order of the data that `verify` takes.

    Raises:
        ValueError: it diverges.
    """
    with progress_bar("first real steps") as progress:
        run = finetune(
            what.model,
            what.inputs,
            what.targets,
            optimizer,
            num_steps,
            loss=what.loss,
            seed=what.seed + 2,
            record_every=record_every,
            augment=what.augment,
            progress=progress,
        )
    check_beginning(run, "observed", what.loss, what.targets)
    return run


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
    method: PredictionMethod,
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
    if not is_calibrated(method, predicted, verdict):
        return None
    return {
        family: {
            name: interval_of(
                method, predicted, num_steps, smoothing, verdict, family, float(name), step
            )
            for name, step in predicted.prediction.times[family].items()
        }
        for family in ("loss_below", "error_below")
    }


def is_calibrated(method: PredictionMethod, predicted: Predicted, verdict: Verdict) -> bool:
    """Whether such a prediction has intervals."""
    return has_interval(method) and predicted.is_calibrated and verdict.trust != "none"


def interval_of(
    method: PredictionMethod,
    predicted: Predicted,
    num_steps: int,
    smoothing: int,
    verdict: Verdict,
    family: Literal["loss_below", "error_below"],
    level: float,
    step: int | float | None,
    curve: np.ndarray | None = None,
) -> dict[str, Any]:
    """`{"low", "high", "probability"}` of one level, predicted to be reached at `step`; `curve` is
    that of samples that are not trained on, where it is a level of theirs.
    """
    spread: Interval = interval(
        method,
        predicted.real_steps / num_steps if method != "one-shot" else 0.0,
        verdict.stability_margin,
    )
    prediction, time = predicted.prediction, step
    if time is None:
        in_stairs = family == "error_below"
        if curve is None:
            curve = prediction.error if in_stairs else prediction.loss
        curve = smooth(curve, smoothing)
        continued = continued_time(prediction.steps, curve, level, in_stairs=in_stairs)
        # the mean curve may get there although the median run does not
        time = None if continued is None else max(continued, math.nextafter(num_steps, math.inf))
    if time is None:
        return {"low": None, "high": None, "probability": 0.0}
    if time <= predicted.real_steps:
        return {"low": round(time), "high": round(time), "probability": 1.0}
    low, high = (
        max(float(predicted.real_steps), time * factor)
        for factor in (
            spread.low / (1 + predicted.misfit),
            spread.high * (1 + predicted.misfit),
        )
    )
    return {
        "low": round(low) if low <= num_steps else None,
        "high": round(high) if step is not None and high <= num_steps else None,
        "probability": spread.reached_within(num_steps, time),
    }
