"""The Jacobian of all outputs from activations and back-propagated signals, for any JAX function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_tt.layers import Layer, layers_of
from ntk_tt.taps import Apply, backpropagate


def layers(apply: Apply, params: PyTree, inputs: Float[Array, "n ..."]) -> list[Layer]:
    """All that the gradients of a block of samples are made of; a leaf's gradient is the sum over its layers."""
    leaves = jax.tree.leaves(params)
    return [layer for tap in backpropagate(apply, params, inputs) for layer in layers_of(tap, leaves)]


def structured_jacobian(apply: Apply, params: PyTree, inputs: Float[Array, "n ..."]) -> PyTree[Float[Array, "n c ..."]]:
    """J of a block of samples: a tree like `params`, leaves (n, C, *shape). Equals `jacobian_block`, faster.

    One forward pass and C backward passes through activations only, then 2·C·(parameters × positions) flops a sample
    for the gradients. Memory: the activations and signals of the block, and the gradients themselves.
    """
    leaves, tree = jax.tree.flatten(params)
    gradients: list[Array | None] = [None] * len(leaves)
    num_outputs = 0
    for layer in layers(apply, params, inputs):
        gradient, index = layer.gradient(leaves), layer.source.leaf
        so_far = gradients[index]
        gradients[index] = gradient if so_far is None else so_far + gradient
        num_outputs = gradient.shape[1]
    if not num_outputs:
        num_outputs = jax.eval_shape(apply, params, inputs).shape[1]
    return jax.tree.unflatten(tree, [
        jnp.zeros((len(inputs), num_outputs, *leaf.shape), leaf.dtype) if gradient is None else gradient.astype(leaf.dtype)
        for leaf, gradient in zip(leaves, gradients, strict=True)])
