"""What each command does: flags in, library calls, what they give out on the terminal."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntk_tt.cli.checks import check_prediction, check_watch
from ntk_tt.cli.options import Features, Predict, Verify, Watch
from ntk_tt.cli.parts import cost_part, optimizer_part, prediction_part, task_part
from ntk_tt.cli.setting import Setting, optimizer_of
from ntk_tt.features.contrasts import Outputs
from ntk_tt.features.store import FeatureStore
from ntk_tt.optimizer import check_sgd
from ntk_tt.prediction.assessment import assess
from ntk_tt.prediction.by_method import (
    TRAINED,
    Predicted,
    as_slow_as,
    first_order,
    first_real_steps,
    is_hopeless,
    observed,
    predict_by,
    without_times,
)
from ntk_tt.prediction.one_setting import Prediction, plateau_window
from ntk_tt.prediction.setup import Loaded, build_features, load
from ntk_tt.prediction.verdict import Verdict
from ntk_tt.report import document as reports
from ntk_tt.report.figure import plot_report
from ntk_tt.runtime import terminal
from ntk_tt.runtime.memory import format_bytes
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.times.crossing import training_times
from ntk_tt.times.loss_log import LossLog
from ntk_tt.times.prior import predictor_of
from ntk_tt.times.watcher import Status, Watcher, follow
from ntk_tt.training import TrainingRun, finetune


class CannotSave(Exception):
    """The work is done and printed, but a file that was asked for could not be written."""


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


def _show(status: Status) -> None:
    print(status, flush=True)
    terminal.check_output()


def run(options: Predict) -> dict[str, Any]:
    """Everything behind `predict` and `verify`; returns the report."""
    check_prediction(options)
    optimizer = optimizer_of(options)
    if options.method not in TRAINED:
        check_sgd(optimizer, options.method)
    loaded = load(options)
    reports.print_notes([loaded.model.note, *loaded.task.notes])
    setting = Setting.of(options, optimizer, len(loaded.task.labels))
    predicted, verdict, watches = _predict(options, loaded, setting)
    report = {
        "task": task_part(options, loaded, predicted),
        "optimizer": optimizer_part(options, optimizer),
        "prediction": prediction_part(options, predicted, setting.recording.smoothing, verdict),
        "truth": None,
        "cost": cost_part(options, watches, _estimate(options, verdict, setting), None),
        "verdict": verdict._asdict(),
        "environment": reports.environment(options.seed),
    }
    if isinstance(options, Verify):
        truth = _train(options, loaded, setting, report)
        report["truth"] = _truth_part(truth, setting)
        seconds = truth.seconds * options.steps / (truth.diverged_at or options.steps)
        report["cost"] = cost_part(options, watches, seconds, truth)
    _print_and_save(options, report, predicted.prediction)
    return report


def _predict(
    options: Predict, loaded: Loaded, setting: Setting
) -> tuple[Predicted, Verdict, dict[str, Stopwatch]]:
    """The prediction as the verdict, or the first real steps, leave it; what each part took."""
    optimizer, recording, num_samples = setting
    predicted = predict_by(
        options.method,
        options,
        loaded,
        optimizer,
        recording,
        num_seeds=options.seeds,
        first_steps=options.first_steps,
    )
    reports.print_notes([predicted.problem.note])
    watches = dict(predicted.watches)
    with Stopwatch() as watches["verdict"]:
        verdict = assess(
            predicted.problem,
            loaded.model.apply,
            loaded.model.params,
            loaded.images,
            loaded.task.labels,
            optimizer,
            options.steps,
            path=predicted.prediction.runs[0].states,
            curve=predicted.prediction.loss,
            key=first_order(options, len(predicted.prediction.runs)),
            seed=options.seed,
        )
    method, margin = options.method, verdict.stability_margin
    predicted = as_slow_as(predicted, method, margin, recording, optimizer, num_samples)
    if options.observe is not None:
        every = min(recording.record_every, max(1, options.observe // 8))
        with Stopwatch() as watches["observed"]:
            seen = first_real_steps(options, loaded, optimizer, options.observe, every)
            predicted = observed(predicted, method, seen, recording, optimizer, num_samples)
    elif is_hopeless(verdict):
        predicted = without_times(predicted)
    return predicted, verdict, watches


def _estimate(options: Predict, verdict: Verdict, setting: Setting) -> float:
    """Seconds of training, from the verdict's real steps."""
    assert verdict.seconds_per_sample is not None
    batch_size = setting.optimizer.checked_batch_size(setting.num_samples)
    return verdict.seconds_per_sample * batch_size * options.steps


def _train(
    options: Verify, loaded: Loaded, setting: Setting, report: dict[str, Any]
) -> TrainingRun:
    """The real run; the prediction is saved before it, and printed if it does not end."""
    saved = bool(options.json)
    for failure in _failures(options.json, lambda path: reports.write_json(path, report)):
        saved = False
        terminal.say(f"{failure}; training goes on, and it is tried again after that")
    model = loaded.model
    try:
        with progress_bar("real training") as progress:
            return finetune(
                model.apply,
                model.params,
                loaded.images,
                loaded.task.labels,
                setting.optimizer,
                options.steps,
                loss=options.loss,
                seed=options.seed + 2,
                record_every=setting.recording.record_every,
                statistics=model.batch_statistics if options.batch_norm == "train" else None,
                progress=progress,
            )
    except BaseException as error:
        reports.print_report(report)  # what is known is not lost
        if isinstance(error, KeyboardInterrupt):
            error.args = (f"; the prediction is in {options.json}",) if saved else ()
        raise


def _truth_part(truth: TrainingRun, setting: Setting) -> dict[str, Any]:
    times = training_times(
        truth.steps,
        truth.loss,
        truth.error,
        thresholds=setting.recording.thresholds,
        loss_thresholds=setting.recording.loss_thresholds,
        smoothing=setting.recording.smoothing,
        plateau_window=plateau_window(setting.optimizer, setting.num_samples),
    )
    return reports.curve(
        truth, times, diverged_at=truth.diverged_at, collapsed_at=truth.collapsed_at
    )


def _print_and_save(options: Predict, report: dict[str, Any], prediction: Prediction) -> None:
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
