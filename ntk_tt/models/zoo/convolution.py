"""A convolution that has no cliff: XLA's where that is fast, one matrix product over patches where
it is not.

XLA on a CPU hands convolutions to an optimised routine unless a kernel is larger than the map it
slides over, be it the input (forward) or the output (whose signal the backward pass convolves).
Then it falls back to scalar loops, up to fifty times as slow: 3×3 kernels on 2×2 maps, as in the
last stage of a ResNet at 64×64, or going from 4×4 to 2×2. Taking patches by strided slices and
multiplying once costs what the flops cost. `python -m benchmarks.convolutions` measures both ways;
3×3 on 3×3 and 4×4 maps come out about even, larger maps are XLA's. The rule:

- a 1×1 kernel is a matrix product and is written as one;
- a kernel larger than its unpadded input or than its output, along any axis, takes patches;
- everything else is left to XLA, and so is everything on other devices than CPUs.

The rule looks at shapes only, so it is settled when a function is traced.
"""

import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
ConvolutionMethod = Literal["auto", "xla", "patches"]


def convolve(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw ig o"],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    groups: int = 1,
    method: ConvolutionMethod = "auto",
) -> Float[Array, "n h2 w2 o"]:
    """The cross-correlation that neural networks call convolution, zero-padded.

    Args:
        x: images, channels last.
        kernel: (height, width, input channels / groups, output channels).
        stride: in both directions [pixels].
        padding: zeros before and after, for both directions [pixels].
        groups: the channels are cut into this many independent convolutions.
        method: `patches`, `xla`, or `auto`, the rule of this module. They agree to rounding.

    Cost: 2·N·h₂·w₂·kh·kw·i·o/groups flops; the patches take N·h₂·w₂·kh·kw·i numbers.
    """
    dtype = jnp.result_type(x, kernel)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    outputs = tuple(
        (size + low + high - side) // step + 1
        for size, side, step, (low, high) in zip(
            x.shape[1:3], kernel.shape[:2], stride, padding, strict=True
        )
    )
    if min(outputs) < 1:
        raise ValueError(
            f"images: a map of {x.shape[1]}×{x.shape[2]} is too small for a kernel of "
            f"{kernel.shape[0]}×{kernel.shape[1]} with padding {padding}; give larger images"
        )
    if method == "auto":
        method = preferred_method(x.shape[1:3], outputs, kernel.shape[:2])
    if method == "patches":
        return _convolve_patches(x, kernel, outputs, stride, padding, groups)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def preferred_method(
    inputs: tuple[int, ...], outputs: tuple[int, ...], kernel: tuple[int, ...]
) -> Literal["xla", "patches"]:
    """The faster way for maps of these sides on the default device, forward and backward."""
    if _platform() != "cpu":
        return "xla"
    product = all(side == 1 for side in kernel)
    cliff = any(
        side > min(before, after)
        for side, before, after in zip(kernel, inputs, outputs, strict=True)
    )
    return "patches" if product or cliff else "xla"


def _platform() -> str:
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _convolve_patches(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw ig o"],
    outputs: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Padding,
    groups: int,
) -> Float[Array, "n h2 w2 o"]:
    used = [
        _used(side, size, count, step, low)
        for side, size, count, step, (low, _) in zip(
            kernel.shape[:2], x.shape[1:3], outputs, stride, padding, strict=True
        )
    ]
    if [len(positions) for positions in used] != list(kernel.shape[:2]):
        kernel = kernel[used[0].start : used[0].stop, used[1].start : used[1].stop]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(itertools.chain(*padding)) else x
    patches = []
    for offset in itertools.product(*used):
        last = [
            first + (count - 1) * step + 1
            for first, count, step in zip(offset, outputs, stride, strict=True)
        ]
        patches.append(
            jax.lax.slice(padded, (0, *offset, 0), (x.shape[0], *last, x.shape[3]), (1, *stride, 1))
        )
    if groups == 1:
        patch = patches[0] if len(patches) == 1 else jnp.concatenate(patches, axis=-1)
        return patch @ kernel.reshape(-1, kernel.shape[-1])
    patch = jnp.stack(patches, axis=3).reshape(*x.shape[:1], *outputs, len(patches), groups, -1)
    kernel = kernel.reshape(len(patches), kernel.shape[2], groups, -1)
    return jnp.einsum("nhwkgi,kigo->nhwgo", patch, kernel).reshape(*x.shape[:1], *outputs, -1)


def _used(side: int, size: int, count: int, step: int, low: int) -> range:
    """Kernel positions along one axis that meet the image at all: on a 1×1 map, only the centre of
    a padded 3×3.
    """
    meets = [
        position
        for position in range(side)
        if any(0 <= step * index + position - low < size for index in range(count))
    ]
    # nothing but padding: any one position gives the zeros
    return range(meets[0], meets[-1] + 1) if meets else range(1)


class Convolution(nnx.Module):
    """`nnx.Conv` by way of `convolve`: the same parameters (`kernel` HWIO and `bias`) and, to
    rounding, the same outputs.

    Padding is explicit and symmetric, as in PyTorch; "SAME" would pad on one side only when the
    stride is 2. Kernels start normal with variance 2/inputs, for the rectifier that follows them
    (He et al. 2015).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Padding = 0,
        groups: int = 1,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if inputs % groups or outputs % groups:
            raise ValueError(
                f"groups: must divide the {inputs} input and {outputs} output channels, got "
                f"{groups}"
            )
        sides = _pair(kernel_size)
        self.kernel = nnx.Param(
            nnx.initializers.he_normal()(
                rngs.params(), (*sides, inputs // groups, outputs), jnp.float32
            )
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        self.stride = _pair(stride)
        low, high = _pair(padding)
        self.padding: Padding = (_pair(low), _pair(high))
        self.groups = groups

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        y = convolve(
            x, self.kernel[...], stride=self.stride, padding=self.padding, groups=self.groups
        )
        return y if self.bias is None else y + self.bias[...]


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)
