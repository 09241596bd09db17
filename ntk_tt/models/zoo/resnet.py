"""ResNet-18/34/50/101 (He et al. 2016) as in torchvision, names and padding included."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, batch_norm, global_average, linear_head, max_pool
from ntk_tt.models.zoo.convolution import Convolution


def _downsample(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.List | None:
    """A 1×1 convolution and its norm on the skip connection where the shape changes; None where it
    does not.
    """
    if stride == 1 and inputs == outputs:
        return None
    return nnx.List(
        [Convolution(inputs, outputs, 1, stride=stride, rngs=rngs), batch_norm(outputs, rngs)]
    )


def _skip(downsample: nnx.List | None, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
    return x if downsample is None else downsample[1](downsample[0](x))


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions around a skip connection."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, *, stride_first: bool = False, rngs: nnx.Rngs
    ):
        self.conv1 = Convolution(inputs, width, 3, stride=stride, padding=1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs)
        self.conv2 = Convolution(width, width, 3, padding=1, rngs=rngs)
        self.bn2 = batch_norm(width, rngs)
        self.downsample = _downsample(inputs, width, stride, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        return jax.nn.relu(self.bn2(self.conv2(y)) + _skip(self.downsample, x))


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions around a skip connection.

    The stride lies in the 3×3 convolution (v1.5, torchvision); with `stride_first` in the first 1×1
    (v1, the original and Keras).
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, *, stride_first: bool = False, rngs: nnx.Rngs
    ):
        outputs = width * self.expansion
        self.conv1 = Convolution(inputs, width, 1, stride=stride if stride_first else 1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs)
        self.conv2 = Convolution(
            width, width, 3, stride=1 if stride_first else stride, padding=1, rngs=rngs
        )
        self.bn2 = batch_norm(width, rngs)
        self.conv3 = Convolution(width, outputs, 1, rngs=rngs)
        self.bn3 = batch_norm(outputs, rngs)
        self.downsample = _downsample(inputs, outputs, stride, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        return jax.nn.relu(self.bn3(self.conv3(y)) + _skip(self.downsample, x))


class ResNet(nnx.Module):
    """Images (N, H, W, 3) to logits (N, K): a 7×7 stem and a max-pool, stages of blocks, global
    average, linear `fc`.

    Args:
        num_classes: K; None for a backbone without head.
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each stage; fewer than four for a network cut after a stage.
        stride_first: see `Bottleneck`.
        width: channels of the first stage, doubled at each further one.
    """

    def __init__(
        self,
        num_classes: int | None,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        stride_first: bool = False,
        width: int = 64,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Convolution(3, width, 7, stride=2, padding=3, rngs=rngs)
        self.bn1 = batch_norm(width, rngs)
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(
                    block(inputs, width << stage, stride, stride_first=stride_first, rngs=rngs)
                )
                inputs = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.num_stages = len(depths)
        self.fc = linear_head(inputs, num_classes, rngs)

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        x = max_pool(x, 3, 2, padding=1)
        for stage in range(self.num_stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return global_average(x)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        return apply_head(self.fc, self.features(images))
