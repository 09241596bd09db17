"""Reader of image folders, which counts what it passes over."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ntk_tt.data.images import IMAGE_SUFFIXES, read_square
from ntk_tt.data.task import Source
from ntk_tt.runtime.files import is_folder

# What operating systems and storage boxes leave in folders: thumbnails, forks, bins. Hidden names
# (".…") are passed over too.
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot"),  # of Synology
        *("@recycle", "@recently-snapshot", "@sharebin"),  # of QNAP
        *("__macosx", "network trash folder", "temporary items"),  # of macOS
        *("$recycle.bin", "recycler", "recycled", "found.000", "system volume information"),
        *("lost+found", "_gsdata_", "__pycache__"),
    }
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_SPLIT_NAME = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval|evaluation|holdout)([ "
    r"_-]?(set|data|images|imgs|split))?",
    re.IGNORECASE,
)
_SHOWN = 6  # names or suffixes in one note


def read_folder(path: str, split: str) -> Source:
    """`PATH/<split>/<class>/**/*`, or `PATH/<class>/**/*` where there is no folder `PATH/<split>`.

    Class folders are searched to any depth, as torchvision's `ImageFolder` does; an image is a file
    with one of `IMAGE_SUFFIXES` in any case. A folder `train` that holds nothing but images, beside
    others that hold images, is a class of that name and no split. Links are followed, outside PATH
    too; none leads to a folder of another class, to one read already, or back up. Hidden files and
    what operating systems leave behind are no images.
    """
    root = Path(path)
    if not path or not is_folder(root):
        raise ValueError(
            f"data: there is no folder {path!r}; give folder:PATH with PATH/<split>/<class>/<image>"
        )
    beside: list[str] = []
    if is_folder(root / split) and not _is_a_class(root, split):
        beside = _classes_beside(root, split)
        root = root / split
    elif not is_folder(root / split) and split != "train":
        raise ValueError(
            f"split: {path!r} has no folder {split!r}; take 'train' or make {str(root / split)!r}"
        )
    search = _Search(root)
    found = {folder.name: search.images(folder) for folder in search.folders}
    items = {name: images for name, images in found.items() if images}
    notes = [
        *search.notes(),
        *_no_classes(found, search.suffixes),
        *_splits(root, list(items)),
        *_deeper(items, search.deeper),
        *_left_out(beside, split),
    ]
    return Source(items, lambda file, size: read_square(Path(file), size, file), tuple(notes))


def _is_a_class(root: Path, split: str) -> bool:
    """Whether `PATH/train` is a class of trains among others, and no split."""
    folder = root / split
    return (
        split == "train"
        and _has_images(folder)
        and not any(os.path.isdir(entry) for entry in _entries(folder))
        and bool(_classes_beside(root, split))
    )


def _classes_beside(root: Path, split: str) -> list[str]:
    """The folders beside a split that hold images themselves and have no split's name."""
    return [
        entry.name
        for entry in _entries(root)
        if entry.name != split
        and not _SPLIT_NAME.fullmatch(entry.name)
        and _has_images(Path(entry))
    ]


def _has_images(folder: Path) -> bool:
    """Whether a folder holds an image itself, as far as it may be read."""
    with contextlib.suppress(OSError):
        return is_folder(folder) and any(
            _suffix(entry.name) in IMAGE_SUFFIXES and os.path.isfile(entry)
            for entry in _entries(folder)
        )
    return False


_AGAIN = "passed over {} link(s) to folders that are read already"
_AGAIN_IMAGE = "passed over {} link(s) to images that are read already"
_BROKEN = "passed over {} link(s) that lead nowhere"
_SPECIAL = "passed over {} pipe(s), socket(s) or device(s)"
_SYSTEM = "passed over {} folder(s) of the operating system"
_CLASSLESS = "passed over {} image(s) beside the class folders, which have no class"
_LIKE_IMAGES = "searched {} folder(s) named like images"


class _Search:
    """Walks the class folders below a root and counts, by kind, what is no image."""

    def __init__(self, root: Path):
        self.suffixes: dict[str, Counter[str]] = {}  # of each class's files that are no images
        self.deeper = 0  # images in folders within their class's
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Path] = {}
        self._closed = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
        folders = []
        for entry in _entries(root):
            match self._kind(entry):
                case "folder":
                    folders.append(entry)
                case "file" if _suffix(entry.name) in IMAGE_SUFFIXES:
                    self._count(_CLASSLESS, entry)
        kept = []
        # of a folder and a link to it, the folder
        for entry in sorted(folders, key=lambda entry: entry.is_symlink()):
            if self._is_new(entry, self._closed):
                kept.append(Path(entry))
        self.folders = sorted(kept)

    def images(self, folder: Path) -> list[str]:
        """The paths of the images of a class at any depth, in order; as texts, since there may be a
        million.
        """
        images, links, closed, pending = [], [], set(self._closed), [str(folder)]
        suffixes = self.suffixes[folder.name] = Counter()
        while pending:
            here = pending.pop()
            is_deeper = here != str(folder)
            for entry in _entries(here):
                kind, suffix = self._kind(entry), _suffix(entry.name)
                if kind == "folder" and self._is_new(entry, closed):
                    pending.append(entry.path)
                    if suffix in IMAGE_SUFFIXES:
                        self._count(_LIKE_IMAGES, entry)
                elif kind == "file" and suffix in IMAGE_SUFFIXES:
                    (links if entry.is_symlink() else images).append(entry.path)
                    self.deeper += is_deeper
                elif kind == "file" and entry.name.lower() not in _SYSTEM_FILES:
                    suffixes[suffix] += 1
        # folder by folder, as paths are compared
        return sorted(images + self._new_links(links, images), key=_parts)

    def notes(self) -> list[str]:
        """A line for each kind of thing that was passed over."""
        lines = [
            f"{kind.format(count)}, the first is {str(self._first[kind])!r}"
            for kind, count in sorted(self._counts.items())
        ]
        suffixes = sum(self.suffixes.values(), Counter())
        if suffixes:
            lines.append(
                f"passed over {suffixes.total()} file(s) that are no images by their suffix: "
                f"{_listed(suffixes)}"
            )
        return lines

    def _kind(self, entry: os.DirEntry) -> Literal["folder", "file", "other"]:
        """What an entry is, links followed; counts what is neither folder nor file, and the
        system's own folders.
        """
        # of which DirEntry raises errors where it leads round in a circle
        link = entry.is_symlink()
        if os.path.isdir(entry) if link else entry.is_dir():
            if entry.name.lower() not in _SYSTEM_FOLDERS:
                return "folder"
            self._count(_SYSTEM, entry)
        elif os.path.isfile(entry) if link else entry.is_file():
            return "file"
        else:
            self._count(_SPECIAL if os.path.exists(entry) else _BROKEN, entry)
        return "other"

    def _is_new(self, folder: os.DirEntry, closed: set[tuple[int, int]]) -> bool:
        """Whether a folder is not among the closed ones, where it is from now on."""
        identity = _identity(folder)
        if identity in closed:
            self._count(_AGAIN, folder)
            return False
        closed.add(identity)
        return True

    def _new_links(self, links: list[str], images: list[str]) -> list[str]:
        """Links to images that are not there already, by themselves or by another link."""
        seen = {_identity(image) for image in images} if links else set()
        kept = []
        for link in sorted(links):
            if (identity := _identity(link)) in seen:
                self._count(_AGAIN_IMAGE, Path(link))
            else:
                seen.add(identity)
                kept.append(link)
        return kept

    def _count(self, kind: str, entry: os.DirEntry | Path) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, Path(entry))


def _parts(path: str) -> list[str]:
    return path.split(os.sep)


def _entries(folder: Path | str) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )


def _identity(path: os.DirEntry | Path | str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].rstrip(".").lower()


def _listed(suffixes: Counter[str]) -> str:
    """`5 .psd, 2 .txt`."""
    parts = [
        f"{count} {ascii(suffix)[1:-1] or 'without suffix'}"
        for suffix, count in suffixes.most_common(_SHOWN)
    ]
    return ", ".join(parts) + (", …" if len(suffixes) > _SHOWN else "")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _no_classes(found: dict[str, list[str]], suffixes: dict[str, Counter[str]]) -> list[str]:
    empty = [
        f"{name!r} ({_listed(suffixes[name]) or 'empty'})"
        for name, images in found.items()
        if not images
    ]
    return (
        [f"{len(empty)} folder(s) without images are no classes: {_some(empty)}"] if empty else []
    )


def _splits(root: Path, names: list[str]) -> list[str]:
    """A word where a class has the name of a split.

    Raises:
        ValueError: all have, so that the images would be told apart by the split that they are in.
    """
    splits = [repr(name) for name in names if _SPLIT_NAME.fullmatch(name)]
    if splits and len(splits) == len(names):
        raise ValueError(
            f"split: the folder(s) {_some(splits)} in {str(root)!r} are splits by their names, not "
            "classes; choose one with split (--split)"
        )
    return (
        [f"{_some(splits)} counted among the classes, with the name of a split"] if splits else []
    )


def _left_out(beside: list[str], split: str) -> list[str]:
    if not beside:
        return []
    return [
        f"{len(beside)} folder(s) with images beside {split!r} are left out: "
        f"{_some(map(repr, beside))}"
    ]


def _deeper(items: dict[str, list[str]], deeper: int) -> list[str]:
    """A word where images lie deeper than their class's folder: that may be one level too many."""
    total = sum(map(len, items.values()))
    if not deeper:
        return []
    doubt = (
        f"; if {_some(map(repr, items))} are no classes, give the folder in which the classes are"
        if deeper >= total
        else ""
    )
    return [
        f"{deeper} of {total} image(s) lie in folders within the folder of their class, and are "
        f"taken{doubt}"
    ]
