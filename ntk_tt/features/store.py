"""Features on disk: one folder a feature set, one file a block of samples; resumable, checked,
never read as a whole.

A folder holds `manifest.json`, which names everything its features depend on, and one safetensors
file a block. Each block's header repeats the manifest's identity, the block's index and a checksum
of its data, so that every file can be judged alone: a block that is truncated, corrupted or of
another feature set is computed again, never used.

Why safetensors: a block is a short header and then the plain array, so it can be memory-mapped
(rows are read without reading the rest), other programs read it, the header has room for the
identity, and the project depends on it already. Zarr (tensorstore) would store every block as
chunks that are decoded before a row can be had, and Orbax whole trees through an asynchronous
writer; both cost a dependency, and neither writes an identity beside each block.

Safe against interruption: a block is written under another name, flushed to the disk and renamed,
which is atomic, so under its own name it is whole or absent. That also makes several writers of one
folder safe: they compute the same bits, the last rename wins, and a reader keeps the file it has
mapped. They only do the same work twice.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_tt.features.manifest import digest, identity, new_hash
from ntk_tt.features.store_files import (
    MANIFEST,
    explained,
    fault_of_manifest,
    first_difference,
    megabytes,
    metadata_of,
    read_manifest,
    remove_leftovers,
)
from ntk_tt.runtime.files import flush_folder, open_plain, replace

_TENSOR = "features"
# safetensors' names
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
_MAX_WARNINGS = 3  # of blocks, one each, before the rest is counted


def default_folder() -> Path:
    """Where feature sets are kept: $NTK_TT_CACHE (from the working folder where it is relative, `~`
    for the home folder), else `ntk-tt` in the user's cache folder.

    Raises:
        ValueError: the user has no home folder, and no variable names another.
    """
    try:
        if (folder := os.environ.get("NTK_TT_CACHE", "")).strip():
            return Path(folder).expanduser().absolute()
        match sys.platform:
            case "win32":
                return (
                    Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
                    / "ntk-tt"
                )
            case "darwin":
                return Path.home() / "Library" / "Caches" / "ntk-tt"
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (
            given if given.is_absolute() else Path.home() / ".cache"
        ) / "ntk-tt"  # a relative one counts as none, as its specification says
    except RuntimeError as error:
        raise ValueError(
            "NTK_TT_CACHE: there is no home folder to keep files in; set NTK_TT_CACHE to a folder, "
            "or give --store"
        ) from error


def folder_of(manifest: Mapping[str, Any], root: Path | None = None) -> Path:
    """The feature set's own folder in `root` (`default_folder()` where none is given), named by its
    identity.
    """
    return (default_folder() if root is None else root) / identity(manifest)


def find(manifest: Mapping[str, Any], root: Path | None = None) -> "FeatureStore | None":
    """The store of exactly these features in `root`, or None where it is absent or not complete.

    Every block's checksum is verified: one pass over the data. The folder is only read, and a
    damaged manifest in it does no harm: each block says itself what it is of.
    """
    folder = folder_of(manifest, root)
    if not os.path.isdir(folder):
        return None
    store = FeatureStore(folder, dict(manifest), folder.name)
    if not store.complete:
        return None
    if fault := fault_of_manifest(folder / MANIFEST, manifest):
        warnings.warn(
            f"store: {fault}; the blocks beside it are whole and of these features, so they are "
            "used",
            stacklevel=2,
        )
    return store


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """The blocks of one feature set. Its length is their number; iterating gives them in order,
    memory-mapped.

        store = FeatureStore.open(folder, manifest)
        for index in store.missing():
            store.write(index, compute(inputs[store.samples(index)]))

    Killed at any moment and run again, this goes on where it was. Make one with `open`.

    Attributes:
        folder: where the blocks lie.
        manifest: of what they are features.
        identity: the manifest's.
    """

    folder: Path
    manifest: dict[str, Any]
    identity: str

    @staticmethod
    def open(folder: str | Path, manifest: Mapping[str, Any] | None = None) -> "FeatureStore":
        """Create the store, or resume what is there.

        Args:
            folder: of this feature set alone; made where it is missing.
            manifest: from `describe`; None takes whatever feature set the folder holds.

        Raises:
            ValueError: the folder holds another feature set (the first entry that differs is
                named), its manifest is damaged, or it has none and none is given. In a folder that
                is named by the identity of `manifest` (see `folder_of`) a damaged one is written
                anew, with a warning.
            OSError: the folder cannot be made or written.
        """
        folder = Path(folder)
        if manifest is not None and folder.name == identity(manifest):
            fault = fault_of_manifest(folder / MANIFEST, manifest)
            held = None if fault else read_manifest(folder / MANIFEST)
            if fault:
                warnings.warn(
                    f"store: {fault}; it is written anew, and each block beside it is judged by "
                    "itself",
                    stacklevel=2,
                )
        else:
            held = read_manifest(folder / MANIFEST)
        if held is None and manifest is None:
            raise ValueError(
                f"store: {folder} holds no features (it has no {MANIFEST}); give the manifest to "
                "make a new set there"
            )
        if held is None:
            held = dict(manifest or {})
            with explained(f"cannot make a store in {folder}", folder):
                folder.mkdir(parents=True, exist_ok=True)
                flush_folder(folder.parent)
                replace(folder / MANIFEST, (json.dumps(held, indent=1) + "\n").encode())
        elif manifest is not None and (difference := first_difference(held, manifest)):
            raise ValueError(
                f"store: {folder} holds other features: {difference}; give another folder, or "
                "delete this one"
            )
        remove_leftovers(folder)
        return FeatureStore(folder, held, identity(held))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, C, D')."""
        return (
            self.manifest["num_samples"],
            self.manifest["num_outputs"],
            self.manifest["num_projections"],
        )

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(jnp.dtype(self.manifest["dtype"]))

    def __len__(self) -> int:
        return -(-self.shape[0] // self.manifest["block_size"])

    def __iter__(self) -> Iterator[Float[np.ndarray, "b c d"]]:
        return map(self.block, range(len(self)))

    def samples(self, index: int) -> slice:
        """Which samples a block holds."""
        if not 0 <= index < len(self):
            raise ValueError(f"index: must lie in 0 … {len(self) - 1}, got {index}")
        start = index * self.manifest["block_size"]
        return slice(start, min(start + self.manifest["block_size"], self.shape[0]))

    @property
    def complete(self) -> bool:
        """Whether no block is missing: reads everything, as `missing` does."""
        return not self.missing()

    def missing(self) -> list[int]:
        """The blocks still to be computed: absent ones, and with a warning that says why, those
        that must not be used.

        Cost: reads every block once, a piece at a time.
        """
        missing, faulty = [], 0
        for index in range(len(self)):
            if (fault := self._fault(index, whole=True)) is None:
                continue
            missing.append(index)
            faulty += bool(fault)
            if fault and faulty <= _MAX_WARNINGS:
                warnings.warn(
                    f"store: block {index} in {self._file(index)} {fault}; it counts as missing",
                    stacklevel=2,
                )
        if faulty > _MAX_WARNINGS:
            warnings.warn(
                f"store: {faulty - _MAX_WARNINGS} further blocks in {self.folder} cannot be used "
                "either; they count as missing",
                stacklevel=2,
            )
        return missing

    def write(self, index: int, features: Float[Array | np.ndarray, "b c d"]) -> None:
        """Store a block: after this returns it survives a crash; before, it is absent.

        Raises:
            ValueError: an index out of range, or an array of another shape or dtype.
            OSError: it could not be written (disk full, no permission); blocks written before stay.
        """
        wanted = self._block_shape(index)
        array = np.ascontiguousarray(features)
        if array.shape != wanted or array.dtype != self.dtype:
            raise ValueError(
                f"features: block {index} must have shape {wanted} and dtype {self.dtype}, got "
                f"{array.shape} and {array.dtype}"
            )
        data = array.reshape(-1).view(np.uint8)
        header = self._header(index, digest(data))
        with explained(
            f"cannot write block {index} ({megabytes(len(header) + len(data))})", self.folder
        ):
            replace(self._file(index), header, data)

    def block(self, index: int) -> Float[np.ndarray, "b c d"]:
        """A block's features, memory-mapped and read-only: what is not looked at is not read.

        Its header and size are checked here, its checksum by `missing`.

        Raises:
            ValueError: there is no such block, or what is there must not be used.
        """
        shape = self._block_shape(index)
        fault = self._fault(index, whole=False)
        if fault is not None:
            raise ValueError(
                f"store: block {index} in {self._file(index)} {fault or 'is not there'}; "
                "`missing()` lists the blocks to compute and `write`"
            )
        return np.memmap(
            self._file(index), self.dtype, "r", offset=len(self._header(index, "")), shape=shape
        )

    def rows(self, indices: Int[Array | np.ndarray, " b"]) -> Float[np.ndarray, "b c d"]:
        """The features of any samples, in the order asked for; only these are read.

        Raises:
            ValueError: an index out of 0 … N−1, or a block that is missing.
        """
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.shape[0]:
            raise ValueError(
                f"indices: must lie in 0 … {self.shape[0] - 1}, got {indices.min()} … "
                f"{indices.max()}"
            )
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        blocks, offsets = np.divmod(indices, self.manifest["block_size"])
        for index in np.unique(blocks):
            here = blocks == index
            rows[here] = self.block(int(index))[offsets[here]]
        return rows

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:06d}.safetensors"

    def _block_shape(self, index: int) -> tuple[int, int, int]:
        samples = self.samples(index)
        return samples.stop - samples.start, *self.shape[1:]

    def _header(self, index: int, checksum: str) -> bytes:
        """The only header that this block can have; its length is the same for every checksum."""
        shape = self._block_shape(index)
        record = {
            "__metadata__": {
                "identity": self.identity,
                "block": str(index),
                "checksum": checksum.rjust(32, "0"),
            },
            _TENSOR: {
                "dtype": _CODES[self.dtype.name],
                "shape": shape,
                "data_offsets": [0, math.prod(shape) * self.dtype.itemsize],
            },
        }
        text = json.dumps(record, separators=(",", ":")).encode()
        # data that begins at a multiple of 64 is computed on where it is mapped, without a copy
        text += b" " * (-(len(text) + 8) % 64)
        return len(text).to_bytes(8, "little") + text

    def _fault(self, index: int, *, whole: bool) -> str | None:
        """Why the block must not be used: empty where it is absent, None where it is good. `whole`
        reads the data too.
        """
        length = len(self._header(index, ""))
        try:
            with open_plain(self._file(index)) as file:
                header, size = file.read(length), os.fstat(file.fileno()).st_size
                record = metadata_of(header)
                if record is None:
                    return "has a damaged header"
                if record.get("identity") != self.identity:
                    return (
                        f"belongs to other features (identity {record.get('identity')}, here "
                        f"{self.identity})"
                    )
                if header != self._header(index, str(record.get("checksum"))):
                    return "has a damaged header"
                expected = length + math.prod(self._block_shape(index)) * self.dtype.itemsize
                if size != expected:
                    return (
                        f"is {'truncated' if size < expected else 'too long'} ({size} bytes of "
                        f"{expected})"
                    )
                if whole and hashlib.file_digest(file, new_hash).hexdigest() != record["checksum"]:
                    return "is corrupted (its checksum does not match)"
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None
