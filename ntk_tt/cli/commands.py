"""What each command does: flags in, library calls, what they give out on the terminal."""

from typing import Any

from ntk_tt.cli.checks import check_prediction, check_speed, check_watch
from ntk_tt.cli.flags import optimizer_flags, targets_of, task_flags
from ntk_tt.cli.options import Features, Predict, Speed, Verify, Watch
from ntk_tt.cli.save import CannotSave, failures_of
from ntk_tt.cli.setting import Setting, in_steps, optimizer_of
from ntk_tt.features.contrasts import Outputs
from ntk_tt.features.store import FeatureStore
from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.prediction.by_method import TRAINED
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.kept_passes import build_features
from ntk_tt.prediction.passes import pass_over, pass_over_some
from ntk_tt.prediction.prepared import predict_from
from ntk_tt.prediction.setup import load
from ntk_tt.report import document as reports
from ntk_tt.report.device_speed import DeviceSpeed
from ntk_tt.report.text import print_report
from ntk_tt.report.training_time import TrainingTimeReport
from ntk_tt.runtime import terminal
from ntk_tt.runtime.memory import format_bytes
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.times.loss_log import LossLog
from ntk_tt.times.prior import predictor_of
from ntk_tt.times.watcher import Status, Watcher, follow
from ntk_tt.training import TrainingRun, finetune


def features(options: Features) -> FeatureStore:
    """Everything behind `ntk-tt features`."""
    options.check()
    if options.method == "one-shot":
        raise ValueError(
            "method: the pass of one-shot comes after real steps of one setting, so nothing of it "
            "can be kept; take auto, or a method with a frozen kernel"
        )
    loaded = load(options)
    reports.print_notes(loaded.notes)
    what = loaded.finetuning(options)
    with Stopwatch() as watch:
        if options.method in ("auto", *TRAINED):
            store = pass_over(what, options.method, keep=True, tell=_tell).features
            if store is None:
                raise ValueError(
                    "features: they were shortened to fit into memory, or lie on several devices, "
                    "so they are not kept; take fewer images, or --method replay"
                )
        else:
            store = _frozen_features(options, what)
    num_samples, num_outputs, num_projections = store.shape
    print(
        f"features: {num_samples} samples × {num_outputs} outputs × D' = {num_projections}, "
        f"{format_bytes(num_samples * num_outputs * num_projections * store.dtype.itemsize)} in "
        f"{store.folder}; {watch.seconds:.1f} s (+ {watch.compile_seconds:.1f} s compilation)"
    )
    return store


def _frozen_features(options: Features, what: Finetuning) -> FeatureStore:
    outputs: Outputs = "contrasts" if options.loss == "ce" and options.contrasts else "logits"
    with progress_bar("features") as progress:
        return build_features(what, outputs, progress)


def speed(options: Speed) -> DeviceSpeed:
    """Everything behind `ntk-tt speed`."""
    check_speed(options)
    optimizer = optimizer_of(options)
    loaded = load(options)
    reports.print_notes(loaded.notes)
    optimizer.checked_batch_size(len(loaded.task.labels))
    what = loaded.finetuning(options, label_smoothing=options.label_smoothing)
    with progress_bar("real steps") as progress:
        found = DeviceSpeed.measure(
            what, optimizer, num_steps=options.timed_steps, progress=progress
        )
    print(
        f"{found.seconds_per_step:.3g} s for a step of {found.batch_size:,} samples (and "
        f"{found.compile_seconds:.1f} s of compilation), {found.model} on {found.device}"
    )
    for failure in failures_of(options.file, found.write, "speed"):
        raise CannotSave(f"{failure}; choose another path")
    return found


def watch(options: Watch) -> None:
    """Everything behind `ntk-tt watch`."""
    check_watch(options)
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


def _tell(line: str) -> None:
    reports.print_notes([line])


def _show(status: Status) -> None:
    print(status, flush=True)
    terminal.check_output()


def run(options: Predict) -> dict[str, Any]:
    """Everything behind `predict` and `verify`; returns the report."""
    check_prediction(options)
    optimizer = optimizer_of(options)
    if options.method not in ("auto", *TRAINED):
        check_sgd(optimizer, options.method)
    loaded = load(options)
    reports.print_notes(loaded.notes)
    if options.epochs is not None:
        options = in_steps(options, optimizer, len(loaded.task.labels))
        check_prediction(options)
        optimizer = optimizer_of(options)  # its schedule ends with the last step
    setting = Setting.of(options, optimizer, len(loaded.task.labels))
    what = loaded.finetuning(options, label_smoothing=options.label_smoothing)
    pace, notes = _pace(options, what, optimizer)
    reports.print_notes(notes)
    if options.effort is not None:
        prepared = pass_over_some(what, optimizer, options.steps, options.effort, tell=_tell)
    else:
        prepared = pass_over(
            what, options.method, optimizer=optimizer, num_steps=options.steps, tell=_tell
        )
    if prepared.problem is not None:
        reports.print_notes([prepared.problem.note])
    outcome = predict_from(
        prepared,
        optimizer,
        setting.recording,
        num_seeds=options.seeds,
        first_steps=options.first_steps,
        observe=options.observe,
    )
    parts = {
        "targets": targets_of(options),
        "price_per_hour": options.price_per_hour,
        "seconds_per_step": pace,
        "task": task_flags(options, loaded, outcome),
        "optimizer": optimizer_flags(options),
    }
    report = TrainingTimeReport.of(outcome, **parts)
    if isinstance(options, Verify):
        report = report.with_truth(_train(options, what, setting, report), **parts)
    _print_and_save(options, report)
    return report.document


def _pace(
    options: Predict, what: Finetuning, optimizer: OptimizerConfig
) -> tuple[float | None, list[str]]:
    """Seconds of a step on the machine that will train, None where it is this one, and notes."""
    if options.device_speed is None:
        return options.seconds_per_step, []
    speed = DeviceSpeed.read(options.device_speed)
    batch_size = optimizer.checked_batch_size(what.num_samples)
    notes = []
    if batch_size != speed.batch_size:
        notes = [
            f"device-speed: measured with batches of {speed.batch_size:,}, taken in proportion for "
            f"{batch_size:,}"
        ]
    return speed.seconds(what, batch_size), notes


def _train(
    options: Verify, what: Finetuning, setting: Setting, report: TrainingTimeReport
) -> TrainingRun:
    """The real run; the prediction is saved before it, and printed if it does not end."""
    saved = bool(options.json)
    for failure in failures_of(options.json, report.write_json):
        saved = False
        terminal.say(f"{failure}; training goes on, and it is tried again after that")
    try:
        with progress_bar("real training") as progress:
            return finetune(
                what.model,
                what.inputs,
                what.labels,
                setting.optimizer,
                options.steps,
                loss=options.loss,
                label_smoothing=options.label_smoothing,
                seed=options.seed + 2,
                record_every=setting.recording.record_every,
                train_statistics=options.batch_norm == "train",
                augment=what.augment,
                validation=what.validation,
                progress=progress,
            )
    except BaseException as error:
        print_report(report.document, all_times=options.all_times)  # what is known is not lost
        if isinstance(error, KeyboardInterrupt):
            error.args = (f"; the prediction is in {options.json}",) if saved else ()
        raise


def _print_and_save(options: Predict, report: TrainingTimeReport) -> None:
    try:
        print_report(report.document, all_times=options.all_times)
    finally:
        failures = [
            *failures_of(options.json, report.write_json, "report"),
            *failures_of(options.html, report.write_html, "page"),
            *failures_of(options.plot, report.plot, "figure"),
        ]
    if failures:
        raise CannotSave(
            "; ".join(failures) + "; the result is printed above, make room or choose another path"
        )
