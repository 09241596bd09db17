"""Reader of text files that list images, as data sets publish their splits."""

import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ntk_tt.data.images import IMAGE_SUFFIXES, read_square
from ntk_tt.data.list_columns import CLASSES, PATHS, Table, columns, surplus, table_of
from ntk_tt.data.regular_files import require_regular_file, require_source_file
from ntk_tt.data.task import Source
from ntk_tt.runtime.files import is_folder

_REMEDY = "give list:FILE@ROOT, with one image a line and ROOT the folder they are relative to"
_LONGEST_LINE = 2**13  # characters: a path has at most 4096
_MOST_BLANKS = 64  # in a path
_NO_TEXT = re.compile("[\0\udc80-\udcff]")
# where a name has none; the first that is there
_MEANT_SUFFIXES = (
    ".jpg",
    "",
    ".jpeg",
    ".JPEG",
    ".png",
)


class _Listed(NamedTuple):
    """An image of a list: its path relative to ROOT, its class if the line names it, and where that
    stands.
    """

    path: str
    label: str | None
    number: int


def read_list(rest: str, split: str) -> Source:
    """The images that a text file lists, as data sets publish their splits: `FILE@ROOT`, or FILE
    with paths relative to its folder.

    A line is a path below ROOT whose folder is the class (`gym/image.jpg`, as in MIT-67 and
    MINC-2500), or an image's path and its class after a blank, a tab, a comma or a semicolon
    (`1025794 707-320`, as in FGVC-Aircraft; without suffix, .jpg is meant). Both may have blanks,
    and stand in double quotes as in CSV. Of more columns the first line names the two
    (`id,path,class,split`). Empty lines, those that begin with # and a line of headings are passed
    over.

    Args:
        rest: of the source, without `list:`.
        split: must be `train`.

    Raises:
        ValueError: a line that is no UTF-8, leads nowhere, or out of ROOT by an absolute path or
            `..` (links inside ROOT are followed wherever they lead); lines with and without class,
            an image with two, or more columns than two that nothing names.
    """
    file, folder = _file_and_root(rest)
    if split != "train":
        raise ValueError(
            f"split: 'list:' has no split {split!r}; take 'train' and one file for each split"
        )
    require_source_file(file, _REMEDY)
    root = Path(folder) if folder else Path(file).parent
    if not is_folder(root):
        raise ValueError(f"data: there is no folder {folder!r}; {_REMEDY}")
    items: dict[str, list[Path]] = {}
    seen: dict[str, _Listed] = {}
    again, passed_over, table, is_first = [], [], None, True
    for number, line in _lines(file):
        if is_first and not line.startswith("#"):
            table, is_first = _table(file, number, line), False
            if table is not None:
                passed_over.append(number)
                continue
        listed = _listed(file, root, number, line, table)
        if listed is None:
            passed_over.append(number)
        elif (first := seen.setdefault(listed.path, listed)) is listed:
            items.setdefault(_class(file, listed, next(iter(seen.values()))), []).append(
                root / listed.path
            )
        elif first.label != listed.label:
            raise ValueError(
                f"data: lines {first.number} and {number} of {file!r} give {listed.path!r} the "
                f"classes {first.label!r} and {listed.label!r}; remove one"
            )
        else:
            again.append(number)
    notes = [
        f"passed over {len(lines)} line(s) of {file!r} {why}, the first is line {lines[0]}"
        for lines, why in (
            (again, "that name an image again"),
            (passed_over, "with headings or remarks"),
        )
        if lines
    ]
    return Source(
        {name: items[name] for name in sorted(items)},
        lambda path, size: read_square(path, size, str(path)),
        tuple(notes),
    )


def _file_and_root(rest: str) -> tuple[str, str]:
    """FILE and ROOT, either of which may have an @ in it: the first that parts a file from the
    rest.
    """
    places = [index for index, char in enumerate(rest) if char == "@"]
    parts = [*((rest[:index], rest[index + 1 :]) for index in places), (rest, "")]
    return next((part for part in parts if os.path.isfile(part[0])), parts[0])


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """The lines that hold something, and their numbers.

    Raises:
        ValueError: it is not UTF-8, or no text; the message names the line.
    """
    # Bytes that are no UTF-8 come as surrogates, so that the line is known in which they are.
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
        number = 0
        while line := text.readline(_LONGEST_LINE):
            number += 1
            if odd := _NO_TEXT.search(line):
                guess = (
                    "UTF-16"
                    if "\0" in line or line[:2] in ("\udcff\udcfe", "\udcfe\udcff")
                    else "Latin-1 or Windows-1252"
                )
                raise ValueError(
                    f"data: line {number} of {file!r} is not UTF-8 text (byte "
                    f"0x{ord(odd[0]) % 256:02x} at character {odd.start() + 1}; is it {guess}?); "
                    "save it as UTF-8"
                )
            if len(line) == _LONGEST_LINE:
                raise ValueError(
                    f"data: line {number} of {file!r} is longer than {_LONGEST_LINE} characters; "
                    f"{_REMEDY}"
                )
            if line := line.strip():
                yield number, line


def _table(file: str, number: int, line: str) -> Table | None:
    """The table that a line heads, if it heads one."""
    try:
        return table_of(line)
    except ValueError as error:
        raise ValueError(f"data: line {number} of {file!r} {error}") from error


def _listed(file: str, root: Path, number: int, line: str, table: Table | None) -> _Listed | None:
    """What a line says; None where it is a remark or holds the headings of the columns.

    Raises:
        ValueError: there is no such image, it is not below ROOT, or it is not clear which of
            several columns is its class.
    """
    if table is not None and not all(table.read(line) or ("",)):
        raise ValueError(
            f"data: line {number} of {file!r} is {line!r}, without a path or class in the columns "
            "that the first line names"
        )
    outside = False
    for path, label in _readings(line) if table is None else _in_table(table, line):
        inside = _inside(root, path)
        outside |= inside is None
        if inside is not None and os.path.isfile(root / inside):
            if table is None and label is not None and (why := surplus(line, path, label)):
                raise ValueError(
                    f"data: line {number} of {file!r} {why}, and it is not clear which is the "
                    "class; begin the file with a line that names them, such as path,class,split; "
                    "or leave only the path and the class, which may stand in quotes"
                )
            return _Listed(inside, label, number)
    if line.startswith("#") or _is_heading(line):
        return None
    said = f"data: line {number} of {file!r} is {line!r}"
    if outside:
        raise ValueError(
            f"{said}, which is not below {str(root)!r}; give list:FILE@ROOT with a folder that "
            "holds all the images, and paths without '..'"
        )
    path = _likeliest(line)
    raise ValueError(
        f"{said}, but there is no image {str(root / path)!r}{_why_not(root / path)}; give "
        "list:FILE@ROOT with the folder that the lines are relative to"
    )


def _class(file: str, listed: _Listed, first: _Listed) -> str:
    if (listed.label is None) != (first.label is None):
        with_class, without = sorted(
            (first.number, listed.number),
            key=lambda number: (number == listed.number) == (listed.label is None),
        )
        raise ValueError(
            f"data: line {without} of {file!r} gives no class, line {with_class} does; give each "
            "image a class, or none and go by the folders"
        )
    folder = Path(listed.path).parent.name
    if listed.label is None and not folder:
        raise ValueError(
            f"data: line {listed.number} of {file!r} is {listed.path!r}, an image without a class: "
            "give it a folder below ROOT, or its class after a blank or a comma"
        )
    return folder if listed.label is None else listed.label


def _readings(line: str) -> Iterator[tuple[str, str | None]]:
    """The paths and classes that a line may mean, the likeliest first."""
    # é in one character or two: file systems and archives change it
    forms = [unicodedata.normalize(form, line) for form in ("NFC", "NFD")]
    for text in dict.fromkeys([line, *forms]):
        for path, label in chain(
            [(text, None)], _with_class(text), ((path, None) for path in _with_suffix(text))
        ):
            yield path, label
            if "\\" in path:  # a list from Windows
                yield path.replace("\\", "/"), label


def _in_table(table: Table, line: str) -> Iterator[tuple[str, str | None]]:
    """The paths and the class that a line of a table may mean."""
    path, label = table.read(line) or ("", "")
    for meant in (path, path.replace("\\", "/")):
        yield from ((each, label) for each in _with_suffix(meant))


def _with_class(line: str) -> Iterator[tuple[str, str | None]]:
    """By columns, then by blanks, of which the path has as many as it can."""
    for delimiter in "\t,;":
        head, _, tail = line.rpartition(delimiter)
        for path, label in (_columns(line, delimiter), (head.strip(), tail.strip())):
            if path and label:
                yield from ((meant, label) for meant in _with_suffix(path))
    if line.startswith('"'):
        path, label = _columns(line, " ")
        yield from ((meant, label or None) for meant in _with_suffix(path))
    blanks = [found.start() for found in re.finditer(r"\s+", line)]
    for index in reversed(blanks[:_MOST_BLANKS]):
        yield from ((path, line[index:].strip()) for path in _with_suffix(line[:index]))


def _columns(line: str, delimiter: str) -> tuple[str, str]:
    """The first column and the rest of a line of CSV."""
    first, *rest = columns(line, delimiter)
    return first, delimiter.join(rest)


def _with_suffix(path: str) -> list[str]:
    """The path, or where it has no image's suffix those that may be meant."""
    return (
        [path]
        if Path(path).suffix.lower() in IMAGE_SUFFIXES
        else [path + suffix for suffix in _MEANT_SUFFIXES]
    )


def _likeliest(line: str) -> str:
    """The path that an error message names."""
    paths = [line, *(path for path, _ in _with_class(line))]
    return next((path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES), line)


def _inside(root: Path, path: str) -> str | None:
    """The path relative to ROOT; None where it leads out of it, links aside."""
    if os.path.isabs(path):
        path = os.path.relpath(path, root.absolute())
    path = os.path.normpath(path)
    return None if path == os.curdir or path.split(os.sep)[0] == os.pardir else path


def _is_heading(line: str) -> bool:
    return any(
        first.lower() in PATHS and rest.lower() in CLASSES
        for first, rest in (_columns(line, delimiter) for delimiter in "\t,; ")
    )


def _why_not(path: Path) -> str:
    try:
        require_regular_file(path)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f" ({error.strerror if isinstance(error, OSError) else error})"
    return ""
