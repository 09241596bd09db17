"""What a PyTorch pickle may speak of: types, storages and tensors, and stand-ins for the functions
that rebuild them. Everything else in it is refused, or passed over, by name.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ntk_tt.models.pickle_machine import IGNORED, StandIn, ordered_dict, refuse
from ntk_tt.models.stored import quoted

# Types of numbers that are read, and what PyTorch calls their storages; others are known by name
# only.
DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}


STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QInt32": "qint32",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
    "Untyped": "",
}


# bytes a number
OTHER_SIZES = {
    "": 1,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
}


_ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}


_DTYPE_NAME = re.compile(r"(?:b?float|complex|q?u?int|bits)\d+\w*|bool|" + "|".join(_ALIASES))
_MAX_AXES = 32


class TensorType(NamedTuple):
    """Stands for torch.FloatStorage or torch.float32, which only say what the bytes are; empty for
    bytes of no type.
    """

    name: str


class Storage(NamedTuple):
    """Numbers under a key, `length` of them (bytes, where they have no type)."""

    key: str
    dtype: str
    length: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def integers(value: Any) -> tuple[int, ...]:
    if not (
        isinstance(value, tuple | list)
        and len(value) <= _MAX_AXES
        and all(type(each) is int for each in value)
    ):
        raise ValueError(
            "it builds a tensor whose shape or strides are no short list of whole numbers"
        )
    return tuple(value)


def _tensor(
    storage: Any = None,
    offset: Any = None,
    shape: Any = None,
    strides: Any = None,
    dtype: str | None = None,
) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("it builds a tensor from something that is no storage")
    return Tensor(
        storage,
        storage.dtype if dtype is None else dtype,
        integers([offset])[0],
        integers(shape),
        integers(strides),
    )


def _rebuild_tensor(
    storage: Any = None,
    offset: Any = None,
    shape: Any = None,
    strides: Any = None,
    _gradient: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
    *_: Any,
) -> Tensor:
    # numbers to be read with another sign, or conjugated
    if isinstance(metadata, dict) and any(metadata.values()):
        raise ValueError(
            "it holds a tensor marked as "
            f"{', '.join(quoted(name) for name in list(metadata)[:3])}; save it again after "
            "resolve_neg() and resolve_conj()"
        )
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_of_type(
    storage: Any = None,
    offset: Any = None,
    shape: Any = None,
    strides: Any = None,
    _gradient: Any = None,
    _hooks: Any = None,
    dtype: Any = None,
    *_: Any,
) -> Tensor:
    if not isinstance(dtype, TensorType):
        raise ValueError("it builds a tensor of something that is no type of numbers")
    return _tensor(storage, offset, shape, strides, dtype.name)


def _rebuild_quantised(
    storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *_: Any
) -> Tensor:
    tensor = _tensor(storage, offset, shape, strides)
    return tensor._replace(dtype=f"{tensor.dtype}, quantised")


def _size(axes: Any = (), *_: Any) -> tuple[int, ...]:
    return integers(axes)


def _first(tensor: Any = None, *_: Any) -> Any:
    return tensor


def _ignored(*_: Any) -> Any:
    return IGNORED


_UTILITIES: Mapping[str, StandIn] = {
    "_rebuild_tensor": StandIn(_rebuild_tensor),
    "_rebuild_tensor_v2": StandIn(_rebuild_tensor),
    "_rebuild_tensor_v3": StandIn(_rebuild_tensor_of_type),
    "_rebuild_parameter": StandIn(_first),
    "_rebuild_parameter_with_state": StandIn(_first),
    "_rebuild_qtensor": StandIn(_rebuild_quantised),
}


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): StandIn(ordered_dict),
    ("torch", "Size"): StandIn(_size),
    ("torch.storage", "UntypedStorage"): TensorType(""),
    **{("torch._utils", name): stand_in for name, stand_in in _UTILITIES.items()},
    **{("torch", f"{name}Storage"): TensorType(dtype) for name, dtype in STORAGES.items()},
    **{
        ("torch", f"per_{per}_{kind}"): IGNORED
        for per in ("tensor", "channel")
        for kind in ("affine", "symmetric", "affine_float_qparams")
    },
}


# Training scripts save these beside the weights: their arguments, paths, best accuracies. They are
# passed over.
_PASSED_OVER = frozenset(
    {
        ("argparse", "Namespace"),
        ("types", "SimpleNamespace"),
        ("torch", "device"),
        ("_codecs", "encode"),
        ("builtins", "set"),
        ("__builtin__", "set"),
        ("builtins", "frozenset"),
        ("collections", "defaultdict"),
        ("collections", "Counter"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        *(
            (module, name)
            for module in ("numpy.core.multiarray", "numpy._core.multiarray")
            for name in ("scalar", "_reconstruct")
        ),
        *(
            (module, f"{kind}{flavour}Path")
            for module in ("pathlib", "pathlib._local")
            for kind in ("", "Pure")
            for flavour in ("", "Posix", "Windows")
        ),
    }
)


def stand_in(module: str, name: str) -> Any:
    """What a name in the file stands for; every other is refused, so that nothing the file names is
    ever called.
    """
    if (module, name) in _KNOWN:
        return _KNOWN[module, name]
    if (module, name) in _PASSED_OVER:
        return StandIn(_ignored)
    if module == "torch" and _DTYPE_NAME.fullmatch(name):
        return TensorType(_ALIASES.get(name, name))
    raise refuse(module, name)


def is_floating(dtype: str) -> bool | None:
    return (
        dtype in ("float64", "float32", "float16", "bfloat16")
        if dtype in DTYPES or dtype.startswith("complex")
        else None
    )
