"""Data sets -> `Task`: images, labels, class names; the paper's "K random classes × N images" sampler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Task(NamedTuple):
    """A classification problem to fine-tune on.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int32, 0 … C−1 in the order of `class_names`.
        class_names: the C classes.
        source: where it came from, as given (`digits`, `folder:PATH`, `tfds:NAME`).
        seed: the seed of the class and image sampling.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    seed: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class _Source(NamedTuple):
    """What a reader found: for each class, items that `load` turns into square uint8 images."""

    items: dict[str, list]
    load: Callable[[object], np.ndarray]


def load_task(source: str, *, num_classes: int | None = 5, per_class: int | None = 150, image_size: int = 32, seed: int = 0) -> Task:
    """Sample a task as the paper does: K random classes, up to N random images of each.

    Args:
        source: `digits` (scikit-learn's handwritten digits, offline), `folder:PATH` with `PATH/train/<class>/*` or
            `PATH/<class>/*`, or `tfds:NAME`.
        num_classes: K; None takes all.
        per_class: images of each class; None takes all.
        image_size: side in pixels. The short side is resized to it (bilinear, antialiased), then the centre is cropped.
        seed: of the choice of classes and images.

    Raises:
        ValueError: unknown source, fewer than two classes, fewer classes or images than asked, an unreadable image (named).
    """
    for name, value, least in (("classes", num_classes, 2), ("per-class", per_class, 1), ("image-size", image_size, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    kind, _, rest = source.partition(":")
    if kind not in _READERS:
        raise ValueError(f"data: unknown source {source!r}; give 'digits', 'folder:PATH' or 'tfds:NAME'")
    found = _READERS[kind](rest, image_size)
    return _sample(found, source, num_classes, per_class, seed)


def _sample(found: _Source, source: str, num_classes: int | None, per_class: int | None, seed: int) -> Task:
    names = sorted(found.items)
    if len(names) < 2:
        raise ValueError(f"data: {source!r} has {len(names)} class(es) ({', '.join(names) or 'none'}); classification needs at least two")
    if num_classes is not None and num_classes > len(names):
        raise ValueError(f"classes: {num_classes} asked, but {source!r} has {len(names)}; ask for at most {len(names)}")
    rng = np.random.default_rng(seed)
    chosen = names if num_classes is None else sorted(rng.choice(names, num_classes, replace=False).tolist())
    images, labels = [], []
    for label, name in enumerate(chosen):
        items = found.items[name]
        count = len(items) if per_class is None else per_class
        if count > len(items):
            raise ValueError(f"per-class: {count} images asked, but class {name!r} of {source!r} has {len(items)}; ask for at most that")
        images += [found.load(items[i]) for i in sorted(rng.choice(len(items), count, replace=False))]
        labels += [label] * count
    return Task(np.stack(images), np.asarray(labels, np.int32), tuple(chosen), source, seed)


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Resize the short side to `size`, crop the centre; RGB uint8."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _read_folder(path: str, image_size: int) -> _Source:
    root = Path(path)
    if not path or not root.is_dir():
        raise ValueError(f"data: there is no folder {path!r}; give folder:PATH with PATH/<split>/<class>/<image>")
    if (root / "train").is_dir():
        root = root / "train"
    items = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if files:
            items[folder.name] = files

    def load(file):
        try:
            with Image.open(file) as image:
                return _square(image, image_size)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"data: the image {str(file)!r} cannot be read ({error}); remove or replace it") from error

    return _Source(items, load)


def _read_digits(rest: str, image_size: int) -> _Source:
    if rest:
        raise ValueError(f"data: 'digits' takes no argument, got {rest!r}")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = {str(name): list(pixels[digits.target == name]) for name in digits.target_names}
    return _Source(items, lambda array: _square(Image.fromarray(array), image_size))


def _read_tfds(name: str, image_size: int) -> _Source:
    """The `train` split of a prepared data set, read without TensorFlow where its files are array records."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError("data: 'tfds:' needs tensorflow-datasets; install it with: pip install 'ntk-tt[tfds]'") from error
    if not name:
        raise ValueError("data: give a data set name, as in tfds:cifar10")
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
        records = builder.as_data_source(split="train")
    except Exception as error:  # tfds raises its own many kinds; every one means that this data set cannot be had
        raise ValueError(f"data: tfds could not prepare {name!r} ({type(error).__name__}: {str(error).splitlines()[0]}); check the name and the network") from error
    features = builder.info.features or {}
    if not {"image", "label"} <= set(features):
        raise ValueError(f"data: tfds data set {name!r} has no 'image' and 'label' features; it is not an image classification set")
    names = features["label"].names
    items: dict[str, list] = {label: [] for label in names}
    for i in range(len(records)):
        items[names[int(records[i]["label"])]].append(i)

    def load(i):
        array = np.asarray(records[i]["image"])
        return _square(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), image_size)

    return _Source({label: found for label, found in items.items() if found}, load)


_READERS = {"digits": _read_digits, "folder": _read_folder, "tfds": _read_tfds}
