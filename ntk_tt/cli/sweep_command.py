"""`ntk-tt sweep` and `ntk-tt plan`: flags in, many settings priced, a table out."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ntk_tt.cli.save import CannotSave, failures_of
from ntk_tt.optimizer import MAX_SEEDS, MAX_STEPS
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.passes import AnyMethod, pass_over
from ntk_tt.prediction.setting_space import MAX_SETTINGS, SweptSetting, settings_of
from ntk_tt.prediction.setup import Setup, load
from ntk_tt.prediction.sweep import sweep as sweep_settings
from ntk_tt.report import document as reports
from ntk_tt.report.device_speed import DeviceSpeed
from ntk_tt.report.parts import check_seconds_per_step
from ntk_tt.report.plan_report import PlanReport, print_plan
from ntk_tt.report.sweep_report import PricedPass, SweepReport
from ntk_tt.report.sweep_text import TOP, print_sweep
from ntk_tt.runtime.files import check_writable
from ntk_tt.runtime.limits import check_range
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.times.amounts import read_budget, read_seconds
from ntk_tt.times.levels import read_target

Texts = tuple[str, ...]
_SWEPT = ("learning_rate", "momentum", "weight_decay", "betas", "eps", "clip_norm", "weight_ema")


@dataclasses.dataclass(frozen=True)
class Sweep(Setup):
    """Price many settings from one pass, the best first: each flag of the optimiser takes a number,
    several, or a range such as 1e-4:1e-1:log:12.
    """

    optimizer: Texts = ("sgd",)
    """One or several of sgd, adam, adamw, lion, rmsprop, adagrad."""
    learning_rate: Texts = ("1e-4:1e-1:log:12",)
    """The highest rates of the schedule: `LOW:HIGH:COUNT`, `LOW:HIGH:log:COUNT`, or numbers."""
    batch_size: Texts = ("32",)
    """Samples a step; `full` is gradient descent."""
    momentum: Texts = ()
    """Of sgd and rmsprop; by default 0.9 for sgd alone."""
    nesterov: bool = False
    """Nesterov's momentum instead of the heavy ball."""
    weight_decay: Texts = ()
    """L2 coefficients; of adamw and lion the decoupled one."""
    betas: Texts = ()
    """Of adam, adamw and lion, such as 0.9/0.999."""
    eps: Texts = ()
    """Of adam, adamw, rmsprop and adagrad."""
    clip_norm: Texts = ()
    """Cut the gradient's norm to these."""
    weight_ema: Texts = ()
    """Loss and error at a moving average of the weights."""
    sampling: Literal["epoch", "replacement"] = "epoch"
    """Shuffle once an epoch, or draw with replacement."""
    schedule: Texts = ("constant",)
    """Of the learning rate: constant, cosine, linear, exponential, warmup-cosine."""
    warmup_steps: Texts = ()
    """Steps over which the rate first rises from 0."""
    steps: Texts = ("150",)
    """Optimiser steps, T."""
    epochs: Texts = ()
    """Instead of `--steps`: how often all samples are seen."""
    draws: int | None = None
    """So many settings at random, instead of the grid; ranges then need no COUNT."""
    models: Texts = ()
    """Several networks, a pass each, instead of `--model`."""
    method: AnyMethod = "auto"
    """Of the prediction; `auto`, `head` and `curvature` run settings together."""
    seeds: int = 1
    """Orders of the data to predict over."""
    target: str | None = None
    """The level to wait for: `loss=0.3` or `error=5%`; by default a quarter of the first loss."""
    deadline: str | None = None
    """Training time after which nothing counts, such as 2h."""
    price_per_hour: float | None = None
    """Of the machine that will train."""
    seconds_per_step: float | None = None
    """Of that machine, for the largest batch; others in proportion."""
    device_speed: Path | None = None
    """The same by a file that `ntk-tt speed` wrote there."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes, in [0, 1); of cross-entropy."""
    top: int = TOP
    """Rows that are printed."""
    csv: Path | None = None
    """Write all rows here as CSV."""
    json: Path | None = None
    """Write the whole report here."""
    html: Path | None = None
    """Write one self-contained page here."""
    plot: Path | None = None
    """Draw time to the target over the rate here (.png, .pdf or .svg)."""


@dataclasses.dataclass(frozen=True)
class Budget(Sweep):
    """Say which settings to run with a budget, which first, and when to stop each."""

    budget: str = "1h"
    """Time such as 2h, or money such as 20EUR with `--price-per-hour`."""


def check_sweep(options: Sweep) -> None:
    """Raises ValueError where a flag is wrong, before any data is read."""
    options.check()
    check_range("seeds", options.seeds, 1, MAX_SEEDS)
    check_range("top", options.top, 1, MAX_SETTINGS)
    if options.target is not None:
        read_target(options.target)
    if options.deadline is not None:
        read_seconds(options.deadline, "deadline")
    price = options.price_per_hour
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ValueError(f"price-per-hour: must be 0 or more, got {price}")
    if options.seconds_per_step is not None:
        check_seconds_per_step(options.seconds_per_step)
        if options.device_speed is not None:
            raise ValueError("seconds-per-step: give that or device-speed, not both")
    if isinstance(options, Budget):
        read_budget(options.budget, price)
    if options.plot and options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(
            f"plot: cannot write {str(options.plot)!r}; give a name that ends in .png, .pdf or .svg"
        )
    for name in ("csv", "json", "html", "plot"):
        path = getattr(options, name)
        if path is not None:
            try:
                check_writable(path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ValueError(
                    f"{name}: cannot write {str(path)!r} ({reason}); choose another path"
                ) from error
    space_settings(options, num_samples=MAX_STEPS)  # what is wrong with ranges needs no data


def space_of(options: Sweep) -> dict[str, Any]:
    """The flags as a space (`ntk_tt.prediction.setting_space`)."""
    space: dict[str, Any] = {
        "optimizer": options.optimizer,
        "batch_size": options.batch_size,
        "sampling": options.sampling,
        "schedule": options.schedule,
    }
    space |= {name: getattr(options, name) for name in _SWEPT if getattr(options, name)}
    if options.nesterov:
        space["nesterov"] = True
    if options.warmup_steps:
        space["warmup_steps"] = options.warmup_steps
    if options.epochs:
        space["epochs"] = options.epochs
    else:
        space["num_steps"] = options.steps
    return space


def space_settings(options: Sweep, *, num_samples: int) -> tuple[SweptSetting, ...]:
    """The settings that the flags ask for.

    Raises:
        ValueError: a range that is none, no settings, or a value out of range.
    """
    space, found = space_of(options), []
    names = [name.strip() for text in options.optimizer for name in text.split(",")]
    # SGD has a momentum of 0.9 where none is given, others have none
    parts = [names] if options.momentum else [[n for n in names if n != "sgd"], ["sgd"]]
    for part in parts:
        part = [name for name in part if name in names]
        if not part:
            continue
        own = {"momentum": 0.9} if part == ["sgd"] and not options.momentum else {}
        found += settings_of(
            {**space, **own, "optimizer": part},
            num_samples=num_samples,
            draws=options.draws,
            seed=options.seed,
        )
    return tuple(found)


def sweep(options: Sweep) -> SweepReport:
    """Everything behind `ntk-tt sweep`; returns the report."""
    report = _report(options)
    print_sweep(report.document, top=options.top)
    _save(options, report, "sweep")
    return report


def plan(options: Budget) -> PlanReport:
    """Everything behind `ntk-tt plan`; returns the plan."""
    report = _report(options)
    found = report.plan(options.budget)
    print_plan(found)
    _save(options, found, "plan", sweep=report)
    return found


def _report(options: Sweep) -> SweepReport:
    check_sweep(options)
    passes: list[PricedPass] = []
    for label, each in _each_pass(options):
        try:
            passes.append(_priced(each, label))
        except KeyboardInterrupt:
            if not passes:
                raise
            break
        if passes[-1].swept.num_asked > len(passes[-1].swept.settings):
            break  # interrupted
    return SweepReport.of(
        passes,
        target=None if options.target is None else read_target(options.target),
        deadline=None if options.deadline is None else read_seconds(options.deadline, "deadline"),
        price_per_hour=options.price_per_hour,
    )


def _each_pass(options: Sweep) -> list[tuple[dict[str, str], Sweep]]:
    """The flags of each network and each part of it that trains, with what they are called."""
    models = [name for text in options.models for name in text.split(",")] or [options.model]
    parts = options.trainable.split(",")
    found = []
    for model in models:
        for part in parts:
            label = {"model": model} if len(models) > 1 else {}
            label |= {"trainable": part} if len(parts) > 1 else {}
            found.append((label, dataclasses.replace(options, model=model, trainable=part)))
    for _, each in found:
        each.check()
    return found


def _priced(options: Sweep, label: dict[str, str]) -> PricedPass:
    """The sweep over one network."""
    loaded = load(options)
    if label:
        print(f"note: {', '.join(label.values())}")
    reports.print_notes(loaded.notes)
    what = loaded.finetuning(options, label_smoothing=options.label_smoothing)
    settings = space_settings(options, num_samples=what.num_samples)
    pace = _pace(options, what, settings)
    way = _own_way(settings)
    prepared = pass_over(
        what,
        options.method,
        optimizer=None if way is None else way.optimizer,
        num_steps=None if way is None else way.num_steps,
        tell=lambda line: reports.print_notes([line]),
    )
    if prepared.problem is not None:
        reports.print_notes([prepared.problem.note])
    with progress_bar("settings") as progress:
        swept = sweep_settings(prepared, settings, num_seeds=options.seeds, progress=progress)
    return PricedPass(label, swept, pace)


def _own_way(settings: tuple[SweptSetting, ...]) -> SweptSetting | None:
    """The setting on whose way the network is expanded: the middle one of another optimiser than
    SGD, where all are of one; None is the way of SGD.
    """
    if any(each.optimizer.is_sgd for each in settings):
        return None
    if len({each.optimizer.name for each in settings}) > 1:
        return None
    ordered = sorted(settings, key=lambda each: each.values["learning_rate"])
    return ordered[len(ordered) // 2]


def _pace(
    options: Sweep, what: Finetuning, settings: tuple[SweptSetting, ...]
) -> dict[int, float] | None:
    """Seconds of a step by batch size on the machine that will train; None where it is this."""
    sizes = {each.optimizer.checked_batch_size(what.num_samples) for each in settings}
    if options.device_speed is not None:
        speed = DeviceSpeed.read(options.device_speed)
        return {size: speed.seconds(what, size) for size in sizes}
    if options.seconds_per_step is None:
        return None
    return {size: options.seconds_per_step * size / max(sizes) for size in sizes}


def _save(options: Sweep, report: Any, name: str, *, sweep: SweepReport | None = None) -> None:
    """Writes what was asked for; of a plan the rows and the figure are those of its sweep."""
    rows = report if sweep is None else sweep
    written: list[tuple[Path | None, Callable[[Path], Any], str]] = [
        (options.csv, rows.write_csv, "rows"),
        (options.json, report.write_json, name),
        (options.html, report.write_html, "page"),
        (options.plot, rows.plot, "figure"),
    ]
    failures = [each for path, write, what in written for each in failures_of(path, write, what)]
    if failures:
        raise CannotSave(
            "; ".join(failures) + "; the result is printed above, make room or choose another path"
        )
    if not rows.is_whole:
        raise KeyboardInterrupt("; what was priced until then is above")
