"""Features Φ = J R: the projected Jacobian of all outputs for all samples, in jitted blocks."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.layers import Layer, Product
from ntk_tt.linearize import Apply, blocks, check_network, jacobian_block
from ntk_tt.paths import named_leaves
from ntk_tt.progress import Progress, silent
from ntk_tt.projection import AbstractProjection, AbstractSketch, ProjectionName, SignFold, default_num_projections, make_projection
from ntk_tt.structured import layers, structured_jacobian

JacobianPath = Literal["structured", "plain"]

BLOCK_BYTES = 256 << 20  # of one block's unprojected Jacobian


def jacobian_features(apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."], *,
                      num_projections: int | str = "auto", projection: ProjectionName = "fold", key: Key[Array, ""] | None = None,
                      path: JacobianPath = "structured", block_size: int | None = None, progress: Progress = silent) -> Float[Array, "n c d"]:
    """Φ (N, C, D') with E[ΦΦᵀ] = Θ, or the Jacobian itself.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own (batch norm frozen).
        params: w₀, a tree of arrays.
        inputs: (N, ...).
        num_projections: D'; `auto` takes 16·N·C (see `default_num_projections`), `exact` no projection.
            From D' ≥ D on, the result is exact.
        projection: `fold`, `achlioptas` or `gaussian` (see `ntk_tt.projection`).
        key: of the projection; key 0 where none is given. The same key gives the same R for the same network.
        path: `structured` (activations and back-propagated signals, see `ntk_tt.structured`) or `plain`
            (`vmap(jacrev)`); the same numbers to rounding.
        block_size: samples at a time; None fits a block's Jacobian into 256 MiB.
        progress: called as `progress(done, total)` after each block.

    Returns:
        (N, C, D') in the dtype of the parameters.

    Raises:
        ValueError: an argument out of range, NaN in inputs or weights.

    Cost: one forward pass and C backward passes a sample (the plain path: C vector-Jacobian products), 2·D·C flops a
    sample for the fold; memory N·C·D' for the result and about 3·block_size·C·D for the block at work: linear in N.
    """
    check_path(path)
    num_outputs = check_network(apply, params, inputs)
    num_samples, num_params = len(inputs), sum(leaf.size for leaf in jax.tree.leaves(params))
    dtype = jnp.result_type(*jax.tree.leaves(params))
    if num_projections == "exact":
        num_projections = num_params
    elif num_projections == "auto":
        num_projections = default_num_projections(num_samples * num_outputs, num_params, itemsize=dtype.itemsize)
    elif isinstance(num_projections, str):
        raise ValueError(f"num_projections: give 'auto', 'exact' or a number, got {num_projections!r}")
    projector = make_projection(projection, num_params, num_projections, jax.random.key(0) if key is None else key)
    size = min(block_size or block_samples(num_outputs, num_params, dtype.itemsize), num_samples)

    features = jnp.zeros((num_samples, num_outputs, projector.num_projections), dtype)
    for block in blocks(num_samples, size):
        # The last block is moved back to full size, so one compiled step serves all of them.
        start = min(block.start, num_samples - size)
        features = _write_block(apply, path, projector, features, params, jnp.asarray(inputs[start : start + size]), start)
        progress(block.stop, num_samples)
    return features


def check_path(path: str) -> None:
    if path not in get_args(JacobianPath):
        raise ValueError(f"path: unknown {path!r}; give 'structured' or 'plain'")


def block_samples(num_outputs: int, num_params: int, itemsize: int) -> int:
    """How many samples' Jacobians fit into `BLOCK_BYTES`; at most 32, which keeps a CPU's caches warm."""
    return max(1, min(32, BLOCK_BYTES // (num_outputs * num_params * itemsize)))


def projected_jacobian(apply: Apply, path: JacobianPath, projection: AbstractProjection, params: PyTree, inputs: Float[Array, "n ..."]) -> Float[Array, "n c d"]:
    """Φ of one block. On the structured path a layer's gradients are formed, or folded without being formed, whichever moves less."""
    if path == "structured" and isinstance(projection, AbstractSketch):
        return _sketch(projection, params, layers(apply, params, inputs))
    jacobian = structured_jacobian(apply, params, inputs) if path == "structured" else jacobian_block(apply, params, inputs)
    num_samples, num_outputs = jax.tree.leaves(jacobian)[0].shape[:2]
    return projection(jax.tree.map(_flat_rows, jacobian)).reshape(num_samples, num_outputs, -1)


def _sketch(projection: AbstractSketch, params: PyTree, found: list[Layer]) -> Float[Array, "n c d"]:
    names, leaves = list(named_leaves(params)), jax.tree.leaves(params)
    num_samples, num_outputs = found[0].rows
    total = projection.start(num_samples * num_outputs, jnp.promote_types(jnp.result_type(*leaves), jnp.float32))
    for layer in found:
        name, shape = names[layer.source.leaf], leaves[layer.source.leaf].shape
        if isinstance(layer, Product) and isinstance(projection, SignFold) and layer.is_leaf_matrix and projection.folds_products(shape):
            total = projection.add_product(total, name, shape, layer.activations, layer.signals)
        else:
            total = projection.add(total, name, _flat_rows(layer.gradient(leaves)))
    return projection.finish(total).reshape(num_samples, num_outputs, -1)


def _flat_rows(gradient: Float[Array, "n c ..."]) -> Float[Array, "rows ..."]:
    return gradient.reshape(-1, *gradient.shape[2:])


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _write_block(apply, path, projection, features, params, inputs, start):
    block = projected_jacobian(apply, path, projection, params, inputs).astype(features.dtype)
    return jax.lax.dynamic_update_slice_in_dim(features, block, start, axis=0)
