"""Random projections of gradients, R with E[R Rᵀ] = I, each a function of (key, parameter path,
index).

A projection is never stored: any process that knows the key and the parameter tree rebuilds its
part of R. All unbiased sketches have about the same error at equal D', so they differ in cost only:

| projection | flops per row of D numbers | random numbers per block | use |
|---|---|---|---|
| `CountSketch` | 2 D      | D     | the default: cheapest |
| `Achlioptas`  | 2 D D'   | D D'  | the paper's {−1, 0, +1} |
| `Gaussian`    | 2 D D'   | D D'  | the reference |
| `Identity`    | 0        | 0     | exact: D' = D |
"""

import abc
import math
import zlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.runtime.parameter_names import named_leaves

_CHUNK = 4096  # rows of a dense R made at a time


class AbstractProjection(eqx.Module):
    """`projection(gradients)`: a tree like the parameters with a leading `rows` axis -> (rows,
    D').
    """

    num_projections: eqx.AbstractVar[int]

    @property
    def is_exact(self) -> bool:
        """Whether nothing is projected."""
        return False

    @abc.abstractmethod
    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        """The features of these gradients."""


class Identity(AbstractProjection):
    """No projection: all D coordinates, in tree order."""

    num_projections: int = eqx.field(static=True)

    @property
    def is_exact(self) -> bool:
        return True

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        return jnp.concatenate([_rows(leaf) for leaf in jax.tree.leaves(gradients)], axis=1)


class AbstractSketch(AbstractProjection):
    """A projection whose result grows parameter by parameter: `finish(add(… add(start(rows), …)
    …))`.
    """

    @abc.abstractmethod
    def start(self, num_rows: int, dtype: Any) -> Array:
        """The total of no parameters."""

    @abc.abstractmethod
    def add(self, total: Array, name: str, gradient: Float[Array, "rows ..."]) -> Array:
        """The total with the gradient of the parameter of this name."""

    def takes_products(self, shape: tuple[int, ...]) -> bool:
        """Whether `add_product` can take the gradients of a parameter of this shape, as a matrix of
        its last axis and all others.
        """
        return False

    def add_product(
        self,
        total: Array,
        name: str,
        shape: tuple[int, ...],
        activations: Float[Array, "n p k"],
        signals: Float[Array, "n c p o"],
    ) -> Array:
        """`add` for the gradients Σ_p activationsᵀ signals of a parameter of this shape: formed
        here, and not where a sketch has a cheaper way.
        """
        gradient = jnp.einsum(
            "npk,ncpo->ncko",
            activations,
            signals,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=total.dtype,
        )
        return self.add(total, name, gradient.reshape(len(total), *shape))

    @abc.abstractmethod
    def finish(self, total: Array) -> Float[Array, "rows d"]:
        """The features of a total."""

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        leaves = named_leaves(gradients)
        total = self.start(next(iter(leaves.values())).shape[0], jnp.result_type(*leaves.values()))
        for name, leaf in leaves.items():
            total = self.add(total, name, leaf) if leaf.size else total
        return self.finish(total)


class _Dense(AbstractSketch):
    """x R / √D' with independent entries of unit variance, made `_CHUNK` rows at a time.

    Costs 2 D D' flops a row and D·D' random numbers a block: for comparison, not for large
    networks.
    """

    key: Key[Array, ""]
    num_projections: int = eqx.field(static=True)

    @abc.abstractmethod
    def _entries(
        self, key: Key[Array, ""], shape: tuple[int, int], dtype
    ) -> Float[Array, "chunk d"]:
        """Independent entries."""

    def start(self, num_rows, dtype):
        return jnp.zeros((num_rows, self.num_projections), dtype)

    def add(self, total, name, gradient):
        rows = _rows(gradient)
        chunk = min(_CHUNK, rows.shape[1])
        count = -(-rows.shape[1] // chunk)
        rows = jnp.pad(rows, ((0, 0), (0, count * chunk - rows.shape[1])))
        key = path_key(self.key, name)

        def add_chunk(index, total):
            part = jax.lax.dynamic_slice_in_dim(rows, index * chunk, chunk, axis=1)
            entries = self._entries(
                jax.random.fold_in(key, index), (chunk, self.num_projections), rows.dtype
            )
            return total + jnp.matmul(
                part,
                entries,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=total.dtype,
            )

        return jax.lax.fori_loop(0, count, add_chunk, total)

    def finish(self, total):
        return total / jnp.sqrt(float(self.num_projections)).astype(total.dtype)


class Gaussian(_Dense):
    """Standard normal entries."""

    def _entries(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)


class Achlioptas(_Dense):
    """Entries √3·{−1, 0, +1} with probabilities 1/6, 2/3, 1/6 (Achlioptas 2003; the paper's
    choice).
    """

    def _entries(self, key, shape, dtype):
        face = jax.random.randint(key, shape, 0, 6)
        return jnp.sqrt(3.0).astype(dtype) * ((face == 0).astype(dtype) - (face == 1).astype(dtype))


def path_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of a parameter: the same in every process, whatever other parameters there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _rows(leaf: Float[Array, "rows ..."]) -> Float[Array, "rows size"]:
    # no -1: a parameter may have no numbers
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
