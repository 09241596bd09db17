"""Random projections of gradients, R with E[R Rᵀ] = I, each a function of (key, parameter path, index).

A projection is never stored: any process that knows the key and the parameter tree rebuilds its part of R.
All unbiased sketches have about the same error at equal D', so they differ in cost only:

| projection | flops per row of D numbers | random numbers per block | use |
|---|---|---|---|
| `SignFold`   | 2 D      | D     | the default: cheapest |
| `Achlioptas` | 2 D D'   | D D'  | the paper's {−1, 0, +1} |
| `Gaussian`   | 2 D D'   | D D'  | the reference |
| `Identity`   | 0        | 0     | exact: D' = D |
"""

import zlib
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.paths import named_leaves

ProjectionName = Literal["fold", "achlioptas", "gaussian"]

ROWS_PER_PROJECTION = 16  # D' ≥ 16·N·C keeps the lower half of the spectrum within a few per cent
_CHUNK = 4096  # rows of a dense R made at a time


class AbstractProjection(eqx.Module):
    """`projection(gradients)`: a tree like the parameters with a leading `rows` axis -> (rows, D')."""

    num_projections: eqx.AbstractVar[int]

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        raise NotImplementedError


class Identity(AbstractProjection):
    """No projection: all D coordinates, in tree order."""

    num_projections: int = eqx.field(static=True)

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        return jnp.concatenate([_rows(leaf) for leaf in jax.tree.leaves(gradients)], axis=1)


class SignFold(AbstractProjection):
    """Random signs, then fold: each parameter's signed coordinates are cut in pieces of at most D', and each piece is
    added to the result from a random offset on, around the end. A CountSketch whose hash is (offset of the piece +
    position) mod D': two passes over the data, no scatter. Unbiased because every coordinate has its own sign.
    """

    key: Key[Array, ""]
    num_projections: int = eqx.field(static=True)

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        leaves = named_leaves(gradients)
        num_rows, dtype = next(iter(leaves.values())).shape[0], jnp.result_type(*leaves.values())
        dimension = self.num_projections
        total = jnp.zeros((num_rows, 2 * dimension), dtype)  # the second half takes what runs over the end
        for name, leaf in leaves.items():
            rows, key = _rows(leaf), path_key(self.key, name)
            signs = jax.random.rademacher(key, rows.shape[1:], dtype)
            pieces = range(0, rows.shape[1], dimension)
            offsets = jax.random.randint(jax.random.fold_in(key, 0), (len(pieces),), 0, dimension)
            for offset, start in zip(offsets, pieces, strict=True):
                piece = rows[:, start : start + dimension] * signs[start : start + dimension]
                so_far = jax.lax.dynamic_slice_in_dim(total, offset, piece.shape[1], axis=1)
                total = jax.lax.dynamic_update_slice_in_dim(total, so_far + piece, offset, axis=1)
        return total[:, :dimension] + total[:, dimension:]


class _Dense(AbstractProjection):
    """x R / √D' with independent entries of unit variance, made `_CHUNK` rows at a time.

    Costs 2 D D' flops a row and D·D' random numbers a block: for comparison, not for large networks.
    """

    key: Key[Array, ""]
    num_projections: int = eqx.field(static=True)

    def _entries(self, key: Key[Array, ""], shape: tuple[int, int], dtype) -> Float[Array, "chunk d"]:
        raise NotImplementedError

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        total = 0.0
        for name, leaf in named_leaves(gradients).items():
            rows = _rows(leaf)
            chunk = min(_CHUNK, rows.shape[1])
            count = -(-rows.shape[1] // chunk)
            rows = jnp.pad(rows, ((0, 0), (0, count * chunk - rows.shape[1])))
            key = path_key(self.key, name)

            def add_chunk(index, total, rows=rows, key=key, chunk=chunk):
                part = jax.lax.dynamic_slice_in_dim(rows, index * chunk, chunk, axis=1)
                entries = self._entries(jax.random.fold_in(key, index), (chunk, self.num_projections), rows.dtype)
                return total + jnp.matmul(part, entries, precision=jax.lax.Precision.HIGHEST)

            start = jnp.zeros((rows.shape[0], self.num_projections), rows.dtype)
            total = total + jax.lax.fori_loop(0, count, add_chunk, start)
        return total / jnp.sqrt(float(self.num_projections))


class Gaussian(_Dense):
    """Standard normal entries."""

    def _entries(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)


class Achlioptas(_Dense):
    """Entries √3·{−1, 0, +1} with probabilities 1/6, 2/3, 1/6 (Achlioptas 2003; the paper's choice)."""

    def _entries(self, key, shape, dtype):
        face = jax.random.randint(key, shape, 0, 6)
        return jnp.sqrt(3.0).astype(dtype) * ((face == 0).astype(dtype) - (face == 1).astype(dtype))


_PROJECTIONS = {"fold": SignFold, "gaussian": Gaussian, "achlioptas": Achlioptas}


def make_projection(name: ProjectionName, num_params: int, num_projections: int, key: Key[Array, ""]) -> AbstractProjection:
    """The named projection onto `num_projections` dimensions; `Identity` where that is no fewer than the parameters.

    Raises:
        ValueError: unknown name or a dimension below 1.
    """
    if name not in _PROJECTIONS:
        raise ValueError(f"projection: unknown {name!r}; known: {', '.join(_PROJECTIONS)}")
    if num_projections < 1:
        raise ValueError(f"num_projections: must be at least 1, got {num_projections}")
    if num_projections >= num_params:
        return Identity(num_params)
    return _PROJECTIONS[name](key=key, num_projections=num_projections)


def default_num_projections(num_rows: int, num_params: int, *, itemsize: int = 4, max_bytes: int = 4 << 30) -> int:
    """D' = 16·N·C, or fewer where the features would pass `max_bytes`, or D (exact) where that is less.

    Below rows/D' = 1/16 the small eigenvalues, which decide late convergence, are within a few per cent; above 1/4
    they are visibly too small (docs/features.md has the table).
    """
    wanted = max(4096, ROWS_PER_PROJECTION * num_rows)
    affordable = max(1, max_bytes // (num_rows * itemsize))
    return min(wanted, affordable, num_params)


def expected_relative_error(ntk: Float[Array, "rows rows"], num_projections: int) -> Float[Array, ""]:
    """Expected ‖ΦΦᵀ − Θ‖_F / ‖Θ‖_F of an unbiased projection: √((tr²Θ + ‖Θ‖²_F)/D') / ‖Θ‖_F."""
    norm = jnp.linalg.norm(ntk)
    return jnp.sqrt((jnp.trace(ntk) ** 2 + norm**2) / num_projections) / norm


def path_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of a parameter: the same in every process, whatever other parameters there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _rows(leaf: Float[Array, "rows ..."]) -> Float[Array, "rows size"]:
    return leaf.reshape(leaf.shape[0], -1)
