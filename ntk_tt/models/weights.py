"""Checkpoints: a params/state tree to and from files, ours or PyTorch's, every mismatch named."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from ntk_tt.models.torch_format import from_torch, is_torch_format
from ntk_tt.models.torch_pickle import read_torch
from ntk_tt.paths import named_leaves, path_name

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")  # of torch.save; "….pth.tar" is no archive either


def save_weights(path: str | Path, tree: PyTree, *, dtype: Any = None, record: dict[str, Any] | None = None) -> None:
    """Write all arrays of `tree` by name; `record` (how they were made) travels in the file's metadata as JSON."""
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in named_leaves(tree).items()}
    safetensors.numpy.save_file(arrays, str(path), metadata={"record": json.dumps(record or {})})


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a file by our names, and the record stored with them; PyTorch's names and layouts are translated.

    Args:
        path: a safetensors file, or what `torch.save` wrote (.pth, .pt, .bin), which is read without running any of it.

    Raises:
        ValueError: the file is missing, unreadable, neither of these, or holds a NaN or infinity.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"weights: there is no file {str(path)!r}; give a .safetensors or .pth file, 'bundled', 'random' or 'hf:owner/name'")
    arrays, metadata = (read_torch(file), {}) if file.suffix in _TORCH_SUFFIXES else _read_safetensors(file)
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise ValueError(f"weights: {name!r} in {str(path)!r} holds NaN or infinity; the checkpoint is damaged")
    return from_torch(arrays) if is_torch_format(arrays) else arrays, _record(metadata)


def _read_safetensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 (no mapping: it has keys() only)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"weights: {str(file)!r} is not a readable safetensors file ({error}); download or convert it again") from error


def _record(metadata: dict[str, str]) -> dict[str, Any]:
    """What `save_weights` stored; empty where another program wrote the file."""
    try:
        record = json.loads(metadata.get("record", "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def fit_weights(template: PyTree, arrays: dict[str, np.ndarray], *, source: str, fresh: tuple[str, ...] = ()) -> PyTree:
    """`template` with its leaves replaced by the arrays of the same names, in the template's dtype.

    Args:
        template: the tree to fill; its shapes are what the network needs.
        arrays: by dotted name, as `read_weights` gives them.
        source: the file's name, for messages.
        fresh: what lies under these dotted names (a new head) keeps the template's values.

    Raises:
        ValueError: a name is missing, a shape differs, or the file holds a name the network lacks; the first is named.
    """
    wanted = named_leaves(template)
    kept = {name for name in wanted if name.startswith(tuple(f"{part}." for part in fresh))}
    arrays = {name: _as_matrix(array) if name in wanted and len(wanted[name].shape) == 2 else array for name, array in arrays.items()}
    for name, leaf in wanted.items():
        if name in kept:
            continue
        if name not in arrays:
            raise ValueError(f"weights: {source} has no {name!r} (the network needs shape {tuple(leaf.shape)}); is it the checkpoint of another network?")
        if arrays[name].shape != tuple(leaf.shape):
            raise ValueError(f"weights: {name!r} has shape {arrays[name].shape} in {source}, but the network needs {tuple(leaf.shape)}")
    unused = [name for name in arrays if name not in wanted]
    if unused:
        raise ValueError(f"weights: {source} holds {unused[0]!r} {arrays[unused[0]].shape}, which the network does not have; is it the checkpoint of another network?")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path_name(path) in kept else jnp.asarray(arrays[path_name(path)].astype(leaf.dtype)), template)  # cast by NumPy: no compilation


def _as_matrix(array: np.ndarray) -> np.ndarray:
    """A 1×1 convolution's kernel as the matrix it is."""
    return array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array
