"""Which lines of a log tell the loss of another phase than training.

Many loggers write the losses of training and of validation under one name, and say which it is in
another column (`split`, `event`, …), by a flag (`is_training`), or in front of the record.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_WORDS = (
    "val|vali?d|valid(?:at(?:e|ed|ing|ion))?|eval(?:uat(?:e|ed|ing|ion|or))?|tests?|testing|tested"
    "|dev|hold[ _-]?outs?|held[ _-]?out|sanity[ _-]?check(?:ing)?|predict(?:ing|ion)?"
    "|infer(?:ence)?"
)
_OTHERS = re.compile(rf"(?<![a-z])(?:{_WORDS})(?![a-z])")
_TRAINING = re.compile(r"(?<![a-z])(?:train(?:ing|ed)?|fit(?:ting)?)(?![a-z])")
# a cell that says no more than the phase: `val`, `eval_step`, `on_validation_end`
_ALONE = re.compile(rf"(?:[a-z]+[ _./:-])?(?:{_WORDS})(?:[ _./:-][a-z0-9]+)?")
_USUAL = re.compile(
    "split|phase|mode|stage|subset|dataset_split|set|partition|fold|event|evt|event_type|type|kind"
    "|loop|job_type|tag|prefix|loader|log_type|record_type"
)
_FLAG = re.compile(
    r"(?P<is>is_|in_)?(?:(?P<train>train|training)"
    r"|val|valid|validation|validating|eval|evaluation|evaluating|test|testing|inference)"
    r"(?P<mode>_(?:mode|phase|flag))?"
)
_LONGEST = 60  # characters of a cell that names a phase
_LONGEST_FRONT = 300  # characters before a record that are looked at
_MOST_KNOWN = 10_000  # cells whose meaning is remembered
_SAYING = frozenset((str, bool, int))
_UNKNOWN: Any = object()

Mark = tuple[str, str]  # the column, empty for what stands before the record, and the word in it


def is_validation(phase: Any) -> bool:
    """Whether a text names another phase than training."""
    return isinstance(phase, str) and _OTHERS.search(phase.lower()) is not None


def plain(name: str) -> str:
    """A column's name without the accidents of writing."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def may_name_phase(column: str, cell: str) -> bool:
    """Whether a cell of this column could say what phase its line is of."""
    key = plain(column)
    return (
        _USUAL.fullmatch(key) is not None
        or _FLAG.fullmatch(key) is not None
        or (len(cell) <= _LONGEST and re.search("[A-Za-z]{3}", cell) is not None)
    )


def front_of(line: str) -> str:
    """What stands before the object in a line."""
    return line[: max(0, line.find("{"))][-_LONGEST_FRONT:]


class OtherPhases:
    """Tells lines of other phases from those of training, by what sets them apart in this log.

    A word that stands in all lines so far (the log of a run called `test`) tells nothing, until a
    line comes without it.

    Args:
        note: is told of each column and word by which lines are passed over.
        path: of the log, for these notes.

    Attributes:
        last: what was noted last; empty where no line is of another phase.
    """

    def __init__(self, note: Callable[[str], None], path: str):
        self._note, self._path, self.last = note, path, ""
        self._everywhere: set[Mark] | None = None  # None before any line
        self._training: set[str] = set()  # columns in which training has been named
        self._known: dict[tuple[str, Any, type], Mark | None] = {}  # what cells say

    def learn(self, lines: Iterable[tuple[Mapping[str, Any], str]]) -> None:
        """Look at lines, each with what stands before it, without judging them."""
        for row, before in lines:
            self._look(row, before)

    def has(self, row: Mapping[str, Any], before: str = "") -> bool:
        """Whether this line is of another phase than training."""
        telling = [each for each in self._look(row, before) if each not in (self._everywhere or ())]
        if telling:
            column, word = telling[0]
            where = f"with {column} {word!r}" if column else f"after the word {word!r}"
            self.last = f"lines of {self._path!r} {where} are not of training"
            self._note(f"{self.last}; they are passed over")
        return bool(telling)

    def _look(self, row: Mapping[str, Any], before: str) -> set[Mark]:
        marks = self._marks(row, before)
        self._everywhere = marks if self._everywhere is None else self._everywhere & marks
        return marks

    def _marks(self, row: Mapping[str, Any], before: str) -> set[Mark]:
        found: set[Mark] = set()
        for name, value in row.items():
            kind = type(value)
            if kind not in _SAYING:
                continue
            mark = self._known.get((name, value, kind), _UNKNOWN)
            if mark is _UNKNOWN:
                mark = self._mark(name, value)
                if len(self._known) < _MOST_KNOWN:
                    self._known[name, value, kind] = mark
            if mark is not None:
                found.add(mark)
        # a progress bar belongs to what is printed, not to the record behind it
        if before and "%|" not in before and not _TRAINING.search(before.lower()):
            found.update(("", word) for word in _OTHERS.findall(before.lower()))
        return found

    def _mark(self, name: str, value: str | bool | int) -> Mark | None:
        """What a cell says of another phase."""
        key = plain(name)
        usual, flag = _USUAL.fullmatch(key), _FLAG.fullmatch(key)
        if flag is not None and (on := _switched(value, flag)) is not None:
            return (name, str(value)) if on != (flag["train"] is not None) else None
        if not isinstance(value, str) or len(value) > _LONGEST:
            return None
        text = value.strip().lower()
        if _TRAINING.search(text):
            if name not in self._training:
                self._training.add(name)
                self._known.clear()
            return None
        if usual:
            return (name, text) if _OTHERS.search(text) else None
        return (name, text) if name in self._training and _ALONE.fullmatch(text) else None


def _switched(value: Any, flag: re.Match[str]) -> bool | None:
    """Whether a flag is on; None for what is no flag, such as a loss under the name `train`."""
    text = str(value).strip().lower()
    if text in ("true", "false"):
        return text == "true"
    # zero and one are flags only where the name says so
    return text == "1" if text in ("0", "1") and (flag["is"] or flag["mode"]) else None
