"""Which columns of a list of images hold the path and the class."""

import csv
import os
import unicodedata
from typing import NamedTuple

# What people call the two columns, the likelier first.
PATHS = (
    "filepath",
    "file_path",
    "path",
    "image_path",
    "img_path",
    "filename",
    "file_name",
    "file",
    "image",
    "img",
    "image_name",
    "image_id",
    "name",
    "id",
)
CLASSES = (
    "class_name",
    "class",
    "label",
    "category",
    "species",
    "labels",
    "classes",
    "target",
    "class_id",
    "y",
)
DELIMITERS = "\t,;"


class Table(NamedTuple):
    """A list whose first line names its columns.

    Attributes:
        delimiter: between them.
        path, label: which of them, from 0.
    """

    delimiter: str
    path: int
    label: int

    def read(self, line: str) -> tuple[str, str] | None:
        """Path and class of a line; None where it has fewer columns."""
        found = columns(line, self.delimiter)
        if len(found) <= max(self.path, self.label):
            return None
        return found[self.path], found[self.label]


def columns(line: str, delimiter: str) -> list[str]:
    """The columns of a line of CSV, without blanks around them."""
    row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    return [cell.strip() for cell in row]


def table_of(heading: str) -> Table | None:
    """The table that a first line heads; None where it is no heading, or that of two columns, the
    path first, which needs none.

    Raises:
        ValueError: it names the column of the paths and none of classes.
    """
    for delimiter in DELIMITERS:
        names = [cell.lower() for cell in columns(heading, delimiter)]
        paths, classes = (
            [names.index(name) for name in known if name in names] for known in (PATHS, CLASSES)
        )
        if len(names) < 2 or not paths:
            continue
        if not classes and len(names) > 2:
            raise ValueError(
                f"names the columns {', '.join(names)}, none of them that of the classes; call it "
                "'class'"
            )
        if classes and (len(names), paths[0], classes[0]) != (2, 0, 1):
            return Table(delimiter, paths[0], classes[0])
    return None


def surplus(line: str, path: str, label: str) -> str:
    """Why it is not clear which part of a line is the class; empty where it is.

    A class may have blanks, and any sign in quotes. But more columns than two, or several numbers
    after a path and a blank, are several things that are said of an image.
    """
    rows = [columns(line, delimiter) for delimiter in DELIMITERS]
    for found in rows:
        if len(found) > 2 and _plain(path) in (_plain(found[0]), _plain(f"{found[0]}.")):
            return f"has {len(found)} columns"
    words = label.split()
    if len(words) > 1 and all(map(_is_number, words)) and all(len(found) == 1 for found in rows):
        return f"has {1 + len(words)} columns"
    return ""


def _plain(path: str) -> str:
    """A path as it can be compared: without suffix, in one form of its accents and separators."""
    return os.path.splitext(unicodedata.normalize("NFC", path).replace("\\", "/"))[0]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
