"""The parts of a report (docs/json.md), from a prediction and what may come with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.by_method import diverged_at, interval_of, intervals, is_calibrated
from ntk_tt.prediction.one_setting import plateau_window
from ntk_tt.prediction.prepared import Outcome
from ntk_tt.report.document import curve, environment
from ntk_tt.runtime.limits import is_positive
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.times.crossing import combine_times, smooth, threshold_time, training_times
from ntk_tt.times.levels import Level, levels_of
from ntk_tt.training import TrainingRun

Flags = Mapping[str, Any]
_CURVES = {
    "loss": "loss",
    "error": "error",
    "val-loss": "validation_loss",
    "val-error": "validation_error",
}


def document_of(
    outcome: Outcome,
    *,
    targets: Sequence[Level] = (),
    price_per_hour: int | float | None = None,
    seconds_per_step: int | float | None = None,
    truth: TrainingRun | None = None,
    task: Flags | None = None,
    optimizer: Flags | None = None,
) -> dict[str, Any]:
    """The whole report of a prediction, and of the real run where there is one.

    Args:
        seconds_per_step: of the machine that will train; None prices this one.
        task, optimizer: what the command line's flags say of them.
    """
    prediction = outcome.predicted.prediction
    validation = None
    if prediction.validation_loss is not None and prediction.validation_error is not None:
        validation = prediction.validation_loss, prediction.validation_error
    levels = levels_of(prediction.loss, prediction.error, tuple(targets), validation)
    steps = outcome.recording.num_steps
    seconds = outcome.train_seconds if seconds_per_step is None else seconds_per_step * steps
    if truth is not None:
        seconds = truth.seconds * steps / (truth.diverged_at or steps)
    return {
        "task": {**task_part(outcome), **(task or {})},
        "optimizer": {**optimizer_part(outcome.optimizer, steps), **(optimizer or {})},
        "prediction": prediction_part(outcome, levels),
        "truth": None if truth is None else truth_part(outcome, truth, levels),
        "cost": cost_part(outcome, seconds, truth, price_per_hour, seconds_per_step),
        "verdict": outcome.verdict._asdict(),
        "environment": environment(outcome.what.seed),
    }


def check_seconds_per_step(seconds: int | float) -> None:
    """Raises ValueError for what is no pace of a machine."""
    if not is_positive(seconds):
        raise ValueError(f"seconds-per-step: must be positive and finite, got {seconds!r}")


def task_part(outcome: Outcome) -> dict[str, Any]:
    """What is learned, by which network, and what the prediction keeps of it."""
    what, problem, stored = outcome.what, outcome.predicted.problem, outcome.predicted.features
    labels = np.asarray(what.labels)
    return {
        "model": what.model.name,
        "num_params": what.model.num_params,
        "total_params": what.model.num_params,
        "data": "arrays",
        "num_classes": what.num_outputs,
        "per_class": np.bincount(labels).tolist() if labels.ndim == 1 else None,
        "num_samples": what.num_samples,
        "loss": what.loss,
        "label_smoothing": what.label_smoothing,
        "num_validation": what.num_validation,
        "augment": None if what.augment is None else what.augment.words,
        "features": None if stored is None else str(stored.folder),
        **problem.facts(),
        "devices": jax.device_count(),
        "notes": [note for note in (what.model.note, problem.note) if note],
        "seed": what.seed,
    }


def optimizer_part(optimizer: OptimizerConfig, num_steps: int) -> dict[str, Any]:
    """The setting, with the numbers that were left to their defaults."""
    numbers, rates = optimizer.numbers, optimizer.learning_rates(num_steps)
    return {
        "name": optimizer.name if optimizer.transformation is None else "transformation",
        "learning_rate": float(rates.max()),
        "schedule": "constant" if (rates == rates[0]).all() else "of the user's own",
        "warmup_steps": None,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "weight_decay": optimizer.weight_decay,
        "betas": [numbers["b1"], numbers["b2"]] if "b1" in numbers else None,
        "eps": numbers.get("eps"),
        "clip_norm": optimizer.clip_norm,
        "weight_ema": optimizer.weight_ema,
        "batch_size": optimizer.batch_size,
        "sampling": optimizer.sampling,
        "steps": num_steps,
    }


def cost_part(
    outcome: Outcome,
    train_seconds: int | float,
    truth: TrainingRun | None,
    price_per_hour: int | float | None,
    seconds_per_step: int | float | None = None,
) -> dict[str, Any]:
    """Seconds without compilation, compilation apart; training estimated from the verdict's real
    steps where there is no truth. With `seconds_per_step` of another machine, price and times are
    that one's.
    """
    steps = outcome.recording.num_steps
    pace = train_seconds / steps if seconds_per_step is None else float(seconds_per_step)
    compile_seconds = outcome.verdict.compile_seconds if truth is None else truth.compile_seconds
    watches: dict[str, Stopwatch] = outcome.watches
    predict_seconds = sum(watch.seconds for watch in watches.values())
    return {
        "predict_seconds": predict_seconds,
        "train_seconds": train_seconds,
        "ratio": train_seconds / predict_seconds,
        "predict_compile_seconds": sum(watch.compile_seconds for watch in watches.values()),
        "train_compile_seconds": compile_seconds,
        "train_measured": truth is not None,
        "train_evaluation_seconds": None if truth is None else truth.evaluation_seconds,
        "seconds_per_step": pace,
        "machine": "this" if seconds_per_step is None else "another",
        "price": None if price_per_hour is None else price_per_hour * pace * steps / 3600,
        "price_per_hour": price_per_hour,
        **{f"{name}_seconds": watch.seconds for name, watch in watches.items()},
    }


def prediction_part(outcome: Outcome, levels: Sequence[Level]) -> dict[str, Any]:
    """Curves and times, with their range over orders of the data and their intervals."""
    predicted, recording = outcome.predicted, outcome.recording
    prediction = predicted.prediction
    return curve(
        prediction,
        prediction.times,
        times_low=prediction.times_low,
        times_high=prediction.times_high,
        levels=[level_part(outcome, level) for level in levels],
        method=outcome.method,
        method_reason=outcome.reason,
        num_seeds=len(prediction.runs),
        real_steps=predicted.real_steps,
        slowdown=predicted.slowdown,
        diverged_at=diverged_at(prediction),
        subset=_subset_part(outcome),
        validation=validation_part(outcome, prediction),
        intervals=intervals(
            outcome.method, predicted, recording.num_steps, recording.smoothing, outcome.verdict
        ),
    )


def level_part(outcome: Outcome, level: Level) -> dict[str, Any]:
    """When one level is reached, with interval and chance where they are known."""
    predicted, recording = outcome.predicted, outcome.recording
    steps = steps_until(outcome, level)
    found: dict[str, Any] = {"low": None, "high": None, "probability": None}
    if is_calibrated(outcome.method, predicted, outcome.verdict):
        found = interval_of(
            outcome.method,
            predicted,
            recording.num_steps,
            recording.smoothing,
            outcome.verdict,
            "loss_below" if level.is_loss else "error_below",
            level.value,
            steps,
            getattr(predicted.prediction, _CURVES[level.of]),
        )
    return {
        "of": level.of,
        "level": level.value,
        "is_target": level.is_target,
        "steps": steps,
        **found,
    }


def steps_until(outcome: Outcome, level: Level) -> int | float | None:
    """The median over orders of the data of the first record below a level; None is "not reached",
    or a prediction so far past the bound that it has no times.
    """
    if not outcome.has_times:
        return None
    if getattr(outcome.predicted.prediction, _CURVES[level.of]) is None:
        raise ValueError(
            f"target: {level.of} is of samples that are not trained on, and there are none; give "
            "some as validation (--validation 0.2)"
        )
    times = [
        {"time": threshold_time(run.steps, _curve(run, level, outcome), level.value)}
        for run in outcome.predicted.prediction.runs
    ]
    return combine_times(times, 0.5)["time"]


def truth_part(outcome: Outcome, truth: TrainingRun, levels: Sequence[Level]) -> dict[str, Any]:
    """The real run, its times read as those of the prediction."""
    recording = outcome.recording
    times = training_times(
        truth.steps,
        truth.loss,
        truth.error,
        **recording.of_times,
        plateau_window=plateau_window(outcome.optimizer, outcome.what.num_samples),
    )
    return curve(
        truth,
        times,
        levels=[
            {
                "of": level.of,
                "level": level.value,
                "steps": threshold_time(truth.steps, _curve(truth, level, outcome), level.value),
            }
            for level in levels
        ],
        diverged_at=truth.diverged_at,
        collapsed_at=truth.collapsed_at,
        validation=validation_part(outcome, truth),
    )


def _subset_part(outcome: Outcome) -> dict[str, Any] | None:
    """What a prediction from a subset is made of; None where it is of all samples."""
    predicted = outcome.predicted
    count = predicted.problem.num_samples
    if count >= outcome.what.num_samples:
        return None
    return {"num_samples": count, "misfit": predicted.misfit}


def validation_part(outcome: Outcome, run: Any) -> dict[str, Any] | None:
    """Loss and error of samples that are not trained on, and where their loss is least, with the
    90 % interval of that step where one is known; None without such samples.
    """
    if getattr(run, "validation_loss", None) is None:
        return None
    curve = smooth(run.validation_loss, outcome.recording.smoothing)
    found: dict[str, Any] = {"step": None, "loss": None, "low": None, "high": None}
    if np.isfinite(curve).any():
        best = int(np.nanargmin(np.where(np.isfinite(curve), curve, np.inf)))
        found |= {"step": int(run.steps[best]), "loss": float(curve[best])}
    if run is outcome.predicted.prediction and (
        is_calibrated(outcome.method, outcome.predicted, outcome.verdict)
    ):
        spread = interval_of(
            outcome.method,
            outcome.predicted,
            outcome.recording.num_steps,
            outcome.recording.smoothing,
            outcome.verdict,
            "loss_below",
            found["loss"] or 0.0,
            found["step"],
        )
        found |= {name: spread[name] for name in ("low", "high")}
    return {
        "loss": run.validation_loss.tolist(),
        "error": run.validation_error.tolist(),
        "num_samples": outcome.what.num_validation,
        "best": found,
    }


def _curve(run: Any, level: Level, outcome: Outcome) -> np.ndarray:
    return smooth(getattr(run, _CURVES[level.of]), outcome.recording.smoothing)
