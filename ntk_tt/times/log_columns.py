"""Which columns of a log are the step, the loss and the clock: the usual names of trainers and
loggers, chosen by what a log has.
"""

import datetime
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from ntk_tt.times.log_phases import is_validation, plain

STEP_NAMES = (
    "step",
    "global_step",
    "iteration",
    "steps",
    "train/global_step",
    "trainer/global_step",
    "current_steps",
    "current_step",
    "train/step",
    "train_step",
    "iter",
    "iterations",
    "iteration_number",
    "num_steps",
    "num_updates",
    "_step",
    # these begin again with each epoch, and are counted on
    "batch",
    "batch_idx",
    "batch_index",
    "batches",
    "minibatch",
    "mini_batch",
    "epoch",
    "epochs",
    "train/epoch",
)
LOSS_NAMES = (
    "loss",
    "train_loss",
    "train/loss",
    "training_loss",
    "train.loss",
    "loss/train",
    "loss_train",
    "train_loss_step",
    "train/loss_step",
    "train/train_loss",
    "training/loss",
    "losses/train",
    "loss_step",
    "train_loss_epoch",
    "train/loss_epoch",
    "loss_epoch",
    "total_loss",
    "train_total_loss",
    "train/total_loss",
    "loss_total",
    "loss/total",
)
CLOCK_NAMES = (
    "wall_time",
    "_timestamp",
    "timestamp",
    "walltime",
    "_runtime",
    "relative_time",
    "elapsed_time",
    "elapsed",
)
EPOCH_NAMES = ("epoch", "epochs", "train/epoch")
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "null", "none", "-", "--", "—", "?"))
_POINT = re.compile(r"\s*[+-]?\d+\.\d+\s*")
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_SHOWN = 40  # names in a message


class Columns(NamedTuple):
    """Names of a log's columns; None where there is none."""

    step: str
    loss: str
    clock: str | None
    epoch: str | None


def number(value: Any, comma: bool = False) -> float | None:
    """A cell as a number, perhaps not a finite one; None where it is none (a flag, a text, a list,
    a missing value).

    Args:
        value: a cell's text, or a value of JSON.
        comma: whether 1,5 may be one and a half.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # pyright: ignore[reportOperatorIssue]
    except ValueError:
        text = str(value).strip()
        if comma and text.count(",") == 1 and "." not in text:
            return number(text.replace(",", "."))
        return None


def has_points(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether numbers are written with a decimal point; then a comma in them parts thousands."""
    return any(
        type(cell) is str and _POINT.fullmatch(cell) for row in rows for cell in row.values()
    )


def seconds(value: Any) -> float | None:
    """A clock's cell in seconds since any moment: a number, H:MM:SS, or a date and time."""
    found = number(value)
    if found is not None:
        if not math.isfinite(found):
            return None
        # milliseconds, microseconds or nanoseconds since 1970: those of today in each unit differ
        # by a thousand
        return found / next((unit for least, unit in _UNITS if abs(found) > least), 1)
    if not isinstance(value, str) or len(value) > 64:
        return None
    if match := re.fullmatch(r"\s*(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", value):
        days, hours, minutes, rest = match.groups(default="0")
        return 86400 * float(days) + 3600 * float(hours) + 60 * float(minutes) + float(rest)
    try:
        return datetime.datetime.fromisoformat(value.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def is_missing(value: Any) -> bool:
    """Whether a cell says that there is no value."""
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def choose(
    rows: Sequence[dict[str, Any]],
    path: str,
    *,
    step: str | None,
    loss: str | None,
    before: Columns | None = None,
    comma: bool = False,
) -> Columns | None:
    """The columns of a log by some of its rows; None where no row has a loss and a step.

    Names count in the order of `LOSS_NAMES` and `STEP_NAMES`, upper and lower case alike; after
    them such as wandb puts behind the name of a run ("run-1 - train/loss"), and the last parts of
    nested names. A column with under a quarter of the values that another candidate has is a
    summary.

    Args:
        rows: cells by column.
        path: of the log, for messages.
        step, loss: what the user named, or None.
        before: columns chosen before, which are kept where they are still there.
        comma: as in `number`.

    Raises:
        ValueError: two columns fit equally well.
    """

    def numeric(value: Any) -> bool:
        return number(value, comma) is not None

    lossy = _best(rows, "loss", loss, before and before.loss, numeric, path)
    if lossy is None:
        return None
    with_loss = [row for row in rows if numeric(row.get(lossy))]
    steps = _best(
        [{name: value for name, value in row.items() if name != lossy} for row in with_loss],
        "step",
        step,
        before and before.step,
        numeric,
        path,
    )
    if steps is None:
        return None
    clocks = [row for row in with_loss if numeric(row.get(steps))]
    clock = _first(clocks, CLOCK_NAMES, lambda value: seconds(value) is not None)
    epoch = _first(clocks, EPOCH_NAMES, numeric)
    return Columns(
        steps,
        lossy,
        clock if clock not in (steps, lossy) else None,
        epoch if epoch != steps else None,
    )


def fitting(names: Iterable[str], kind: Literal["step", "loss"], given: str | None) -> list[str]:
    """Those of a log's columns that could be the step or the loss, best first."""
    names = list(dict.fromkeys(names))
    rank = _rank(kind, given, [dict.fromkeys(names)])
    ranks = {name: rank(name) for name in names}
    return sorted(
        (name for name in names if ranks[name] is not None), key=lambda name: ranks[name] or 0
    )


def has_columns(names: Iterable[str], *, step: str | None, loss: str | None) -> bool:
    """Whether cells are a header with a step and a loss."""
    names = list(names)
    return len({*fitting(names, "step", step), *fitting(names, "loss", loss)}) > 1 and bool(
        fitting(names, "step", step) and fitting(names, "loss", loss)
    )


def visible(names: Iterable[str]) -> str:
    """Names for a message, with what cannot be seen written out."""
    names = list(names)
    shown = ", ".join(
        "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode()
            for each in name[:80]
        )
        or "''"
        for name in names[:_SHOWN]
    )
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def flat(fields: dict[str, Any], depth: int = 4) -> dict[str, Any]:
    """Nested objects as one, with names joined by a slash."""
    if dict not in map(type, fields.values()):
        return fields
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and depth > 0:
            found.update(
                (f"{name}/{inner}", each) for inner, each in flat(value, depth - 1).items()
            )
        else:
            found[name] = value
    return found


def _rank_in(names: tuple[str, ...]) -> Callable[[str], int | None]:
    def rank(name: str) -> int | None:
        for offset, each in (
            (0, name),
            (100, name.rpartition(" - ")[2]),
            (200, re.split(r"[/.]", name)[-1]),
        ):
            key = plain(each)
            if offset < 200:
                key = key if key in names else key.replace(".", "/")
            if key in names and not (offset and is_validation(name)):
                return offset + names.index(key)
        return None

    return rank


def _rank(
    kind: Literal["step", "loss"], given: str | None, rows: Sequence[dict[str, Any]]
) -> Callable[[str], int | None]:
    if given is not None:
        return lambda name: _given(name, given)
    # TensorBoard's export of one curve
    if (
        kind == "loss"
        and rows
        and {plain(name) for name in rows[0]} == {"wall_time", "step", "value"}
    ):
        return lambda name: 0 if plain(name) == "value" else None
    return _rank_in(STEP_NAMES if kind == "step" else LOSS_NAMES)


def _given(name: str, wanted: str) -> int | None:
    return (
        0
        if name == wanted
        else 1
        if plain(name) == plain(wanted)
        else 2
        if plain(name.rpartition(" - ")[2]) == plain(wanted)
        else None
    )


def _best(
    rows: Sequence[dict[str, Any]],
    kind: Literal["step", "loss"],
    given: str | None,
    before: str | None,
    numeric: Callable[[Any], bool],
    path: str,
) -> str | None:
    rank = _rank(kind, given, rows)
    counts: dict[str, int] = {}
    ranks: dict[str, int | None] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ranks:
                ranks[name] = rank(name)
            if ranks[name] is not None and numeric(value):
                counts[name] = counts.get(name, 0) + 1
    if not counts:
        return None
    if before in counts:
        return before
    most = max(counts.values())
    viable = {
        name: (ranks[name], name != plain(name))
        for name, count in counts.items()
        if 4 * count >= most
    }
    best = min(viable.values())
    found = [name for name, value in viable.items() if value == best]
    if len(found) > 1:
        raise ValueError(
            f"log: {visible(found)} could each be the {kind} in {path!r}; name one with "
            f"--{kind}-column"
        )
    return found[0]


def _first(
    rows: Sequence[dict[str, Any]], names: tuple[str, ...], fits: Callable[[Any], bool]
) -> str | None:
    present = {plain(name.rpartition(" - ")[2]): name for row in rows[:100] for name in row}
    return next(
        (
            present[name]
            for name in names
            if name in present and any(fits(row.get(present[name])) for row in rows[:100])
        ),
        None,
    )
