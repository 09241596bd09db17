"""Tensors from files written by `torch.save`, without PyTorch and without running anything the file
says.

Such a file is a pickle: a program that may call any function it names. Here the names on a short
list are known (tensors, their storages, containers), and every one of them is replaced by code of
this module that does nothing but arrange data; anything else is refused by name. Both formats are
read: the zip archive of PyTorch 1.6 and later, and the older sequence of pickles, in which most of
the files on download.pytorch.org still are.
"""

import io
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ntk_tt.models.pickle_machine import load
from ntk_tt.models.stored import Stored, quoted, reason
from ntk_tt.models.torch_objects import (
    DTYPES,
    OTHER_SIZES,
    Storage,
    Tensor,
    TensorType,
    is_floating,
    stand_in,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_CONTAINERS = 6  # deep
_MAX_ENTRIES = 500_000
_MAX_SHARING = 64  # tensors that a number may be in,
_SHARING_FREE = 2**28  # but below so many elements in all in any number


class _References:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def __call__(self, reference: Any) -> Storage:
        if not (
            isinstance(reference, tuple)
            and len(reference) in (5, 6)
            and reference[0] == "storage"
            and isinstance(reference[1], TensorType)
            and isinstance(reference[2], str | int)
            and type(reference[4]) is int
            and reference[4] >= 0
        ):
            raise ValueError("it refers to something that is no storage of a known kind")
        if len(reference) == 6 and reference[5] is not None:
            raise ValueError(
                "it holds views of storages, as PyTorch 0.1 wrote; save it again with a newer "
                "PyTorch"
            )
        storage = Storage(str(reference[2]), reference[1].name, reference[4])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it describes its storage {quoted(storage.key)} in two ways")
        return storage


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong as a ValueError that names the file."""
    try:
        yield
    except (
        Exception
    ) as error:  # a damaged file can raise any kind; every one means that it cannot be read
        raise ValueError(
            f"weights: {str(path)!r} is not a readable PyTorch checkpoint ({reason(error)})"
        ) from error


@contextmanager
def open_torch(path: Path, kind: str) -> Iterator[tuple[dict[str, Stored], dict[str, str]]]:
    """The tensors of a file written by `torch.save`, by name; containers around them come first,
    each with a slash: `state_dict/conv1.weight`.

    With them a file's metadata, of which these have none. A storage is read when the first of its
    tensors is, once, and shared by all of them: a tensor is a view that cannot be written to. In an
    archive its checksum is tested.

    Args:
        kind: `zip` or `legacy`, see `kind_of`.

    Raises:
        ValueError: the file is not such a file, is damaged, or asks for anything but tensors and
            containers. Reading a tensor raises the same.
    """
    with open(path, "rb") as file:
        with _explained(path):
            root, read = (_open_zip if kind == "zip" else _open_legacy)(
                file, os.fstat(file.fileno()).st_size
            )
            views, tensors = _Views(read), _tensors(root)

        def values(tensor: Tensor) -> np.ndarray:
            with _explained(path):
                return views(tensor)

        yield (
            {
                name: Stored(
                    tensor.shape, tensor.dtype, is_floating(tensor.dtype), partial(values, tensor)
                )
                for name, tensor in tensors.items()
            },
            {},
        )


_Read = Callable[[Storage, int], bytes]  # (storage, bytes that it should have) -> bytes


def _open_zip(file: BinaryIO, file_size: int) -> tuple[Any, _Read]:
    """The root and how to read a storage. Nothing is unpacked: names in the archive are only looked
    up.
    """
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if (
        len(entries) != len(archive.infolist())
        or sum(entry.compress_size for entry in entries.values()) > file_size
    ):
        raise ValueError("its entries overlap")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(
            f"it is a zip archive without PyTorch's data.pkl; {_other_archive(entries)}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise ValueError("it is a TorchScript archive, a program; save model.state_dict() alone")

    def content(name: str, size: int | None = None) -> bytes:
        if name not in entries:
            raise ValueError(f"its entry {quoted(name)} is missing")
        entry = entries[name]
        # torch.save never compresses; what is may grow without limit
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {quoted(name)} is compressed")
        if size is not None and entry.file_size != size:
            raise ValueError(
                f"its entry {quoted(name)} holds {entry.file_size} bytes instead of {size}"
            )
        return archive.read(entry)  # tests its checksum

    if f"{folder}byteorder" in entries and content(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    root = load(io.BytesIO(content(pickles[0])), stand_in, _References())
    return root, lambda storage, size: content(f"{folder}data/{storage.key}", size)


def _other_archive(names: Iterable[str]) -> str:
    """What other zip archive has these entries, and what to do."""
    names = list(names)
    if any(name.endswith(".npy") for name in names):
        return "it looks like NumPy's .npz; save the arrays as .safetensors"
    if "model.weights.h5" in names:
        return (
            "it looks like Keras's .keras; convert it to PyTorch's names and save it as "
            ".safetensors"
        )
    inside = [
        name for name in names if name.endswith((".pth", ".pt", ".bin", ".ckpt", ".safetensors"))
    ]
    return (
        f"unpack it and give {quoted(inside[0])}"
        if inside
        else "give the file that torch.save wrote"
    )


def _open_legacy(file: BinaryIO, file_size: int) -> tuple[Any, _Read]:
    """Pickles of magic number, protocol, machine, root and storage keys; then for each storage its
    length and bytes.
    """
    # whose reads end with the file, however much is asked for
    stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if load(stream, stand_in, _References()) != _LEGACY_MAGIC:
        raise ValueError("it does not begin as torch.save's files do")
    load(stream, stand_in, _References())
    machine = load(stream, stand_in, _References())
    if not (isinstance(machine, dict) and machine.get("little_endian") is True):
        raise ValueError("it was written on a big-endian machine")
    references = _References()
    root, keys = load(stream, stand_in, references), load(stream, stand_in, _References())
    if not (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)):
        raise ValueError("it does not list its storages")
    begins = {}
    for key in map(str, keys):
        storage = references.storages.get(key)
        length = int.from_bytes(stream.read(8), "little", signed=True)
        if storage is None or length != storage.length:
            raise ValueError(
                f"its storage {quoted(key)} holds {length} numbers instead of "
                f"{storage and storage.length}"
            )
        begins[key] = stream.tell()
        end = begins[key] + length * (
            OTHER_SIZES.get(storage.dtype) or np.dtype(DTYPES[storage.dtype]).itemsize
        )
        if end > file_size:
            raise ValueError(f"its storage {quoted(key)} ends before its {length} numbers")
        stream.seek(end)

    def content(storage: Storage, size: int) -> bytes:
        if storage.key not in begins:
            raise ValueError(f"its storage {quoted(storage.key)} is missing")
        return stream[begins[storage.key] : begins[storage.key] + size]

    return root, content


def _tensors(root: Any) -> dict[str, Tensor]:
    """All tensors in dictionaries of dictionaries, by name; other entries are left out."""
    found: dict[str, Tensor] = {}
    entries = 0
    level = [("", root)] if isinstance(root, dict) else []
    for _ in range(_MAX_CONTAINERS):
        deeper = []
        for container, mapping in level:
            entries += len(mapping)
            if entries > _MAX_ENTRIES:
                raise ValueError(
                    f"it holds more than {_MAX_ENTRIES} entries; save the state dict alone"
                )
            found |= {
                f"{container}{name}": value
                for name, value in mapping.items()
                if isinstance(value, Tensor)
            }
            deeper += [
                (f"{container}{name}/", value)
                for name, value in mapping.items()
                if isinstance(value, dict)
            ]
        level = deeper
    if not found:
        raise ValueError("it holds no dictionary of tensors; save model.state_dict()")
    return found


class _Views:
    """Tensors as views of their storages, each of which is read once."""

    def __init__(self, read: _Read):
        self.read = read
        self.contents: dict[Storage, bytes] = {}
        self.numbers = self.elements = 0

    def __call__(self, tensor: Tensor) -> np.ndarray:
        storage, dtype = tensor.storage, np.dtype(DTYPES[tensor.dtype])
        if storage.dtype not in ("", tensor.dtype):
            raise ValueError(f"it reads a storage of {storage.dtype} as {tensor.dtype}")
        if storage not in self.contents:
            self.contents[storage] = self.read(
                storage, storage.length * (dtype.itemsize if storage.dtype else 1)
            )
            self.numbers += storage.length
        self.elements += math.prod(tensor.shape)
        if self.elements > max(_SHARING_FREE, _MAX_SHARING * self.numbers):
            raise ValueError(
                f"its tensors show the same numbers more than {_MAX_SHARING} times over; save each "
                "once"
            )
        flat = np.frombuffer(self.contents[storage], dtype)
        inside = min(tensor.offset, *tensor.strides, *tensor.shape, 0) == 0 and len(
            tensor.shape
        ) == len(tensor.strides)
        last = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False)
        )
        if not inside or (0 not in tensor.shape and last >= flat.size):
            raise ValueError(
                f"a tensor of shape {tensor.shape} reaches beyond its storage of {flat.size} "
                "numbers; the file is damaged"
            )
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        strides = [
            0 if size == 1 else stride * dtype.itemsize
            for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], tensor.shape, strides, writeable=False
        )
