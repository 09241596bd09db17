"""The Jacobian of all outputs from activations and back-propagated signals, for any JAX
function.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_tt.jacobian.layers import Formed, Layer
from ntk_tt.jacobian.layers_of_taps import layers_of
from ntk_tt.jacobian.taps import Apply, Directions, backpropagate, leaf_itself
from ntk_tt.runtime.input_trees import Inputs


def layers(apply: Apply, params: PyTree, inputs: Inputs) -> list[Layer]:
    """All that the gradients of a block of samples are made of, at least one; a leaf's gradient is
    the sum over its layers.
    """
    return outputs_and_layers(apply, params, inputs)[1]


def outputs_and_layers(
    apply: Apply, params: PyTree, inputs: Inputs
) -> tuple[Float[Array, "n c"], list[Layer]]:
    """The outputs of a block of samples, each computed alone, and `layers`."""
    outputs, _, found = looked_at(apply, params, inputs, None)
    return outputs, found


def looked_at(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    directions: Directions | None,
    given: PyTree = (),
) -> tuple[Float[Array, "n c"], Any, list[Layer]]:
    """`outputs_and_layers` along directions of each sample's own, with what `backpropagate` gives
    beside.
    """
    leaves = jax.tree.leaves(params)
    outputs, beside, taps = backpropagate(apply, params, inputs, directions, given)
    found: list[Layer] = [layer for tap in taps for layer in layers_of(tap, leaves)]
    if not found:  # a function of none of its parameters
        index = min(range(len(leaves)), key=lambda index: leaves[index].size)
        found = [
            Formed(
                leaf_itself(index),
                jnp.zeros((*outputs.shape, *leaves[index].shape), leaves[index].dtype),
            )
        ]
    return outputs, beside, found


def structured_jacobian(
    apply: Apply, params: PyTree, inputs: Inputs
) -> PyTree[Float[Array, "n c ..."]]:
    """J of a block of samples: a tree like `params`, leaves (n, C, *shape). Equals
    `jacobian_block`, faster.

    One forward pass and C backward passes through activations only, then 2·C·(parameters ×
    positions) flops a sample for the gradients. Memory: the activations and signals of the block,
    and the gradients themselves.
    """
    leaves, tree = jax.tree.flatten(params)
    gradients: list[Array | None] = [None] * len(leaves)
    found = layers(apply, params, inputs)
    for layer in found:
        gradient, index = layer.gradient(leaves), layer.source.leaf
        so_far = gradients[index]
        gradients[index] = gradient if so_far is None else so_far + gradient
    return jax.tree.unflatten(
        tree,
        [
            jnp.zeros((*found[0].rows, *leaf.shape), leaf.dtype)
            if gradient is None
            else gradient.astype(leaf.dtype)
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ],
    )
