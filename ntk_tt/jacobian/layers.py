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
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntk_tt.jacobian import flops as cost
from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.taps import Source, Tap, has_gradients, leaf_itself

_EXACT = jax.lax.Precision.HIGHEST


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
        starts = jnp.unravel_index(offset, self.window)
        size = (*first.shape[:2], 1, *self._spans())

        def one(channel, *start):
            moved = [at * dilation for at, dilation in zip(start, self.dilation, strict=True)]
            return jax.lax.dynamic_slice(first, (0, 0, channel, *moved), size)

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
            precision=_EXACT,
            preferred_element_type=_wide(self.activations, self.signals),
        )
        return self._as_leaf(matrix, leaves)

    def contracted(self, weights: Float[Array, "n c"], leaves: list[Array]) -> Float[Array, "..."]:
        """Σ over samples and outputs of weights · gradient, of which none is formed: a product
        without batch axes, several times faster than with axes of one.
        """
        signals = jnp.einsum("nc,ncpo->npo", weights, self.signals)
        matrix = jnp.einsum(
            "pk,po->ko",
            self.activations.reshape(-1, self.activations.shape[-1]),
            signals.reshape(-1, signals.shape[-1]),
            precision=_EXACT,
            preferred_element_type=_wide(self.activations, self.signals),
        )
        return self._as_leaf(matrix[None, None], leaves)[0, 0]

    def _as_leaf(self, matrix: Float[Array, "n c k o"], leaves: list[Array]) -> Array:
        kernel = jnp.moveaxis(
            matrix.reshape(*matrix.shape[:2], *self.shape),
            range(2, 2 + len(self.axes)),
            [2 + axis for axis in self.axes],
        )
        return _to_leaf(self.source, kernel, leaves)

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
            precision=_EXACT,
            preferred_element_type=_wide(self.activations, self.signals),
        )

    def transposed_matrix(self) -> Float[Array, "n c o k"]:
        """The gradients in the order that XLA writes without a transposed copy: for inner products,
        which do not see the order.
        """
        return jnp.einsum(
            "npk,ncpo->ncok",
            self.activations,
            self.signals,
            precision=_EXACT,
            preferred_element_type=_wide(self.activations, self.signals),
        )


class Formed(NamedTuple):
    """A gradient itself, (n, C, *operand)."""

    source: Source
    value: Float[Array, "n c ..."]

    @property
    def rows(self) -> tuple[int, int]:
        """(n, C)."""
        return self.value.shape[0], self.value.shape[1]

    def gradient(self, leaves: list[Array]) -> Float[Array, "n c ..."]:
        """(n, C, *leaf)."""
        return _to_leaf(self.source, self.value, leaves)

    def contracted(self, weights: Float[Array, "n c"], leaves: list[Array]) -> Float[Array, "..."]:
        """Σ over samples and outputs of weights · gradient."""
        value = jnp.tensordot(weights, self.value, 2)[None, None]
        return _to_leaf(self.source, value, leaves)[0, 0]


Layer = Product | Formed


def layers_of(tap: Tap, leaves: list[Array]) -> list[Layer]:
    """What a tap says of each parameter it has; a parameter used in several taps has the sum of its
    gradients.
    """
    present = [source for source in tap.sources if source is not None]
    if (
        tap.equation is not None
        and len(present) == 1
        and leaves[present[0].leaf].size
        and _is_real(tap)
    ):
        layer = _convolution(tap) or _dense(tap)
        if layer is not None:
            return [layer]
    return _transposed(tap, present, leaves)


def _is_real(tap: Tap) -> bool:
    return all(
        jnp.issubdtype(value.dtype, jnp.floating)
        for value in (*tap.operands, *tap.signals)
        if value is not None
    )


def _dense(tap: Tap) -> Product | None:
    """A matrix product with the kernel as one operand, without batch axes."""
    dimensions = jaxprs.matrix_product(tap.equation)
    if dimensions is None or any(dimensions[1]):
        return None
    side = 1 if tap.sources[0] is None else 0
    source, activation, signal = tap.sources[side], tap.operands[1 - side], tap.signals[0]
    assert source is not None
    contracted, kernel_contracted = dimensions[0][1 - side], dimensions[0][side]
    kernel = jaxprs.shape_of(tap.equation.invars[side])
    kernel_free = [axis for axis in range(len(kernel)) if axis not in kernel_contracted]
    free = [axis for axis in range(activation.ndim - 1) if axis not in contracted]
    order = (*kernel_contracted, *kernel_free)
    num_rows, num_columns = (
        math.prod(kernel[axis] for axis in kernel_contracted),
        math.prod(kernel[axis] for axis in kernel_free),
    )
    rows = activation.transpose(0, *(1 + axis for axis in (*free, *contracted))).reshape(
        len(activation), -1, num_rows
    )
    if side == 0:  # the kernel's free axes come first in the result
        signal = jnp.moveaxis(
            signal,
            range(2, 2 + len(kernel_free)),
            range(signal.ndim - len(kernel_free), signal.ndim),
        )
    return Product(
        source,
        rows,
        signal.reshape(*signal.shape[:2], -1, num_columns),
        tuple(kernel[axis] for axis in order),
        order,
    )


def _convolution(tap: Tap) -> Layer | None:
    """A convolution whose kernel alone is a parameter, without input dilation: what patches can
    do.
    """
    found = jaxprs.convolution(tap.equation)
    if (
        found is None
        or tap.sources[1] is None
        or found.batch_groups != 1
        or any(dilation != 1 for dilation in found.input_dilation)
    ):
        return None
    source, kernel = tap.sources[1], jaxprs.shape_of(tap.equation.invars[1])
    signal = tap.signals[0]
    signal = signal.transpose(
        0,
        1,
        *(
            2 + axis
            for axis in (found.output_axes[0], *found.output_axes[2:], found.output_axes[1])
        ),
    )
    window = [kernel[axis] for axis in found.kernel_axes[2:]]
    windows = _windows(found, tap.operands[0], tuple(window), signal.shape[3:-1])
    patches = windows.patches()
    order = (*found.kernel_axes[2:], found.kernel_axes[1], found.kernel_axes[0])
    shape = tuple(kernel[axis] for axis in order)
    if found.feature_groups == 1:
        rows = patches.reshape(len(patches), -1, math.prod(shape[:-1]))
        signal = signal.reshape(*signal.shape[:2], -1, shape[-1])
        return Product(source, rows, signal, shape, order, windows)
    patches = patches.reshape(len(patches), -1, math.prod(window), found.feature_groups, shape[-2])
    signal = signal.reshape(
        *signal.shape[:2], -1, found.feature_groups, shape[-1] // found.feature_groups
    )
    matrix = jnp.einsum(
        "npwgi,ncpgo->ncwigo",
        patches,
        signal,
        precision=_EXACT,
        preferred_element_type=_wide(patches, signal),
    )
    gradient = jnp.moveaxis(
        matrix.reshape(*matrix.shape[:2], *shape),
        range(2, 2 + len(order)),
        [2 + axis for axis in order],
    )
    return Formed(source, gradient)


def _windows(
    found: jaxprs.Convolution,
    activation: Array,
    window: tuple[int, ...],
    positions: tuple[int, ...],
) -> Windows:
    activation = activation.transpose(
        0, *(1 + axis for axis in (found.input_axes[0], *found.input_axes[2:], found.input_axes[1]))
    )
    padded = jax.lax.pad(
        activation,
        jnp.zeros((), activation.dtype),
        [(0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in found.padding), (0, 0, 0)],
    )
    return Windows(padded, window, positions, found.strides, found.kernel_dilation)


def _transposed(tap: Tap, present: list[Source], leaves: list[Array]) -> list[Layer]:
    """Any equation: its own transpose, by `jax.vjp`, applied to the signals."""

    def one_sample(operands, signals):
        def local(values):
            given = iter(values)
            filled = [
                operand if source is None else source.rearrange(next(given))
                for source, operand in zip(tap.sources, operands, strict=True)
            ]
            results = filled if tap.equation is None else jaxprs.bind(tap.equation, filled)
            return [result for result in results if has_gradients(result)]

        _, pullback = jax.vjp(local, [leaves[source.leaf] for source in present])
        return jax.vmap(pullback)(signals)[0]

    gradients = jax.vmap(one_sample)(tap.operands, tap.signals)
    return [
        Formed(leaf_itself(source.leaf), gradient)
        for source, gradient in zip(present, gradients, strict=True)
    ]


def _to_leaf(
    source: Source, gradient: Float[Array, "n c ..."], leaves: list[Array]
) -> Float[Array, "n c ..."]:
    """The gradient of the leaf from that of the rearranged leaf."""
    leaf = leaves[source.leaf]
    if source.is_same_matrix:
        return gradient.reshape(*gradient.shape[:2], *leaf.shape)
    value, pullback = jax.vjp(source.rearrange, leaf)
    return jax.vmap(jax.vmap(lambda signal: pullback(signal.astype(value.dtype))[0]))(gradient)


def _wide(*factors: Array) -> Any:
    """Sums are taken in float32 at least."""
    return jnp.result_type(*factors, jnp.float32)
