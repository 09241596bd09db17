"""Lines of a log to records: the header and the columns are found once, then read on with."""

import collections
import re
from collections.abc import Sequence
from typing import Any, Literal

from ntk_tt.times.log_columns import (
    LOSS_NAMES,
    STEP_NAMES,
    Columns,
    choose,
    fitting,
    flat,
    has_columns,
    has_points,
    is_missing,
    number,
    seconds,
    visible,
)
from ntk_tt.times.log_phases import OtherPhases, front_of, may_name_phase
from ntk_tt.times.log_text import Record, cells_of, json_of, object_of, objects_apart
from ntk_tt.times.observations import MAX_STEP
from ntk_tt.times.step_counter import StepCounter

_SAMPLE = 2000  # rows by which columns are chosen
_MAX_NAMES = 1000  # of keys that are remembered
_DELIMITERS = (",", ";", "\t", "|")
_NAME = re.compile(r"[A-Za-z]{4}")  # no usual name is shorter


class LineReader:
    """Lines to records: finds the header and the columns once, then reads on with them.

    Attributes:
        columns: that were chosen, None before.
        names: keys of the objects that were seen.
        odd, odd_step: what is wrong with the last line that has one of step and loss, and with its
            step, until a record comes.
        is_document: whether the records come from one JSON value.
    """

    def __init__(
        self, step: str | None, loss: str | None, path: str, note: Any, before: "LineReader | None"
    ):
        self.given, self.path, self.note = {"step": step, "loss": loss}, path, note
        self.columns: Columns | None = None
        self.names: dict[str, None] = {}
        self.odd: str | None = None
        self.odd_step: str | None = None
        self.is_document = False
        self._preferred = before and (before.columns or before._preferred)
        self._header: list[str] | None = None
        self._old = before and (
            (before._header, before._delimiter) if before._header else before._old
        )
        self._delimiter, self._width, self._other_width = ",", 0, 0
        self._first_line = self._unreadable = ""
        self._counter = StepCounter(note, path)
        self._phases = OtherPhases(note, path)
        self._comma = False  # whether numbers may have a decimal comma

    def read(self, lines: list[str]) -> list[Record]:
        """The records of whole lines."""
        found: list[Record] = []
        start = 0
        lines = [each for line in lines for each in objects_apart(line)]
        while start < len(lines):
            if self.columns is None:
                start = self._look(lines, start)
            elif self._header is None:
                self._objects(lines, start, found)
                break
            else:
                start = self._rows(lines, start, found)
        return found

    def take(self, rows: list[dict[str, Any]]) -> list[Record]:
        """The records of a document."""
        self.is_document = True
        found: list[Record] = []
        for row in rows:
            self._take(row, str(row), found)
        return found

    def decide(self, rows: list[dict[str, Any]], before: Sequence[str] = ()) -> bool:
        """Choose the columns by some rows, if they tell, and by what stands before each."""
        self._comma = self._delimiter != "," and not has_points(rows)
        self.columns = choose(
            rows, self.path, **self.given, before=self._preferred, comma=self._comma
        )
        if self.columns is None:
            return False
        self._preferred, loss = self.columns, self.columns.loss
        self._phases.learn(
            (row, front)
            for row, front in zip(rows, before or [""] * len(rows), strict=True)
            if number(row.get(loss), self._comma) is not None
        )
        return True

    def is_whole_object(self, line: str) -> bool:
        """Whether a line without its end is complete."""
        return line.endswith("}") and self._header is None and self._object(line) is not None

    def is_row(self, line: str) -> bool:
        """Whether a line without its end has all cells."""
        return self._header is not None and len(cells_of(line, self._delimiter)) >= max(
            self._width, min(2, len(self._header))
        )

    def problem(self) -> str | None:
        """Why there are no records, where there are lines."""
        if self.odd:
            return self.odd
        if self._header is not None:
            return None
        if self._unreadable and not self.names:
            return self._unreadable
        names = list(self.names) or (
            cells_of(self._first_line, max(_DELIMITERS, key=self._first_line.count))
            if self._first_line
            else []
        )
        if not names:
            return None
        kinds: tuple[tuple[Literal["loss", "step"], tuple[str, ...]], ...] = (
            ("loss", LOSS_NAMES),
            ("step", STEP_NAMES),
        )
        for kind, usual in kinds:
            if not fitting(names, kind, self.given[kind]):
                return (
                    f"log: no column {self.given[kind] or ' or '.join(usual[:4])} in "
                    f"{self.path!r}, there are {visible(names)}; name it with --{kind}-column"
                )
        if self._phases.last:
            return (
                f"log: all lines with a loss are of other phases than training: {self._phases.last}"
            )
        return (
            f"log: no line of {self.path!r} has a number for the step and one for the loss, "
            f"there are {visible(names)}; name others with --step-column and --loss-column"
        )

    def _look(self, lines: list[str], start: int) -> int:
        """Find the header, or the objects, and the columns; returns from where to read on."""
        begin, rows, fronts, last_line = start, [], [], ""
        widths: collections.Counter[int] = collections.Counter()

        def decided() -> bool:
            if widths:
                self._width = widths.most_common(1)[0][0]
            return bool(rows) and self.decide(rows, fronts)

        for at in range(start, len(lines)):
            line = lines[at]
            if not line.strip():
                continue
            if len(rows) == _SAMPLE and decided():
                return begin
            last_line = line
            if self._header is None and (fields := self._object(line)) is not None:
                if len(self.names) < _MAX_NAMES:
                    self.names.update(dict.fromkeys(list(fields)[:_MAX_NAMES]))
                rows.append(fields)
                fronts.append(front_of(line))
                continue
            header = self._header_of(line)
            if header is not None and header != (self._header, self._delimiter):
                if decided():
                    return begin
                (self._header, self._delimiter), rows, fronts, begin = header, [], [], at + 1
                widths.clear()
            elif header is None and self._header is not None:
                cells = cells_of(line, self._delimiter)
                rows.append(dict(zip(self._header, cells, strict=False)))
                widths[len(cells)] += 1
            elif header is None:
                self._first_line = self._first_line or line[:10_000]
                # a log that was cut behind its header
                if self._old is not None and self._continues(line):
                    (self._header, self._delimiter), begin = self._old, at
                    cells = cells_of(line, self._delimiter)
                    rows.append(dict(zip(self._header, cells, strict=False)))
                    widths[len(cells)] += 1
        if decided():
            return begin
        if rows:
            step, loss = (
                next((row for row in fitting(rows[-1], kind, self.given[kind])), None)
                for kind in ("step", "loss")
            )
            raw_step, raw_loss = rows[-1].get(step), rows[-1].get(loss)
            self._notice(
                number(raw_step, self._comma),
                number(raw_loss, self._comma),
                raw_step,
                raw_loss,
                last_line,
            )
        return len(lines)

    def _header_of(self, line: str) -> tuple[list[str], str] | None:
        if not _NAME.search(line) and not any(self.given.values()):
            return None
        text = line.lstrip("# \t")
        for delimiter in _DELIMITERS:
            if delimiter in text and len(text) < 1_000_000:
                names = [name.strip() for name in cells_of(text, delimiter)]
                if has_columns(names, **self.given):
                    return names, delimiter
        return None

    def _continues(self, line: str) -> bool:
        """Whether a line is a row of the header that the log had before."""
        assert self._old is not None
        header, delimiter = self._old
        cells = cells_of(line, delimiter)
        numbers = [number(cell, delimiter != ",") for cell in cells]
        return (
            len(cells) == len(header)
            and any(value is not None for value in numbers)
            and all(
                value is not None or is_missing(cell)
                for value, cell in zip(numbers, cells, strict=True)
            )
        )

    def _rows(self, lines: list[str], start: int, found: list[Record]) -> int:
        """Records of CSV; returns the index of a new header, or the end."""
        assert self._header is not None
        assert self.columns is not None
        delimiter, comma = self._delimiter, self._comma
        step_at, loss_at, clock_at, epoch_at = self._places()
        phases_at = self._phase_places(lines[start:])
        count_on = self._counter.count_on
        for at in range(start, len(lines)):
            line = lines[at]
            cells = cells_of(line, delimiter)
            try:
                step, loss = float(cells[step_at]), float(cells[loss_at])
            except (ValueError, IndexError):
                if not line.strip():
                    continue
                cell = dict(enumerate(cells))
                step, loss = number(cell.get(step_at), comma), number(cell.get(loss_at), comma)
                if step is None or loss is None:
                    header = self._header_of(line)
                    if header is not None:
                        if header == (self._header, delimiter):
                            continue
                        self._header, self._delimiter, self.columns = *header, None
                        return at + 1
                    self._notice(step, loss, cell.get(step_at), cell.get(loss_at), line)
                    continue
            if len(cells) != self._width and not self._has_new_width(cells, line):
                continue
            if phases_at and self._phases.has(
                {name: cells[place] for name, place in phases_at if place < len(cells)}
            ):
                continue
            if not 0 <= step <= MAX_STEP:
                self._notice(None, loss, cells[step_at], cells[loss_at], line)
                continue
            clock = (
                seconds(cells[clock_at]) if clock_at is not None and clock_at < len(cells) else None
            )
            if epoch_at is not None and epoch_at < len(cells):
                step = count_on(step, cells[epoch_at])
            found.append((step, loss, clock))
            self.odd = self.odd_step = None
        return len(lines)

    def _places(self) -> tuple[int, int, int | None, int | None]:
        assert self._header is not None
        assert self.columns is not None
        step, loss, clock, epoch = (
            None if name is None else self._header.index(name) for name in self.columns
        )
        assert step is not None
        assert loss is not None
        for kind, name in (("step", self.columns.step), ("loss", self.columns.loss)):
            if self._header.count(name) > 1:
                raise ValueError(
                    f"log: {self.path!r} has {self._header.count(name)} columns {name!r}; give "
                    f"them names of their own, or name another with --{kind}-column"
                )
        return step, loss, clock, epoch

    def _phase_places(self, lines: list[str]) -> list[tuple[str, int]]:
        """Names and places of the columns that may name a phase."""
        assert self._header is not None
        assert self.columns is not None
        cells = [cells_of(line, self._delimiter) for line in lines[:_SAMPLE]]
        return [
            (name, at)
            for at, name in enumerate(self._header)
            if name not in self.columns
            and any(may_name_phase(name, row[at]) for row in cells if at < len(row))
        ]

    def _has_new_width(self, cells: list[str], line: str) -> bool:
        """Whether a row that is longer or shorter than others is one: only empty cells more, or the
        second such in a row.
        """
        if len(cells) > self._width and not any(cell.strip() for cell in cells[self._width :]):
            return True
        if len(cells) == self._other_width:
            self._width = len(cells)
            return True
        self._other_width = len(cells)
        self.note(
            f"the line {line[:80]!r} of {self.path!r} has {len(cells)} cells, others "
            f"{self._width}; it is passed over"
        )
        return False

    def _objects(self, lines: list[str], start: int, found: list[Record]) -> None:
        for at in range(start, len(lines)):
            line = lines[at]
            if line and (fields := self._object(line)) is not None:
                self._take(fields, line, found)

    def _take(self, fields: dict[str, Any], line: str, found: list[Record]) -> None:
        columns = self.columns
        assert columns is not None
        raw_step, raw_loss = fields.get(columns.step), fields.get(columns.loss)
        # a line of something else, such as validation
        if raw_loss is None or self._phases.has(fields, front_of(line)):
            return
        step, loss = number(raw_step), number(raw_loss)
        if step is None or loss is None or not 0 <= step <= MAX_STEP:
            self._notice(
                step if step is not None and 0 <= step <= MAX_STEP else None,
                loss,
                raw_step,
                raw_loss,
                line,
            )
            return
        if columns.epoch is not None:
            step = self._counter.count_on(step, fields.get(columns.epoch))
        found.append(
            (step, loss, None if columns.clock is None else seconds(fields.get(columns.clock)))
        )
        self.odd = self.odd_step = None

    def _notice(
        self, step: float | None, loss: float | None, raw_step: Any, raw_loss: Any, line: str
    ) -> None:
        """Remember a line that has one of the two numbers and something else for the other."""
        for kind, value, raw, other in (
            ("step", step, raw_step, loss),
            ("loss", loss, raw_loss, step),
        ):
            if value is None and other is not None and not is_missing(raw):
                shown = (
                    raw
                    if not isinstance(raw, int) or abs(raw) < 10**20
                    else f"{'-' if raw < 0 else ''}10^{len(str(abs(raw))) - 1} or more"
                )
                self.odd = (
                    f"log: {kind} is {str(shown)[:80]!r} in the line {line[:80]!r} of "
                    f"{self.path!r}; it must be a number"
                    + (" from 0 to 2^53" if kind == "step" else "")
                )
                self.odd_step = self.odd if kind == "step" else self.odd_step
                self.note(f"{self.odd.removeprefix('log: ')}; passed over")

    def _object(self, line: str) -> dict[str, Any] | None:
        """The object in a line, whatever stands before and after it; None where there is none that
        can be read.
        """
        start, stop = line.find("{"), line.rfind("}") + 1
        if start < 0:
            return None
        if start == 0 and type(value := json_of(line)) is dict:
            return flat(value)
        value = None
        if stop > start:
            value = object_of(line[start:stop])
            # one that was begun behind another's first half
            if value is None and (later := line.rfind("{", 0, stop)) > start:
                value = object_of(line[later:stop])
        if value is None and line.lstrip()[:1] == "{":
            self._unreadable = (
                self._unreadable
                or f"log: cannot read the line {line[:80]!r} of {self.path!r} as JSON; give one "
                "object a line"
            )
        return value
