"""Features of one block of samples: a layer's gradients are formed and projected, or folded
without being formed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_tt.features.feature_options import JacobianPath
from ntk_tt.features.projections import AbstractProjection, AbstractSketch
from ntk_tt.jacobian.layers import Layer, Lookup, Product
from ntk_tt.jacobian.network import Apply, jacobian_block
from ntk_tt.jacobian.structured import layers, structured_jacobian
from ntk_tt.runtime.input_trees import Inputs
from ntk_tt.runtime.parameter_names import named_leaves


def projected_jacobian(
    apply: Apply,
    path: JacobianPath,
    projection: AbstractProjection,
    params: PyTree,
    inputs: Inputs,
) -> Float[Array, "n c d"]:
    """Φ of one block. On the structured path a layer's gradients are formed, or folded without
    being formed, whichever moves less.
    """
    if path == "structured" and isinstance(projection, AbstractSketch):
        return _sketch(projection, params, layers(apply, params, inputs))
    jacobian = (
        structured_jacobian(apply, params, inputs)
        if path == "structured"
        else jacobian_block(apply, params, inputs)
    )
    num_samples, num_outputs = jax.tree.leaves(jacobian)[0].shape[:2]
    return projection(jax.tree.map(_flat_rows, jacobian)).reshape(num_samples, num_outputs, -1)


def _sketch(
    projection: AbstractSketch, params: PyTree, found: list[Layer]
) -> Float[Array, "n c d"]:
    names, leaves = list(named_leaves(params)), jax.tree.leaves(params)
    num_samples, num_outputs = found[0].rows
    total = projection.start(
        num_samples * num_outputs, jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    )
    for layer in found:
        name, shape = names[layer.source.leaf], leaves[layer.source.leaf].shape
        if 0 in shape:
            continue
        if isinstance(layer, Lookup) and layer.is_leaf_matrix:
            layer = layer.as_product()
        if isinstance(layer, Product) and layer.is_leaf_matrix and projection.takes_products(shape):
            total = projection.add_product(total, name, shape, layer.activations, layer.signals)
        else:
            total = projection.add(total, name, _flat_rows(layer.gradient(leaves)))
    return projection.finish(total).reshape(num_samples, num_outputs, -1)


def _flat_rows(gradient: Float[Array, "n c ..."]) -> Float[Array, "rows ..."]:
    # no -1: a parameter may have no numbers
    return gradient.reshape(gradient.shape[0] * gradient.shape[1], *gradient.shape[2:])
