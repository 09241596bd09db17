"""A Flax Linen network of your own, for

ntk-tt predict --model examples/linen_model.py:factory --learning-rate 0.001
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntk_tt.models.linen_adapter import from_linen


class Network(nn.Module):
    """Two convolutions, batch norm, a linear head."""

    num_classes: int
    width: int = 16

    def setup(self):
        self.conv1 = nn.Conv(self.width, (3, 3), strides=2)
        self.norm1 = nn.BatchNorm()
        self.conv2 = nn.Conv(self.width, (3, 3), strides=2)
        self.head = nn.Dense(self.num_classes)

    def features(self, images, train: bool = False):
        x = nn.relu(self.norm1(self.conv1(images), use_running_average=not train))
        return nn.relu(self.conv2(x)).mean(axis=(1, 2))

    def __call__(self, images, train: bool = False):
        """(N, H, W, 3) to logits (N, C); `train` switches batch norm, and is set by ntk-tt."""
        return self.head(self.features(images, train))


def factory(num_classes: int, image_size: int, key):
    """Your checkpoint goes where `variables` is. Returning `(module, variables)` would do; this
    also says how images are normalised.
    """
    module = Network(num_classes)
    variables = jax.jit(module.init)(key, jnp.zeros((1, image_size, image_size, 3)))
    return from_linen(
        module,
        variables,
        name="my linen network",
        num_classes=num_classes,
        image_size=image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
