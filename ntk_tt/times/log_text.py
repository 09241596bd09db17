"""What a log's bytes say: text, cells of CSV, JSON and Python dicts; nothing raises on odd ones."""

import ast
import csv
import json
import os
import re
import stat
import warnings
from array import array
from pathlib import Path
from typing import Any, BinaryIO

from ntk_tt.times.log_columns import flat

Record = tuple[float, float, float | None]  # step, loss, seconds on the log's own clock
HEAD = 4096  # bytes that a file is known again by
_MAX_LITERAL = 100_000  # characters of a Python dict
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
# numbers of arrays in Python dicts, with nothing nested: np.float64(1.5), tensor(1.5, device='cpu')
_SCALAR = re.compile(
    r"\b(?:\w+\.)?(?:float\d+|bfloat16|u?int\d+|tensor|[aA]rray|DeviceArray)"
    r"\(\s*([-+.\w]+)\s*(?:,[^()]*)?\)"
)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # and other orders to a terminal
_WORDS = re.compile(r"(?<=[\s:\[(,])(-?)(nan|inf|NaN|Infinity)(?=[\s,\])}])")


def open_log(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(
            f"log: {str(path)!r} is no plain file, and a log is read again and again; write the "
            "log to a file and watch that"
        )
    return path.open("rb")


def check_text(file: BinaryIO, path: Path) -> None:
    """Raises ValueError for what is not text of one byte or more a character."""
    sample = file.read(HEAD)
    kind = next((name for start, name in _KINDS.items() if sample.startswith(start)), None)
    bare = re.sub(rb"\0+", b"\0", sample)  # a hole in a file is a run of them
    if kind is None and len(_CONTROL.findall(bare)) > 0.1 * len(bare) > 0.5:
        kind = "UTF-16 or binary"
    if kind is not None:
        raise ValueError(
            f"log: {str(path)!r} is {kind}, not UTF-8 text; write it as CSV or JSON lines in UTF-8"
        )


def identity(file: BinaryIO) -> tuple[int, int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def text_of(data: bytes) -> str:
    text = data.replace(b"\0", b"").decode("utf-8", "replace")
    if "\ufeff" in text:
        text = text.replace("\ufeff", "")
    if "\x1b[" in text:
        text = _COLOURS.sub("", text)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def bytes_of(batch: list[Record]) -> bytes:
    return array("d", [value for step, loss, _ in batch for value in (step, loss)]).tobytes()


def cells_of(line: str, delimiter: str) -> list[str]:
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell of over 131072 characters, or a line end in one
        return []


def json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None


def object_of(text: str) -> dict[str, Any] | None:
    """A JSON object or a Python dict, flat."""
    value = json_of(text)
    if value is None and "(" in text and len(text) <= _MAX_LITERAL:
        text = _SCALAR.sub(r"\1", text)
    if value is None and "'" in text and '"' not in text and "\\" not in text:
        value = json_of(text.replace("'", '"'))  # most Python dicts of a log, and quicker
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


def objects_apart(line: str) -> list[str]:
    """The objects of a line in which several stand, as where processes write to one file."""
    if "}{" not in line and "} {" not in line:
        return [line]
    parts = re.split(r"(?<=\})\s*(?=\{)", line)
    return parts if all(object_of(part) is not None for part in parts) else [line]


def records_of(value: Any) -> list[dict[str, Any]] | None:
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
