"""The paper's seven target data sets (its Table 2): what they are and where they come from."""

from collections.abc import Sequence
from typing import NamedTuple


class DataRow(NamedTuple):
    """A row of Table 2.

    Attributes:
        name: of the data set.
        source: what `load_task` takes; empty where the set has to be fetched by hand.
        num_images: of the training split.
        num_classes: C.
        mean_per_class: images.
        imbalance: the largest class over the smallest.
        how: how to get it.
        notes: what its reader passed over, a line each.
    """

    name: str
    source: str
    num_images: int
    num_classes: int
    mean_per_class: float
    imbalance: float
    how: str = ""
    notes: tuple[str, ...] = ()


class PaperDataset(NamedTuple):
    """One of the paper's data sets: its source, if tfds has it, how to get it, and its published
    row.
    """

    source: str
    how: str
    row: DataRow


def summarize(source: str, counts: Sequence[int], *, name: str = "") -> DataRow:
    """The row of a data set from the number of images in each class."""
    return DataRow(
        name or source,
        source,
        sum(counts),
        len(counts),
        sum(counts) / len(counts),
        max(counts) / min(counts),
    )


def _by_hand(archive: str, listed: str) -> str:
    return f"tfds has no such set: get it from {archive}, unpack it, and give {listed}"


def _entry(
    name: str,
    source: str,
    how: str,
    num_images: int,
    num_classes: int,
    mean_per_class: float,
    imbalance: float,
) -> PaperDataset:
    return PaperDataset(
        source, how, DataRow(name, source, num_images, num_classes, mean_per_class, imbalance, how)
    )


# Numbers as printed in Table 2 of the supplement, which rounds them.
PAPER_DATASETS = {
    entry.row.name: entry
    for entry in (
        _entry("cifar10", "tfds:cifar10", "tfds prepares it", 50000, 10, 5000.0, 1.0),
        _entry("cifar100", "tfds:cifar100", "tfds prepares it", 50000, 100, 500.0, 1.0),
        _entry(
            "cub200",
            "tfds:caltech_birds2011",
            "tfds prepares it (CUB-200-2011)",
            5994,
            200,
            29.97,
            1.03,
        ),
        _entry(
            "aircraft",
            "",
            _by_hand(
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
                "list:data/images_variant_trainval.txt@data/images",
            ),
            6667,
            100,
            66.67,
            1.02,
        ),
        _entry(
            "mit67",
            "",
            _by_hand("https://web.mit.edu/torralba/www/indoor.html", "list:TrainImages.txt@Images"),
            5360,
            67,
            80.0,
            1.08,
        ),
        _entry(
            "surfaces",
            "",
            _by_hand(
                "http://opensurfaces.cs.cornell.edu/publications/minc/ (MINC-2500)",
                "list:minc-2500/labels/train1.txt@minc-2500",
            ),
            48875,
            23,
            2125.0,
            1.03,
        ),
        _entry(
            "cars",
            "tfds:cars196",
            "tfds prepares it (Stanford Cars); if its server is gone, lay out a copy as "
            "PATH/train/<class>/<image> and give folder:PATH",
            8144,
            196,
            41.6,
            2.83,
        ),
    )
}


def resolve(source: str) -> str:
    """A paper's data set by name becomes its source; anything else stays as it is.

    Raises:
        ValueError: a set that has to be fetched by hand; the message says how.
    """
    entry = PAPER_DATASETS.get(source)
    if entry is None:
        return source
    if not entry.source:
        raise ValueError(f"data: {source!r} – {entry.how}")
    return entry.source
