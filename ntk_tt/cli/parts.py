"""The parts of a report (docs/json.md) that come from the flags and from what was loaded."""

from typing import Any

import jax

from ntk_tt.cli.options import Predict
from ntk_tt.cli.setting import peak_rate
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.by_method import Predicted, diverged_at, intervals
from ntk_tt.prediction.setup import Loaded, precision_error
from ntk_tt.prediction.verdict import Verdict
from ntk_tt.report import document as reports
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.training import TrainingRun


def task_part(options: Predict, loaded: Loaded, predicted: Predicted) -> dict[str, Any]:
    """What is learned, by which network, and what the prediction keeps of it."""
    task, model, problem, stored = loaded.task, loaded.model, predicted.problem, predicted.features
    return {
        "model": model.name,
        "weights": options.weights,
        "num_params": model.num_params,
        "total_params": loaded.total_params,
        "trainable": options.trainable,
        "head": options.head,
        "data": options.data,
        "split": options.split,
        "class_names": list(task.class_names),
        "num_classes": task.num_classes,
        "per_class": list(task.per_class),
        "num_samples": len(task.labels),
        "image_size": options.image_size,
        "loss": options.loss,
        "batch_norm": options.batch_norm,
        "projections": options.projections,
        "projection": options.projection,
        "precision": options.precision,
        "precision_error": precision_error(options, loaded),
        "features": None if stored is None else str(stored.folder),
        **problem.facts(),
        "devices": jax.device_count(),
        "notes": [note for note in (model.note, *task.notes, problem.note) if note],
        "seed": options.seed,
    }


def optimizer_part(options: Predict, optimizer: OptimizerConfig) -> dict[str, Any]:
    """The setting, with the numbers that flags left to their defaults."""
    numbers = optimizer.numbers
    return {
        "name": options.optimizer,
        "learning_rate": peak_rate(options),
        "schedule": options.schedule,
        "warmup_steps": options.warmup_steps,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "weight_decay": optimizer.weight_decay,
        "betas": [numbers["b1"], numbers["b2"]] if "b1" in numbers else None,
        "eps": numbers.get("eps"),
        "clip_norm": optimizer.clip_norm,
        "batch_size": optimizer.batch_size,
        "sampling": optimizer.sampling,
        "steps": options.steps,
    }


def cost_part(
    options: Predict, watches: dict[str, Stopwatch], train_seconds: float, truth: TrainingRun | None
) -> dict[str, Any]:
    """Seconds without compilation, compilation apart; training estimated from the verdict's real
    steps where there is no truth.
    """
    predict_seconds = sum(watch.seconds for watch in watches.values())
    price = (
        None if options.price_per_hour is None else options.price_per_hour * train_seconds / 3600
    )
    return {
        "predict_seconds": predict_seconds,
        "train_seconds": train_seconds,
        "ratio": train_seconds / predict_seconds,
        "predict_compile_seconds": sum(watch.compile_seconds for watch in watches.values()),
        "train_compile_seconds": None if truth is None else truth.compile_seconds,
        "train_measured": truth is not None,
        "train_evaluation_seconds": None if truth is None else truth.evaluation_seconds,
        "seconds_per_step": train_seconds / options.steps,
        "price": price,
        "price_per_hour": options.price_per_hour,
        **{f"{name}_seconds": watch.seconds for name, watch in watches.items()},
    }


def prediction_part(
    options: Predict, predicted: Predicted, smoothing: int, verdict: Verdict
) -> dict[str, Any]:
    """Curves and times, with their range over orders of the data and their intervals."""
    prediction = predicted.prediction
    return reports.curve(
        prediction,
        prediction.times,
        times_low=prediction.times_low,
        times_high=prediction.times_high,
        method=options.method,
        num_seeds=len(prediction.runs),
        real_steps=predicted.real_steps,
        slowdown=predicted.slowdown,
        diverged_at=diverged_at(prediction),
        intervals=intervals(options.method, predicted, options.steps, smoothing, verdict),
    )
