"""An Equinox network of your own, with state, for

ntk-tt predict --model examples/equinox_model.py:factory --learning-rate 0.001
"""

import equinox as eqx
import jax


class Network(eqx.Module):
    """Two convolutions, batch norm, a linear head, for one image (3, H, W): ntk-tt maps it over the
    batch.
    """

    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, num_classes: int, width: int = 16, *, key):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(3, width, 3, stride=2, padding=1, key=keys[0])
        self.norm1 = eqx.nn.BatchNorm(width, axis_name="batch", mode="batch")
        self.conv2 = eqx.nn.Conv2d(width, width, 3, stride=2, padding=1, key=keys[1])
        self.head = eqx.nn.Linear(width, num_classes, key=keys[2])

    def features(self, image, state):
        x, state = self.norm1(self.conv1(image), state)
        return jax.nn.relu(self.conv2(jax.nn.relu(x))).mean(axis=(1, 2)), state

    def __call__(self, image, state):
        """(3, H, W) to logits (C,), and the new state."""
        x, state = self.features(image, state)
        return self.head(x), state


def factory(num_classes: int, key):
    """`eqx.tree_deserialise_leaves` would put your weights in here."""
    return eqx.nn.make_with_state(Network)(num_classes, key=key)
