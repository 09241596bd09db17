"""ResNet-8: stem, three residual blocks, linear head; the small network that ships with the
package.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, batch_norm, global_average, linear_head
from ntk_tt.models.zoo.convolution import Convolution


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions around a skip connection (He et al. 2016), with a 1×1 projection where
    the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = Convolution(inputs, outputs, 3, stride=stride, padding=1, rngs=rngs)
        self.norm1 = batch_norm(outputs, rngs)
        self.conv2 = Convolution(outputs, outputs, 3, padding=1, rngs=rngs)
        self.norm2 = batch_norm(outputs, rngs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = (
            None
            if same_shape
            else nnx.Sequential(
                Convolution(inputs, outputs, 1, stride=stride, rngs=rngs), batch_norm(outputs, rngs)
            )
        )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(
            self.norm2(self.conv2(y)) + (x if self.shortcut is None else self.shortcut(x))
        )


class ResNet8(nnx.Module):
    """Images (N, H, W, 3) to logits (N, C); the stem halves the resolution, so 32×32 images cost 5
    M multiply-adds.
    """

    def __init__(
        self, num_classes: int | None, widths: Sequence[int] = (16, 48, 96), *, rngs: nnx.Rngs
    ):
        self.stem = Convolution(3, widths[0], 3, stride=2, padding=1, rngs=rngs)
        self.stem_norm = batch_norm(widths[0], rngs)
        self.block1 = BasicBlock(widths[0], widths[0], 1, rngs=rngs)
        self.block2 = BasicBlock(widths[0], widths[1], 2, rngs=rngs)
        self.block3 = BasicBlock(widths[1], widths[2], 2, rngs=rngs)
        self.head = linear_head(widths[2], num_classes, rngs)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(self.stem_norm(self.stem(images)))
        return global_average(self.block3(self.block2(self.block1(x))))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        return apply_head(self.head, self.features(images))
