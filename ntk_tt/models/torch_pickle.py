"""Tensors from files written by `torch.save`, without PyTorch and without running anything the file says.

Such a file is a pickle: a program that may call any function it names. Here the names on a short list are known
(tensors, their storages, containers), and every one of them is replaced by code of this module that does nothing but
arrange data; anything else is refused by name. Both formats are read: the zip archive of PyTorch 1.6 and later, and
the older sequence of pickles, in which most of the files on download.pytorch.org still are.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")


class _StorageType(NamedTuple):
    """Stands for torch.FloatStorage and its like, which only say what the bytes are."""

    dtype: Any


class _Storage(NamedTuple):
    """Numbers under a key, `length` of them."""

    key: str
    dtype: Any
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, cut out when all bytes are there."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor. An instance without attributes, since a pickle may also set those."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("it builds a tensor from something that is no storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, tensor, *_: Any) -> Any:
        return tensor


_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch", "Size"): tuple,
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_ALLOWED` and refuses every other, so that nothing the file names is ever called."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise ValueError(f"it asks for {module_name}.{global_name}, and only tensors in dictionaries are read; save model.state_dict() alone")
        return _ALLOWED[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], _StorageType) and isinstance(pid[4], int)):
            raise ValueError(f"it refers to {pid!r}, which is no storage of a known kind")
        if len(pid) == 6 and pid[5] is not None:
            raise ValueError("it holds views of storages, as PyTorch 0.1 wrote; save it again with a newer PyTorch")
        storage = _Storage(str(pid[2]), pid[1].dtype, pid[4])
        return self.storages.setdefault(storage.key, storage)


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file written by `torch.save`, by name: of a state dict, or of the one inside a training state.

    Raises:
        ValueError: the file is not such a file, is damaged, or asks for anything but tensors and containers.
    """
    try:
        root, storage_bytes = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        return {name: _view(tensor, storage_bytes) for name, tensor in _state_dict(root).items()}
    except Exception as error:  # a damaged pickle can raise any kind; every one means that the file cannot be read
        raise ValueError(f"weights: {str(path)!r} is not a readable PyTorch checkpoint ({error or type(error).__name__})") from error


def _read_zip(path: str | Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive without PyTorch's data.pkl")
    folder = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        if entries[name].compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; what is may grow without limit
            raise ValueError(f"its entry {name!r} is compressed")
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    if f"{folder}byteorder" in entries and read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    return _Unpickler(io.BytesIO(read(pickles[0]))).load(), lambda storage: read(f"{folder}data/{storage.key}")


def _read_legacy(path: str | Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Pickles of magic number, protocol, machine, root and storage keys; then for each storage its length and bytes."""
    with open(path, "rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("it does not begin as torch.save's files do")
        _Unpickler(file).load()
        if not _Unpickler(file).load()["little_endian"]:
            raise ValueError("it was written on a big-endian machine")
        unpickler = _Unpickler(file)
        root = unpickler.load()
        contents = {}
        for key in _Unpickler(file).load():
            storage = unpickler.storages[str(key)]
            length = int.from_bytes(file.read(8), "little", signed=True)
            if length != storage.length:
                raise ValueError(f"its storage {key!r} holds {length} numbers instead of {storage.length}")
            contents[storage.key] = file.read(length * np.dtype(storage.dtype).itemsize)
    return root, lambda storage: contents[storage.key]


def _state_dict(root: Any) -> dict[str, _Tensor]:
    """A mapping of names to tensors, or the one under a usual name of a training state; other entries are left out."""
    for key in _STATE_KEYS:
        if isinstance(root, Mapping) and isinstance(root.get(key), Mapping):
            root = root[key]
    tensors = {name: value for name, value in root.items() if isinstance(name, str) and isinstance(value, _Tensor)} if isinstance(root, Mapping) else {}
    if not tensors:
        raise ValueError(f"it holds no dictionary of tensors, at its top or under {', '.join(map(repr, _STATE_KEYS))}")
    return tensors


def _view(tensor: _Tensor, storage_bytes: Callable[[_Storage], bytes]) -> np.ndarray:
    """The tensor's elements, copied out of its storage after checking that they lie inside."""
    flat = np.frombuffer(storage_bytes(tensor.storage), tensor.storage.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    inside = min(tensor.offset, *tensor.strides, *tensor.shape, 0) == 0 and math.prod(tensor.shape) <= flat.size and (0 in tensor.shape or last < flat.size)
    if not inside or flat.size != tensor.storage.length:
        raise ValueError(f"a tensor of shape {tensor.shape} reaches beyond its storage of {flat.size} numbers; the file is damaged")
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()
