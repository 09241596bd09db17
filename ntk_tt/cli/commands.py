"""The command line: flags in, tables, JSON and a figure out. The contract of the JSON is
docs/json.md.
"""

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ntk_tt.data import describe_data, list_data
from ntk_tt.features.store import FeatureStore, default_folder
from ntk_tt.models import list_models
from ntk_tt.optimizer import MAX_SEEDS, MAX_STEPS, OptimizerConfig, ScheduleName, named_schedule
from ntk_tt.prediction.algorithm import Outputs, plateau_window
from ntk_tt.prediction.by_method import (
    CommandLineMethod,
    Predicted,
    Reading,
    as_slow_as,
    diverged_at,
    first_order,
    first_real_steps,
    intervals,
    is_hopeless,
    observed,
    predict_by,
    without_times,
)
from ntk_tt.prediction.setup import Loaded, Setup, build_features, load, precision_error
from ntk_tt.prediction.verdict import assess
from ntk_tt.report import document as reports
from ntk_tt.report.figure import plot_report
from ntk_tt.runtime import interruption, terminal
from ntk_tt.runtime.compilation import keep_compiled
from ntk_tt.runtime.files import check_writable
from ntk_tt.runtime.limits import MAX_PER_CLASS, check_range
from ntk_tt.runtime.memory import check_limits, format_bytes
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.head import HeadProblem
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS, check_thresholds, training_times
from ntk_tt.times.watcher import LossLog, Status, Watcher, follow, predictor_of
from ntk_tt.training import TrainingRun, finetune

# of a report, which is read as a whole, and in memory
_MAX_RECORDS, _MAX_RECORDS_OF_SEEDS = (
    10**6,
    2 * 10**7,
)
_MAX_DRAWS = 2**29  # samples of all steps of one order of the data, four bytes each
_MAX_POLL = 86400.0  # a day between two looks


@dataclasses.dataclass(frozen=True)
class Features(Setup):
    """Compute the features of a network on a task to disk, resumable; `predict` and `verify` with
    the same flags then find them.
    """

    contrasts: bool = True
    """For cross-entropy the C−1 contrasts of the outputs, which is what `predict` uses, instead of
    all C.
    """


@dataclasses.dataclass(frozen=True)
class Models:
    """List the networks that have a name."""


@dataclasses.dataclass(frozen=True)
class Data:
    """List the paper's data sets, or describe one source: images, classes, images of a class,
    imbalance.
    """

    source: Annotated[str | None, tyro.conf.Positional] = None
    """Such as folder:PATH; without it, the list."""
    split: str = "train"
    """Of the data set."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Remaining steps and time of a run, from its loss log as it grows: CSV with a header, JSON
    lines, Python dicts, or trainer_state.json.
    """

    log: Annotated[Path, tyro.conf.Positional]
    """With a column or key for the step and one for the loss."""
    prediction: Path | None = None
    """Report of `ntk-tt predict --json` for this run, which the log corrects; without it the log
    alone is continued.
    """
    target: float | None = None
    """Loss to wait for; by default a tenth of the first one."""
    step_column: str | None = None
    """By default step, global_step, iteration, steps, … (docs/json.md), and epoch where there are
    no steps.
    """
    loss_column: str | None = None
    """By default loss, train_loss, train/loss, training_loss, … (docs/json.md)."""
    seconds_per_step: float | None = None
    """By default by the log's own clock, or measured while watching."""
    poll: float = 1.0
    """Seconds between two looks at the log."""
    once: bool = False
    """Print the present status and stop."""


@dataclasses.dataclass(frozen=True)
class Predict(Setup):
    """Predict how long fine-tuning takes, without training. Without flags: the bundled network on
    handwritten digits.
    """

    learning_rate: float = 0.001
    """The highest rate of the schedule."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's momentum instead of the heavy ball."""
    weight_decay: float = 0.0
    """L2 coefficient."""
    batch_size: int | Literal["full"] = "full"
    """Samples a step; `full` is gradient descent."""
    sampling: Literal["epoch", "replacement"] = "epoch"
    """Shuffle once an epoch, or draw with replacement."""
    steps: int = 150
    """Optimiser steps, T."""
    schedule: ScheduleName = "constant"
    """Of the learning rate."""
    method: CommandLineMethod = "replay"
    """How the curve is predicted, see docs/method.md: `replay`, `ode`, `sde`, … freeze the kernel;
    `head` keeps the head real; `curvature` adds the backbone's; `one-shot` begins with real
    steps.
    """
    first_steps: int | None = None
    """Real steps that `one-shot` begins with; by default what costs as much as its feature pass, at
    most a quarter.
    """
    observe: int | None = None
    """Take so many real steps and correct the prediction by them (the closed loop)."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Batch-norm statistics in real training; the prediction always freezes them."""
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    """In (0, 1): ε of the ε-times, and levels of loss and error."""
    loss_thresholds: tuple[float, ...] = (1.0,)
    """Further levels of the loss, any positive number."""
    seeds: int = 5
    """Orders of the data to predict over; the times are their median, with their range."""
    record_every: int | None = None
    """Steps between records of the full-set loss; by default 1 for the full batch, else about 50
    records.
    """
    smoothing: int | None = None
    """Records in the running mean before times are read, of prediction and truth alike; by default
    1 for the full batch, else 3.
    """
    price_per_hour: float | None = None
    """Of the machine that will train; prints what training costs."""
    json: Path | None = None
    """Write the whole report here."""
    plot: Path | None = None
    """Draw the curves here (.png, .pdf or .svg)."""


@dataclasses.dataclass(frozen=True)
class Verify(Predict):
    """Predict, then really train, and print both side by side."""


class CannotSave(Exception):
    """The work is done and printed, but a file that was asked for could not be written."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Whatever happens is one line; exit codes are in docs/json.md, and
    NTK_TT_TRACEBACK=1 lets unforeseen exceptions through.
    """
    if arguments is None:
        interruption.answer()
    with terminal.safe_output() as output:
        status = _status(arguments)
    interruption.leave(status)
    if output.error is not None:
        if terminal.is_closed_by_reader(output.error):
            sys.exit(128 + 13)  # as a shell says of what SIGPIPE ended
        terminal.say(
            f"cannot write to standard output: {output.error.strerror}; files that were asked for "
            "are written"
        )
        sys.exit(status or 1)
    if status:
        sys.exit(status)


def _status(arguments: list[str] | None) -> int:
    """The exit status of a command; what went wrong has been said."""
    commands = (
        Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Features, tyro.conf.subcommand("features")]
        | Annotated[Watch, tyro.conf.subcommand("watch")]
        | Annotated[Models, tyro.conf.subcommand("models")]
        | Annotated[Data, tyro.conf.subcommand("data")]
    )
    options: Any = None
    try:
        options = tyro.cli(
            commands,  # pyright: ignore[reportArgumentType,reportCallIssue]
            prog="ntk-tt",
            description="How long fine-tuning will take, before you start it.",
            args=arguments,
        )
        _execute(options)
    except CannotSave as error:
        terminal.say(str(error))
        return 1
    except ValueError as error:
        place = _place_in_users_file(error, options)
        terminal.say(
            (f"model: {place}: " if place else "")
            + str(error)
            + ("" if _is_ours(error) else "; NTK_TT_TRACEBACK=1 shows where")
        )
        return 2
    except OSError as error:
        if error is not getattr(sys.stdout, "error", None):
            own = (error.strerror or "").startswith("store: ")  # says where and what to do itself
            terminal.say(
                str(error.strerror)
                if own
                else f"cannot read or write {error.filename or 'a file'}: "
                f"{error.strerror or error}; check its permissions, free space or choose "
                "another path"
            )
        return 1
    except KeyboardInterrupt as stopped:
        line, status = interruption.describe(stopped)
        terminal.say(f"{line}{stopped}")
        return status
    except Exception as error:
        return _fault(error, options)
    return 0


def _execute(options: Any) -> None:
    if isinstance(options, Features | Predict):
        check_limits()
        with contextlib.suppress(ValueError):  # no home folder: nothing is kept
            keep_compiled(default_folder() / "compiled")
    match options:
        case Features():
            features(options)
        case Watch():
            watch(options)
        case Models():
            reports.print_rows(list_models())
        case Data():
            reports.print_rows(
                list_data()
                if options.source is None
                else [describe_data(options.source, split=options.split)]
            )
        case _:
            run(options)


def _fault(error: Exception, options: Any) -> int:
    """Says what nobody foresaw in one line, and whose fault it is; returns the exit status."""
    if os.environ.get("NTK_TT_TRACEBACK"):
        raise error
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = text if len(text) <= 500 else f"{text[:500]}…"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        terminal.say(
            f"out of memory ({text[:200]}); take a smaller --memory, --projections, --per-class, "
            "--classes, --image-size or --batch-size"
        )
        return 1
    if isinstance(error, RecursionError):
        terminal.say(
            "something in the input or the network is nested too deeply for Python; "
            "NTK_TT_TRACEBACK=1 shows where"
        )
        return 1
    if place := _place_in_users_file(error, options):
        terminal.say(
            f"model: {place}: {text}; correct it (NTK_TT_TRACEBACK=1 shows the whole way there)"
        )
        return 2
    terminal.say(
        f"this is a fault of ntk-tt, not of yours: {text}; please report it with what "
        "NTK_TT_TRACEBACK=1 ntk-tt … prints"
    )
    return 70


def _is_ours(error: Exception) -> bool:
    """Whether the package itself raised it, so that its text is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or Path(__file__).parents[1] in Path(frames[-1].filename).parents


def _place_in_users_file(error: Exception, options: Any) -> str:
    """`FILE.py, line 12, in apply` where a network of the user's own was at work; empty
    otherwise.
    """
    file, _, name = str(getattr(options, "model", "")).rpartition(":")
    if not name or not file.endswith(".py"):
        return ""
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.realpath(frame.filename) == os.path.realpath(file)
    ]
    return f"{file}, line {found[-1].lineno}, in {found[-1].name}" if found else ""


def features(options: Features) -> FeatureStore:
    """Everything behind `ntk-tt features`."""
    options.check()
    loaded = load(options)
    reports.print_notes([loaded.model.note, *loaded.task.notes])
    outputs: Outputs = "contrasts" if options.loss == "ce" and options.contrasts else "logits"
    with Stopwatch() as watch, progress_bar("features") as progress:
        store = build_features(options, loaded, outputs, progress)
    num_samples, num_outputs, num_projections = store.shape
    print(
        f"features: {num_samples} samples × {num_outputs} outputs × D' = {num_projections}, "
        f"{format_bytes(num_samples * num_outputs * num_projections * store.dtype.itemsize)} in "
        f"{store.folder}; {watch.seconds:.1f} s (+ {watch.compile_seconds:.1f} s compilation)"
    )
    return store


def watch(options: Watch) -> None:
    """Everything behind `ntk-tt watch`."""
    for name, value, most in (
        ("poll", options.poll, _MAX_POLL),
        ("seconds-per-step", options.seconds_per_step, sys.float_info.max),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: must be positive, got {value}")
        if value is not None and value > most:
            raise ValueError(f"{name}: must be at most {most:g}, got {value}")
    predictor, pace = (
        (None, None) if options.prediction is None else predictor_of(options.prediction)
    )
    watcher = Watcher(
        target=options.target,
        predictor=predictor,
        seconds_per_step=options.seconds_per_step,
        expected_seconds_per_step=pace if options.once else None,
    )
    follow(
        LossLog(options.log, step=options.step_column, loss=options.loss_column),
        watcher,
        _show,
        poll_seconds=options.poll,
        once=options.once,
        note=lambda text: terminal.say(f"note: {text}"),
    )


def _show(status: Status) -> None:
    print(status, flush=True)
    terminal.check_output()


def run(options: Predict) -> dict[str, Any]:
    """Everything behind `predict` and `verify`; returns the report."""
    _check(options)
    loaded = load(options)
    task, model, images = loaded.task, loaded.model, loaded.images
    reports.print_notes([model.note, *task.notes])
    optimizer = OptimizerConfig(
        learning_rate=named_schedule(options.schedule, options.learning_rate, options.steps),
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        batch_size=None if options.batch_size == "full" else options.batch_size,
        sampling=options.sampling,
    )
    optimizer.checked_batch_size(len(task.labels))
    full = optimizer.is_full_batch(len(task.labels))
    record_every = _record_every(options, full)
    smoothing = options.smoothing or (1 if full else 3)

    reading = Reading(
        options.steps, record_every, options.thresholds, options.loss_thresholds, smoothing
    )
    predicted = predict_by(
        options.method,
        options,
        loaded,
        optimizer,
        reading,
        num_seeds=options.seeds,
        first_steps=options.first_steps,
    )
    reports.print_notes([predicted.problem.note])
    watches = dict(predicted.watches)
    with Stopwatch() as watches["verdict"]:
        verdict = assess(
            predicted.problem,
            model.apply,
            model.params,
            images,
            task.labels,
            optimizer,
            options.steps,
            path=predicted.prediction.runs[0].states,
            curve=predicted.prediction.loss,
            key=first_order(options, len(predicted.prediction.runs)),
            seed=options.seed,
        )
    predicted = as_slow_as(
        predicted, options.method, verdict.stability_margin, reading, optimizer, len(task.labels)
    )
    if options.observe is not None:
        with Stopwatch() as watches["observed"]:
            run_so_far = first_real_steps(
                options,
                loaded,
                optimizer,
                options.observe,
                min(record_every, max(1, options.observe // 8)),
            )
            predicted = observed(
                predicted, options.method, run_so_far, reading, optimizer, len(task.labels)
            )
    elif is_hopeless(verdict):
        predicted = without_times(predicted)
    prediction = predicted.prediction

    assert verdict.seconds_per_sample is not None
    estimate = (
        verdict.seconds_per_sample * optimizer.checked_batch_size(len(task.labels)) * options.steps
    )
    report = {
        "task": _task(options, loaded, predicted),
        "optimizer": _optimizer(options),
        "prediction": reports.curve(
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
        ),
        "truth": None,
        "cost": _cost(options, watches, estimate, None),
        "verdict": verdict._asdict(),
        "environment": reports.environment(options.seed),
    }
    if isinstance(options, Verify):
        saved = bool(options.json)
        for failure in _failures(options.json, lambda path: reports.write_json(path, report)):
            saved = False
            terminal.say(f"{failure}; training goes on, and it is tried again after that")
        try:
            with progress_bar("real training") as progress:
                truth = finetune(
                    model.apply,
                    model.params,
                    images,
                    task.labels,
                    optimizer,
                    options.steps,
                    loss=options.loss,
                    seed=options.seed + 2,
                    record_every=record_every,
                    statistics=model.batch_statistics if options.batch_norm == "train" else None,
                    progress=progress,
                )
        except BaseException as error:
            reports.print_report(report)  # what is known is not lost
            if isinstance(error, KeyboardInterrupt):
                error.args = (f"; the prediction is in {options.json}",) if saved else ()
            raise
        times = training_times(
            truth.steps,
            truth.loss,
            truth.error,
            thresholds=options.thresholds,
            loss_thresholds=options.loss_thresholds,
            smoothing=smoothing,
            plateau_window=plateau_window(optimizer, len(task.labels)),
        )
        report["truth"] = reports.curve(
            truth, times, diverged_at=truth.diverged_at, collapsed_at=truth.collapsed_at
        )
        report["cost"] = _cost(
            options,
            watches,
            truth.seconds * options.steps / (truth.diverged_at or options.steps),
            truth,
        )
    curves = [{"loss": each.loss, "error": each.error} for each in prediction.runs]
    try:
        reports.print_report(report)
    finally:
        failures = [
            *_failures(options.json, lambda path: reports.write_json(path, report), "report"),
            *_failures(options.plot, lambda path: plot_report(report, curves, path), "figure"),
        ]
    if failures:
        raise CannotSave(
            "; ".join(failures) + "; the result is printed above, make room or choose another path"
        )
    return report


def _failures(path: Path | None, write: Callable[[Path], None], what: str = "") -> list[str]:
    """Writes a file where one is asked for, and says so; why it could not be, instead of an
    exception: the others are still to be written.
    """
    if path is None:
        return []
    try:
        write(path)
    except Exception as error:  # of a file system, or of a library that draws
        if os.environ.get("NTK_TT_TRACEBACK") and not isinstance(error, OSError):
            raise
        reason = error.strerror if isinstance(error, OSError) else None
        return [f"cannot write {str(path)!r} ({reason or f'{type(error).__name__}: {error}'})"]
    if what:
        print(f"{what}: {path}")
    return []


def _record_every(options: Predict, full: bool) -> int:
    return options.record_every or (1 if full else max(1, options.steps // 50))


def _check(options: Predict) -> None:
    """What can be said to be wrong before any data is read or work done."""
    check_range("steps", options.steps, 1, MAX_STEPS)
    check_thresholds(options.thresholds, options.loss_thresholds)
    options.check()
    for name, value, most in (
        ("record-every", options.record_every, MAX_STEPS),
        ("smoothing", options.smoothing, MAX_STEPS),
        ("seeds", options.seeds, MAX_SEEDS),
    ):
        if value is not None:
            check_range(name, value, 1, most)
    full = options.batch_size == "full"
    records = options.steps // _record_every(options, full)
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
    if options.price_per_hour is not None and not (
        np.isfinite(options.price_per_hour) and options.price_per_hour >= 0
    ):
        raise ValueError(f"price-per-hour: must be 0 or more, got {options.price_per_hour}")
    OptimizerConfig(
        options.learning_rate,
        options.momentum,
        options.nesterov,
        options.weight_decay,
        None if options.batch_size == "full" else options.batch_size,
    )
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
    for name, path in (("json", options.json), ("plot", options.plot)):
        if path is not None:
            try:
                check_writable(path)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{name}: cannot write {str(path)!r} "
                    f"({getattr(error, 'strerror', None) or error}); choose another path"
                ) from error


def _task(options: Predict, loaded: Loaded, predicted: Predicted) -> dict[str, Any]:
    task, model, problem, stored = loaded.task, loaded.model, predicted.problem, predicted.features
    head = problem if isinstance(problem, HeadProblem) else None
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
        "space": "primal" if isinstance(problem, HeadProblem) else problem.kernel.space,
        "num_directions": head and head.directions.shape[1],
        "directions_dropped": head and float(head.dropped),
        "kernel_growth": head and float(head.growth),
        "devices": jax.device_count(),
        "notes": [note for note in (model.note, *task.notes, problem.note) if note],
        "seed": options.seed,
    }


def _optimizer(options: Predict) -> dict[str, Any]:
    return {
        "learning_rate": options.learning_rate,
        "schedule": options.schedule,
        "momentum": options.momentum,
        "nesterov": options.nesterov,
        "weight_decay": options.weight_decay,
        "batch_size": None if options.batch_size == "full" else options.batch_size,
        "sampling": options.sampling,
        "steps": options.steps,
    }


def _cost(
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


if __name__ == "__main__":
    main()
