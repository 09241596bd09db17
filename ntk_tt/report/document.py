"""What a prediction says: one JSON document (docs/json.md), one table for the terminal."""

import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_tt.runtime.files import write_whole
from ntk_tt.runtime.terminal import print_table

_FAMILIES = {
    "epsilon_relative": "loss within {} of its fall",
    "epsilon_absolute": "loss within {} of the last",
    "loss_below": "loss below {}",
    "error_below": "error below {}",
}


def environment(seed: int) -> dict[str, Any]:
    """Versions and hardware that numbers belong to."""
    import diffrax
    import flax
    import optax

    import ntk_tt

    return {
        "ntk_tt": ntk_tt.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "diffrax": diffrax.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
    }


def curve(run: Any, times: dict, **more: Any) -> dict[str, Any]:
    """`{"steps", "loss", "error", "times", …}` of a prediction or a training run."""
    return {
        "steps": run.steps.tolist(),
        "loss": run.loss.tolist(),
        "error": run.error.tolist(),
        "times": times,
        **more,
    }


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Replace the file as a whole, so an interruption leaves the old one; non-finite numbers become
    null.
    """
    text = json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(report: dict[str, Any]) -> None:
    """The tables on standard output: times, costs, verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    prediction, truth, cost, task, optimizer = (
        report[name] for name in ("prediction", "truth", "cost", "task", "optimizer")
    )
    last = prediction["steps"][-1]
    console.print(
        f"\n[bold]{escape(task['model'])}[/bold] on {escape(task['data'])}: {task['num_samples']} "
        f"images, {task['num_classes']} classes; {escape(_setting(optimizer))}; {last} steps"
    )

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("steps until …", no_wrap=True)
    for column in (
        ("predicted", "seconds") if truth is None else ("predicted", "real", "off by", "seconds")
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for family, label in _FAMILIES.items():
        for name, steps in prediction["times"][family].items():
            bounds = prediction["times_low"][family][name], prediction["times_high"][family][name]
            real = () if truth is None else (truth["times"][family][name],)
            interval = (prediction.get("intervals") or {}).get(family, {}).get(name)
            table.add_row(
                label.format(_level(family, name)),
                *_row(steps, bounds, real, cost["seconds_per_step"], interval),
            )
        table.add_section()
    real = () if truth is None else (truth["times"]["plateau"],)
    bounds = prediction["times_low"]["plateau"], prediction["times_high"]["plateau"]
    table.add_row(
        "error on a plateau",
        *_row(prediction["times"]["plateau"], bounds, real, cost["seconds_per_step"]),
    )
    print_table(console, table)
    if (report["verdict"] or {}).get("trust") == "none":
        console.print(
            "no intervals and no chances, because the prediction is refused (see trust)",
            highlight=False,
        )
    elif _is_uncalibrated(report.get("optimizer") or {}):
        console.print(
            "no intervals and no chances: those known come from runs with SGD", highlight=False
        )
    if prediction.get("intervals"):
        console.print(
            "in brackets: 90 % intervals, and the chance that the level is reached within the "
            "steps, both from runs of other tasks; without a chance, the range over orders of the "
            "data",
            highlight=False,
        )

    if prediction.get("slowdown", 1) != 1:
        console.print(
            f"times ×{prediction['slowdown']:.2f}: real training of other tasks was that much "
            "slower than this method predicts so near to the stability bound",
            highlight=False,
        )

    after = (
        f"loss {_number(prediction['loss'][-1])}, error "
        f"{_number(prediction['error'][-1], '.1%')} predicted"
    )
    if truth is not None:
        after += (
            f"; loss {_number(truth['loss'][-1])}, error "
            f"{_number(truth['error'][-1], '.1%')} in truth"
        )
    console.print(f"after {last} steps: {after}")
    if truth is not None and truth.get("collapsed_at") is not None:
        console.print(
            f"real training is dead at chance level from step {truth['collapsed_at']} on: its "
            "outputs are the same for all samples, and no gradient is left",
            highlight=False,
        )
    console.print(_cost(cost), highlight=False)
    verdict = report["verdict"]
    if verdict is not None:
        colour = {"high": "green", "medium": "yellow", "low": "red", "none": "bold red"}[
            verdict["trust"]
        ]
        console.print(
            f"trust: [{colour}]{verdict['trust']}[/{colour}] – {verdict['reason']}", highlight=False
        )


def _is_uncalibrated(optimizer: dict[str, Any]) -> bool:
    return optimizer.get("name", "sgd") != "sgd" or optimizer.get("clip_norm") is not None


def print_notes(notes: Iterable[str]) -> None:
    """What the reader should know beforehand: a truncated network, images left out."""
    for note in notes:
        if note:
            print(f"note: {note}")


def print_rows(rows: Sequence[Any]) -> None:
    """NamedTuples as a table, a column a field; below it their notes, where they have such a
    field.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    fields = [name for name in rows[0]._fields if name != "notes"]
    for name in fields:
        number = isinstance(getattr(rows[0], name), int | float)
        table.add_column(
            name.replace("_", " "), justify="right" if number else "left", no_wrap=number
        )
    for row in rows:
        table.add_row(
            *(
                f"{value:,}"
                if isinstance(value, int)
                else f"{value:.2f}"
                if isinstance(value, float)
                else escape(str(value))
                for value in (getattr(row, name) for name in fields)
            )
        )
    Console(width=max(Console().width, 150)).print(table)
    print_notes(note for row in rows for note in getattr(row, "notes", ()))


def _setting(optimizer: dict[str, Any]) -> str:
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
    return (
        f"{kind}learning rate {optimizer['learning_rate']:g} "
        f"({optimizer['schedule']}){momentum}{decay}{clipped}, {batch}"
    )


def _cost(cost: dict[str, Any]) -> str:
    kind = "took" if cost["train_measured"] else "would take about"
    text = (
        f"prediction took {cost['predict_seconds']:.1f} s (and "
        f"{cost['predict_compile_seconds']:.1f} s of compilation), training {kind} "
        f"{cost['train_seconds']:.1f} s: a ratio of {cost['ratio']:.1f}"
    )
    if cost.get("price") is not None:
        text += f"; training costs {cost['price']:.2g} at {cost['price_per_hour']:g} an hour"
    return text


def _row(
    steps: int | float | None,
    bounds: tuple,
    real: tuple,
    seconds_per_step: float,
    interval: dict[str, Any] | None = None,
) -> list[str]:
    low, high = bounds
    text = _steps(steps) if low == high else f"{_steps(steps)} ({_steps(low)}…{_steps(high)})"
    if interval is not None:
        between = (
            ""
            if interval["low"] is None
            else f"{interval['low']}…{'' if interval['high'] is None else interval['high']}, "
        )
        text = f"{_steps(steps)} ({between}{interval['probability']:.0%})"
    cells = [text]
    for true in real:
        difference = (
            f"{steps - true:+g}"
            if steps is not None and true is not None
            else ("agree" if steps == true else "differ")
        )
        cells += [_steps(true), difference]
    return [*cells, "" if steps is None else f"{steps * seconds_per_step:.1f}"]


def _steps(steps: int | float | None) -> str:
    return "not reached" if steps is None else str(steps)


def _level(family: str, name: str) -> str:
    return name if family in ("loss_below", "epsilon_absolute") else f"{100 * float(name):.12g} %"


def _number(value: float, form: str = ".3g") -> str:
    return format(value, form) if math.isfinite(value) else "not finite (diverged)"
