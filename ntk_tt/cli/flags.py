"""What the flags say of a report's parts (docs/json.md)."""

from typing import Any

from ntk_tt.cli.options import Predict
from ntk_tt.cli.setting import peak_rate
from ntk_tt.prediction.prepared import Outcome
from ntk_tt.prediction.setup import Loaded, precision_error
from ntk_tt.times.levels import Level, read_target


def task_flags(options: Predict, loaded: Loaded, outcome: Outcome) -> dict[str, Any]:
    """What is learned, as it was asked for."""
    task, note = loaded.task, outcome.predicted.problem.note
    return {
        "weights": options.weights,
        "total_params": loaded.total_params,
        "trainable": options.trainable,
        "head": options.head,
        "data": options.data,
        "split": options.split,
        "class_names": list(task.class_names),
        "num_classes": task.num_classes,
        "per_class": list(task.per_class),
        "image_size": None if task.is_text else options.side,
        "max_length": getattr(loaded.model.tokenize, "max_length", None),
        "batch_norm": options.batch_norm,
        "projections": options.projections,
        "projection": options.projection,
        "precision": options.precision,
        "precision_error": precision_error(options, loaded),
        "notes": [each for each in (*loaded.notes, note) if each],
    }


def optimizer_flags(options: Predict) -> dict[str, Any]:
    """The setting, as it was asked for."""
    return {
        "name": options.optimizer,
        "learning_rate": peak_rate(options),
        "schedule": options.schedule,
        "warmup_steps": options.warmup_steps,
    }


def targets_of(options: Predict) -> tuple[Level, ...]:
    """The levels that were asked for.

    Raises:
        ValueError: one is neither a loss nor an error.
    """
    return tuple(read_target(text) for text in options.target)
