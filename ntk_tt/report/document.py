"""One JSON document (docs/json.md) of what a prediction says; rows and notes for the terminal."""

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
    text = json.dumps(finite(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def finite(value: Any) -> Any:
    """Plain values for JSON; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
