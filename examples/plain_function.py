"""A network as nothing but a function and its parameters, for

ntk-tt predict --model examples/plain_function.py:factory --learning-rate 0.001
"""

import jax
import jax.numpy as jnp


def apply(params, images):
    """(N, H, W, 3) to logits (N, C): patches of 4×4, a two-layer perceptron on each, their mean, a
    linear head.
    """
    number, height, width, channels = images.shape
    patches = (
        images.reshape(number, height // 4, 4, width // 4, 4, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(number, -1, 16 * channels)
    )
    hidden = jax.nn.gelu(patches @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden.mean(axis=1) @ params["head"]["kernel"] + params["head"]["bias"]


def factory(num_classes: int, key):
    """`(apply, params)`: any tree of arrays; here a random start."""
    hidden_key, head_key = jax.random.split(key)
    return apply, {
        "hidden": {
            "kernel": jax.random.normal(hidden_key, (48, 32)) / 48**0.5,
            "bias": jnp.zeros(32),
        },
        "head": {
            "kernel": jax.random.normal(head_key, (32, num_classes)) / 32**0.5,
            "bias": jnp.zeros(num_classes),
        },
    }
