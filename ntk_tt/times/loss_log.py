"""Loss logs as they are written: CSV, JSON lines, Python dicts, JSON documents; appended to,
written anew, replaced or cut while they are read.

A log is known by what it holds: where its beginning, or what stands before the place up to which it
was read, is no longer the same, it is read again from its beginning, and what is the same as before
is not given twice. A line that cannot be read is passed over.
"""

import ast
import collections
import csv
import hashlib
import json
import os
import re
import stat
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ntk_tt.times.log_columns import (
    LOSS_NAMES,
    STEP_NAMES,
    Columns,
    choose,
    fitting,
    flat,
    has_columns,
    is_missing,
    is_validation,
    number,
    seconds,
    visible,
)
from ntk_tt.times.observations import MAX_STEP

Record = tuple[float, float, float | None]  # step, loss, seconds on the log's own clock
_BLOCK = 1 << 20  # bytes read at once
_HEAD, _TAIL = 4096, 256  # bytes that a file is known again by
_MAX_LINE = 16 << 20  # bytes; what is longer is no record
_MAX_DOCUMENT = 64 << 20  # bytes of a JSON document, which is read as a whole
_MAX_LITERAL = 100_000  # characters of a Python dict
_MAX_NAMES, _MAX_NOTES = 1000, 5
_SAMPLE = 2000  # rows by which columns are chosen
_DELIMITERS = (",", ";", "\t", "|")
_KINDS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed",
    b"\xfd7zXZ": "compressed",
    b"(\xb5/\xfd": "compressed",
    b"PAR1": "Parquet",
}
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_NAME = re.compile(r"[A-Za-z]{4}")  # no usual name is shorter
_WORDS = re.compile(r"(?<=[\s:\[(,])(-?)(nan|inf|NaN|Infinity)(?=[\s,\])}])")


class LossLog:
    """The records of a log, read as they are appended.

    Args:
        path: a plain file; it may not be there yet.
        step, loss: names of the columns; None takes the usual ones (`ntk_tt.log_columns`).
    """

    def __init__(self, path: Path, *, step: str | None = None, loss: str | None = None):
        self.path, self.names = Path(path), {"step": step, "loss": loss}
        self._notes: dict[str, bool] = {}  # and whether it was told
        self._cursor = self._begin(None)

    @property
    def columns(self) -> Columns | None:
        """The names that were found; None before any record."""
        return self._cursor.reader.columns

    @property
    def odd_step(self) -> str | None:
        """What is wrong with the step of the last line that has a loss, where that is no number;
        None where a record came after it.
        """
        return self._cursor.reader.odd_step

    def read(self, *, last: bool = False) -> list[tuple[float | int, float]]:
        """(step, loss) of the lines that are new.

        Args:
            last: take a last line without its end, too, where it has all cells. Without it such a
                line waits, but for a whole JSON object.

        Raises:
            ValueError: no line so far has a step and a loss (with the columns there are); the file
                is not text, or no plain file.
            OSError: the file cannot be read.
        """
        found = [
            (int(step) if step == int(step) else step, loss)
            for batch in self.batches(last=last)
            for step, loss, _ in batch
        ]
        self.check()
        return found

    def check(self) -> None:
        """Raises ValueError where there are lines and none has a step and a loss."""
        if problem := self.problem():
            raise ValueError(problem)

    def problem(self) -> str | None:
        """Why there are no records, where there are lines; else None."""
        return None if self._cursor.num_records else self._cursor.reader.problem()

    def new_notes(self) -> list[str]:
        """What was passed over or noticed since the last call, for the user."""
        found = [text for text, told in self._notes.items() if not told]
        self._notes.update(dict.fromkeys(found, True))
        return found

    def batches(self, *, last: bool = False) -> Iterator[list[Record]]:
        """As `read`, in pieces of bounded size, with the log's clock, and without `check`."""
        try:
            file = _open(self.path)
        except FileNotFoundError:
            if str(self.path) == "-":
                raise ValueError(
                    "log: '-' is no file; standard input cannot be read again and again, write the "
                    "log to a file and watch that"
                ) from None
            self._note(f"{str(self.path)!r} is not there yet")
            return
        with file:
            _check_text(file, self.path)
            skip = 0
            if not self._cursor.is_as_before(file):
                skip = self._begin_anew(file, last)
            for batch in self._cursor.pieces(file, last):
                new, skip = batch[skip:], max(0, skip - len(batch))
                if new:
                    yield new

    def _begin(self, before: "_Reader | None") -> "_Cursor":
        return _Cursor(
            _Reader(self.names["step"], self.names["loss"], str(self.path), self._note, before)
        )

    def _begin_anew(self, file: BinaryIO, last: bool) -> int:
        """Go back to the beginning of the file; returns how many of its records are known."""
        before = self._cursor
        known = before.num_records if before.num_records and self._begins_alike(file, last) else 0
        self._cursor = self._begin(before.reader)
        if before.num_records and not known:
            self._note(f"{str(self.path)!r} was written anew; what it holds now counts")
        return known

    def _begins_alike(self, file: BinaryIO, last: bool) -> bool:
        """Whether the first records of the file are those that were read before."""
        known, again = self._cursor, self._begin(self._cursor.reader)
        digest, count = hashlib.blake2b(), 0
        for batch in again.pieces(file, last):
            batch = batch[: known.num_records - count]
            count += len(batch)
            digest.update(_bytes(batch))
            if count == known.num_records:
                return digest.digest() == known.digest.digest()
        return False

    def _note(self, text: str) -> None:
        if len(self._notes) < _MAX_NOTES:
            self._notes.setdefault(text, False)
        elif text not in self._notes:
            self._notes.setdefault("more lines are passed over without being named", False)


class _Cursor:
    """How far a file was read, and what it is known again by.

    Attributes:
        reader: of its lines.
        num_records, digest: of the records so far.
    """

    def __init__(self, reader: "_Reader"):
        self.reader, self.num_records, self.digest = reader, 0, hashlib.blake2b()
        self._position, self._head, self._tail, self._skipping = 0, b"", b"", False
        self._document: tuple | None = (
            # identity of a file that was read as a whole, or that may come to be a JSON document
            None
        )

    def is_as_before(self, file: BinaryIO) -> bool:
        """Whether the file still begins with what was read of it."""
        if self._document is not None and (
            self.reader.is_document or (self.reader.columns is None and not self.reader.names)
        ):
            return self._document == _identity(file)
        if os.fstat(file.fileno()).st_size < self._position:
            return False
        file.seek(0)
        if file.read(len(self._head)) != self._head:
            return False
        file.seek(self._position - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def pieces(self, file: BinaryIO, last: bool) -> Iterator[list[Record]]:
        """The records from here on, in pieces."""
        if self.reader.is_document:
            return
        if self._position == 0 and (rows := self._rows_of_document(file)) is not None:
            yield from self._counted(self.reader.take(rows))
            return
        file.seek(self._position)
        rest = b""
        while block := file.read(_BLOCK):
            if self._skipping:
                end = re.search(rb"[\r\n]", block)
                at = len(block) if end is None else end.start()
                self._advance(block[:at])
                block, self._skipping = block[at:], end is None
            data = rest + block
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            hole = len(data) - end - len(data[end:].lstrip(b"\0"))
            self._advance(data[: end + hole])
            whole, rest = data[:end], data[end + hole :]
            if len(rest) > _MAX_LINE:
                self._advance(rest)
                rest, self._skipping = b"", True
                self.reader.note(
                    f"a line of more than {_MAX_LINE >> 20} MiB of {self.reader.path!r} is passed "
                    "over"
                )
            yield from self._counted(self.reader.read(_text(whole).split("\n")))
        line = _text(rest).strip()
        if line and (self.reader.is_whole_object(line) or (last and self.reader.is_row(line))):
            self._advance(rest)
            yield from self._counted(self.reader.read([line]))

    def _rows_of_document(self, file: BinaryIO) -> list[dict[str, Any]] | None:
        """The records of a file that is one JSON value, such as trainer_state.json; None for any
        other.
        """
        file.seek(0)
        start = _text(file.read(_HEAD)).lstrip()
        if start[:1] not in ("{", "[") or os.fstat(file.fileno()).st_size > _MAX_DOCUMENT:
            return None
        file.seek(0)
        first = _json(_text(file.readline(_MAX_LINE)))
        if isinstance(first, dict) and not any(isinstance(value, list) for value in first.values()):
            return None  # one object a line
        self._document = _identity(file)
        file.seek(0)
        rows = _records_of(_json(_text(file.read())))
        return rows if rows and self.reader.decide(rows) else None

    def _counted(self, batch: list[Record]) -> Iterator[list[Record]]:
        if batch:
            self.num_records += len(batch)
            self.digest.update(_bytes(batch))
            yield batch

    def _advance(self, data: bytes) -> None:
        self._position += len(data)
        if len(self._head) < _HEAD:
            self._head += data[: _HEAD - len(self._head)]
        self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]


class _Reader:
    """Lines to records: finds the header and the columns once, then reads on with them.

    Attributes:
        columns: that were chosen, None before.
        names: keys of the objects that were seen.
        odd, odd_step: what is wrong with the last line that has one of step and loss, and with its
            step, until a record comes.
        is_document: whether the records come from one JSON value.
    """

    def __init__(
        self, step: str | None, loss: str | None, path: str, note: Any, before: "_Reader | None"
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
        self._counter = _StepCounter(note, path)

    def read(self, lines: list[str]) -> list[Record]:
        """The records of whole lines."""
        found: list[Record] = []
        start = 0
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

    def decide(self, rows: list[dict[str, Any]]) -> bool:
        """Choose the columns by some rows, if they tell."""
        self.columns = choose(
            rows, self.path, **self.given, before=self._preferred, comma=self._delimiter != ","
        )
        if self.columns is not None:
            self._preferred = self.columns
        return self.columns is not None

    def is_whole_object(self, line: str) -> bool:
        """Whether a line without its end is complete."""
        return line.endswith("}") and self._header is None and self._object(line) is not None

    def is_row(self, line: str) -> bool:
        """Whether a line without its end has all cells."""
        return self._header is not None and len(_cells(line, self._delimiter)) >= max(
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
            _cells(self._first_line, max(_DELIMITERS, key=self._first_line.count))
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
        return (
            f"log: no line of {self.path!r} has a number for the step and one for the loss, "
            f"there are {visible(names)}; name others with --step-column and --loss-column"
        )

    def _look(self, lines: list[str], start: int) -> int:
        """Find the header, or the objects, and the columns; returns from where to read on."""
        begin, rows, last_line = start, [], ""
        widths: collections.Counter[int] = collections.Counter()

        def decided() -> bool:
            if widths:
                self._width = widths.most_common(1)[0][0]
            return bool(rows) and self.decide(rows)

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
                continue
            header = self._header_of(line)
            if header is not None and header != (self._header, self._delimiter):
                if decided():
                    return begin
                (self._header, self._delimiter), rows, begin = header, [], at + 1
                widths.clear()
            elif header is None and self._header is not None:
                cells = _cells(line, self._delimiter)
                rows.append(dict(zip(self._header, cells, strict=False)))
                widths[len(cells)] += 1
            elif header is None:
                self._first_line = self._first_line or line[:10_000]
                # a log that was cut behind its header
                if self._old is not None and self._continues(line):
                    (self._header, self._delimiter), begin = self._old, at
                    cells = _cells(line, self._delimiter)
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
            comma = self._delimiter != ","
            self._notice(
                number(raw_step, comma), number(raw_loss, comma), raw_step, raw_loss, last_line
            )
        return len(lines)

    def _header_of(self, line: str) -> tuple[list[str], str] | None:
        if not _NAME.search(line) and not any(self.given.values()):
            return None
        text = line.lstrip("# \t")
        for delimiter in _DELIMITERS:
            if delimiter in text and len(text) < 1_000_000:
                names = [name.strip() for name in _cells(text, delimiter)]
                if has_columns(names, **self.given):
                    return names, delimiter
        return None

    def _continues(self, line: str) -> bool:
        """Whether a line is a row of the header that the log had before."""
        assert self._old is not None
        header, delimiter = self._old
        cells = _cells(line, delimiter)
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
        delimiter, comma = self._delimiter, self._delimiter != ","
        step_at, loss_at, clock_at, epoch_at, phase_at = self._places()
        count_on = self._counter.count_on
        for at in range(start, len(lines)):
            line = lines[at]
            cells = _cells(line, delimiter)
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
            if phase_at is not None and phase_at < len(cells) and is_validation(cells[phase_at]):
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

    def _places(self) -> tuple[int, int, int | None, int | None, int | None]:
        assert self._header is not None
        assert self.columns is not None
        step, loss, clock, epoch, phase = (
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
        return step, loss, clock, epoch, phase

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
        if raw_loss is None or (
            columns.phase is not None and is_validation(fields.get(columns.phase))
        ):
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
        if start == 0 and type(value := _json(line)) is dict:
            return flat(value)
        value = None
        if stop > start:
            value = _object_of(line[start:stop])
            # one that was begun behind another's first half
            if value is None and (later := line.rfind("{", 0, stop)) > start:
                value = _object_of(line[later:stop])
        if value is None and line.lstrip()[:1] == "{":
            self._unreadable = (
                self._unreadable
                or f"log: cannot read the line {line[:80]!r} of {self.path!r} as JSON; give one "
                "object a line"
            )
        return value


class _StepCounter:
    """Steps that begin again with each epoch, counted on."""

    def __init__(self, note: Any, path: str):
        self._note, self._path = note, path
        self._raw, self._epoch, self._first, self._spacing, self._base = -1.0, None, 0.0, 0.0, 0.0
        self._cell: Any = None
        # epoch and base from there on
        self._bases: list[tuple[float, float]] = [(-float("inf"), 0.0)]
        self._before: tuple[float, float] | None = (
            None  # last step and base of the epoch before, until this one has a second record
        )

    def count_on(self, raw: float, cell: Any) -> float:
        """The step since the run's beginning."""
        if cell == self._cell and raw > self._raw and self._before is None:
            self._spacing, self._raw = raw - self._raw, raw
            return raw + self._base
        self._cell, epoch = cell, number(cell)
        if epoch is None or epoch != epoch:
            return raw + self._base
        if self._epoch is None:
            self._first = raw
        elif epoch < self._epoch:  # a new run, or one that was resumed
            while self._bases[-1][0] > epoch:
                self._bases.pop()
            self._base, self._before = self._bases[-1][1], None
        # that was one stray record
        elif self._before is not None and epoch == self._epoch and raw > self._before[0]:
            self._base, self._before = self._before[1], None
            self._bases.pop()
        elif epoch > self._epoch and raw < self._raw and raw <= self._first and epoch == int(epoch):
            self._before = self._raw, self._base
            self._base += self._raw + self._spacing - raw
            self._bases.append((epoch, self._base))
            self._note(
                f"the steps of {self._path!r} begin again with each epoch; they are counted on"
            )
        else:
            self._before = None
            if raw > self._raw:
                self._spacing = raw - self._raw
        self._raw, self._epoch = raw, epoch
        return raw + self._base


def _open(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(
            f"log: {str(path)!r} is no plain file, and a log is read again and again; write the "
            "log to a file and watch that"
        )
    return path.open("rb")


def _check_text(file: BinaryIO, path: Path) -> None:
    """Raises ValueError for what is not text of one byte or more a character."""
    sample = file.read(_HEAD)
    kind = next((name for start, name in _KINDS.items() if sample.startswith(start)), None)
    bare = re.sub(rb"\0+", b"\0", sample)  # a hole in a file is a run of them
    if kind is None and len(_CONTROL.findall(bare)) > 0.1 * len(bare) > 0.5:
        kind = "UTF-16 or binary"
    if kind is not None:
        raise ValueError(
            f"log: {str(path)!r} is {kind}, not UTF-8 text; write it as CSV or JSON lines in UTF-8"
        )


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _text(data: bytes) -> str:
    text = data.replace(b"\0", b"").decode("utf-8", "replace")
    if "\ufeff" in text:
        text = text.replace("\ufeff", "")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _bytes(batch: list[Record]) -> bytes:
    return array("d", [value for step, loss, _ in batch for value in (step, loss)]).tobytes()


def _cells(line: str, delimiter: str) -> list[str]:
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell of over 131072 characters, or a line end in one
        return []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None


def _object_of(text: str) -> dict[str, Any] | None:
    """A JSON object or a Python dict, flat."""
    value = _json(text)
    if value is None and "'" in text and '"' not in text and "\\" not in text:
        value = _json(text.replace("'", '"'))  # most Python dicts of a log, and quicker
    if value is None and "'" in text and len(text) <= _MAX_LITERAL:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes that are none
                value = ast.literal_eval(_WORDS.sub(r"'\1\2'", text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    if not isinstance(value, dict):
        return None
    return flat({str(name): each for name, each in value.items()})


def _records_of(value: Any) -> list[dict[str, Any]] | None:
    """Objects of a list, of the list in an object (`log_history`, else the longest), or of an
    object of equally long lists.
    """
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if isinstance(each, list)}
        of_objects = {
            name: each for name, each in lists.items() if any(isinstance(one, dict) for one in each)
        }
        if not of_objects:
            lengths = {len(each) for each in lists.values()}
            return (
                [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
                if len(lists) > 1 and len(lengths) == 1
                else None
            )
        value = of_objects.get("log_history") or max(of_objects.values(), key=len)
    return (
        [flat(each) for each in value if isinstance(each, dict)]
        if isinstance(value, list)
        else None
    )
