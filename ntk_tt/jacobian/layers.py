"""Taps as layers: what each says about the gradient of a parameter, without forming it where that
can be avoided.

A dense layer or a convolution meets its kernel in a product: the gradient of output a for sample i
is G_ia = Σ_p A_i[p]ᵀ δ_ia[p], a (K, O) matrix from P positions, A the activations (for a
convolution its patches) and δ the back-propagated signals. The pair (A, δ), `Product`, is much
smaller than the gradients where P is small, and both inner products and projections of G can be had
from it. All other parameters (biases, scales, embeddings, a whole `scan`) give their gradient
itself, `Formed`.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_tt.jacobian import flops as cost
from ntk_tt.jacobian.taps import Source

EXACT = jax.lax.Precision.HIGHEST


class Windows(NamedTuple):
    """A convolution's activations before they are cut into patches.

    Attributes:
        padded: (n, batch, *spatial, channels).
        window: of the kernel.
        positions: of the result.
        strides, dilation: of the window.
    """

    padded: Float[Array, "n batch ..."]
    window: tuple[int, ...]
    positions: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    def patches(self) -> Float[Array, "n batch ..."]:
        """(n, batch, *positions, window, channels): strided slices, one for each kernel
        position.
        """
        parts = []
        for offset in itertools.product(*map(range, self.window)):
            start = [
                index * dilation for index, dilation in zip(offset, self.dilation, strict=True)
            ]
            stop = [first + span for first, span in zip(start, self._spans(), strict=True)]
            parts.append(
                jax.lax.slice(
                    self.padded,
                    [0, 0, *start, 0],
                    [*self.padded.shape[:2], *stop, self.padded.shape[-1]],
                    [1, 1, *self.strides, 1],
                )
            )
        return jnp.stack(parts, axis=-2)

    def columns(self, rows: Int[Array, " m"]) -> Float[Array, "n m p"]:
        """Some columns of the patches as a matrix (positions, window × channels), transposed."""
        channels = self.padded.shape[-1]
        offset, channel = rows // channels, rows % channels
        first = jnp.moveaxis(self.padded, -1, 2)  # (n, batch, channels, *spatial)
        # of one type: numbers of Python would be 64 bits wide beside indices of 32
        zero, kind = jnp.zeros((), channel.dtype), channel.dtype
        starts = [start.astype(kind) for start in jnp.unravel_index(offset, self.window)]
        size = (*first.shape[:2], 1, *self._spans())

        def one(channel, *start):
            moved = [at * dilation for at, dilation in zip(start, self.dilation, strict=True)]
            return jax.lax.dynamic_slice(first, (zero, zero, channel, *moved), size)

        found = jax.vmap(one, out_axes=1)(channel, *starts)  # (n, m, batch, 1, *spans)
        found = found[(..., *(slice(None, None, stride) for stride in self.strides))]
        return found.reshape(*found.shape[:2], -1)

    def _spans(self) -> list[int]:
        return [
            (count - 1) * stride + 1
            for count, stride in zip(self.positions, self.strides, strict=True)
        ]


class Product(NamedTuple):
    """A kernel's gradient as G[i, a] = Σ_p activations[i, p]ᵀ signals[i, a, p], a matrix (K, O).

    Attributes:
        source: the kernel.
        activations: (n, P, K).
        signals: (n, C, P, O).
        shape: of the kernel, with the axes of the matrix in order: K's, then O's.
        axes: where each of them is in the kernel.
        windows: of a convolution, what the activations are cut from.
    """

    source: Source
    activations: Float[Array, "n p k"]
    signals: Float[Array, "n c p o"]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    windows: Windows | None = None

    @property
    def rows(self) -> tuple[int, int]:
        """(n, C)."""
        return self.signals.shape[0], self.signals.shape[1]

    @property
    def num_positions(self) -> int:
        """P."""
        return self.signals.shape[2]

    @property
    def is_leaf_matrix(self) -> bool:
        """Whether (K, O) is the leaf itself, seen as a matrix of its last axis and all others."""
        return (
            self.source.is_same_matrix
            and self.axes == tuple(range(len(self.axes)))
            and self.shape[-1] == self.signals.shape[-1]
        )

    @property
    def held(self) -> tuple[Array, Array]:
        """What a block holds of it."""
        return self.signals, self.activations if self.windows is None else self.windows.padded

    def prefers_gram_block(self, num_samples: int) -> bool:
        """Whether inner products with N samples are cheaper from a Gram block than from
        gradients.
        """
        numbers = (
            num_samples,
            self.signals.shape[1],
            self.num_positions,
            self.activations.shape[2],
            self.signals.shape[3],
        )
        return cost.gram_block(*numbers) < cost.formed_gradient(*numbers)

    def gradient(self, leaves: list[Array]) -> Float[Array, "n c ..."]:
        """(n, C, *leaf): 2·C·P·K·O flops a sample."""
        matrix = jnp.einsum(
            "npk,ncpo->ncko",
            self.activations,
            self.signals,
            precision=EXACT,
            preferred_element_type=wide(self.activations, self.signals),
        )
        return self._as_leaf(matrix, leaves)

    def contracted(self, weights: Float[Array, "n c"], leaves: list[Array]) -> Float[Array, "..."]:
        """Σ over samples and outputs of weights · gradient, of which none is formed: a product
        without batch axes, several times faster than with axes of one.
        """
        signals = jnp.einsum("nc,ncpo->npo", weights, self.signals)
        matrix = self._product(self.activations, signals)
        return self._as_leaf(matrix[None, None], leaves)[0, 0]

    def contracted_along(
        self, weights: Float[Array, "n c"], rows: Float[Array | np.ndarray, "k m"]
    ) -> Float[Array, "m o"]:
        """m rows times the same as a matrix (K, O), which is not formed itself."""
        signals = jnp.einsum("nc,ncpo->npo", weights, self.signals)
        return self._product(jnp.matmul(self.activations, rows, precision=EXACT), signals)

    def _product(
        self, activations: Float[Array, "n p k"], signals: Float[Array, "n p o"]
    ) -> Float[Array, "k o"]:
        return jnp.einsum(
            "pk,po->ko",
            activations.reshape(-1, activations.shape[-1]),
            signals.reshape(-1, signals.shape[-1]),
            precision=EXACT,
            preferred_element_type=wide(activations, signals),
        )

    def _as_leaf(self, matrix: Float[Array, "n c k o"], leaves: list[Array]) -> Array:
        kernel = jnp.moveaxis(
            matrix.reshape(*matrix.shape[:2], *self.shape),
            range(2, 2 + len(self.axes)),
            [2 + axis for axis in self.axes],
        )
        return to_leaf(self.source, kernel, leaves)

    def entries(self, rows: Int[Array, " m"], columns: Int[Array, " m"]) -> Float[Array, "n c m"]:
        """Some entries of the matrices (K, O), each a dot product over the positions: no gradient
        is formed, no patch but theirs.
        """
        kept = (
            jnp.take(self.activations.transpose(0, 2, 1), rows, axis=1)
            if self.windows is None
            else self.windows.columns(rows)
        )
        return jnp.einsum(
            "nmp,ncmp->ncm",
            kept,
            jnp.take(self.signals.transpose(0, 1, 3, 2), columns, axis=2),
            precision=EXACT,
            preferred_element_type=wide(self.activations, self.signals),
        )

    def transposed_matrix(self) -> Float[Array, "n c o k"]:
        """The gradients in the order that XLA writes without a transposed copy: for inner products,
        which do not see the order.
        """
        return jnp.einsum(
            "npk,ncpo->ncok",
            self.activations,
            self.signals,
            precision=EXACT,
            preferred_element_type=wide(self.activations, self.signals),
        )


class Formed(NamedTuple):
    """A gradient itself, (n, C, *operand)."""

    source: Source
    value: Float[Array, "n c ..."]

    @property
    def rows(self) -> tuple[int, int]:
        """(n, C)."""
        return self.value.shape[0], self.value.shape[1]

    @property
    def held(self) -> Array:
        """What a block holds of it."""
        return self.value

    def gradient(self, leaves: list[Array]) -> Float[Array, "n c ..."]:
        """(n, C, *leaf)."""
        return to_leaf(self.source, self.value, leaves)

    def contracted(self, weights: Float[Array, "n c"], leaves: list[Array]) -> Float[Array, "..."]:
        """Σ over samples and outputs of weights · gradient."""
        value = jnp.tensordot(weights, self.value, 2)[None, None]
        return to_leaf(self.source, value, leaves)[0, 0]


class Lookup(NamedTuple):
    """The gradient of a table (V, O) of which P rows were read, as those of an embedding's tokens:
    zero but for these rows, to each of which the signals of its positions are added.

    Attributes:
        source: the table.
        places: the rows that were read, (n, P); V of one that is not there.
        signals: (n, C, P, O).
        num_rows: V.
    """

    source: Source
    places: Int[Array, "n p"]
    signals: Float[Array, "n c p o"]
    num_rows: int

    @property
    def rows(self) -> tuple[int, int]:
        """(n, C)."""
        return self.signals.shape[0], self.signals.shape[1]

    @property
    def is_leaf_matrix(self) -> bool:
        """Whether the table is the leaf itself, seen as a matrix."""
        return self.source.is_same_matrix

    @property
    def held(self) -> tuple[Array, Array]:
        """What a block holds of it."""
        return self.signals, self.places

    def gradient(self, leaves: list[Array]) -> Float[Array, "n c ..."]:
        """(n, C, *leaf), nearly all of it zeros."""

        def one(index, signals):
            return jax.vmap(lambda signal: self._added(index, signal))(signals)

        return to_leaf(self.source, jax.vmap(one)(self.places, self.signals), leaves)

    def contracted(self, weights: Float[Array, "n c"], leaves: list[Array]) -> Float[Array, "..."]:
        """Σ over samples and outputs of weights · gradient."""
        signals = jnp.einsum("nc,ncpo->npo", weights, self.signals)
        found = self._added(self.places.reshape(-1), signals.reshape(-1, signals.shape[-1]))
        return to_leaf(self.source, found[None, None], leaves)[0, 0]

    def entries(self, rows: Int[Array, " m"], columns: Int[Array, " m"]) -> Float[Array, "n c m"]:
        """Some entries of the table's gradient: no other row is looked at."""
        is_read = (self.places[:, None, :] == rows[None, :, None]).astype(self.signals.dtype)
        return jnp.einsum(
            "nmp,ncmp->ncm",
            is_read,
            jnp.take(self.signals.transpose(0, 1, 3, 2), columns, axis=2),
            precision=EXACT,
            preferred_element_type=wide(self.signals),
        )

    def as_product(self) -> Product:
        """The same as a matrix product, whose activations say which row was read."""
        is_read = jax.nn.one_hot(self.places, self.num_rows, dtype=self.signals.dtype)
        shape = (self.num_rows, self.signals.shape[-1])
        return Product(self.source, is_read, self.signals, shape, (0, 1))

    def _added(self, index: Int[Array, " p"], signals: Float[Array, "p o"]) -> Array:
        zeros = jnp.zeros((self.num_rows, signals.shape[-1]), wide(signals))
        return zeros.at[index].add(signals.astype(zeros.dtype), mode="drop")


Layer = Product | Lookup | Formed


def to_leaf(
    source: Source, gradient: Float[Array, "n c ..."], leaves: list[Array]
) -> Float[Array, "n c ..."]:
    """The gradient of the leaf from that of the rearranged leaf."""
    leaf = leaves[source.leaf]
    if source.is_same_matrix:
        return gradient.reshape(*gradient.shape[:2], *leaf.shape)
    value, pullback = jax.vjp(source.rearrange, leaf)
    return jax.vmap(jax.vmap(lambda signal: pullback(signal.astype(value.dtype))[0]))(gradient)


def wide(*factors: Array) -> Any:
    """Sums are taken in float32 at least."""
    return jnp.result_type(*factors, jnp.float32)
