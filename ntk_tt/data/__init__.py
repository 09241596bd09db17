"""Data sets -> `Task`: images, labels, class names; the paper's "K random classes × N images"
sampler.
"""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ntk_tt.data.arrays import read_arrays, read_npz
from ntk_tt.data.digits import read_digits
from ntk_tt.data.folders import read_folder
from ntk_tt.data.lists import read_list
from ntk_tt.data.registry import PAPER_DATASETS, DataRow, PaperDataset, resolve, summarize
from ntk_tt.data.task import (
    PAPER_CLASSES,
    PAPER_PER_CLASS,
    OnCorrupt,
    Source,
    Task,
    UnreadableImage,
    UpTo,
    of_classes,
    sample,
)
from ntk_tt.data.texts import read_csv, read_jsonl
from ntk_tt.data.tfds import read_tfds
from ntk_tt.runtime.progress import Progress, silent

__all__ = [
    "PAPER_DATASETS",
    "DataRow",
    "PaperDataset",
    "Task",
    "UnreadableImage",
    "UpTo",
    "default_classes",
    "describe_data",
    "list_data",
    "load_task",
    "task_from_arrays",
]

_READERS = {
    "digits": read_digits,
    "folder": read_folder,
    "list": read_list,
    "arrays": read_npz,
    "tfds": read_tfds,
}
_TEXT_READERS = {"csv": read_csv, "jsonl": read_jsonl}


def load_task(
    source: str,
    *,
    num_classes: int | None = PAPER_CLASSES,
    per_class: int | UpTo | None = PAPER_PER_CLASS,
    image_size: int = 32,
    seed: int = 0,
    split: str = "train",
    on_corrupt: OnCorrupt = "raise",
    progress: Progress = silent,
    text_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> Task:
    """Sample a task as the paper does: K random classes, N random images of each.

    The paper takes 5 classes and "150 images (or the maximum available)" of each, the defaults
    here. A plain number is exact: a class with fewer images is then an error and not a smaller
    task. What was left out or passed over is in `Task.notes`.

    Args:
        source: `digits` (scikit-learn's handwritten digits, offline), `folder:PATH` with
            `PATH/<split>/<class>/**/*` or `PATH/<class>/**/*`, `list:FILE@ROOT` with the images
            below ROOT that the file lists, `tfds:NAME`, `arrays:FILE.npz` with `images` and
            `labels`, `csv:FILE` or `jsonl:FILE` with texts and their classes, or one of
            `PAPER_DATASETS` that tfds has (`cub200`).
        num_classes: K; None takes all.
        per_class: images of each class: a number, `UpTo(number)` for at most that, None for all.
        image_size: side in pixels. The short side is resized to it (bilinear, antialiased), then
            the centre is cropped, both as torchvision does.
        seed: of the choice of classes and images.
        split: of the data set.
        on_corrupt: `raise` names the first unreadable image; `skip` draws another of the class in
            its place.
        progress: called as `progress(done, total)` after the images of each class.
        text_column, label_column: of `csv:` and `jsonl:`; None takes what has a usual name, such as
            `text` and `label`.
        classes: these by their names, in this order, instead of K random ones.

    Raises:
        ValueError: unknown source, fewer than two classes, fewer classes or images than asked, an
            unreadable image (named).

    Cost: only the sampled images are decoded; labels come from folder names or from the records
    without their images.
    """
    found = _read(source, split, text_column, label_column)
    if classes is not None:
        found, num_classes = of_classes(found, classes, f"{source!r}, split {split!r},"), None
    return sample(
        found,
        source,
        num_classes=num_classes,
        per_class=per_class,
        image_size=image_size,
        seed=seed,
        on_corrupt=on_corrupt,
        progress=progress,
    )


def default_classes(source: str) -> int | None:
    """How many classes a command takes where it is not told: 5 of `digits` and of tfds, as the
    paper does; None, which is all, of folders, lists and files of one's own.
    """
    kind = resolve(source).partition(":")[0]
    return PAPER_CLASSES if kind in ("digits", "tfds") else None


def task_from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str | bytes] | np.ndarray | None = None,
    num_classes: int | None = None,
    per_class: int | UpTo | None = None,
    image_size: int | None = None,
    seed: int = 0,
    name: str = "arrays",
) -> Task:
    """A task of images and labels of your own; all of them unless fewer are asked for.

    Args:
        images: (N, H, W, 3), (N, H, W, 1) or (N, H, W); uint8, or floating point in [0, 1].
        labels: N class indices or names. Classes are numbered in sorted order, or in that of
            `class_names`; a class without images is left out.
        class_names: what the labels 0, 1, … are called; by default the labels themselves.
        num_classes, per_class, seed: as in `load_task`.
        image_size: side in pixels; None takes the images' short side.
        name: `Task.source`.

    Raises:
        ValueError: wrong shapes, lengths, types or pixel values, a label without a name, or as
            `load_task`.
    """
    pixels = _one_array(images)
    found = read_arrays(pixels, np.asarray(labels), class_names)
    size = min(pixels.shape[1:3]) if image_size is None else image_size
    return sample(
        found, name, num_classes=num_classes, per_class=per_class, image_size=size, seed=seed
    )


def describe_data(
    source: str,
    *,
    split: str = "train",
    text_column: str | None = None,
    label_column: str | None = None,
) -> DataRow:
    """A row of the paper's Table 2 – images, classes, mean images per class, imbalance – of a
    source; decodes no image.

    Raises:
        ValueError: as `load_task`; a source with no classes.
    """
    found = _read(source, split, text_column, label_column)
    if not found.items:
        raise ValueError(
            f"data: {source!r} has no classes; give a folder of folders of images{found.because}"
        )
    return summarize(source, [len(items) for items in found.items.values()])._replace(
        notes=found.passed_over
    )


def list_data() -> list[DataRow]:
    """Every source by name: the digits and the paper's seven sets, with Table 2's numbers and how
    to get each.
    """
    digits = describe_data("digits")._replace(
        name="digits", how="scikit-learn's handwritten digits; offline, always there"
    )
    return [digits, *(entry.row for entry in PAPER_DATASETS.values())]


def _one_array(images: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # images of several sizes
        raise ValueError(f"images: must be one array of images of one size ({error})") from error


def _read(
    source: str, split: str, text_column: str | None = None, label_column: str | None = None
) -> Source:
    kind, _, rest = resolve(source).partition(":")
    if kind not in _READERS and os.path.isdir(source):
        kind, rest = "folder", source
    elif kind not in _READERS and source.endswith(".npz") and os.path.isfile(source):
        kind, rest = "arrays", source
    elif kind not in _TEXT_READERS and os.path.isfile(source):
        suffix = source.rpartition(".")[2]
        kind, rest = (suffix, source) if suffix in _TEXT_READERS else (kind, rest)
    if kind in _TEXT_READERS:
        return _TEXT_READERS[kind](rest, split, text_column=text_column, label_column=label_column)
    for name, column in (("text-column", text_column), ("label-column", label_column)):
        if column is not None:
            raise ValueError(
                f"{name}: belongs to csv:FILE and jsonl:FILE, got {column!r} with {source!r}"
            )
    if kind not in _READERS:
        known = ", ".join(name for name, entry in PAPER_DATASETS.items() if entry.source)
        raise ValueError(
            f"data: unknown source {source!r}; give 'digits', 'folder:PATH', 'list:FILE@ROOT', "
            f"'tfds:NAME', 'arrays:FILE.npz', 'csv:FILE', 'jsonl:FILE' or one of {known}"
        )
    return _READERS[kind](rest, split)
