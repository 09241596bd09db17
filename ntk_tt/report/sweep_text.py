"""A sweep in words: a sentence, a table of the best, and what belongs beside them."""

import io
from typing import Any

from ntk_tt.report.text import COLOURS, duration
from ntk_tt.runtime.terminal import print_table
from ntk_tt.times.calibration import chance_words
from ntk_tt.times.levels import Level

TOP = 15  # rows that are printed
_NAMES = {
    "learning_rate": "rate",
    "batch_size": "batch",
    "num_steps": "steps in all",
    "weight_decay": "decay",
    "warmup_steps": "warm-up",
}
# columns that a table leaves out, the fewest with which it fits
_SPARED = ((), ("final loss",), ("final loss", "90 %"), ("final loss", "90 %", "chance", "price"))
# of a row, what is no part of its setting
_FOUND = (
    "rank",
    "steps",
    "low",
    "high",
    "probability",
    "seconds",
    "price",
    "in_time",
    "final_loss",
    "final_error",
    "seconds_per_step",
    "whole_seconds",
    "whole_price",
    "stability_margin",
    "trust",
    "reason",
)


def sweep_sentence(document: dict[str, Any]) -> str:
    """The answer to "which of these?"."""
    about, rows = document["sweep"], document["rows"]
    level = level_words(document)
    if not rows:
        return "No setting was priced."
    first = rows[0]
    if first["trust"] == "none":
        return f"None of the {len(rows):,} settings is stable: take smaller learning rates."
    if not first["in_time"]:
        within = _deadline(about)
        return (
            f"{level} is not reached{within} by any of the {len(rows):,} settings; "
            f"{setting_words_of(first, document)} ends lowest or likeliest, at loss "
            f"{first['final_loss']:.3g}."
        )
    count = sum(row["in_time"] and row["trust"] != "none" for row in rows)
    price = "" if first["price"] is None else f", {first['price']:.2g} in money"
    return (
        f"{level} first with {setting_words_of(first, document)}: {first['steps']:,} steps, "
        f"{duration(first['seconds'])}{price}; trust: {first['trust']}. "
        f"{count:,} of {len(rows):,} settings reach it{_deadline(about)}."
    )


def level_words(document: dict[str, Any]) -> str:
    """The level that is waited for, as a sentence begins."""
    target = document["sweep"]["target"]
    words = Level(target["of"], target["level"]).words
    return words[:1].upper() + words[1:]


def setting_names(document: dict[str, Any]) -> list[str]:
    """What differs between the rows' settings; of one row alone its rate and batch."""
    rows = document["rows"]
    names = dict.fromkeys(name for row in rows for name in row if name not in _FOUND)
    found = [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]
    return found or [name for name in ("learning_rate", "batch_size") if name in names]


def setting_words_of(row: dict[str, Any], document: dict[str, Any]) -> str:
    """What differs in a row from others: `rate 0.01, batch 32`."""
    named = [
        each if name in ("optimizer", "model", "schedule") else f"{heading(name)} {each}"
        for name in setting_names(document)
        if (each := shown(name, row.get(name)))
    ]
    return ", ".join(named)


def heading(name: str) -> str:
    """A name as a column has it."""
    return _NAMES.get(name, name.replace("_", " "))


def shown(name: str, value: Any) -> str:
    """A value of a setting as a cell has it; empty where it has none."""
    if name == "batch_size" and value is None:
        return "full"
    if value is None:
        return ""
    if isinstance(value, list):
        return "/".join(f"{each:g}" for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def cells(row: dict[str, Any], document: dict[str, Any]) -> dict[str, str]:
    """A row of the table, by column."""
    steps, low, high = row["steps"], row["low"], row["high"]
    between = "" if low is None else f"from {low:,}" if high is None else f"{low:,}–{high:,}"
    chance = row["probability"]
    found = {heading(name): shown(name, row.get(name)) for name in setting_names(document)}
    found |= {
        "steps": "not reached" if steps is None else f"{steps:,}",
        "90 %": between,
        "chance": "" if chance is None else chance_words(chance),
        "time": "" if row["seconds"] is None else duration(row["seconds"]),
    }
    if document["sweep"]["price_per_hour"] is not None:
        found["price"] = "" if row["price"] is None else f"{row['price']:.2g}"
    found["final loss"] = f"{row['final_loss']:.3g}"
    return {**found, "trust": row["trust"]}


def print_sweep(
    document: dict[str, Any],
    *,
    top: int | None = TOP,
    file: Any = None,
    width: int | None = None,
) -> None:
    """The sentence, the table of the best rows, and how many are left out.

    Args:
        top: rows that are printed; None is all of them.
        file, width: as `print_report` takes them.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=file, width=width)
    console.print(f"\n[bold]{escape(sweep_sentence(document))}[/bold]", highlight=False)
    rows = document["rows"]
    if rows:
        printed = rows if top is None else rows[:top]
        made = [cells(row, document) for row in printed]
        names = [name for name in made[0] if any(each[name] for each in made)]
        unlimited = console.options.update(max_width=1000)
        tables = [_table(made, [n for n in names if n not in spared]) for spared in _SPARED]
        fitting = (
            t for t in tables if console.measure(t, options=unlimited).maximum <= console.width
        )
        print_table(console, next(fitting, tables[-1]))
    for line in remarks(document, len(rows) if top is None else top):
        console.print(escape(line), highlight=False)


def _table(made: list[dict[str, str]], names: list[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        is_word = name in ("optimizer", "model", "schedule", "trust", "trainable")
        table.add_column(name, justify="left" if is_word else "right", no_wrap=True)
    for each in made:
        colour = COLOURS[each["trust"]]
        table.add_row(
            *(
                f"[{colour}]{each[name]}[/{colour}]" if name == "trust" else escape(each[name])
                for name in names
            )
        )
    return table


def sweep_text(document: dict[str, Any], *, width: int = 80) -> str:
    """What `print_sweep` prints, without colours."""
    written = io.StringIO()
    print_sweep(document, file=written, width=width)
    return written.getvalue()


def remarks(document: dict[str, Any], top: int) -> list[str]:
    """What the reader should know of these rows."""
    about, rows = document["sweep"], document["rows"]
    found = []
    if len(rows) > top:
        found.append(f"{len(rows) - top:,} more settings are in --csv, --json or --html")
    refused = sum(row["trust"] == "none" for row in rows)
    if refused:
        found.append(f"{refused:,} of {len(rows):,} settings are refused: not stable")
    if about["num_asked"] > len(rows):
        found.append(
            f"interrupted: {len(rows):,} of {about['num_asked']:,} settings are priced, the "
            "others are not in this table"
        )
    if not about["target"]["is_target"]:
        found.append("no target was given: this is a quarter of the loss at the start")
    seconds = sum(each["seconds"] for each in about["passes"])
    whole = max((row["whole_seconds"] for row in rows), default=0.0)
    found.append(
        f"the sweep took {duration(seconds)} after its pass; the longest of these runs would take "
        f"{duration(whole)}"
    )
    return found


def _deadline(about: dict[str, Any]) -> str:
    seconds = about["deadline_seconds"]
    return "" if seconds is None else f" within {duration(seconds)}"
