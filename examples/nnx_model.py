"""A Flax NNX network of your own, for

    ntk-tt predict --model examples/nnx_model.py:factory --learning-rate 0.001

`factory` is called with those of `num_classes`, `image_size` and `key` that it takes.
"""

import jax
from flax import nnx


class Network(nnx.Module):
    """Two convolutions, batch norm, a linear head."""

    def __init__(self, num_classes: int, width: int = 16, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def features(self, images):
        """Activations before the head; with this method, what needs only those can be had from
        it.
        """
        x = jax.nn.relu(self.norm1(self.conv1(images)))
        return jax.nn.relu(self.conv2(x)).mean(axis=(1, 2))

    def __call__(self, images):
        """(N, H, W, 3) to logits (N, C)."""
        return self.head(self.features(images))


def factory(num_classes: int, key):
    """Put your weights in before you return the module; without, training from a random start is
    predicted.
    """
    return Network(num_classes, rngs=nnx.Rngs(key))
