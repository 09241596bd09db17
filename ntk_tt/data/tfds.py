"""Reader of TensorFlow Datasets, without TensorFlow: array records through tfds, TFRecord files by
their framing.

Only *preparing* a data set for the first time may need TensorFlow, where its tfds recipe uses it
(those of CIFAR, CUB and Cars do). Once prepared, in either format, it is read without.
"""

import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ntk_tt.data.arrays import as_bytes
from ntk_tt.data.images import read_square, square
from ntk_tt.data.task import Source, UnreadableImage


def read_tfds(name: str, split: str) -> Source:
    """A split of a tfds image classification set; downloaded and prepared (as array records) where
    it is not there.

    Labels are read without decoding the images. Images of float32 (tfds keeps their bits as PNG)
    must lie in [0, 1]; of 16 bits the upper eight are taken. Where the files lie is tfds's
    business: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            "data: 'tfds:' needs tensorflow-datasets; install it with: pip install 'ntk-tt[tfds]'"
        ) from error
    if not name:
        raise ValueError("data: give a data set name, as in tfds:cifar10")
    builder: Any = _prepared(tfds, name)
    image_key, label_key = _keys(builder.info, name)
    if builder.info.splits and split not in builder.info.splits:
        raise ValueError(
            f"split: tfds data set {name!r} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}"
        )
    records = _records(tfds, builder, name, split)
    names = builder.info.features[label_key].names
    items: dict[str, list[int]] = {label: [] for label in names}
    for index in range(len(records)):
        try:
            label = int(records[index][label_key])
            kind = names[label] if label >= 0 else ""
        except ImportError as error:  # a feature whose decoder needs a package that is not there
            raise ValueError(
                f"data: reading the tfds data set {name!r} needs "
                f"{_missing_package(error) or error}; install it with: pip install 'ntk-tt[tfds]'"
            ) from error
        except (
            Exception
        ) as error:  # of protocol buffers, array records or tfds, for whatever the files hold
            raise ValueError(
                f"data: example {index} of the tfds data set {name!r} cannot be read "
                f"({type(error).__name__}: {_first_line(error)}); "
                f"its files in {str(builder.data_dir)!r} are damaged: delete that folder to have "
                "it prepared again"
            ) from error
        if label < 0:
            raise ValueError(
                f"split: {split!r} of the tfds data set {name!r} has no labels; take another of "
                f"{', '.join(builder.info.splits)}"
            )
        items[kind].append(index)
    bits_of_floats = builder.info.features[image_key].np_dtype == np.float32

    def load(index: int, image_size: int) -> np.ndarray:
        called = f"{name} {split} {index}"
        try:
            image = records[index][image_key]
            if not isinstance(image, bytes):
                return square(Image.fromarray(_eight_bits(np.asarray(image))), image_size)
        except Exception as error:  # as above
            raise UnreadableImage(called, _first_line(error) or type(error).__name__) from error
        return read_square(image, image_size, called, bits_of_floats=bits_of_floats)

    unused = [label for label in items if not items[label]]
    notes = (
        [
            f"{len(unused)} class(es) without an image in the split {split!r}: "
            f"{', '.join(map(repr, unused[:6]))}"
        ]
        if unused
        else []
    )
    return Source(
        {label: items[label] for label in sorted(items) if items[label]}, load, tuple(notes)
    )


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return as_bytes((array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _prepared(tfds, name: str):
    """The builder, after preparing the data set where that has not been done."""
    try:
        builder = tfds.builder(name)
        if not builder.is_prepared():
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
    except (
        Exception
    ) as error:  # tfds raises its own many kinds; every one means that this data set cannot be had
        missing = _missing_package(error)
        if missing:
            raise ValueError(
                f"data: preparing the tfds data set {name!r} for the first time needs {missing}, "
                "reading it afterwards does not; "
                "install it with: pip install 'ntk-tt[tfds]'"
            ) from error
        raise ValueError(
            f"data: tfds could not prepare {name!r} ({type(error).__name__}: "
            f"{_first_line(error)}); check the name and the network"
        ) from error
    return builder


def _missing_package(error: Exception) -> str:
    """What could not be imported, empty where that was not the trouble; tfds at times wraps the
    error in another.
    """
    found = re.search(r"No module named '([\w.]+)'", str(error))
    return found[1] if found else ""


def _keys(info, name: str) -> tuple[str, str]:
    """The names of the image and of the label among the features."""
    features = info.features or {}
    keys = (
        info.supervised_keys
        if info.supervised_keys and len(info.supervised_keys) == 2
        else ("image", "label")
    )
    if (
        not set(keys) <= set(features)
        or not hasattr(features[keys[1]], "names")
        or len(features[keys[0]].shape or ()) != 3
    ):
        raise ValueError(
            f"data: tfds data set {name!r} has no 'image' and 'label' features; it is not an image "
            "classification set"
        )
    return keys


def _records(tfds, builder, name: str, split: str) -> Any:
    """The examples of a split as a sequence of dicts in random access, images left encoded."""
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    if str(getattr(builder.info.file_format, "value", "")) == "tfrecord":
        records = _TFRecords(builder.info.splits[split].filepaths, builder.info.features, decoders)
        if len(records) != builder.info.splits[split].num_examples:
            raise ValueError(
                f"data: the files of the tfds data set {name!r} in {str(builder.data_dir)!r} hold "
                f"{len(records)} examples instead of "
                f"{builder.info.splits[split].num_examples}; they are damaged: delete that folder "
                "to have it prepared again"
            )
        return records
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except ImportError as error:
        raise ValueError(
            f"data: reading {name!r} needs array-record ({error}); install it with: pip install "
            "'ntk-tt[tfds]'"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"data: tfds data set {name!r} lies at {str(builder.data_dir)!r} in a format without "
            "random access "
            f"({getattr(builder.info.file_format, 'value', 'unknown')}: {error}); delete that "
            "folder to have it prepared again"
        ) from error


class _TFRecords(Sequence):
    """The examples of TFRecord files in random access.

    A record is its length (8 bytes, little endian), a checksum of that (4), the bytes, and their
    checksum (4). The positions are found by hopping from length to length, as far as the file goes;
    checksums are not verified.
    """

    def __init__(self, paths, features, decoders):
        self._features, self._decoders = features, decoders
        self._positions: list[tuple[str, int, int]] = []
        for path in map(str, paths):
            with open(path, "rb") as file:
                position, end = 0, os.fstat(file.fileno()).st_size
                while len(header := file.read(12)) == 12:
                    (length,) = struct.unpack("<Q", header[:8])
                    if length > end - position - 16:
                        break  # cut off or damaged: fewer examples than there should be
                    self._positions.append((path, position + 12, length))
                    position += length + 16
                    file.seek(position)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index):
        path, position, length = self._positions[index]
        with open(path, "rb") as file:
            file.seek(position)
            return self._features.deserialize_example_np(file.read(length), decoders=self._decoders)
