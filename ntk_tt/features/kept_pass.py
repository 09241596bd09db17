"""What the passes of a small network find, kept on disk and found again.

A set has two parts, one a point at which the network is expanded. Each part has a record (small
arrays in one file) and a `FeatureStore` with what was found of each sample. Everything is named by
what it depends on, and has a checksum: what is damaged counts as missing.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ntk_tt.features.manifest import describe, digest, identity, new_hash
from ntk_tt.features.store import FeatureStore, folder_of
from ntk_tt.features.store_files import explained, metadata_of
from ntk_tt.jacobian.network import Apply
from ntk_tt.runtime.files import open_plain, replace
from ntk_tt.runtime.input_trees import Inputs
from ntk_tt.runtime.progress import Progress, part_of

FORMAT = 2  # raise it when the pass finds other numbers of the same network and data
_BLOCK_BYTES = 8 << 20  # of a file: many enough to resume by, few enough to list
_MULTIPLE = 16  # of samples: files end where blocks of the pass do
Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class KeptPass:
    """Where the passes of one small network are kept.

    Attributes:
        root: folder of all sets.
        first: of what the pass at w₀ is, as JSON values.
        second: of what the pass at the second point is; None where it cannot be told from others
            (an optax chain of the user's own leads there).
        writes: whether what is missing is to be written.
    """

    root: Path
    first: Mapping[str, Any]
    second: Mapping[str, Any] | None
    writes: bool = False

    def record(self, part: Mapping[str, Any]) -> Record | None:
        """The record of a part, or None where there is none that is whole."""
        file = self._file(part)
        try:
            with open_plain(file) as opened:
                data = opened.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            warnings.warn(f"store: {file} cannot be read ({error.strerror})", stacklevel=2)
            return None
        held = metadata_of(data) or {}
        try:
            arrays = load(data)
        except SafetensorError:
            arrays = {}
        if held.get("identity") == identity(part) and held.get("checksum") == _checksum(arrays):
            return arrays
        warnings.warn(f"store: {file} is damaged; it counts as missing", stacklevel=2)
        return None

    def keep(self, part: Mapping[str, Any], arrays: Record) -> None:
        """Write the record of a part.

        Raises:
            OSError: the disk is full or not writable.
        """
        file = self._file(part)
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        held = {"identity": identity(part), "checksum": _checksum(arrays)}
        self.make()
        with explained(f"cannot make a store in {self.root}", self.root):
            replace(file, save(arrays, held))

    def make(self) -> None:
        """Make the folder, before anything is computed that it is to hold.

        Raises:
            OSError: it cannot be made.
        """
        with explained(f"cannot make a store in {self.root}", self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def store(
        self, part: Mapping[str, Any], num_samples: int, rows: int, width: int, dtype: Any
    ) -> FeatureStore:
        """Of `rows` × `width` numbers a sample; complete, where nothing is to be written."""
        dtype = np.dtype(dtype)
        held = max(1, _BLOCK_BYTES // (rows * width * dtype.itemsize))
        manifest = dict(part) | {
            "num_samples": num_samples,
            "num_outputs": rows,
            "num_projections": width,
            "dtype": dtype.name,
            "block_size": min(num_samples, max(_MULTIPLE, held // _MULTIPLE * _MULTIPLE)),
        }
        folder = folder_of(manifest, self.root)
        if self.writes:
            return FeatureStore.open(folder, manifest)
        return FeatureStore(folder, manifest, folder.name)

    def _file(self, part: Mapping[str, Any]) -> Path:
        return self.root / f"{identity(part)}.record.safetensors"


def describe_pass(
    apply: Apply, params: PyTree, inputs: Inputs, *, key: Key[Array, ""], settings: dict[str, Any]
) -> dict[str, Any]:
    """All that the pass at w₀ depends on; see `ntk_tt.features.manifest.describe`."""
    return describe(
        apply,
        params,
        inputs,
        num_projections=1,
        projection="sampled entries",
        key=key,
        block_size=1,
        settings={"pass": FORMAT, **settings},
    )


def fingerprint(array: Any) -> str:
    """Of an array's bytes, for `settings`."""
    array = np.ascontiguousarray(array)
    return f"{array.dtype.name}{list(array.shape)} {digest(array.reshape(-1).view(np.uint8))}"


def complete_rows(
    store: FeatureStore,
    look: Callable[[slice, Progress], Float[Array, "b k w"]],
    progress: Progress,
) -> Float[Array, "n k w"]:
    """What is kept of all samples; what is missing is looked at first, and written.

    Args:
        look: what a block of the pass finds of these samples.
        progress: called in samples.
    """
    missing, size = store.missing(), store.manifest["block_size"]
    for number, index in enumerate(missing):
        rows = store.samples(index)
        # the last block is moved back to full size
        start = min(rows.start, store.shape[0] - size)
        taken = slice(start, start + size)
        found = look(taken, part_of(progress, number, len(missing)))
        store.write(index, np.asarray(found)[rows.start - start :])
    progress(store.shape[0], store.shape[0])
    whole = jnp.zeros(store.shape, store.dtype)
    for index, block in enumerate(store):
        whole = _written(whole, np.asarray(block), store.samples(index).start)
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _written(whole, block, start):
    return jax.lax.dynamic_update_slice_in_dim(whole, block, start, 0)


def _checksum(arrays: Record) -> str:
    total = new_hash()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
