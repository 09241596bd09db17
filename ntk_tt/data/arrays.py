"""Readers of arrays, in memory and in NumPy's .npz files."""

import math
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image

from ntk_tt.data.images import bytes_of_floats, square
from ntk_tt.data.regular_files import require_source_file
from ntk_tt.data.task import Source
from ntk_tt.runtime.memory import format_bytes, host_bytes

_REMEDY = "write it with numpy.savez(path, images=..., labels=...)"
_MOST_EXPANSION = 100  # of a compressed array of more than …
_ANY_EXPANSION = 2**28  # … bytes: no images, but one number over and over
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read_npz(path: str, split: str) -> Source:
    """Arrays `images`, `labels` and, if it has them, `class_names` of a NumPy .npz file; see
    `read_arrays`.

    Python objects in it are refused, and arrays that say of themselves that they take more memory
    than may be used or a hundred times what they take in the file. Nothing is read before that.
    """
    if split != "train":
        raise ValueError(
            f"split: 'arrays:' has no split {split!r}; take 'train' and one file for each split"
        )
    require_source_file(path, "give arrays:FILE.npz")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member for member in archive.infolist()
            }
            arrays = {
                name: _array(archive, members[name])
                for name in ("images", "labels", "class_names")
                if name in members
            }
    except Exception as error:  # of zipfile, zlib and NumPy, for whatever the file holds
        raise ValueError(
            f"data: {path!r} cannot be read ({str(error) or type(error).__name__}); {_REMEDY}, "
            "without Python objects"
        ) from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise ValueError(
                f"data: {path!r} holds {', '.join(map(repr, members)) or 'nothing'} but no "
                f"{name!r}; {_REMEDY}"
            )
    try:
        found = read_arrays(arrays["images"], arrays["labels"], arrays.get("class_names"))
    except ValueError as error:
        raise ValueError(f"data: {path!r}: {error}") from error
    others = [name for name in members if name not in arrays]
    unread = (
        [
            f"passed over {len(others)} other array(s) of the file: "
            f"{', '.join(map(repr, others[:6]))}"
        ]
        if others
        else []
    )
    return found._replace(passed_over=(*unread, *found.passed_over))


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of the archive, once its size is known to be one that can be read."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        shape, dtype = _header(file)
        num_bytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded: they are Python code")
        if any(length < 0 for length in shape) or file.tell() + num_bytes != member.file_size:
            raise ValueError(
                f"{member.filename} says that it has the shape {shape} of {dtype}, which takes "
                f"other than the {member.file_size} bytes that are there"
            )
        if num_bytes > max(_ANY_EXPANSION, _MOST_EXPANSION * member.compress_size):
            raise ValueError(
                f"{member.filename} expands from {format_bytes(member.compress_size)} to "
                f"{format_bytes(num_bytes)}, which images do not"
            )
        if num_bytes > host_bytes():
            raise ValueError(
                f"{member.filename} takes {format_bytes(num_bytes)}, {format_bytes(host_bytes())} "
                "may be used"
            )
    with archive.open(member) as file:
        return npy_format.read_array(file, allow_pickle=False)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of NumPy's format, which plain arrays do not need")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype


def read_arrays(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence | np.ndarray | None = None
) -> Source:
    """Images and labels in memory, checked.

    Raises:
        ValueError: wrong shapes, lengths, types, values, or labels without a name.
    """
    images = _checked_images(images)
    labels = _checked_labels(labels, len(images))
    if class_names is None:
        if (
            labels.dtype.kind == "i"
            and labels.min() < 0
            and not set(np.unique(labels).tolist()) <= {-1, 1}
        ):
            raise ValueError(
                f"labels: {labels.min()} is no class beside {labels.max()}; leave images without a "
                "class out: labels >= 0"
            )
        values, inverse = np.unique(labels, return_inverse=True)
        names, unused = list(map(str, values)), []
        places = dict(zip(names, _places(inverse, len(values)), strict=True))
    else:
        names = _checked_names(class_names)
        if labels.dtype.kind not in "iub":
            raise ValueError(
                f"labels: must be integers where class_names are given, got dtype {labels.dtype}; "
                "give each label's position in class_names"
            )
        outside = (
            labels[(labels < 0) | (labels >= len(names))]
            if labels.dtype.kind != "b"
            else labels[labels >= len(names)]
        )
        if len(outside):
            raise ValueError(
                f"labels: {int(outside[0])} has no name among the {len(names)} class_names; labels "
                f"must lie in 0 … {len(names) - 1}"
            )
        places = dict(zip(names, _places(labels, len(names)), strict=True))
        unused = [name for name, found in places.items() if not len(found)]
    notes = (
        [f"{len(unused)} of the class_names without an image: {', '.join(map(repr, unused[:6]))}"]
        if unused
        else []
    )
    return Source(
        {name: found for name, found in places.items() if len(found)},
        lambda index, size: square(Image.fromarray(as_bytes(images[index])), size),
        tuple(notes),
    )


def _places(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Where each of the labels 0 … count−1 is."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))


def as_bytes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 of an image of bytes, of floats in [0, 1], or with one channel.

    Raises:
        ValueError: another type, or floats outside [0, 1].
    """
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if image.dtype == np.uint8:
        return image
    _check_dtype(image.dtype)
    return bytes_of_floats(image)


def _checked_images(images: np.ndarray) -> np.ndarray:
    """Refuse what could be misread."""
    if (
        images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[-1] not in (1, 3))
        or 0 in images.shape
    ):
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        remedy = (
            "channels come last: images.transpose(0, 2, 3, 1)"
            if first
            else "one square or rectangular image after another, in one array"
        )
        raise ValueError(
            f"images: must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {images.shape}; "
            f"{remedy}"
        )
    if images.dtype == np.uint8:
        return images
    try:
        _check_dtype(images.dtype)
    except ValueError as error:
        raise ValueError(f"images: {error}") from error
    low, high = math.inf, -math.inf
    # a block at a time: marks for the whole may be too much
    for start in range(0, len(images), 256):
        block = images[start : start + 256]
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if not np.isfinite(block).all():
            raise ValueError(
                "images: image "
                f"{start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(-1)))} "
                "holds NaN or infinity; repair or remove it"
            )
    try:
        bytes_of_floats(np.asarray([low, high]))
    except ValueError as error:
        raise ValueError(f"images: {error}") from error
    return images


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.kind == "f":
        return
    remedies = {
        "b": "scale them: images * numpy.uint8(255)",
        "u": "those of 16 bits with (images >> 8).astype('uint8')",
        "i": "if they lie in 0 … 255 with images.astype('uint8')",
    }
    raise ValueError(
        f"must be uint8 in 0 … 255 or floating point in [0, 1], got dtype {dtype}; convert them, "
        f"{remedies.get(dtype.kind, 'to one of these')}"
    )


def _checked_labels(labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,):
        remedy = (
            "; give labels.ravel()"
            if labels.shape == (count, 1)
            else ", one-hot rows as argmax(-1)"
            if labels.ndim == 2
            else ""
        )
        raise ValueError(
            f"labels: must be one for each of the {count} images, got shape {labels.shape}{remedy}"
        )
    if labels.dtype.kind in "SOT" and all(
        isinstance(label, str | bytes) for label in labels.tolist()
    ):
        return np.asarray([_text(label) for label in labels.tolist()])
    # as pandas gives them
    if labels.dtype.kind == "O" and all(isinstance(label, int) for label in labels.tolist()):
        labels = np.asarray(labels.tolist())
    if labels.dtype.kind not in "biuU":
        raise ValueError(
            f"labels: must be integers or strings, got dtype {labels.dtype}; convert them, one-hot "
            "rows with argmax(-1)"
        )
    return labels


def _checked_names(names: Sequence | np.ndarray) -> list[str]:
    if isinstance(names, str | bytes) or (isinstance(names, np.ndarray) and names.ndim != 1):
        raise ValueError(f"class_names: must be a list of names, got {names!r:.100}")
    found = [_text(name) for name in names]
    if len(set(found)) < len(found):
        raise ValueError(
            f"class_names: {next(name for name in found if found.count(name) > 1)!r} appears "
            "twice; give each class its own name"
        )
    return found


def _text(name: object) -> str:
    """A name; HDF5 and old NumPy files give bytes."""
    if not isinstance(name, bytes):
        return str(name)
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"class names: {name!r} is not UTF-8; decode them with their encoding, such as "
            "name.decode('latin-1')"
        ) from error
