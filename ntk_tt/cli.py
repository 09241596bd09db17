"""The command line: flags in, tables, JSON and a figure out. The contract of the JSON is docs/json.md."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ntk_tt import report as reports
from ntk_tt.by_method import CommandLineMethod, Predicted, Reading, as_slow_as, first_real_steps, intervals, observed, predict_by
from ntk_tt.compilation import keep_compiled
from ntk_tt.data import describe_data, list_data
from ntk_tt.finetune import TrainingRun, finetune
from ntk_tt.head import HeadProblem
from ntk_tt.memory import format_bytes
from ntk_tt.models import list_models
from ntk_tt.optimizer import OptimizerConfig, ScheduleName, check_num_steps, named_schedule
from ntk_tt.plot import plot_report
from ntk_tt.predict import Outputs, plateau_window
from ntk_tt.progress import progress_bar
from ntk_tt.setup import Loaded, Setup, build_features, load, precision_error
from ntk_tt.stopwatch import Stopwatch
from ntk_tt.store import FeatureStore, default_folder
from ntk_tt.training_time import DEFAULT_THRESHOLDS, check_thresholds, training_times
from ntk_tt.verdict import assess
from ntk_tt.watch import LossLog, Watcher, follow, predictor_of


@dataclasses.dataclass(frozen=True)
class Features(Setup):
    """Compute the features of a network on a task to disk, resumable; `predict` and `verify` with the same flags then find them."""

    contrasts: bool = True
    """For cross-entropy the C−1 contrasts of the outputs, which is what `predict` uses, instead of all C."""


@dataclasses.dataclass(frozen=True)
class Models:
    """List the networks that have a name."""


@dataclasses.dataclass(frozen=True)
class Data:
    """List the paper's data sets, or describe one source: images, classes, images of a class, imbalance."""

    source: Annotated[str | None, tyro.conf.Positional] = None
    """Such as folder:PATH; without it, the list."""
    split: str = "train"
    """Of the data set."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Remaining steps and time of a run, from its loss log (CSV with a header, or JSON lines) as it grows."""

    log: Annotated[Path, tyro.conf.Positional]
    """With a column or key for the step and one for the loss."""
    prediction: Path | None = None
    """Report of `ntk-tt predict --json` for this run, which the log corrects; without it the log alone is continued."""
    target: float | None = None
    """Loss to wait for; by default a tenth of the first one."""
    step_column: str | None = None
    """By default step, global_step, iteration or steps."""
    loss_column: str | None = None
    """By default loss, train_loss, train/loss or training_loss."""
    seconds_per_step: float | None = None
    """By default measured while watching."""
    poll: float = 1.0
    """Seconds between two looks at the log."""
    once: bool = False
    """Print the present status and stop."""


@dataclasses.dataclass(frozen=True)
class Predict(Setup):
    """Predict how long fine-tuning takes, without training. Without flags: the bundled network on handwritten digits."""

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
    """How the curve is predicted, see docs/method.md: `replay`, `ode`, `sde`, … freeze the kernel; `head` keeps the head real; `curvature` adds the backbone's; `one-shot` begins with real steps."""
    first_steps: int | None = None
    """Real steps that `one-shot` begins with; by default what costs as much as its feature pass, at most a quarter."""
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
    """Steps between records of the full-set loss; by default 1 for the full batch, else about 50 records."""
    smoothing: int | None = None
    """Records in the running mean before times are read, of prediction and truth alike; by default 1 for the full batch, else 3."""
    price_per_hour: float | None = None
    """Of the machine that will train; prints what training costs."""
    json: Path | None = None
    """Write the whole report here."""
    plot: Path | None = None
    """Draw the curves here (.png, .pdf or .svg)."""


@dataclasses.dataclass(frozen=True)
class Verify(Predict):
    """Predict, then really train, and print both side by side."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point; exits with 2 and one line where an argument is wrong, 130 where interrupted."""
    commands = (
        Annotated[Predict, tyro.conf.subcommand("predict")] | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Features, tyro.conf.subcommand("features")] | Annotated[Watch, tyro.conf.subcommand("watch")]
        | Annotated[Models, tyro.conf.subcommand("models")] | Annotated[Data, tyro.conf.subcommand("data")])
    options: Any = tyro.cli(commands, prog="ntk-tt", description="How long fine-tuning will take, before you start it.", args=arguments)  # pyright: ignore[reportArgumentType,reportCallIssue]
    if isinstance(options, Features | Predict):
        keep_compiled(default_folder() / "compiled")
    try:
        match options:
            case Features():
                features(options)
            case Watch():
                watch(options)
            case Models():
                reports.print_rows(list_models())
            case Data():
                reports.print_rows(list_data() if options.source is None else [describe_data(options.source, split=options.split)])
            case _:
                run(options)
    except ValueError as error:
        print(f"ntk-tt: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"ntk-tt: cannot read or write {error.filename or 'a file'}: {error.strerror or error}; check its permissions, free space or choose another path", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        print(f"ntk-tt: interrupted{interruption}", file=sys.stderr)
        sys.exit(130)


def features(options: Features) -> FeatureStore:
    """Everything behind `ntk-tt features`."""
    options.check()
    loaded = load(options)
    reports.print_notes([loaded.model.note, *loaded.task.notes])
    outputs: Outputs = "contrasts" if options.loss == "ce" and options.contrasts else "logits"
    with Stopwatch() as watch, progress_bar("features") as progress:
        store = build_features(options, loaded, outputs, progress)
    num_samples, num_outputs, num_projections = store.shape
    print(f"features: {num_samples} samples × {num_outputs} outputs × D' = {num_projections}, "
          f"{format_bytes(num_samples * num_outputs * num_projections * store.dtype.itemsize)} in {store.folder}; {watch.seconds:.1f} s (+ {watch.compile_seconds:.1f} s compilation)")
    return store


def watch(options: Watch) -> None:
    """Everything behind `ntk-tt watch`."""
    for name, value in (("poll", options.poll), ("seconds-per-step", options.seconds_per_step)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: must be positive, got {value}")
    predictor, pace = (None, None) if options.prediction is None else predictor_of(options.prediction)
    pace = options.seconds_per_step or (pace if options.once else None)
    watcher = Watcher(target=options.target, predictor=predictor, seconds_per_step=pace)
    follow(LossLog(options.log, step=options.step_column, loss=options.loss_column), watcher, lambda status: print(status, flush=True),
           poll_seconds=options.poll, once=options.once)


def run(options: Predict) -> dict[str, Any]:
    """Everything behind `predict` and `verify`; returns the report."""
    _check(options)
    loaded = load(options)
    task, model, images = loaded.task, loaded.model, loaded.images
    reports.print_notes([model.note, *task.notes])
    optimizer = OptimizerConfig(
        learning_rate=named_schedule(options.schedule, options.learning_rate, options.steps), momentum=options.momentum, nesterov=options.nesterov,
        weight_decay=options.weight_decay, batch_size=None if options.batch_size == "full" else options.batch_size, sampling=options.sampling)
    optimizer.checked_batch_size(len(task.labels))
    full = optimizer.is_full_batch(len(task.labels))
    record_every = options.record_every or (1 if full else max(1, options.steps // 50))
    smoothing = options.smoothing or (1 if full else 3)

    reading = Reading(options.steps, record_every, options.thresholds, options.loss_thresholds, smoothing)
    predicted = predict_by(options.method, options, loaded, optimizer, reading, num_seeds=options.seeds, first_steps=options.first_steps)
    watches = dict(predicted.watches)
    with Stopwatch() as watches["verdict"]:
        verdict = assess(predicted.problem, model.apply, model.params, images, task.labels, optimizer, options.steps, path=predicted.prediction.runs[0].states, seed=options.seed)
    predicted = as_slow_as(predicted, options.method, verdict.stability_margin, reading, optimizer, len(task.labels))
    if options.observe is not None:
        with Stopwatch() as watches["observed"]:
            run_so_far = first_real_steps(options, loaded, optimizer, options.observe, min(record_every, max(1, options.observe // 8)))
            predicted = observed(predicted, options.method, run_so_far, reading, optimizer, len(task.labels))
    prediction = predicted.prediction

    assert verdict.seconds_per_sample is not None
    estimate = verdict.seconds_per_sample * optimizer.checked_batch_size(len(task.labels)) * options.steps
    report = {
        "task": _task(options, loaded, predicted), "optimizer": _optimizer(options),
        "prediction": reports.curve(prediction, prediction.times, times_low=prediction.times_low, times_high=prediction.times_high,
                                    method=options.method, num_seeds=len(prediction.runs), real_steps=predicted.real_steps, slowdown=predicted.slowdown,
                                    intervals=intervals(options.method, predicted, options.steps, smoothing, verdict.stability_margin)),
        "truth": None,
        "cost": _cost(options, watches, estimate, None),
        "verdict": verdict._asdict(), "environment": reports.environment(options.seed),
    }
    if options.json:
        reports.write_json(options.json, report)
    if isinstance(options, Verify):
        try:
            with progress_bar("real training") as progress:
                truth = finetune(
                    model.apply, model.params, images, task.labels, optimizer, options.steps, loss=options.loss, seed=options.seed + 2, record_every=record_every,
                    statistics=model.batch_statistics if options.batch_norm == "train" else None, progress=progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; the prediction is in {options.json}" if options.json else "") from None
        times = training_times(truth.steps, truth.loss, truth.error, thresholds=options.thresholds, loss_thresholds=options.loss_thresholds,
                               smoothing=smoothing, plateau_window=plateau_window(optimizer, len(task.labels)))
        report["truth"] = reports.curve(truth, times, diverged_at=truth.diverged_at)
        report["cost"] = _cost(options, watches, truth.seconds * options.steps / (truth.diverged_at or options.steps), truth)
        if options.json:
            reports.write_json(options.json, report)
    reports.print_report(report)
    if options.plot:
        plot_report(report, [{"loss": each.loss, "error": each.error} for each in prediction.runs], options.plot)
        print(f"figure: {options.plot}")
    if options.json:
        print(f"report: {options.json}")
    return report


def _check(options: Predict) -> None:
    """What can be said to be wrong before any data is read or work done."""
    check_num_steps(options.steps)
    check_thresholds(options.thresholds, options.loss_thresholds)
    options.check()
    for name, value in (("record-every", options.record_every), ("smoothing", options.smoothing), ("seeds", options.seeds)):
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    for name, value in (("first-steps", options.first_steps), ("observe", options.observe)):
        if value is not None and not 1 <= value < options.steps:
            raise ValueError(f"{name}: must lie in 1 … {options.steps - 1}, before the last of the {options.steps} steps, got {value}")
    if options.first_steps is not None and options.method != "one-shot":
        raise ValueError(f"first-steps: belongs to --method one-shot, got {options.method!r}; for real steps that correct another method take --observe")
    if options.price_per_hour is not None and not (np.isfinite(options.price_per_hour) and options.price_per_hour >= 0):
        raise ValueError(f"price-per-hour: must be 0 or more, got {options.price_per_hour}")
    OptimizerConfig(options.learning_rate, options.momentum, options.nesterov, options.weight_decay, None if options.batch_size == "full" else options.batch_size)
    if options.plot and options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"plot: cannot write {str(options.plot)!r}; give a name that ends in .png, .pdf or .svg")
    for name, path in (("json", options.json), ("plot", options.plot)):
        if path is not None:
            try:
                existed = path.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab"):
                    pass
                if not existed:
                    path.unlink()
            except OSError as error:
                raise ValueError(f"{name}: cannot write {str(path)!r} ({error.strerror}); choose another path") from error


def _task(options: Predict, loaded: Loaded, predicted: Predicted) -> dict[str, Any]:
    task, model, problem, stored = loaded.task, loaded.model, predicted.problem, predicted.features
    head = problem if isinstance(problem, HeadProblem) else None
    return {
        "model": model.name, "weights": options.weights, "num_params": model.num_params, "total_params": loaded.total_params, "trainable": options.trainable,
        "head": options.head, "data": options.data, "split": options.split, "class_names": list(task.class_names), "num_classes": task.num_classes,
        "per_class": list(task.per_class), "num_samples": len(task.labels), "image_size": options.image_size, "loss": options.loss,
        "batch_norm": options.batch_norm, "projections": options.projections, "projection": options.projection, "precision": options.precision,
        "precision_error": precision_error(options, loaded), "features": None if stored is None else str(stored.folder), "space": "primal" if isinstance(problem, HeadProblem) else problem.kernel.space,
        "num_directions": head and head.directions.shape[1], "directions_dropped": head and float(head.dropped), "kernel_growth": head and float(head.growth),
        "devices": jax.device_count(), "notes": [note for note in (model.note, *task.notes) if note], "seed": options.seed,
    }


def _optimizer(options: Predict) -> dict[str, Any]:
    return {
        "learning_rate": options.learning_rate, "schedule": options.schedule, "momentum": options.momentum, "nesterov": options.nesterov,
        "weight_decay": options.weight_decay, "batch_size": None if options.batch_size == "full" else options.batch_size,
        "sampling": options.sampling, "steps": options.steps,
    }


def _cost(options: Predict, watches: dict[str, Stopwatch], train_seconds: float, truth: TrainingRun | None) -> dict[str, Any]:
    """Seconds without compilation, compilation apart; training estimated from the verdict's real steps where there is no truth."""
    predict_seconds = sum(watch.seconds for watch in watches.values())
    price = None if options.price_per_hour is None else options.price_per_hour * train_seconds / 3600
    return {
        "predict_seconds": predict_seconds, "train_seconds": train_seconds, "ratio": train_seconds / predict_seconds,
        "predict_compile_seconds": sum(watch.compile_seconds for watch in watches.values()),
        "train_compile_seconds": None if truth is None else truth.compile_seconds,
        "train_measured": truth is not None, "train_evaluation_seconds": None if truth is None else truth.evaluation_seconds,
        "seconds_per_step": train_seconds / options.steps, "price": price, "price_per_hour": options.price_per_hour,
        **{f"{name}_seconds": watch.seconds for name, watch in watches.items()},
    }


if __name__ == "__main__":
    main()
