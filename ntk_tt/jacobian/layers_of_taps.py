"""Taps as layers: which products, tables and other things the parameters meet in."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.layers import (
    EXACT,
    Formed,
    Layer,
    Lookup,
    Product,
    Windows,
    wide,
)
from ntk_tt.jacobian.taps import Source, Tap, has_gradients, leaf_itself


def layers_of(tap: Tap, leaves: list[Array]) -> list[Layer]:
    """What a tap says of each parameter it has; a parameter used in several taps has the sum of its
    gradients.
    """
    present = [source for source in tap.sources if source is not None]
    if tap.equation is not None and len(present) == 1 and leaves[present[0].leaf].size:
        layer = (_convolution(tap) or _dense(tap)) if _is_real(tap) else _lookup(tap)
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


def _lookup(tap: Tap) -> Lookup | None:
    """Rows that were read of a table."""
    found = jaxprs.row_lookup(tap.equation)
    if found is None or tap.sources[0] is None:
        return None
    num_rows, width = jaxprs.shape_of(tap.equation.invars[0])
    signal, index = tap.signals[0], tap.operands[1]
    index = index.reshape(len(index), -1)
    if found.drops_others:
        index = jnp.where((index < 0) | (index >= num_rows), num_rows, index)
    else:
        index = jnp.clip(index, 0, num_rows - 1)
    signal = signal.reshape(*signal.shape[:2], -1, width)
    return Lookup(tap.sources[0], index, signal, num_rows)


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
        precision=EXACT,
        preferred_element_type=wide(patches, signal),
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
