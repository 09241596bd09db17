"""ResNet-20/32/44/56 for 32×32 images (He et al. 2016, section 4.2), with the names of the common
CIFAR checkpoints.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, batch_norm, global_average, linear_head
from ntk_tt.models.zoo.convolution import Convolution


class CifarBlock(nnx.Module):
    """Two 3×3 convolutions around a skip connection without parameters ("option A").

    Where the shape changes, the skip takes every other pixel and pads the new channels with zeros,
    half on each side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = Convolution(inputs, outputs, 3, stride=stride, padding=1, rngs=rngs)
        self.bn1 = batch_norm(outputs, rngs)
        self.conv2 = Convolution(outputs, outputs, 3, padding=1, rngs=rngs)
        self.bn2 = batch_norm(outputs, rngs)
        self.stride, self.new_channels = stride, outputs - inputs

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        before = self.new_channels // 2
        skip = jnp.pad(
            x[:, :: self.stride, :: self.stride],
            ((0, 0), (0, 0), (0, 0), (before, self.new_channels - before)),
        )
        return jax.nn.relu(y + skip)


class CifarResNet(nnx.Module):
    """Images (N, H, W, 3) to logits (N, K): 3×3 stem, three stages of `depth` blocks, global
    average, head `linear`.

    Args:
        num_classes: K; None for a backbone without head.
        depth: blocks in a stage; the network has 6·depth + 2 layers.
        width: channels of the first stage, doubled at each further one.
    """

    def __init__(self, num_classes: int | None, depth: int, *, width: int = 16, rngs: nnx.Rngs):
        self.conv1 = Convolution(3, width, 3, padding=1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs)
        self.layer1 = self._stage(width, width, depth, 1, rngs)
        self.layer2 = self._stage(width, 2 * width, depth, 2, rngs)
        self.layer3 = self._stage(2 * width, 4 * width, depth, 2, rngs)
        self.linear = linear_head(4 * width, num_classes, rngs)

    @staticmethod
    def _stage(inputs: int, outputs: int, depth: int, stride: int, rngs: nnx.Rngs) -> nnx.List:
        first = CifarBlock(inputs, outputs, stride, rngs=rngs)
        return nnx.List(
            [first, *(CifarBlock(outputs, outputs, 1, rngs=rngs) for _ in range(depth - 1))]
        )

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = block(x)
        return global_average(x)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        return apply_head(self.linear, self.features(images))
