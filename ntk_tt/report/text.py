"""A report (docs/json.md) in words: one sentence, one table, and what belongs beside them."""

import io
import math
from typing import Any

from ntk_tt.runtime.terminal import print_table
from ntk_tt.times.calibration import FEW, chance_words
from ntk_tt.times.levels import Level

_FAMILIES = {
    "epsilon_relative": "loss within {} of its fall",
    "epsilon_absolute": "loss within {} of the last",
    "loss_below": "loss below {}",
    "error_below": "error below {}",
}
COLOURS = {"high": "green", "medium": "yellow", "low": "red", "none": "bold red"}
# columns that a table leaves out, the fewest with which it fits
_SPARED = ((), ("chance",), ("chance", "time"), ("chance", "time", "90 % interval"))
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


def sentence(report: dict[str, Any]) -> str:
    """The answer to "how long?": until what was asked for, else until the lowest loss of its levels
    that is reached.
    """
    prediction, cost, verdict = report["prediction"], report["cost"], report["verdict"]
    if verdict["trust"] == "none":
        return f"No answer: {verdict['reason']}."
    last, trust = prediction["steps"][-1], f"trust: {verdict['trust']}"
    levels = prediction["levels"]
    asked = [each for each in levels if each["is_target"]]
    reached = [each for each in levels if each["of"] == "loss" and each["steps"] is not None]
    chosen = asked[0] if asked else reached[-1] if reached else None
    best = _best(prediction)
    if chosen is not None and chosen["steps"] is not None:
        steps = chosen["steps"]
        return (
            f"{_capital(_words(chosen))} after about {steps:,} steps{_between(chosen)}: "
            f"{_price(cost, steps)}; {trust}.{best}"
        )
    end = (
        f"loss {_number(prediction['loss'][-1])} and error "
        f"{_number(prediction['error'][-1], '.1%')} after {last:,} steps"
    )
    whole = f"{_price(cost, last)}; {trust}."
    if chosen is None:
        return f"{_capital(end)}: {whole}{best}"
    chance = chosen["probability"]
    chances = "" if chance is None else f" (chance {_percent(chance)})"
    return f"{_capital(_words(chosen))} is not reached{chances}: {end}: {whole}{best}"


def _best(curve: dict[str, Any]) -> str:
    """Where the loss of samples that are not trained on is least, as a sentence."""
    found = curve.get("validation")
    if found is None or found["best"]["step"] is None:
        return ""
    best, last = found["best"], curve["steps"][-1]
    if best["step"] >= last:
        return f" Validation loss still falls at the end, to {_number(best['loss'])}."
    return (
        f" Validation loss is least, {_number(best['loss'])}, after about {best['step']:,} steps"
        f"{_between(best)}."
    )


def duration(seconds: int | float) -> str:
    """Seconds as people say them, in two digits: `0.4 s`, `36 s`, `12 min`, `3.2 h`, `4.1 days`."""
    if not math.isfinite(seconds):
        return "an unknown time"
    units = (("s", 1.0, 90.0), ("min", _MINUTE, 90.0), ("h", _HOUR, 48.0), ("days", _DAY, math.inf))
    unit, size, _ = next(each for each in units if seconds < each[2] * each[1])
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def print_report(
    report: dict[str, Any],
    *,
    all_times: bool = False,
    file: Any = None,
    width: int | None = None,
) -> None:
    """The sentence, the table of levels, cost and verdict.

    Args:
        all_times: also the times of all thresholds and ε.
        file: where to; by default standard output.
        width: columns; by default those of the terminal, 80 where there is none.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=file, width=width)
    prediction, truth, cost, task, optimizer, verdict = (
        report[name] for name in ("prediction", "truth", "cost", "task", "optimizer", "verdict")
    )
    last = prediction["steps"][-1]
    console.print(f"\n[bold]{escape(sentence(report))}[/bold]", highlight=False)
    console.print(
        f"{escape(task['model'])} on {escape(task['data'])}: {task['num_samples']} samples, "
        f"{task['num_classes']} classes; {escape(setting_words(optimizer))}; {last:,} steps; "
        f"method {prediction['method']}",
        highlight=False,
    )
    _print_levels(console, report)
    if all_times:
        _print_all_times(console, report)
    for line in _remarks(report):
        console.print(line, highlight=False)
    console.print(f"after {last:,} steps: {_ends(prediction, truth)}", highlight=False)
    console.print(_cost(cost), highlight=False)
    colour, trust = COLOURS[verdict["trust"]], verdict["trust"]
    reason = "see above" if trust == "none" else escape(verdict["reason"])
    console.print(f"trust: [{colour}]{trust}[/{colour}] – {reason}", highlight=False)


def report_text(report: dict[str, Any], *, width: int = 80) -> str:
    """What `print_report` prints, without colours."""
    written = io.StringIO()
    print_report(report, file=written, width=width)
    return written.getvalue()


def setting_words(optimizer: dict[str, Any]) -> str:
    """An optimiser's setting in a line."""
    batch = "full batch" if optimizer["batch_size"] is None else f"batch {optimizer['batch_size']}"
    momentum = (
        f", {'Nesterov' if optimizer['nesterov'] else 'momentum'} {optimizer['momentum']:g}"
        if optimizer["momentum"]
        else ""
    )
    decay = f", weight decay {optimizer['weight_decay']:g}" if optimizer["weight_decay"] else ""
    name = optimizer.get("name", "sgd")  # reports of before have none
    kind = "" if name == "sgd" else f"{name}, "
    clipped = f", norm cut to {optimizer['clip_norm']:g}" if optimizer.get("clip_norm") else ""
    average = optimizer.get("weight_ema")
    averaged = "" if average is None else f", read at weights averaged with {average:g}"
    return (
        f"{kind}learning rate {optimizer['learning_rate']:g} "
        f"({optimizer['schedule']}){momentum}{decay}{clipped}, {batch}{averaged}"
    )


def _print_levels(console: Any, report: dict[str, Any]) -> None:
    prediction, truth = report["prediction"], report["truth"]
    reals = [None] * len(prediction["levels"])
    if truth is not None:
        reals = [each["steps"] for each in truth["levels"]]
    rows = list(zip(prediction["levels"], reals, strict=True))
    shown = [row for row in rows if row[0]["steps"] is not None or row[1] is not None]
    with_chance = any(level["probability"] is not None for level, _ in shown)
    if shown:
        unlimited = console.options.update(max_width=1000)
        tables = (_levels_table(report, shown, with_chance, spared) for spared in _SPARED)
        fitting = (
            t for t in tables if console.measure(t, options=unlimited).maximum <= console.width
        )
        print_table(console, next(fitting, _levels_table(report, shown, with_chance, _SPARED[-1])))
    missing = [level for level, real in rows if level["steps"] is None and real is None]
    if missing:
        likely = max((each["probability"] or 0.0 for each in missing), default=0.0)
        at_most = "" if likely < FEW else "at most "
        chance = f" (chance {at_most}{_percent(likely)})" if with_chance else ""
        names = ", ".join(_words(each) for each in missing)
        gap = "" if shown else "\n"
        within = f"{gap}not reached within {prediction['steps'][-1]:,} steps: {names}{chance}"
        console.print(within, highlight=False)


def _levels_table(
    report: dict[str, Any], shown: list[Any], with_chance: bool, spared: tuple[str, ...]
) -> Any:
    """A row for each level that is reached, without the columns that are spared."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    pace = report["cost"]["seconds_per_step"]

    def cells(level: dict[str, Any], real: Any) -> dict[str, str]:
        steps = level["steps"]
        off = "" if steps is None or real is None else f"{(steps - real) / max(real, 1):+.0%}"
        return {
            "predicted": _steps(steps),
            "90 % interval": _range(level),
            "chance": _percent(level["probability"]),
            "real": _steps(real),
            "off by": off,
            "time": "" if steps is None else duration(steps * pace),
        }

    left_out = {
        *(() if with_chance else ("90 % interval", "chance")),
        *(() if report["truth"] is not None else ("real", "off by")),
        *spared,
    }
    columns = [name for name in cells(*shown[0]) if name not in left_out]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("steps until", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for level, real in shown:
        found = cells(level, real)
        table.add_row(_words(level), *(found[name] for name in columns))
    return table


def _print_all_times(console: Any, report: dict[str, Any]) -> None:
    """Every threshold and ε, and the plateau."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    prediction, truth = report["prediction"], report["truth"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("steps until", no_wrap=True)
    for column in ("predicted",) if truth is None else ("predicted", "real"):
        table.add_column(column, justify="right", no_wrap=True)

    def add(label: str, of: Any) -> None:
        steps, low, high = (of(prediction[name]) for name in ("times", "times_low", "times_high"))
        text = _steps(steps) if low == high else f"{_steps(steps)} ({_steps(low)}–{_steps(high)})"
        table.add_row(label, text, *(() if truth is None else (_steps(of(truth["times"])),)))

    for family, label in _FAMILIES.items():
        for name in prediction["times"][family]:
            add(
                label.format(_level_name(family, name)),
                lambda times, family=family, name=name: times[family][name],
            )
        table.add_section()
    add("error on a plateau", lambda times: times["plateau"])
    print_table(console, table)


def _remarks(report: dict[str, Any]) -> list[str]:
    """What the reader should know of these numbers."""
    prediction, truth, verdict = report["prediction"], report["truth"], report["verdict"]
    found = []
    if verdict["trust"] == "none":
        found.append("no intervals and no chances, because the prediction is refused")
    elif not prediction.get("intervals") and _is_uncalibrated(report["optimizer"]):
        found.append("no intervals and no chances: those known come from runs with SGD")
    elif prediction.get("intervals"):
        found.append(
            "intervals and chances (of reaching the level within the steps) come from runs of "
            "other tasks"
        )
    if prediction.get("slowdown", 1) != 1:
        found.append(
            f"times ×{prediction['slowdown']:.2f}: real training of other tasks was that much "
            "slower than this method predicts so near to the stability bound"
        )
    if truth is not None and truth.get("collapsed_at") is not None:
        found.append(
            f"real training is dead at chance level from step {truth['collapsed_at']} on: its "
            "outputs are the same for all samples, and no gradient is left"
        )
    return found


def _ends(prediction: dict[str, Any], truth: dict[str, Any] | None) -> str:
    def of(curve: dict[str, Any], word: str) -> str:
        loss, error = _number(curve["loss"][-1]), _number(curve["error"][-1], ".1%")
        text = f"loss {loss}, error {error} {word}"
        if (found := curve.get("validation")) is None:
            return text
        loss, error = _number(found["loss"][-1]), _number(found["error"][-1], ".1%")
        best = found["best"]
        least = "" if best["step"] is None else f", least at step {best['step']:,}"
        return f"{text} (validation: loss {loss}, error {error}{least})"

    return of(prediction, "predicted") + ("" if truth is None else f"; {of(truth, 'in truth')}")


def _cost(cost: dict[str, Any]) -> str:
    kind = "took" if cost["train_measured"] else "would take about"
    elsewhere = _is_elsewhere(cost) and not cost["train_measured"]
    compiled = None if elsewhere else cost.get("train_compile_seconds")
    text = (
        f"prediction took {cost['predict_seconds']:.1f} s (and "
        f"{cost['predict_compile_seconds']:.1f} s of compilation), training {kind} "
        f"{cost['train_seconds']:.1f} s"
        + ("" if compiled is None else f" (and {compiled:.1f} s of compilation)")
        + (" on the other machine" if elsewhere else f": a ratio of {cost['ratio']:.1f}")
    )
    if cost.get("price") is not None:
        text += f"; training costs {cost['price']:.2g} at {cost['price_per_hour']:g} an hour"
    return text


def _price(cost: dict[str, Any], steps: int | float) -> str:
    seconds = steps * cost["seconds_per_step"]
    machine = f"at {cost['seconds_per_step']:.2g} s a step" if _is_elsewhere(cost) else ""
    text = f"{duration(seconds)} {machine or 'on this machine'}"
    if cost.get("price_per_hour") is None:
        return text
    return f"{text}, {cost['price_per_hour'] * seconds / _HOUR:.2g} at {cost['price_per_hour']:g}/h"


def _is_elsewhere(cost: dict[str, Any]) -> bool:
    """Whether times and price are of another machine; reports of before do not say."""
    return cost.get("machine", "this") == "another"


def _between(level: dict[str, Any]) -> str:
    words = _range(level)
    return f" ({words})" if words else ""


def _range(level: dict[str, Any]) -> str:
    if level["low"] is None:
        return ""
    if level["high"] is None:
        return f"from {level['low']:,}"
    return f"{level['low']:,}–{level['high']:,}"


def _is_uncalibrated(optimizer: dict[str, Any]) -> bool:
    return optimizer.get("name", "sgd") != "sgd" or any(
        optimizer.get(each) is not None for each in ("clip_norm", "weight_ema")
    )


def _words(level: dict[str, Any]) -> str:
    return Level(level["of"], level["level"]).words


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(share: int | float | None) -> str:
    return "" if share is None else chance_words(share)


def _steps(steps: int | float | None) -> str:
    return "not reached" if steps is None else f"{steps:,}"


def _level_name(family: str, name: str) -> str:
    return name if family in ("loss_below", "epsilon_absolute") else f"{100 * float(name):.12g} %"


def _number(value: int | float, form: str = ".3g") -> str:
    return format(value, form) if math.isfinite(value) else "not finite (diverged)"
