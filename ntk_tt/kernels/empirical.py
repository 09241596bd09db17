"""The empirical neural tangent kernel Θ = J Jᵀ: exact in blocks, or from features."""

import math
from collections import Counter
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ntk_tt.features.feature_options import JacobianPath, check_path
from ntk_tt.jacobian.layers import Lookup, Product
from ntk_tt.jacobian.network import (
    Apply,
    blocks,
    check_features,
    check_network,
    jacobian_block,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.jacobian.structured import layers
from ntk_tt.runtime.input_trees import Inputs, num_samples, placed, shapes, take
from ntk_tt.runtime.memory import available_bytes, refuse
from ntk_tt.runtime.progress import Progress, silent

STRIP_BYTES = 1 << 30  # of what is held of the gradients while a strip of Θ is made
_BLOCK = 32  # samples whose activations and signals are held
_TILE_ROWS = 512  # of one product
_GRAM_BYTES = 256 << 20
_SMALL = 4096  # numbers of a gradient


def empirical_ntk(
    apply: Apply,
    params: PyTree,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    path: JacobianPath = "structured",
    block_size: int | None = None,
    progress: Progress = silent,
) -> Float[Array, "n1 c n2 c"]:
    """Θ[i, a, j, b] = ∂f_a(x1ᵢ)/∂w · ∂f_b(x2ⱼ)/∂w, exact.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own.
        params: w₀.
        x1, x2: (N1, ...) and (N2, ...); x2 = None means x1, and uses the symmetry.
        path: see `jacobian_features`.
        block_size: samples whose gradients (or factors of them) are held at a time; None holds what
            1 GiB does. Results agree to rounding.
        progress: called as `progress(done, total)` in units of blocks.

    Returns:
        (N1, C, N2, C) in the dtype of the parameters, float32 at least; positive semi-definite as
        (N1·C, N1·C) where x2 is None.

    Raises:
        ValueError: NaN in inputs or weights, or an `apply` of another form.

    Cost: C backward passes a sample, and for each layer the cheaper of two ways
    (`ntk_tt.jacobian.flops`): its gradients formed and multiplied, 2·K·O·N1·C·N2·C flops, or a Gram
    block of its activations and signals, whose cost does not depend on the size of the kernel. What
    does not fit into a strip is recomputed for each of the strips. Memory: Θ and two strips.
    """
    check_path(path)
    num_outputs = check_network(apply, params, x1)
    columns = x1 if x2 is None else x2
    if x2 is not None and check_network(apply, params, x2) != num_outputs:
        raise ValueError("x2: the network gives another number of outputs on x2 than on x1")
    dtype = working_type(params)
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size: must be at least 1, got {block_size}")
    for samples in (x1,) if x2 is None else (x1, x2):
        check_pass(apply, params, samples, path=path)
    parts = partial(_parts, apply, path, max(num_samples(x1), num_samples(columns)))
    of_one = jax.eval_shape(parts, params, shapes(x1, 1))
    size = block_size or max(
        1,
        STRIP_BYTES // sum(shape.size * shape.dtype.itemsize for shape in jax.tree.leaves(of_one)),
    )
    tile = _tile_samples(of_one, num_outputs)

    def gradients(inputs, block: slice):
        """The parts of a tile, its activations and signals in memory for a few samples at a
        time.
        """
        length = block.stop - block.start
        found = [
            parts(
                params,
                placed(take(inputs, slice(each.start + block.start, each.stop + block.start))),
            )
            for each in _even_blocks(length, _BLOCK)
        ]
        return found[0] if len(found) == 1 else _joined(found, length)

    num_rows, num_columns = num_samples(x1), num_samples(columns)
    needed, usable = (
        num_rows * num_columns * num_outputs**2 * dtype.itemsize,
        available_bytes(),
    )
    if needed > usable:
        refuse(
            f"Θ of {num_rows} × {num_columns} samples and {num_outputs} outputs",
            needed,
            usable,
            "take fewer samples, or features (jacobian_features), whose products need no Θ",
        )
    # every number is written
    ntk = _aligned((num_rows, num_outputs, num_columns, num_outputs), dtype)
    rows, others = _strips(num_rows, size, tile), _strips(num_columns, size, tile)
    pairs = [
        (i, j) for i in range(len(rows)) for j in range(len(others)) if x2 is not None or j <= i
    ]
    current, strip = -1, []
    for done, (i, j) in enumerate(pairs, 1):
        if i != current:
            current, strip = i, [gradients(x1, block) for block in rows[i]]
        other = (
            strip if x2 is None and i == j else [gradients(columns, block) for block in others[j]]
        )
        for k, block in enumerate(rows[i]):
            for m, across in enumerate(others[j]):
                if other is strip and m > k:
                    continue
                product = np.asarray(_gram(strip[k], other[m]))
                ntk[block, :, across, :] = product
                if x2 is None:
                    ntk[across, :, block, :] = product.transpose(2, 3, 0, 1)
        progress(done, len(pairs))
    found = jax.device_put(ntk)
    check_features(found)
    return found


def _even_blocks(num_samples: int, size: int) -> list[slice]:
    """Slices of one length, at most `size`, that cover the samples; the last may overlap its
    neighbour, so that all compile once.
    """
    length = -(-num_samples // -(-num_samples // min(size, num_samples)))
    starts = [min(block.start, num_samples - length) for block in blocks(num_samples, length)]
    return [slice(start, start + length) for start in starts]


def _strips(num_samples: int, size: int, tile: int) -> list[list[slice]]:
    """Tiles of Θ's rows, grouped to what is held at a time."""
    tiles = _even_blocks(num_samples, min(size, tile))
    per_strip = max(1, size // (tiles[0].stop - tiles[0].start))
    return [tiles[start : start + per_strip] for start in range(0, len(tiles), per_strip)]


class _Factors(eqx.Module):
    """A kernel as activations (P, n, K) and signals (P, n, C, O): positions first, so that a Gram
    block sums over the outermost axes.
    """

    activations: Float[Array, "p n k"]
    signals: Float[Array, "p n c o"]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _parts(
    apply: Apply,
    path: JacobianPath,
    num_samples: int,
    params: PyTree,
    inputs: Inputs,
) -> tuple[list[_Factors], list[Float[Array, "n c s"]]]:
    """All that the inner products of a block's gradients need: factors where a Gram block is
    cheaper, else gradients.
    """
    leaves = jax.tree.leaves(params)
    if path == "plain":
        return [], [_flat(leaf) for leaf in jax.tree.leaves(jacobian_block(apply, params, inputs))]
    found = layers(apply, params, inputs)
    used = Counter(layer.source.leaf for layer in found)
    factors: list[_Factors] = []
    gradients: dict[int, Array] = {}
    for layer in found:
        index = layer.source.leaf
        if isinstance(layer, Lookup):
            layer = layer.as_product()
        if isinstance(layer, Product) and used[index] == 1 and layer.source.keeps_inner_products:
            if layer.prefers_gram_block(num_samples):
                factors.append(
                    _Factors(layer.activations.swapaxes(0, 1), jnp.moveaxis(layer.signals, 2, 0))
                )
            else:
                gradients[index] = _flat(layer.transposed_matrix())
        else:
            gradient = _flat(layer.gradient(leaves))
            gradients[index] = gradients[index] + gradient if index in gradients else gradient
    return factors, _merged(list(gradients.values()))


def _merged(gradients: list[Float[Array, "n c _"]]) -> list[Float[Array, "n c _"]]:
    """The small ones (biases, scales) joined, so that they are one product and not many."""
    small = [gradient for gradient in gradients if gradient.shape[-1] < _SMALL]
    large = [gradient for gradient in gradients if gradient.shape[-1] >= _SMALL]
    return [*large, jnp.concatenate(small, -1)] if small else large


def _flat(gradient: Float[Array, "n c ..."]) -> Float[Array, "n c s"]:
    # no -1: a parameter may have no numbers
    return gradient.reshape(*gradient.shape[:2], math.prod(gradient.shape[2:]))


def _tile_samples(shapes, num_outputs: int) -> int:
    """Samples of a tile: some hundred rows make products run at their peak, and a Gram block's
    (P·n·C)² numbers stay below `_GRAM_BYTES`.
    """
    factors, rows = shapes
    most = max((factor.signals.shape[0] for factor in factors), default=1)
    limit = int((_GRAM_BYTES / rows[0].dtype.itemsize if rows else _GRAM_BYTES / 4) ** 0.5) // (
        most * num_outputs
    )
    return max(1, min(limit, -(-_TILE_ROWS // num_outputs)))


@partial(jax.jit, static_argnums=1)
def _joined(found, length: int):
    """The parts of even blocks as those of one; what the last block repeats is left out."""
    repeated = len(found) * _num_samples(found[0]) - length

    def join(*arrays, axis):
        *whole, last = arrays
        return jnp.concatenate(
            [*whole, jax.lax.slice_in_dim(last, repeated, last.shape[axis], axis=axis)], axis
        )

    return tuple(
        jax.tree.map(partial(join, axis=axis), *(part[kind] for part in found))
        for kind, axis in ((0, 1), (1, 0))
    )


def _num_samples(parts) -> int:
    factors, rows = parts
    return rows[0].shape[0] if rows else factors[0].activations.shape[1]


@jax.jit
def _gram(one, other) -> Float[Array, "n1 c n2 c"]:
    """Σ over parameters of the inner products of two tiles."""
    total: Any = 0.0
    for a, b in zip(one[0], other[0], strict=True):
        activations = _inner("pik,qjk->piqj", a.activations, b.activations)
        signals = _inner("piao,qjbo->piaqjb", a.signals, b.signals)
        total = total + (activations[:, :, None, :, :, None] * signals).sum((0, 3))
    for a, b in zip(one[1], other[1], strict=True):
        total = total + _inner("ias,jbs->iajb", a, b)
    return total


def _inner(equation: str, one: Array, other: Array) -> Array:
    return jnp.einsum(
        equation,
        one,
        other,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(one.dtype, jnp.float32),
    )


def ntk_from_features(features: Float[Array, "n c d"]) -> Float[Array, "nc nc"]:
    """ΦΦᵀ, the unbiased estimate of Θ, as a matrix over (sample, output) pairs.

    One triangle, then mirrored: little more than (N·C)²·D' flops, half of a plain product, and no
    memory but the result's.
    """
    return _product_with_itself(features, (features.shape[0] * features.shape[1],) * 2)


def ntk_tensor_from_features(features: Float[Array, "n c d"]) -> Float[Array, "n c n c"]:
    """`ntk_from_features` with an axis for samples and one for outputs."""
    return _product_with_itself(features, features.shape[:2] * 2)


def _product_with_itself(
    features: Float[Array, "n c d"], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    if (
        isinstance(features, Tracer)
        or jax.default_backend() != "cpu"
        or features.dtype not in (jnp.float32, jnp.float64)
    ):
        return _reshape(_symmetric_product(features), shape)
    rows = np.asarray(features).reshape(-1, features.shape[-1])  # a view: JAX would copy
    # BLAS has this product of a matrix with itself
    product = np.matmul(rows, rows.T, out=_aligned((len(rows), len(rows)), rows.dtype))
    return jax.device_put(product.reshape(shape))


@partial(jax.jit, donate_argnums=0, static_argnums=1)
def _reshape(array, shape: tuple[int, ...]):
    return array.reshape(shape)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX takes as it is on a CPU, without a copy: it begins at a multiple of 64
    bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _symmetric_product(features: Float[Array, "n c d"]) -> Float[Array, "nc nc"]:
    """Tiles of the lower triangle, each written twice in place: the rows of two strips are held
    beside the result.
    """
    num_samples, num_outputs = features.shape[:2]
    strips = _even_blocks(num_samples, max(-(-256 // num_outputs), -(-num_samples // 8)))
    total = jnp.zeros((num_samples * num_outputs,) * 2, features.dtype)
    for index, strip in enumerate(strips):
        for other in strips[: index + 1]:
            total = _place_tile(total, features, strip.start, other.start, strip.stop - strip.start)
    return total


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def _place_tile(
    total: Float[Array, "nc nc"], features: Float[Array, "n c d"], start, other, size: int
) -> Float[Array, "nc nc"]:
    one, two = (
        jax.lax.dynamic_slice_in_dim(features, first, size).reshape(-1, features.shape[-1])
        for first in (start, other)
    )
    tile, corner = (
        _inner("is,js->ij", one, two).astype(total.dtype),
        (start * features.shape[1], other * features.shape[1]),
    )
    return jax.lax.dynamic_update_slice(
        jax.lax.dynamic_update_slice(total, tile, corner), tile.T, corner[::-1]
    )
