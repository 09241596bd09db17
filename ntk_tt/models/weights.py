"""Checkpoints: a params/state tree to and from files, ours or PyTorch's, every mismatch named."""

import functools
import json
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from ntk_tt.models.shards import open_shards
from ntk_tt.models.stored import Stored, kind_of, quoted, reason, regular_file
from ntk_tt.models.torch_format import is_torch_format, our_layout, our_name
from ntk_tt.models.torch_pickle import open_torch
from ntk_tt.models.wrappers import choose
from ntk_tt.runtime.parameter_names import named_leaves, path_name

_LARGEST_IMAGE = 16384  # side, in a record [pixels]


def save_weights(
    path: str | Path, tree: PyTree, *, dtype: Any = None, record: dict[str, Any] | None = None
) -> None:
    """Write all arrays of `tree` by name; `record` (how they were made) travels in the file's
    metadata as JSON.
    """
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in named_leaves(tree).items()}
    safetensors.numpy.save_file(arrays, str(path), metadata={"record": json.dumps(record or {})})


class Checkpoint(NamedTuple):
    """What a file holds of a network.

    Attributes:
        arrays: by our names, in our layouts.
        record: that `save_weights` stored with them; empty for other programs' files.
        note: which prefix, copy or additions of the file were left aside; empty where nothing was.
    """

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]
    note: str


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a file by our names, and the record stored with them; PyTorch's names and
    layouts are translated.

    Args:
        path: a safetensors file, what `torch.save` wrote, which is read without running any of it,
            or the index in JSON of several such files; its content tells, not its suffix.

    Raises:
        ValueError: the file is missing, unreadable, neither of these, or holds a NaN or infinity,
            or other than floating-point numbers.
    """
    return read_checkpoint(path)[:2]


def read_checkpoint(
    path: str | Path,
    names: Set[str] | None = None,
    own_name: Callable[[str], str] = lambda name: name,
) -> Checkpoint:
    """What a file holds of a network with these names; see `read_weights`.

    Args:
        names: of the whole network's arrays, ours; without, all arrays of the file are read.
        own_name: a published name as the network's own.
    """
    file = regular_file(path)
    kind, known = (
        kind_of(file),
        None if names is None else functools.cache(lambda name: own_name(name) in names),
    )
    with open_shards(file, _open) if kind == "index" else _open(file) as (tensors, metadata):
        chosen = choose(tensors, known, len(names or ()), repr(str(path)))
        translated = is_torch_format(list(chosen.tensors))
        arrays = {}
        for name, stored in chosen.tensors.items():
            ours = our_name(name, len(stored.shape)) if translated else name
            if stored.floating is None or not (
                stored.floating or (known is not None and not known(ours))
            ):
                raise ValueError(
                    f"weights: {quoted(name)} in {str(path)!r} is {stored.dtype}, which is not "
                    "read; convert it to float16 or float32"
                    + (
                        ""
                        if stored.floating is None
                        else " (a quantised checkpoint has to be expanded by its own scales)"
                    )
                )
            array = stored.read()
            if stored.floating and not np.isfinite(array).all():
                raise ValueError(
                    f"weights: {quoted(name)} in {str(path)!r} holds NaN or infinity; the "
                    "checkpoint is damaged"
                )
            arrays[ours] = our_layout(name, array) if translated else array
    return Checkpoint(arrays, _record(metadata, path), chosen.note)


def _open(file: Path) -> AbstractContextManager[tuple[dict[str, Stored], dict[str, str]]]:
    """One file of weights."""
    kind = kind_of(regular_file(file))
    if kind == "index":
        raise ValueError(
            f"weights: {str(file)!r} is an index that another one names; give it itself"
        )
    return _open_safetensors(file) if kind == "safetensors" else open_torch(file, kind)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[tuple[dict[str, Stored], dict[str, str]]]:
    """Its tensors by name, and its metadata."""
    with ExitStack() as stack:
        with _explained(file):
            opened = stack.enter_context(safetensors.safe_open(str(file), framework="numpy"))
            names = opened.keys()  # no mapping: it has no more than that
            slices = {name: opened.get_slice(name) for name in names}
            dtypes = {name: each.get_dtype() for name, each in slices.items()}
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}

        def read(name: str) -> np.ndarray:
            with _explained(file):
                return opened.get_tensor(name)

        yield (
            {
                name: Stored(
                    shapes[name], dtype, _FLOATING.get(dtype), functools.partial(read, name)
                )
                for name, dtype in dtypes.items()
            },
            opened.metadata() or {},
        )


# Types that are read, and whether they are floating-point numbers; others are float8 and smaller,
# which belong to scales.
_FLOATING = {
    "F64": True,
    "F32": True,
    "F16": True,
    "BF16": True,
    "C64": False,
    "BOOL": False,
    **{f"{sign}{bits}": False for sign in "IU" for bits in (8, 16, 32, 64)},
}


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # the library's own errors, and any of a system that takes the file away
        raise ValueError(
            f"weights: {str(file)!r} is not a readable safetensors file ({reason(error)}); "
            "download or convert it again"
        ) from error


def _record(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """What `save_weights` stored; empty where another program wrote the file."""
    try:
        record = json.loads(metadata.get("record", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    size = record.get("image_size", 1)
    triples = [record[name] for name in ("mean", "std") if name in record]
    if not (type(size) is int and 1 <= size <= _LARGEST_IMAGE) or not all(
        isinstance(each, list)
        and len(each) == 3
        and all(isinstance(value, float | int) and abs(value) < 1e6 for value in each)
        for each in triples
    ):
        raise ValueError(
            f"weights: the record in {str(path)!r} has an image_size, mean or std that is none; "
            "write the file again"
        )
    return record


def fit_weights(
    template: PyTree, arrays: dict[str, np.ndarray], *, source: str, fresh: tuple[str, ...] = ()
) -> PyTree:
    """`template` with its leaves replaced by the arrays of the same names, in the template's dtype.

    Args:
        template: the tree to fill; its shapes are what the network needs.
        arrays: by dotted name, as `read_weights` gives them.
        source: the file's name, for messages.
        fresh: what lies under these dotted names (a new head) keeps the template's values.

    Raises:
        ValueError: a name is missing, a shape differs, or the file holds a name the network lacks;
            the first is named.
    """
    wanted = named_leaves(template)
    kept = {name for name in wanted if name.startswith(tuple(f"{part}." for part in fresh))}
    arrays = {
        name: _as_matrix(array) if name in wanted and len(wanted[name].shape) == 2 else array
        for name, array in arrays.items()
    }
    for name, leaf in wanted.items():
        if name in kept:
            continue
        if name not in arrays:
            raise ValueError(
                f"weights: {source} has no {name!r} (the network needs shape {tuple(leaf.shape)}); "
                "is it the checkpoint of another network?"
            )
        if arrays[name].shape != tuple(leaf.shape):
            raise ValueError(
                f"weights: {name!r} has shape {arrays[name].shape} in {source}, but the network "
                f"needs {tuple(leaf.shape)}"
            )
    unused = [name for name in arrays if name not in wanted]
    if unused:
        raise ValueError(
            f"weights: {source} holds {unused[0]!r} {arrays[unused[0]].shape}, which the network "
            "does not have; is it the checkpoint of another network?"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf
            if path_name(path) in kept
            else jnp.asarray(_cast(path_name(path), arrays[path_name(path)], leaf.dtype, source))
        ),
        template,
    )


def _cast(name: str, array: np.ndarray, dtype: Any, source: str) -> np.ndarray:
    """The array in the network's type, by NumPy: no compilation."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if array.dtype.itemsize > cast.dtype.itemsize and not np.isfinite(cast).all():
        raise ValueError(
            f"weights: {name!r} in {source} holds numbers too large for {np.dtype(dtype)}; the "
            "checkpoint is damaged"
        )
    return cast


def _as_matrix(array: np.ndarray) -> np.ndarray:
    """A 1×1 convolution's kernel as the matrix it is."""
    return array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array
