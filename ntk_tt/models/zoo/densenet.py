"""DenseNet-121/169 (Huang et al. 2017) as in torchvision, whose names begin with `features.` where
ours do not.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, batch_norm, global_average, linear_head, max_pool
from ntk_tt.models.zoo.convolution import Convolution

BOTTLENECK = (
    4  # the 1×1 convolution of a layer gives this many times the channels that the layer adds
)


class DenseLayer(nnx.Module):
    """Norm, ReLU, 1×1; norm, ReLU, 3×3: `growth` new channels beside those that came in."""

    def __init__(self, inputs: int, growth: int, *, rngs: nnx.Rngs):
        self.norm1 = batch_norm(inputs, rngs)
        self.conv1 = Convolution(inputs, BOTTLENECK * growth, 1, rngs=rngs)
        self.norm2 = batch_norm(BOTTLENECK * growth, rngs)
        self.conv2 = Convolution(BOTTLENECK * growth, growth, 3, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c2"]:
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseBlock(nnx.Module):
    """Layers that each see all channels before them, named `denselayer1`, `denselayer2`, …"""

    def __init__(self, inputs: int, num_layers: int, growth: int, *, rngs: nnx.Rngs):
        self.num_layers = num_layers
        for index in range(num_layers):
            setattr(
                self,
                f"denselayer{index + 1}",
                DenseLayer(inputs + index * growth, growth, rngs=rngs),
            )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c2"]:
        for index in range(self.num_layers):
            x = getattr(self, f"denselayer{index + 1}")(x)
        return x


class Transition(nnx.Module):
    """Half the channels and half the resolution."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs):
        self.norm = batch_norm(inputs, rngs)
        self.conv = Convolution(inputs, inputs // 2, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        return nnx.avg_pool(self.conv(jax.nn.relu(self.norm(x))), (2, 2), strides=(2, 2))


class DenseNet(nnx.Module):
    """Images (N, H, W, 3) to logits (N, K): 7×7 stem and max-pool, dense blocks with transitions
    between, norm, `classifier`.

    Args:
        num_classes: K; None for a backbone without head.
        depths: layers of each block; fewer than four for a network cut after a block's transition,
            whose features are then the average of the transition's output.
        growth: channels that a layer adds.
        stem: channels of the stem.
        cut: end with a transition instead of the final norm.
    """

    def __init__(
        self,
        num_classes: int | None,
        depths: Sequence[int],
        *,
        growth: int = 32,
        stem: int = 64,
        cut: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv0 = Convolution(3, stem, 7, stride=2, padding=3, rngs=rngs)
        self.norm0 = batch_norm(stem, rngs)
        width = stem
        self.num_blocks, self.cut = len(depths), cut
        for index, depth in enumerate(depths, 1):
            setattr(self, f"denseblock{index}", DenseBlock(width, depth, growth, rngs=rngs))
            width += depth * growth
            if cut or index < len(depths):
                setattr(self, f"transition{index}", Transition(width, rngs=rngs))
                width //= 2
        if not cut:
            self.norm5 = batch_norm(width, rngs)
        self.classifier = linear_head(width, num_classes, rngs)

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(self.norm0(self.conv0(images)))
        x = max_pool(x, 3, 2, padding=1)
        for index in range(1, self.num_blocks + 1):
            x = getattr(self, f"denseblock{index}")(x)
            if self.cut or index < self.num_blocks:
                x = getattr(self, f"transition{index}")(x)
        return global_average(x if self.cut else jax.nn.relu(self.norm5(x)))

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        return apply_head(self.classifier, self.features(images))
