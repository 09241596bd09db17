"""`Task`, and the paper's sampler: K random classes, up to N random images of each."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ntk_tt.runtime.memory import format_bytes, host_bytes
from ntk_tt.runtime.progress import Progress, silent

OnCorrupt = Literal["raise", "skip"]


class UpTo(NamedTuple):
    """As many as this, or all there are: the paper's "150 images (or the maximum available for the
    specific dataset)".
    """

    most: int
    in_all: int | None = None
    """Of all classes together, however many they are; but at least 10 of each."""

    def of_classes(self, num_classes: int) -> int:
        """Most images of a class, where there are so many classes."""
        if self.in_all is None:
            return self.most
        return min(self.most, max(_LEAST_PER_CLASS, self.in_all // num_classes))


_LEAST_PER_CLASS = 10  # fewer would say little of a class
PAPER_CLASSES = 5
PAPER_PER_CLASS = UpTo(150)

_NAMED = 5  # classes in a note
_DARK = 16  # of 255: scikit-learn's digits are 0 … 16, masks 0 and 1, 12 bits kept in 16 end at 15


class Task(NamedTuple):
    """A classification problem to fine-tune on.

    Attributes:
        images: (N, H, W, 3) uint8; of texts (N,) strings.
        labels: (N,) int32, 0 … C−1 in the order of `class_names`.
        class_names: the C classes.
        source: where it came from, as given (`digits`, `folder:PATH`, `csv:FILE`, `arrays`).
        seed: the seed of the class and image sampling.
        asked_per_class: images of each class that were asked for; None for all.
        skipped: the names of the unreadable images that were left out on request.
        passed_over: what the reader found and did not take, a line each.
        num_there: images of these classes in the source; None where that is not known.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    seed: int
    asked_per_class: int | None = None
    skipped: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    num_there: int | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def per_class(self) -> tuple[int, ...]:
        """Images of each class, in the order of `class_names`."""
        return tuple(np.bincount(self.labels, minlength=self.num_classes).tolist())

    @property
    def is_text(self) -> bool:
        """Whether it is texts that are learned, and no images."""
        return self.images.dtype.kind == "O"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a line each: files passed over, classes with fewer images than
        asked, unreadable images left out, pixels that are hardly brighter than black.
        """
        asked = self.asked_per_class or 0
        few = [
            f"{name!r} has {count}"
            for name, count in zip(self.class_names, self.per_class, strict=True)
            if count < asked
        ]
        lines = [*self.passed_over]
        if not self.is_text and (brightest := int(self.images.max())) <= _DARK:
            lines.append(
                f"no pixel is brighter than {brightest} of 255; if these are masks, or numbers "
                "that do not use eight bits, scale them to 0 … 255"
            )
        if few:
            lines.append(
                f"fewer than {asked} {'texts' if self.is_text else 'images'} in {len(few)} of "
                f"{self.num_classes} classes: {', '.join(few[:_NAMED])}"
                + (f" and {len(few) - _NAMED} more" if len(few) > _NAMED else "")
            )
        if self.skipped:
            lines.append(
                f"{len(self.skipped)} unreadable image(s) left out, the first is "
                f"{self.skipped[0]!r}"
            )
        return tuple(lines)


class UnreadableImage(ValueError):
    """An image that cannot be decoded; `name` says which."""

    def __init__(self, name: str, reason: object):
        super().__init__(
            f"data: the image {name!r} cannot be read ({reason}); remove or replace it, or leave "
            "such images out with on_corrupt='skip' (--on-corrupt skip)"
        )
        self.name = name


class Source(NamedTuple):
    """What a reader found.

    Attributes:
        items: for each class, in the order of the labels, whatever `load` takes.
        load: `(item, image_size) -> (image_size, image_size, 3)` uint8; raises `UnreadableImage`.
        passed_over: what was found and not taken, a line each.
        is_text: `load` gives texts, whatever the size.
    """

    items: Mapping[str, Sequence[Any] | np.ndarray]
    load: Callable[[Any, int], Any]
    passed_over: tuple[str, ...] = ()
    is_text: bool = False

    @property
    def because(self) -> str:
        """The end of a message that something is missing: it may be among what was passed over."""
        return "".join(f"; {line}" for line in self.passed_over)


def of_classes(found: Source, names: Sequence[str], source: str) -> Source:
    """The classes of these names alone, in this order.

    Raises:
        ValueError: one is missing.
    """
    items = {_printable(name): images for name, images in found.items.items()}
    missing = [name for name in names if name not in items]
    if missing:
        raise ValueError(
            f"classes: {source} has no {missing[0]!r}, one of {len(missing)} of {len(names)} "
            f"classes that are asked for{found.because}"
        )
    return found._replace(items={name: items[name] for name in names})


def sample(
    found: Source,
    source: str,
    *,
    num_classes: int | None,
    per_class: int | UpTo | None,
    image_size: int,
    seed: int,
    on_corrupt: OnCorrupt = "raise",
    progress: Progress = silent,
) -> Task:
    """K random classes, N random images of each, without replacement; the arguments are those of
    `load_task`.
    """
    names = list(found.items)
    count = per_class.most if isinstance(per_class, UpTo) else per_class  # as it was asked for
    _check(found, source, num_classes, count, image_size, seed, on_corrupt)
    rng = np.random.default_rng(seed)
    chosen, too_small = names, []
    if num_classes is not None:
        drawn = [int(index) for index in rng.choice(len(names), num_classes, replace=False)]
        indices, too_small = _large_enough(found, names, drawn, per_class, (seed, len(names)))
        chosen = [names[index] for index in sorted(indices)]
    if isinstance(per_class, UpTo):
        count = per_class.of_classes(len(chosen))
        per_class = UpTo(count)
    if not found.is_text:
        _check_memory(sum(_count(found, name, per_class) for name in chosen), image_size)
    images, labels, skipped = [], [], []
    for label, name in enumerate(chosen):
        found_images, unreadable = _images_of_class(
            found,
            name,
            source,
            per_class,
            image_size,
            rng,
            np.random.default_rng((seed, label)),
            on_corrupt,
        )
        images += found_images
        labels += [label] * len(found_images)
        skipped += unreadable
        progress(label + 1, len(chosen))
    return Task(
        np.asarray(images, object) if found.is_text else np.stack(images),
        np.asarray(labels, np.int32),
        tuple(map(_printable, chosen)),
        source,
        seed,
        count,
        tuple(skipped),
        (*found.passed_over, *too_small, *_twins(chosen)),
        sum(len(found.items[name]) for name in chosen),
    )


def _check(
    found: Source,
    source: str,
    num_classes: int | None,
    count: int | None,
    image_size: int,
    seed: int,
    on_corrupt: str,
) -> None:
    """Refuses what cannot be drawn."""
    for name, value, least in (
        ("classes", num_classes, 2),
        ("per-class", count, 1),
        ("image-size", image_size, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    if on_corrupt not in get_args(OnCorrupt):
        raise ValueError(f"on_corrupt: unknown {on_corrupt!r}; give 'raise' or 'skip'")
    names = list(found.items)
    if len(names) < 2:
        raise ValueError(
            f"data: {source!r} has {len(names)} class(es) ({', '.join(names) or 'none'}); "
            f"classification needs at least two{found.because}"
        )
    if num_classes is not None and num_classes > len(names):
        raise ValueError(
            f"classes: {num_classes} asked, but {source!r} has {len(names)}; ask for at most "
            f"{len(names)}{found.because}"
        )


def _twins(names: Sequence[str]) -> list[str]:
    """A word where classes have names that differ by case, blanks or the form of accents alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault(" ".join(re.split(r"[\s_-]+", plain)).strip(), []).append(name)
    twins = [
        " and ".join(ascii(name) for name in group) for group in groups.values() if len(group) > 1
    ]
    if not twins:
        return []
    more = f", and {len(twins) - _NAMED} more" if len(twins) > _NAMED else ""
    return [
        f"classes whose names differ only in how they are written: {', '.join(twins[:_NAMED])}"
        f"{more}; join them if they are one"
    ]


def _large_enough(
    found: Source,
    names: list[str],
    drawn: list[int],
    per_class: int | UpTo | None,
    seed: tuple[int, int],
) -> tuple[list[int], list[str]]:
    """The classes that were drawn, others in the place of those that have fewer items than are
    asked for, and a line about these; as they are where there are not enough others.
    """
    if not isinstance(per_class, int):
        return drawn, []
    sizes = [len(found.items[name]) for name in names]
    small = [index for index in drawn if sizes[index] < per_class]
    others = [index for index in range(len(names)) if index not in drawn]
    large = [index for index in others if sizes[index] >= per_class]
    if not small or len(large) < len(small):
        return drawn, []
    instead = np.random.default_rng(seed).permutation(large)[: len(small)].tolist()
    told = ", ".join(f"{_printable(names[index])!r} ({sizes[index]})" for index in small[:_NAMED])
    more = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
    line = f"classes with fewer than {per_class} {_what(found)}, others drawn instead: {told}{more}"
    return [index for index in drawn if index not in small] + instead, [line]


def _count(found: Source, name: str, per_class: int | UpTo | None) -> int:
    """Images to take of a class."""
    there = len(found.items[name])
    return (
        there
        if per_class is None
        else min(per_class.most, there)
        if isinstance(per_class, UpTo)
        else per_class
    )


def _what(found: Source) -> str:
    return "texts" if found.is_text else "images"


def _check_memory(count: int, image_size: int) -> None:
    needed = 2 * 3 * count * image_size**2  # one by one, then all in one array
    if needed > host_bytes():
        raise ValueError(
            f"image-size: {count} images of {image_size} × {image_size} pixels need "
            f"{format_bytes(needed)}, {format_bytes(host_bytes())} may be used; "
            "ask for smaller or fewer images"
        )


def _printable(name: str) -> str:
    """Bytes that are no text, and control characters, as escapes: a folder may be called
    anything.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )


def _images_of_class(
    found: Source,
    name: str,
    source: str,
    per_class: int | UpTo | None,
    image_size: int,
    rng: np.random.Generator,
    replacement_rng: np.random.Generator,
    on_corrupt: OnCorrupt,
) -> tuple[list[Any], list[str]]:
    """The sampled images of one class, in the order of its items, and the names of the unreadable
    ones.
    """
    items = found.items[name]
    strict = per_class is not None and not isinstance(per_class, UpTo)
    count = _count(found, name, per_class)
    if count > len(items):
        raise ValueError(
            f"per-class: {count} {_what(found)} asked, but class {name!r} of {source!r} has "
            f"{len(items)}; "
            "ask for at most that"
        )
    first = rng.choice(len(items), count, replace=False)
    # Unreadable images are replaced by others of the class, drawn apart so that the other classes'
    # samples stay the same.
    others = replacement_rng.permutation(np.setdiff1d(np.arange(len(items)), first))
    images: dict[int, Any] = {}
    unreadable = []
    for index in [*sorted(first), *others]:
        if len(images) == count:
            break
        try:
            images[int(index)] = found.load(items[index], image_size)
        except UnreadableImage as error:
            if on_corrupt == "raise":
                raise
            unreadable.append(error.name)
    if not images or (strict and len(images) < count):
        raise ValueError(
            f"per-class: {count} images asked, but class {name!r} of {source!r} has {len(images)} "
            f"readable ones of {len(items)} "
            f"(the first unreadable is {unreadable[0]!r}); ask for fewer or repair the images"
        )
    return [images[index] for index in sorted(images)], unreadable
