"""What can be said to be wrong before any data is read or work done."""

import os
import sys
from pathlib import Path

import numpy as np

from ntk_tt.cli.options import DEFAULT_STEPS, Predict, Speed, Training, Watch
from ntk_tt.optimizer import MAX_SEEDS, MAX_STEPS
from ntk_tt.report.parts import check_seconds_per_step
from ntk_tt.runtime.files import check_writable
from ntk_tt.runtime.limits import MAX_PER_CLASS, check_range
from ntk_tt.targets import check_smoothing
from ntk_tt.times.crossing import check_thresholds
from ntk_tt.times.levels import read_target

# of a report, which is read as a whole, and in memory
_MAX_RECORDS = 10**6
_MAX_RECORDS_OF_SEEDS = 2 * 10**7
_MAX_DRAWS = 2**29  # samples of all steps of one order of the data, four bytes each
_MAX_POLL = 86400.0  # a day between two looks


def record_every(options: Predict, full: bool) -> int:
    """Steps between two records: as asked, else each of the full batch, else about 50 in all."""
    return options.record_every or (1 if full else max(1, options.steps // 50))


def check_watch(options: Watch) -> None:
    """Raises ValueError where a number of `ntk-tt watch` is out of its range."""
    for name, value, most in (
        ("poll", options.poll, _MAX_POLL),
        ("seconds-per-step", options.seconds_per_step, sys.float_info.max),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: must be positive, got {value}")
        if value is not None and value > most:
            raise ValueError(f"{name}: must be at most {most:g}, got {value}")


def check_speed(options: Speed) -> None:
    """Raises ValueError where a flag of `speed` is wrong."""
    check_training(options)
    if options.epochs is not None:
        raise ValueError(f"epochs: belongs to predict and verify, got {options.epochs}")
    check_range("timed-steps", options.timed_steps, 2, MAX_STEPS)
    _check_path("file", options.file)


def check_training(options: Training) -> None:
    """Raises ValueError where a flag of the setting is wrong."""
    check_range("steps", options.steps, 1, MAX_STEPS)
    options.check()
    check_smoothing(options.label_smoothing, options.loss)


def check_prediction(options: Predict) -> None:
    """Raises ValueError where a flag of `predict` or `verify` is wrong, alone or with others; the
    optimiser's are checked where it is made (`cli.setting`).
    """
    check_training(options)
    if options.epochs is not None:
        if options.steps != DEFAULT_STEPS:
            raise ValueError(f"epochs: give either steps or epochs, got {options.epochs} and steps")
        if not 0 < options.epochs <= MAX_STEPS:
            raise ValueError(f"epochs: must lie in 0 … {MAX_STEPS}, got {options.epochs}")
    check_thresholds(options.thresholds, options.loss_thresholds)
    for name, value, most in (
        ("record-every", options.record_every, MAX_STEPS),
        ("smoothing", options.smoothing, MAX_STEPS),
        ("seeds", options.seeds, MAX_SEEDS),
    ):
        if value is not None:
            check_range(name, value, 1, most)
    for text in options.target:
        if read_target(text).is_validation and options.validation is None:
            raise ValueError(
                f"target: {text!r} is of samples that are not trained on; give some by "
                "--validation 0.2, or the name of a split"
            )
    if options.validation is not None and options.method not in ("auto", "head", "curvature"):
        raise ValueError(
            f"validation: {options.method!r} does not follow samples that are not trained on; take "
            "--method auto, curvature or head"
        )
    if options.effort is not None and options.method != "auto":
        raise ValueError(
            f"effort: it chooses the method itself, got {options.method!r}; leave one of them out"
        )
    _check_amount(options)
    _check_real_steps(options)
    if options.price_per_hour is not None and not (
        np.isfinite(options.price_per_hour) and options.price_per_hour >= 0
    ):
        raise ValueError(f"price-per-hour: must be 0 or more, got {options.price_per_hour}")
    if options.seconds_per_step is not None:
        if options.device_speed is not None:
            raise ValueError(
                f"seconds-per-step: give that or device-speed, got {options.seconds_per_step} and "
                f"{str(options.device_speed)!r}"
            )
        check_seconds_per_step(options.seconds_per_step)
    _check_files(options)


def _check_amount(options: Predict) -> None:
    full = options.batch_size == "full"
    records = options.steps // record_every(options, full)
    if records > _MAX_RECORDS or records * (1 if full else options.seeds) > _MAX_RECORDS_OF_SEEDS:
        raise ValueError(
            f"record-every: {options.steps} steps make {records} records each of "
            f"{1 if full else options.seeds} orders of the data, and {_MAX_RECORDS} "
            f"({_MAX_RECORDS_OF_SEEDS} "
            f"of all orders) are possible; take a larger number, fewer steps or fewer seeds"
        )
    size = 0 if options.batch_size == "full" else options.batch_size
    # larger ones are refused by the data, by its size
    if size <= MAX_PER_CLASS and options.steps * size > _MAX_DRAWS:
        raise ValueError(
            f"steps: {options.steps} steps of batches of {size} draw {options.steps * size} "
            f"samples, and {_MAX_DRAWS} are possible; take fewer steps or a smaller batch-size"
        )


def _check_real_steps(options: Predict) -> None:
    if options.steps == 1 and (options.method == "one-shot" or options.observe is not None):
        raise ValueError(
            "steps: real steps come before what is predicted, so it takes at least 2, got 1"
        )
    for name, value in (("first-steps", options.first_steps), ("observe", options.observe)):
        if value is not None and not 1 <= value < options.steps:
            raise ValueError(
                f"{name}: must lie in 1 … {options.steps - 1}, before the last of the "
                f"{options.steps} steps, got {value}"
            )
    if options.first_steps is not None and options.method != "one-shot":
        raise ValueError(
            f"first-steps: belongs to --method one-shot, got {options.method!r}; for real steps "
            "that correct another method take --observe"
        )


def _check_files(options: Predict) -> None:
    if options.plot and options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(
            f"plot: cannot write {str(options.plot)!r}; give a name that ends in .png, .pdf or .svg"
        )
    if (
        options.json
        and options.plot
        and os.path.realpath(options.json) == os.path.realpath(options.plot)
    ):
        raise ValueError(f"plot: {str(options.plot)!r} is where --json goes too; give another name")
    for name, path in (("json", options.json), ("html", options.html), ("plot", options.plot)):
        if path is not None:
            _check_path(name, path)


def _check_path(name: str, path: Path) -> None:
    try:
        check_writable(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: cannot write {str(path)!r} "
            f"({getattr(error, 'strerror', None) or error}); choose another path"
        ) from error
