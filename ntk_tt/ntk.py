"""The empirical neural tangent kernel Θ = J Jᵀ: exact in blocks, or from features."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.features import JacobianPath, check_path, projected_jacobian
from ntk_tt.linearize import Apply, blocks, check_network
from ntk_tt.progress import Progress, silent
from ntk_tt.projection import Identity

STRIP_BYTES = 1 << 30  # of the Jacobian rows held while a strip of Θ is made
_BLOCK = 16


def empirical_ntk(apply: Apply, params: PyTree, x1: Float[Array | np.ndarray, "n1 ..."], x2: Float[Array | np.ndarray, "n2 ..."] | None = None, *,
                  path: JacobianPath = "structured", block_size: int | None = None, progress: Progress = silent) -> Float[Array, "n1 c n2 c"]:
    """Θ[i, a, j, b] = ∂f_a(x1ᵢ)/∂w · ∂f_b(x2ⱼ)/∂w, exact.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own.
        params: w₀.
        x1, x2: (N1, ...) and (N2, ...); x2 = None means x1, and uses the symmetry.
        path: see `jacobian_features`.
        block_size: samples whose Jacobian is held at a time; None holds what 1 GiB does. Results agree to rounding.
        progress: called as `progress(done, total)` in units of blocks.

    Returns:
        (N1, C, N2, C) in the dtype of the parameters; positive semi-definite as (N1·C, N1·C) where x2 is None.

    Raises:
        ValueError: NaN in inputs or weights, or an `apply` of another form.

    Cost: C vector-Jacobian products a sample and 2·D·N1·C·N2·C flops. Where the Jacobian is larger than the strip it
    is recomputed for each of the N1/block_size strips. Memory: Θ and two strips.
    """
    check_path(path)
    num_outputs = check_network(apply, params, x1)
    columns = x1 if x2 is None else x2
    if x2 is not None and check_network(apply, params, x2) != num_outputs:
        raise ValueError("x2: the network gives another number of outputs on x2 than on x1")
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    dtype = jnp.result_type(*jax.tree.leaves(params))
    size = block_size or max(1, STRIP_BYTES // (num_outputs * num_params * dtype.itemsize))
    if size < 1:
        raise ValueError(f"block_size: must be at least 1, got {block_size}")

    ntk = np.zeros((len(x1), num_outputs, len(columns), num_outputs), dtype)
    row_blocks, column_blocks = list(blocks(len(x1), size)), list(blocks(len(columns), size))
    pairs = [(i, j) for i in range(len(row_blocks)) for j in range(len(column_blocks)) if x2 is not None or j <= i]
    current, rows = -1, None
    for done, (i, j) in enumerate(pairs, 1):
        if i != current:
            current, rows = i, _strip(apply, path, params, x1[row_blocks[i]])
        other = rows if x2 is None and i == j else _strip(apply, path, params, columns[column_blocks[j]])
        product = np.asarray(_gram(rows, other))
        ntk[row_blocks[i], :, column_blocks[j], :] = product
        if x2 is None and i != j:
            ntk[column_blocks[j], :, row_blocks[i], :] = product.transpose(2, 3, 0, 1)
        progress(done, len(pairs))
    return jnp.asarray(ntk)


def ntk_from_features(features: Float[Array, "n c d"]) -> Float[Array, "nc nc"]:
    """ΦΦᵀ, the unbiased estimate of Θ, as a matrix over (sample, output) pairs.

    Strips of the lower triangle, then mirrored: little more than (N·C)²·D' flops, half of a plain product.
    """
    return _symmetric_product(features.reshape(-1, features.shape[-1]))


@jax.jit
def _symmetric_product(rows: Float[Array, "rows d"]) -> Float[Array, "rows rows"]:
    lower = jnp.zeros((len(rows), len(rows)), rows.dtype)
    for strip in blocks(len(rows), max(256, -(-len(rows) // 8))):
        product = jnp.matmul(rows[strip], rows[: strip.stop].T, precision=jax.lax.Precision.HIGHEST)
        lower = lower.at[strip, : strip.stop].set(product)
    return jnp.tril(lower) + jnp.tril(lower, -1).T


def _strip(apply: Apply, path: JacobianPath, params: PyTree, inputs) -> Float[Array, "n c d"]:
    size = min(_BLOCK, len(inputs))
    starts = [min(block.start, len(inputs) - size) for block in blocks(len(inputs), size)]
    parts = [_exact_block(apply, path, params, jnp.asarray(inputs[start : start + size])) for start in starts]
    parts[-1] = parts[-1][len(parts) * size - len(inputs) :]  # the last block was moved back to full size
    return jnp.concatenate(parts)


@partial(jax.jit, static_argnums=(0, 1))
def _exact_block(apply, path, params, inputs):
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return projected_jacobian(apply, path, Identity(num_params), params, inputs)


@jax.jit
def _gram(rows, columns):
    return jnp.einsum("iad,jbd->iajb", rows, columns, precision=jax.lax.Precision.HIGHEST)
