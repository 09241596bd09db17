"""Θ in the smaller of two spaces: through the features (primal) or as a matrix (dual)."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Indices = Int[Array | np.ndarray, " b"]
# Of which samples, and how several states change their logits (S, b, C) -> the residuals there, or
# None where nothing is pulled.
Respond = Callable[[slice | Indices, Float[Array, "s b c"]], Float[Array, "s b c"] | None]

_ROW_BYTES = 64 << 20  # of rows that are gathered, or of products of a sample's rows, at a time


class AbstractKernel(eqx.Module):
    """Θ seen through a state z that stands for a displacement u = Jᵀα of the weights.

    `push(z)` is J u, `pull(g)` is the state of the displacement Jᵀ g; so `push(pull(g))` is Θ g.
    """

    @property
    @abc.abstractmethod
    def space(self) -> str:
        """`primal` or `dual`."""

    @property
    def streamed(self) -> bool:
        """Whether the products are Python loops over blocks on disk, which `jit` cannot trace."""
        return False

    @abc.abstractmethod
    def zero(self) -> Array:
        """The state of no displacement."""

    @abc.abstractmethod
    def push(self, state: Array) -> Float[Array, "n c"]:
        """Change of the logits of all samples."""

    @abc.abstractmethod
    def push_rows(self, state: Array, indices: Indices) -> Float[Array, "b c"]:
        """Change of the logits of some samples."""

    @abc.abstractmethod
    def pull(self, residuals: Float[Array, "n c"]) -> Array:
        """State of Jᵀ g for all samples."""

    @abc.abstractmethod
    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Array:
        """State of Jᵀ g where g is zero outside `indices` (repeated indices add up)."""

    @abc.abstractmethod
    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        """Θ[i, :, i, :] for each sample."""

    def sample_squares(self, residuals: Float[Array, "n c"]) -> Float[Array, " n"]:
        """gᵢᵀ Θ[i, :, i, :] gᵢ = ‖Jᵢᵀ gᵢ‖² of each sample."""
        return jnp.einsum("na,nab,nb->n", residuals, self.diagonal_blocks(), residuals)

    def of_samples(self, indices: Indices) -> "AbstractKernel":
        """Θ of some of the samples.

        Raises:
            ValueError: the kernel does not lie in memory on one device.
        """
        raise ValueError(
            "kernel: a part of its samples can be taken only of one that lies in memory on one "
            "device; compute the features of those samples alone"
        )

    def in_one(self) -> "AbstractKernel":
        """The same Θ in the form that many products, one after another, are cheapest with."""
        return self

    def product(self, vectors: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """Θ v."""
        return self.push(self.pull(vectors))

    def sweep(self, states: Array, respond: Respond, indices: Indices | None = None) -> Array:
        """States of Jᵀ g with g = respond(samples, J u), of several stacked states (S, …) in one
        pass over the features.

        Args:
            states: stacked.
            respond: see `Respond`; called once for each part of the samples that is at hand.
            indices: only these samples, instead of all.
        """
        if indices is None:
            residuals = respond(slice(None), jax.vmap(self.push)(states))
            return jnp.zeros_like(states) if residuals is None else jax.vmap(self.pull)(residuals)
        residuals = respond(indices, jax.vmap(lambda state: self.push_rows(state, indices))(states))
        return (
            jnp.zeros_like(states)
            if residuals is None
            else jax.vmap(lambda g: self.pull_rows(g, indices))(residuals)
        )


class PrimalKernel(AbstractKernel):
    """State h ∈ R^{D'} with J u = Φ h. Memory N·C·D', linear in N; each product costs 2·N·C·D'
    flops.
    """

    features: Float[Array, "n c d"]

    @property
    def space(self) -> str:
        return "primal"

    def zero(self) -> Float[Array, " d"]:
        return jnp.zeros(self.features.shape[-1], self.features.dtype)

    def push(self, state: Float[Array, " d"]) -> Float[Array, "n c"]:
        return self.features @ state

    def push_rows(self, state: Float[Array, " d"], indices: Indices) -> Float[Array, "b c"]:
        return of_rows(lambda rows: self.features[rows] @ state, indices, self.features)

    def pull(self, residuals: Float[Array, "n c"]) -> Float[Array, " d"]:
        return jnp.tensordot(residuals, self.features, 2)

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Float[Array, " d"]:
        return sum_of_rows(
            lambda rows, weights: jnp.tensordot(weights, self.features[rows], 2),
            indices,
            residuals,
            self.features,
        )

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        def of_samples(rows):
            features = self.features[rows]
            return jnp.einsum("iad,ibd->iab", features, features)

        return of_rows(of_samples, jnp.arange(len(self.features)), self.features)

    def of_samples(self, indices: Indices) -> "PrimalKernel":
        return PrimalKernel(self.features[indices])


class DualKernel(AbstractKernel):
    """State J u itself, (N, C). Memory (N·C)²; each product costs 2·(N·C)² flops."""

    ntk: Float[Array, "n c n c"]

    @property
    def space(self) -> str:
        return "dual"

    def zero(self) -> Float[Array, "n c"]:
        return jnp.zeros(self.ntk.shape[:2], self.ntk.dtype)

    def push(self, state: Float[Array, "n c"]) -> Float[Array, "n c"]:
        return state

    def push_rows(self, state: Float[Array, "n c"], indices: Indices) -> Float[Array, "b c"]:
        return state[indices]

    def pull(self, residuals: Float[Array, "n c"]) -> Float[Array, "n c"]:
        return jnp.tensordot(residuals, self.ntk, 2)

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Float[Array, "n c"]:
        return sum_of_rows(
            lambda rows, weights: jnp.tensordot(weights, self.ntk[rows], 2),
            indices,
            residuals,
            self.ntk,
        )

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        return jnp.einsum("iaib->iab", self.ntk)

    def of_samples(self, indices: Indices) -> "DualKernel":
        return DualKernel(self.ntk[indices][:, :, indices])


class ContrastKernel(AbstractKernel):
    """Θ as softmax cross-entropy sees it, from C−1 outputs a sample instead of C.

    Every residual softmax(f) − y sums to zero over the outputs, and so does every change of the
    loss with the logits: the common direction of a sample's logits matters nowhere. With Q (C, C−1)
    an orthonormal basis of the rest, the inner kernel is that of the contrasts f Q, and `push`
    gives the logits up to a constant a sample.
    """

    inner: AbstractKernel
    basis: Float[Array, "c k"]

    @property
    def space(self) -> str:
        return self.inner.space

    @property
    def streamed(self) -> bool:
        return self.inner.streamed

    def zero(self) -> Array:
        return self.inner.zero()

    def push(self, state: Array) -> Float[Array, "n c"]:
        return self.inner.push(state) @ self.basis.T

    def push_rows(self, state: Array, indices: Indices) -> Float[Array, "b c"]:
        return self.inner.push_rows(state, indices) @ self.basis.T

    def pull(self, residuals: Float[Array, "n c"]) -> Array:
        return self.inner.pull(residuals @ self.basis)

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Array:
        return self.inner.pull_rows(residuals @ self.basis, indices)

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        return jnp.einsum("ak,nkl,bl->nab", self.basis, self.inner.diagonal_blocks(), self.basis)

    def sweep(self, states: Array, respond: Respond, indices: Indices | None = None) -> Array:
        def respond_to_contrasts(samples, changes):
            residuals = respond(samples, changes @ self.basis.T)
            return None if residuals is None else residuals @ self.basis

        return self.inner.sweep(states, respond_to_contrasts, indices)

    def of_samples(self, indices: Indices) -> "ContrastKernel":
        return ContrastKernel(self.inner.of_samples(indices), self.basis)


def of_rows(function: Callable[[Indices], Array], indices: Indices, *like: Any) -> Array:
    """`function(indices)`, an array over the indices, for as many of them at a time as hold
    `_ROW_BYTES` of these arrays' rows.
    """
    size = _rows_at_a_time(*like)
    if len(indices) <= size:
        return function(indices)
    found = jax.lax.map(function, _even_parts(indices, size))
    return found.reshape(-1, *found.shape[2:])[: len(indices)]


def sum_of_rows(
    function: Callable[[Indices, Array], Any],
    indices: Indices,
    weights: Float[Array, "b _"],
    *like: Any,
) -> Any:
    """`function(indices, weights)`, a sum over the indices that is linear in the weights, for as
    many at a time as `of_rows` takes.
    """
    size = _rows_at_a_time(*like)
    if len(indices) <= size:
        return function(indices, weights)
    # what fills the last part up has no weight
    parts = (
        _even_parts(indices, size),
        _even_parts(weights, size),
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    zero = jax.tree.map(
        lambda shape: jnp.zeros(shape.shape, shape.dtype),
        jax.eval_shape(function, *(part[0] for part in parts)),
    )
    return jax.lax.scan(add, zero, parts)[0]


def _rows_at_a_time(*like: Any) -> int:
    return max(
        1,
        _ROW_BYTES
        // max(1, sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in like)),
    )


def _even_parts(array: Array | np.ndarray, size: int) -> Array:
    """The array in parts of one length, at most `size`; the last is filled up with zeros."""
    count = -(-len(array) // size)
    length = -(-len(array) // count)
    return jnp.pad(
        jnp.asarray(array), [(0, count * length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    ).reshape(count, length, *array.shape[1:])
