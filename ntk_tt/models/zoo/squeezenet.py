"""SqueezeNet 1.0 (Iandola et al. 2016) as in torchvision, whose `features` are our `layers`: no
batch norm, no skips.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, global_average, linear_head, max_pool
from ntk_tt.models.zoo.convolution import Convolution

POOLS = (2, 6, 11)  # torchvision's positions
# position: inputs, squeezed, expanded (each of 1×1 and 3×3)
FIRES = {
    3: (96, 16, 64),
    4: (128, 16, 64),
    5: (128, 32, 128),
    7: (256, 32, 128),
    8: (256, 48, 192),
    9: (384, 48, 192),
    10: (384, 64, 256),
    12: (512, 64, 256),
}


class Fire(nnx.Module):
    """A 1×1 convolution to few channels, then 1×1 and 3×3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int, *, rngs: nnx.Rngs):
        self.squeeze = Convolution(inputs, squeezed, 1, use_bias=True, rngs=rngs)
        self.expand1x1 = Convolution(squeezed, expanded, 1, use_bias=True, rngs=rngs)
        self.expand3x3 = Convolution(squeezed, expanded, 3, padding=1, use_bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c2"]:
        x = jax.nn.relu(self.squeeze(x))
        return jax.nn.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], axis=-1))


class SqueezeNet(nnx.Module):
    """Images (N, H, W, 3) to logits (N, K), in evaluation mode: its dropout is left out.

    Args:
        num_classes: K; None for a backbone without head.
        num_layers: torchvision's layers kept, convolutions, ReLUs and pools counted; 13 are all.
        rectified: the published network applies a ReLU to the logits of each position before it
            averages them. A new head does without: its logits are linear in the pooled features and
            their gradient never vanishes.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        num_layers: int = 13,
        rectified: bool = False,
        rngs: nnx.Rngs,
    ):
        fires = {position: sizes for position, sizes in FIRES.items() if position < num_layers}
        self.layers = nnx.Dict({"0": Convolution(3, 96, 7, stride=2, use_bias=True, rngs=rngs)})
        for position, sizes in fires.items():
            self.layers[str(position)] = Fire(*sizes, rngs=rngs)
        self.num_layers, self.rectified = num_layers, rectified
        width = 2 * fires[max(fires)][-1] if fires else 96
        self.classifier = nnx.Dict({"1": linear_head(width, num_classes, rngs)})

    def feature_map(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h2 w2 f"]:
        x = jax.nn.relu(self.layers["0"](images))
        for position in range(1, self.num_layers):
            if position in POOLS:
                x = max_pool(x, 3, 2, ceil=True)
            elif position in FIRES:
                x = self.layers[str(position)](x)
        return x

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        return global_average(self.feature_map(images))

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        head = self.classifier["1"]
        if self.rectified and head is not None:
            return global_average(jax.nn.relu(head(self.feature_map(images))))
        return apply_head(head, self.features(images))
