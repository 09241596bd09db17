"""Readers of tables of texts: CSV, and JSON lines. Each row is a text and its class."""

import csv
import json
from collections.abc import Iterator
from typing import Any

from ntk_tt.data.regular_files import require_source_file
from ntk_tt.data.task import Source

# What people call the two columns, the likelier first.
TEXTS = ("text", "sentence", "utterance", "query", "question", "review", "content", "input")
LABELS = ("label", "labels", "class", "category", "intent", "target", "label_text", "y")
_LARGEST_CELL = 1 << 24  # characters


def read_csv(
    path: str, split: str, *, text_column: str | None = None, label_column: str | None = None
) -> Source:
    """Texts and classes of a CSV file whose first line names the columns.

    Cells in double quotes may hold commas and line ends. Columns are parted by commas, semicolons
    or tabs, whichever the first line has most of. A byte order mark is passed over. Rows without
    text or class are left out, and named by their line.

    Args:
        path: of the file, UTF-8.
        split: must be `train`: give one file for each split.
        text_column, label_column: by name; None takes the first of the usual names that is there.

    Raises:
        ValueError: no such file or column, text that is not UTF-8, a quote that does not end, or a
            row with too few columns; the line is named.
    """
    _check(path, split, "csv")
    return _source(path, _csv_rows(path, text_column, label_column))


def read_jsonl(
    path: str, split: str, *, text_column: str | None = None, label_column: str | None = None
) -> Source:
    """Texts and classes of a file with one JSON object a line; else as `read_csv`."""
    _check(path, split, "jsonl")
    return _source(path, _json_rows(path, text_column, label_column))


def _check(path: str, split: str, kind: str) -> None:
    if split != "train":
        raise ValueError(
            f"split: '{kind}:' has no split {split!r}; take 'train' and one file for each split"
        )
    require_source_file(path, f"give {kind}:FILE")


def _source(path: str, rows: Iterator[tuple[int, str, str]]) -> Source:
    items: dict[str, list[str]] = {}
    empty = []
    try:
        for number, text, label in rows:
            if text.strip() and label.strip():
                items.setdefault(label.strip(), []).append(text)
            else:
                empty.append(number)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: {path!r} is not UTF-8 text (line {_line_of(path, error)}: "
            f"{error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"data: {path!r} cannot be read ({error.strerror})") from error
    notes = []
    if empty:
        said = ", ".join(map(str, empty[:6])) + (", …" if len(empty) > 6 else "")
        notes.append(f"passed over {len(empty)} row(s) without text or class: line {said}")
    return Source(
        {name: items[name] for name in sorted(items)},
        lambda text, _: text,
        tuple(notes),
        is_text=True,
    )


def _csv_rows(path: str, text: str | None, label: str | None) -> Iterator[tuple[int, str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        heading = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=heading.count)
        before = csv.field_size_limit(_LARGEST_CELL)
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            names = [name.strip() for name in next(rows, [])]
            columns = _columns(path, names, text, label)
            line = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(names):
                    raise ValueError(
                        f"data: line {line} of {path!r} has {len(row)} column(s), the first line "
                        f"{len(names)}; put cells with {delimiter!r} in them in double quotes"
                    )
                text_cell, label_cell = (row[index] if row else "" for index in columns)
                yield line, text_cell, label_cell
                line = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"data: line {line} of {path!r} cannot be read ({error}); a cell that begins with "
                "a double quote must end with one, and those within are doubled"
            ) from error
        finally:
            csv.field_size_limit(before)


def _json_rows(path: str, text: str | None, label: str | None) -> Iterator[tuple[int, str, str]]:
    columns: list[str] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                yield number, "", ""
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"data: line {number} of {path!r} is no JSON ({error}); give one object a line"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"data: line {number} of {path!r} is no JSON object but a "
                    f"{type(row).__name__}; give one object a line"
                )
            if not columns:
                names = list(row)
                columns = [names[index] for index in _columns(path, names, text, label)]
            text_cell, label_cell = (_cell(path, number, row, name) for name in columns)
            yield number, text_cell, label_cell


def _cell(path: str, number: int, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise ValueError(
            f"data: line {number} of {path!r} has a {type(value).__name__} as {name!r}; give a text"
        )
    return str(value)


def _columns(path: str, names: list[str], text: str | None, label: str | None) -> list[int]:
    """Where the texts and the classes are."""
    by_name = {name.lower(): index for index, name in reversed([*enumerate(names)])}

    def of(flag: str, asked: str | None, known: tuple[str, ...]) -> int:
        if asked in names:
            return names.index(asked)
        found = [by_name[name] for name in known if name in by_name]
        if asked is not None or not found:
            raise ValueError(
                f"{flag}: {path!r} has the columns {', '.join(map(repr, names[:12])) or 'none'}, "
                + ("none called " + repr(asked) if asked is not None else "none of a usual name")
                + f"; name one with --{flag}"
            )
        return found[0]

    found = [of("text-column", text, TEXTS), of("label-column", label, LABELS)]
    if found[0] == found[1]:
        raise ValueError(
            f"label-column: {names[found[0]]!r} is the column of the texts; name another"
        )
    return found


def _line_of(path: str, error: UnicodeDecodeError) -> int:
    """The line with the byte that is no text."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0
