"""ResNet-8: stem, three residual blocks, linear head; the small network that ships with the package."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    # Explicit padding, like PyTorch: "SAME" pads on one side only when the stride is 2.
    return nnx.Conv(inputs, outputs, (kernel, kernel), strides=stride, padding=kernel // 2, use_bias=False, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


def _head_init(inputs: int):
    """PyTorch's default for a linear layer, as in the paper: kernel and bias uniform in ±1/√inputs."""
    bound = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions around a skip connection (He et al. 2016), with a 1×1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = _convolution(inputs, outputs, 3, stride, rngs)
        self.norm1 = _norm(outputs, rngs)
        self.conv2 = _convolution(outputs, outputs, 3, 1, rngs)
        self.norm2 = _norm(outputs, rngs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = None if same_shape else nnx.Sequential(_convolution(inputs, outputs, 1, stride, rngs), _norm(outputs, rngs))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(y)) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nnx.Module):
    """Images (N, H, W, 3) to logits (N, C); the stem halves the resolution, so 32×32 images cost 5 M multiply-adds."""

    def __init__(self, num_classes: int, widths: Sequence[int] = (16, 48, 96), *, rngs: nnx.Rngs):
        self.stem = _convolution(3, widths[0], 3, 2, rngs)
        self.stem_norm = _norm(widths[0], rngs)
        self.block1 = BasicBlock(widths[0], widths[0], 1, rngs=rngs)
        self.block2 = BasicBlock(widths[0], widths[1], 2, rngs=rngs)
        self.block3 = BasicBlock(widths[1], widths[2], 2, rngs=rngs)
        self.head = nnx.Linear(widths[2], num_classes, kernel_init=_head_init(widths[2]), bias_init=_head_init(widths[2]), rngs=rngs)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(self.stem_norm(self.stem(images)))
        x = self.block3(self.block2(self.block1(x)))
        return x.mean(axis=(1, 2))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        return self.head(self.features(images))
