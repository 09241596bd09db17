"""AlexNet (Krizhevsky 2014, "one weird trick") as in torchvision, whose `features` are our
`layers`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, global_average, linear_head, max_pool
from ntk_tt.models.zoo.convolution import Convolution

POOLS = (2, 5, 12)  # torchvision's positions
# position: inputs, outputs, kernel, stride, padding
CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
GRID = 6  # the map is averaged to this many positions a side


class AlexNet(nnx.Module):
    """Images (N, H, W, 3) to logits (N, K), in evaluation mode: its dropout is left out.

    Args:
        num_classes: K; None for a network without head.
        hidden: width of the two fully connected layers; None leaves them out, for a checkpoint of
            the convolutions alone, whose features are then the globally averaged map.
    """

    def __init__(self, num_classes: int | None, *, hidden: int | None = 4096, rngs: nnx.Rngs):
        self.layers = nnx.Dict(
            {
                str(position): Convolution(
                    inputs,
                    outputs,
                    kernel,
                    stride=stride,
                    padding=padding,
                    use_bias=True,
                    rngs=rngs,
                )
                for position, (inputs, outputs, kernel, stride, padding) in CONVOLUTIONS.items()
            }
        )
        width, self.fully_connected = CONVOLUTIONS[10][1], hidden is not None
        self.classifier = nnx.Dict({})
        if hidden is not None:
            self.classifier["1"] = nnx.Linear(width * GRID * GRID, hidden, rngs=rngs)
            self.classifier["4"] = nnx.Linear(hidden, hidden, rngs=rngs)
        self.classifier["6"] = linear_head(width if hidden is None else hidden, num_classes, rngs)

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        x = images
        for position in range(POOLS[-1] + 1):
            if position in CONVOLUTIONS:
                x = jax.nn.relu(self.layers[str(position)](x))
            elif position in POOLS:
                x = max_pool(x, 3, 2)
        if not self.fully_connected:
            return global_average(x)
        # PyTorch flattens channels first
        x = jnp.moveaxis(_average_to_grid(x), -1, 1).reshape(len(x), -1)
        return jax.nn.relu(self.classifier["4"](jax.nn.relu(self.classifier["1"](x))))

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        return apply_head(self.classifier["6"], self.features(images))


def _average_to_grid(x: Float[Array, "n h w c"]) -> Float[Array, "n 6 6 c"]:
    """Means of 6×6 windows that cover the map, overlapping where it does not divide (PyTorch's
    adaptive average).
    """
    for axis in (1, 2):
        size = x.shape[axis]
        windows = [(index * size // GRID, -(-(index + 1) * size // GRID)) for index in range(GRID)]
        x = jnp.stack(
            [jax.lax.slice_in_dim(x, start, stop, axis=axis).mean(axis) for start, stop in windows],
            axis,
        )
    return x
