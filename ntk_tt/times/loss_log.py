"""Loss logs as they are written: CSV, JSON lines, Python dicts, JSON documents; appended to,
written anew, replaced or cut while they are read.

A log is known by what it holds: where its beginning, or what stands before the place up to which it
was read, is no longer the same, it is read again from its beginning, and what is the same as before
is not given twice. A line that cannot be read is passed over.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ntk_tt.times.log_columns import Columns
from ntk_tt.times.log_reader import LineReader
from ntk_tt.times.log_text import (
    HEAD,
    Record,
    bytes_of,
    check_text,
    identity,
    json_of,
    open_log,
    records_of,
    text_of,
)

_BLOCK = 1 << 20  # bytes read at once
_TAIL = 256  # bytes before the place read up to that a file is known again by
_MAX_LINE = 16 << 20  # bytes; what is longer is no record
_MAX_DOCUMENT = 64 << 20  # bytes of a JSON document, which is read as a whole
_MAX_NOTES = 5


class LossLog:
    """The records of a log, read as they are appended.

    Args:
        path: a plain file; it may not be there yet.
        step, loss: names of the columns; None takes the usual ones (`ntk_tt.times.log_columns`).
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
            file = open_log(self.path)
        except FileNotFoundError:
            if str(self.path) == "-":
                raise ValueError(
                    "log: '-' is no file; standard input cannot be read again and again, write the "
                    "log to a file and watch that"
                ) from None
            self._note(f"{str(self.path)!r} is not there yet")
            return
        with file:
            check_text(file, self.path)
            skip = 0
            if not self._cursor.is_as_before(file):
                skip = self._begin_anew(file, last)
            for batch in self._cursor.pieces(file, last):
                new, skip = batch[skip:], max(0, skip - len(batch))
                if new:
                    yield new

    def _begin(self, before: "LineReader | None") -> "_Cursor":
        return _Cursor(
            LineReader(self.names["step"], self.names["loss"], str(self.path), self._note, before)
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
            digest.update(bytes_of(batch))
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

    def __init__(self, reader: "LineReader"):
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
            return self._document == identity(file)
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
            yield from self._counted(self.reader.read(text_of(whole).split("\n")))
        line = text_of(rest).strip()
        if line and (self.reader.is_whole_object(line) or (last and self.reader.is_row(line))):
            self._advance(rest)
            yield from self._counted(self.reader.read([line]))

    def _rows_of_document(self, file: BinaryIO) -> list[dict[str, Any]] | None:
        """The records of a file that is one JSON value, such as trainer_state.json; None for any
        other.
        """
        file.seek(0)
        start = text_of(file.read(HEAD)).lstrip()
        if start[:1] not in ("{", "[") or os.fstat(file.fileno()).st_size > _MAX_DOCUMENT:
            return None
        file.seek(0)
        first = json_of(text_of(file.readline(_MAX_LINE)))
        if isinstance(first, dict) and not any(isinstance(value, list) for value in first.values()):
            return None  # one object a line
        self._document = identity(file)
        file.seek(0)
        rows = records_of(json_of(text_of(file.read())))
        return rows if rows and self.reader.decide(rows) else None

    def _counted(self, batch: list[Record]) -> Iterator[list[Record]]:
        if batch:
            self.num_records += len(batch)
            self.digest.update(bytes_of(batch))
            yield batch

    def _advance(self, data: bytes) -> None:
        self._position += len(data)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
