"""Features that stay on disk: Θ's products as loops in Python over memory-mapped blocks."""

import mmap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.features.store import FeatureStore
from ntk_tt.kernels.operators import AbstractKernel, Indices, Respond


class StreamedKernel(AbstractKernel):
    """State h ∈ R^{D'} with J u = Φ h, as `PrimalKernel`, with Φ read from a store block by block.

    Each full product is a loop over blocks around jitted products with one block, so it cannot be
    traced: `replay`, `replay_many`, the learning rates and the verdict work with it, whatever runs
    inside `jit` refuses it. For the contrasts of softmax cross-entropy, store their features and
    wrap this in a `ContrastKernel`.

    Memory: `memory_bytes` and one block; the next one is read meanwhile, by a thread, into the page
    cache (on a CPU, blocks are used there, without a copy). Blocks of half precision are converted
    to single precision, one at a time.

    Cost: a full product, or `sweep`, reads what is not resident once; the flops are those of
    `PrimalKernel`. The rows of a mini-batch are read alone, and cost least where blocks are not
    much smaller than a few megabytes.

    Attributes:
        store: the features.
        resident: (R, C, D'), the first whole blocks, held in memory.
    """

    store: FeatureStore = eqx.field(static=True)
    resident: Float[Array, "r c d"]

    def __init__(self, store: FeatureStore, *, memory_bytes: int = 0):
        """Checks the whole store, one pass over it, then reads the blocks that stay in memory.

        Args:
            store: complete.
            memory_bytes: for resident blocks, as they are held: 4·b·C·D' bytes for b samples (8 in
                double precision).

        Raises:
            ValueError: blocks that are missing or damaged, or a negative budget.
        """
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes: must be 0 or more, got {memory_bytes}")
        if missing := store.missing():
            raise ValueError(
                f"store: {len(missing)} of the {len(store)} blocks in {store.folder} are missing "
                f"or damaged, the first is block {missing[0]}; "
                "compute and `write` what `missing()` lists"
            )
        self.store = store
        self.resident = _resident(store, memory_bytes)

    @property
    def space(self) -> str:
        return "primal"

    @property
    def streamed(self) -> bool:
        return True

    def zero(self) -> Float[Array, " d"]:
        return jnp.zeros(self.resident.shape[-1], self.resident.dtype)

    def push(self, state: Float[Array, " d"]) -> Float[Array, "n c"]:
        return self._collect(lambda block: _push(block, state[None])[0])

    def push_rows(self, state: Float[Array, " d"], indices: Indices) -> Float[Array, "b c"]:
        return _push(self._rows(indices), state[None])[0]

    def pull(self, residuals: Float[Array, "n c"]) -> Float[Array, " d"]:
        host, total = np.asarray(residuals), self.zero()[None]

        def visit(samples, block):
            nonlocal total
            total = total + _pull(block, host[samples][None])
            return total

        self._each(visit)
        return total[0]

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Float[Array, " d"]:
        return _pull(self._rows(indices), residuals[None])[0]

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        return self._collect(_diagonal_blocks)

    def sweep(
        self, states: Float[Array, "s d"], respond: Respond, indices: Indices | None = None
    ) -> Float[Array, "s d"]:
        total = jnp.zeros_like(states)

        def visit(samples, rows):
            nonlocal total
            residuals = respond(samples, _push(rows, states))
            if residuals is not None:
                total = total + _pull(rows, residuals)
            return total

        if indices is None:
            self._each(visit)
        else:
            visit(indices, self._rows(indices))
        return total

    def _each(self, visit: Callable[[slice, Array], Any]) -> None:
        """`visit(samples, block)` for the resident blocks, as one, and for each other. Waits for
        what it returns, so that only one is in use.
        """
        num_resident, count = len(self.resident), len(self.store)
        first = -(-num_resident // self.store.manifest["block_size"])
        with ThreadPoolExecutor(1, "ntk-tt-blocks") as reader:
            following: list[Future[np.ndarray]] = (
                [reader.submit(self._read, first)] if first < count else []
            )
            if num_resident:
                jax.block_until_ready(visit(slice(0, num_resident), self.resident))
            for index in range(first, count):
                # not in the thread, which does not see JAX's settings
                block = jax.device_put(following.pop().result())
                if index + 1 < count:
                    following.append(reader.submit(self._read, index + 1))
                jax.block_until_ready(visit(self.store.samples(index), block))
                del block  # before the next one takes its place

    def _collect(self, product: Callable[[Array], Array]) -> Array:
        """The products with each block, one after another."""
        parts = []

        def visit(_, block):
            parts.append(np.asarray(product(block)))

        self._each(visit)
        return jnp.asarray(np.concatenate(parts))

    def _read(self, index: int) -> Float[np.ndarray, "b c d"]:
        block = self.store.block(index)
        block.reshape(-1).view(np.uint8)[
            :: mmap.PAGESIZE
        ].max()  # mapping reads nothing; this does, here and not in the product
        return block

    def _rows(self, indices: Indices) -> Float[Array, "b c d"]:
        """The rows of some samples: resident ones from memory, the others from the store."""
        indices = np.asarray(indices)
        held = indices < len(self.resident)
        if held.all():
            return self.resident[indices]
        if not held.any():
            return jnp.asarray(self.store.rows(indices))
        rows = np.zeros((len(indices), *self.store.shape[1:]), self.store.dtype)
        rows[~held] = self.store.rows(indices[~held])
        return _merge(self.resident, np.where(held, indices, 0), held, rows)


def in_memory(store: FeatureStore) -> Float[Array, "n c d"]:
    """All features of a complete store, in the type they are stored in, each block written where it
    will stay.
    """
    features = jnp.zeros(store.shape, store.dtype)
    for index in range(len(store)):
        features = _place(features, jax.device_put(store.block(index)), store.samples(index).start)
    return features


def _resident(store: FeatureStore, memory_bytes: int) -> Float[Array, "r c d"]:
    dtype = jnp.result_type(store.dtype, jnp.float32)
    num_samples, *rest = store.shape
    affordable = memory_bytes // (int(np.prod(rest)) * dtype.itemsize)
    size = store.manifest["block_size"]
    count = len(store) if affordable >= num_samples else affordable // size
    resident = jnp.zeros((min(count * size, num_samples), *rest), dtype)
    for index in range(count):
        resident = jax.block_until_ready(
            _place(resident, jax.device_put(store.block(index)), index * size)
        )
    return resident


@partial(jax.jit, donate_argnums=0)
def _place(resident, block, start):
    return jax.lax.dynamic_update_slice_in_dim(
        resident, block.astype(resident.dtype), start, axis=0
    )


@jax.jit
def _merge(resident, indices, held, rows):
    return jnp.where(held[:, None, None], resident[indices], rows)


# Plain products of two matrices: the three-index einsum takes XLA fifteen times as long on a CPU.
@jax.jit
def _push(rows: Float[Array, "b c d"], states: Float[Array, "s d"]) -> Float[Array, "s b c"]:
    product = jnp.matmul(_matrix(rows, states), states.T, precision=jax.lax.Precision.HIGHEST)
    return product.T.reshape(len(states), *rows.shape[:2])


@jax.jit
def _pull(rows: Float[Array, "b c d"], residuals: Float[Array, "s b c"]) -> Float[Array, "s d"]:
    return jnp.matmul(
        residuals.reshape(len(residuals), -1),
        _matrix(rows, residuals),
        precision=jax.lax.Precision.HIGHEST,
    )


@jax.jit
def _diagonal_blocks(rows: Float[Array, "b c d"]) -> Float[Array, "b c c"]:
    rows = rows.astype(jnp.result_type(rows, jnp.float32))
    return jnp.einsum("iad,ibd->iab", rows, rows, precision=jax.lax.Precision.HIGHEST)


def _matrix(rows: Float[Array, "b c d"], like: Array) -> Float[Array, "bc d"]:
    return rows.reshape(-1, rows.shape[-1]).astype(like.dtype)
