"""Writes files as `torch.save` does, without PyTorch: honest ones, and ones that lie."""

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    "float32": "Float",
    "float16": "Half",
    "float64": "Double",
    "int64": "Long",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "bfloat16": "BFloat16",
}


class Global:
    """A name of a module that need not be there."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Reference:
    """A reference to a storage."""

    def __init__(
        self, kind: str = "FloatStorage", key: Any = "0", length: Any = 4, module: str = "torch"
    ):
        self.reference = ("storage", Global(module, kind), key, "cpu", length)


class Calls:
    """A call of a function of any name."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Pickler(pickle._Pickler):
    """Writes references to storages, and names of PyTorch that are not installed here."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Reference) else None

    def save_name(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    dispatch = {**pickle._Pickler.dispatch, Global: save_name, Calls: save_call}  # noqa: RUF012


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def zipped(
    path: Path,
    root: bytes,
    entries: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", root)
        for name, content in (entries or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


def legacy(path: Path, *values: Any, data: bytes = b"") -> Path:
    path.write_bytes(b"".join(map(pickled, values)) + data)
    return path


def tensor(reference: Reference, offset: Any, shape: Any, strides: Any, *more: Any) -> Calls:
    return Calls(
        Global("torch._utils", "_rebuild_tensor_v2"),
        reference,
        offset,
        shape,
        strides,
        False,
        collections.OrderedDict(),
        *more,
    )


def tensor_file(
    path: Path,
    reference: Reference,
    offset: Any,
    shape: Any,
    strides: Any,
    content: bytes,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    return zipped(
        path,
        pickled({"a": tensor(reference, offset, shape, strides)}),
        {"data/0": content},
        compression,
    )


class Checkpoint:
    """A tree of dictionaries with arrays in it, as torch.save writes it; each array in a storage of
    its own, or all of them in one.
    """

    def __init__(
        self,
        tree: Any,
        *,
        one_storage: bool = False,
        order: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    ):
        self.contents: list[np.ndarray] = []
        self.one_storage, self.order = one_storage, order
        if one_storage:
            self.flat = np.concatenate([leaf.reshape(-1) for leaf in self._leaves(tree)])
            self.begin = 0
            self.contents.append(self.flat)
        self.root = self._with_tensors(tree)

    def zip(self, path: Path) -> Path:
        return zipped(
            path,
            pickled(self.root),
            {
                "byteorder": b"little",
                **{f"data/{key}": content.tobytes() for key, content in enumerate(self.contents)},
            },
        )

    def legacy(self, path: Path) -> Path:
        data = b"".join(
            len(content).to_bytes(8, "little") + content.tobytes() for content in self.contents
        )
        return legacy(
            path,
            MAGIC,
            1001,
            {"protocol_version": 1001, "little_endian": True},
            self.root,
            [str(key) for key in range(len(self.contents))],
            data=data,
        )

    def _leaves(self, tree: Any) -> list[np.ndarray]:
        return (
            [tree]
            if isinstance(tree, np.ndarray)
            else [leaf for each in tree.values() for leaf in self._leaves(each)]
            if isinstance(tree, dict)
            else []
        )

    def _with_tensors(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self._with_tensors(value) for key, value in tree.items()}
        if not isinstance(tree, np.ndarray):
            return tree
        if self.one_storage:
            offset, self.begin = self.begin, self.begin + tree.size
            return self._tensor(
                0, offset, tree.shape, np.zeros(tree.shape, tree.dtype).strides, self.flat
            )
        stored = self.order(tree)  # a view whose memory, in its own order, is what the file holds
        self.contents.append(stored.ravel(order="K"))
        return self._tensor(
            len(self.contents) - 1, 0, tree.shape, stored.strides, self.contents[-1]
        )

    @staticmethod
    def _tensor(
        key: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], content: np.ndarray
    ) -> Calls:
        reference = Reference(f"{KINDS[content.dtype.name]}Storage", str(key), len(content))
        return tensor(
            reference, offset, shape, tuple(stride // content.itemsize for stride in strides)
        )


def bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16)
