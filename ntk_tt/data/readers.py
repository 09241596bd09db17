"""Readers of scikit-learn's digits, of image folders, and of arrays: each gives a `Source`."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntk_tt.data.images import read_square, square
from ntk_tt.data.task import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_digits(rest: str, split: str) -> Source:
    """scikit-learn's 1797 handwritten digits of 8×8; offline."""
    if rest:
        raise ValueError(f"data: 'digits' takes no argument, got {rest!r}")
    if split != "train":
        raise ValueError(f"split: 'digits' has no split {split!r}; take 'train'")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = {str(name): list(pixels[digits.target == name]) for name in digits.target_names}
    return Source(items, _square_array)


def read_folder(path: str, split: str) -> Source:
    """`PATH/<split>/<class>/*`, or `PATH/<class>/*` where there is no such folder; JPEG, PNG, WebP and BMP."""
    root = Path(path)
    if not path or not root.is_dir():
        raise ValueError(f"data: there is no folder {path!r}; give folder:PATH with PATH/<split>/<class>/<image>")
    if (root / split).is_dir():
        root = root / split
    elif split != "train":
        raise ValueError(f"split: {path!r} has no folder {split!r}; take 'train' or make {str(root / split)!r}")
    items = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))
        if files:
            items[folder.name] = files
    return Source(items, lambda file, size: read_square(file, size, str(file)))


def read_list(rest: str, split: str) -> Source:
    """The images that a text file lists, as data sets publish their splits: `FILE@ROOT`, or FILE with paths relative to its folder.

    A line is a path below ROOT whose folder is the class (`gym/image.jpg`, as in MIT-67 and MINC-2500), or an image's name,
    a blank and the class (`1025794 707-320`, as in FGVC-Aircraft; without suffix, .jpg is meant).
    """
    file, _, folder = rest.partition("@")
    if split != "train":
        raise ValueError(f"split: 'list:' has no split {split!r}; take 'train' and one file for each split")
    if not file or not Path(file).is_file():
        raise ValueError(f"data: there is no file {file!r}; give list:FILE@ROOT, with one image a line and ROOT the folder they are relative to")
    root = Path(folder) if folder else Path(file).parent
    items: dict[str, list[Path]] = {}
    for number, line in enumerate(Path(file).read_text().splitlines(), 1):
        if line := line.strip():
            path, name = _listed(root, line)
            if not path.is_file():
                raise ValueError(f"data: line {number} of {file!r} is {line!r}, but there is no image {str(path)!r}; give list:FILE@ROOT with the folder that the lines are relative to")
            items.setdefault(name, []).append(path)
    return Source({name: items[name] for name in sorted(items)}, lambda path, size: read_square(path, size, str(path)))


def _listed(root: Path, line: str) -> tuple[Path, str]:
    """The file and the class of a line."""
    name, *label = line.split(maxsplit=1)
    if not label or (root / line).is_file():
        return root / line, (root / line).parent.name
    return root / (name if Path(name).suffix.lower() in IMAGE_SUFFIXES else name + ".jpg"), label[0]


def read_npz(path: str, split: str) -> Source:
    """Arrays `images`, `labels` and, if it has them, `class_names` of a NumPy .npz file; see `read_arrays`."""
    if split != "train":
        raise ValueError(f"split: 'arrays:' has no split {split!r}; take 'train' and one file for each split")
    if not path or not Path(path).is_file():
        raise ValueError(f"data: there is no file {path!r}; give arrays:FILE.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, zipfile.BadZipFile, TypeError, AttributeError) as error:  # the last two: a single array, in a .npy file
        raise ValueError(f"data: {path!r} cannot be read ({error}); write it with numpy.savez(path, images=..., labels=...), without Python objects") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise ValueError(f"data: {path!r} holds {', '.join(map(repr, arrays)) or 'nothing'} but no {name!r}; write it with numpy.savez(path, images=..., labels=...)")
    names = arrays.get("class_names")
    return read_arrays(arrays["images"], arrays["labels"], None if names is None else tuple(str(name) for name in names))


def read_arrays(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] | None) -> Source:
    """Images and labels in memory, checked.

    Raises:
        ValueError: wrong shapes, lengths, types, values, or labels without a name.
    """
    pixels, labels = _pixels(np.asarray(images)), np.asarray(labels)
    if labels.shape != (len(pixels),):
        raise ValueError(f"labels: must be one for each of the {len(pixels)} images, got shape {labels.shape}")
    if class_names is None:
        if labels.dtype.kind not in "iuU":
            raise ValueError(f"labels: must be integers or strings, got dtype {labels.dtype}; convert them, one-hot rows with argmax(-1)")
        return Source({str(value): list(pixels[labels == value]) for value in np.unique(labels)}, _square_array)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: must be integers where class_names are given, got dtype {labels.dtype}; give each label's position in class_names")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names: {next(name for name in class_names if list(class_names).count(name) > 1)!r} appears twice; give each class its own name")
    outside = labels[(labels < 0) | (labels >= len(class_names))]
    if len(outside):
        raise ValueError(f"labels: {int(outside[0])} has no name among the {len(class_names)} class_names; labels must lie in 0 … {len(class_names) - 1}")
    found = {name: list(pixels[labels == index]) for index, name in enumerate(class_names)}
    return Source({name: items for name, items in found.items() if items}, _square_array)


def _pixels(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) or (N, H, W), uint8, from any layout that cannot be misread."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3) or 0 in images.shape:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        remedy = "channels come last: images.transpose(0, 2, 3, 1)" if first else "one square or rectangular image after another, in one array"
        raise ValueError(f"images: must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {images.shape}; {remedy}")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise ValueError(f"images: must be uint8 in 0 … 255 or floating point in [0, 1], got dtype {images.dtype}; convert them")
    if not np.isfinite(images).all():
        raise ValueError(f"images: image {int(np.argmin(np.isfinite(images).reshape(len(images), -1).all(-1)))} holds NaN or infinity; repair or remove it")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(f"images: floating-point pixels must lie in [0, 1], got {low:g} … {high:g}; undo the normalisation, or give uint8 in 0 … 255")
    return np.round(images * 255).astype(np.uint8)


def _square_array(array: np.ndarray, size: int) -> np.ndarray:
    return square(Image.fromarray(array), size)
