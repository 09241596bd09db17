"""A fully connected network on pixels: the smallest thing to try an idea on."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, linear_head


class MLP(nnx.Module):
    """Images (N, H, W, 3), flattened channels last, to logits (N, K) through ReLU layers.

    Args:
        num_classes: K; None for a network without head.
        inputs: pixels times channels of an image.
        widths: of the hidden layers.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        inputs: int,
        widths: Sequence[int] = (256, 256),
        rngs: nnx.Rngs,
    ):
        sizes = [inputs, *widths]
        self.layers = nnx.List(
            [
                nnx.Linear(before, after, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
                for before, after in itertools.pairwise(sizes)
            ]
        )
        self.head = linear_head(sizes[-1], num_classes, rngs)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n f"]:
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        return apply_head(self.head, self.features(images))
