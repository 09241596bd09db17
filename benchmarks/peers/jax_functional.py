"""ResNet-20 for CIFAR and ResNet-18 as pure functions of a flat dictionary of parameters: JAX and
numpy alone, any JAX from 0.4.

Batch norm is frozen in evaluation mode: its statistics are constants, its scale and shift
parameters. Kernels are HWIO.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import BATCH_NORM_EPSILON, read_checkpoint

Params = dict[str, jax.Array]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL_MAP = (
    4  # XLA:CPU slows down about a hundredfold where a kernel is larger than its unpadded map
)


def load(
    name: str, num_outputs: int | None, *, convolutions: str = "im2col", seed: int = 0
) -> tuple[Callable[[Params, jax.Array], jax.Array], Params]:
    """`apply(params, images (N, H, W, 3)) -> logits (N, C)` and its parameters.

    Args:
        name: `resnet20` or `resnet18`.
        num_outputs: of a new random head; None keeps the checkpoint's.
        convolutions: `im2col` takes 3×3 convolutions on maps up to 4×4 as patches and a matrix
            product; `native` none.
        seed: of the head.
    """
    arrays, statistics = read_checkpoint(name, num_outputs, seed)
    params = {
        key: jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)
        for key, array in arrays.items()
    }
    # Plain numpy constants: each is x·factor + offset before the trainable scale and shift.
    factors = {
        key[: -len(".running_var")]: (1.0 / np.sqrt(array + BATCH_NORM_EPSILON)).astype(np.float32)
        for key, array in statistics.items()
        if key.endswith("running_var")
    }
    offsets = {
        layer: -statistics[f"{layer}.running_mean"] * factor for layer, factor in factors.items()
    }

    def norm(params, layer, x):
        return (x * factors[layer] + offsets[layer]) * params[f"{layer}.weight"] + params[
            f"{layer}.bias"
        ]

    def block(params, layer, x, shortcut, stride):
        y = jax.nn.relu(
            norm(
                params,
                f"{layer}.bn1",
                _convolution(x, params[f"{layer}.conv1.weight"], stride, convolutions),
            )
        )
        y = norm(
            params,
            f"{layer}.bn2",
            _convolution(y, params[f"{layer}.conv2.weight"], 1, convolutions),
        )
        return jax.nn.relu(y + shortcut(params, layer, x, stride))

    def identity_or_padding(params, layer, x, stride):
        """Option A: every second pixel, and zeros for the new channels, half on either side."""
        del layer, params
        return (
            x
            if stride == 1
            else jnp.pad(
                x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (x.shape[-1] // 2, x.shape[-1] // 2))
            )
        )

    def identity_or_projection(params, layer, x, stride):
        if f"{layer}.downsample.0.weight" not in params:
            return x
        return norm(
            params,
            f"{layer}.downsample.1",
            _convolution(x, params[f"{layer}.downsample.0.weight"], stride, convolutions),
        )

    def resnet20(params, x):
        x = jax.nn.relu(
            norm(params, "bn1", _convolution(x, params["conv1.weight"], 1, convolutions))
        )
        for layer in (1, 2, 3):
            for index in range(3):
                x = block(
                    params,
                    f"layer{layer}.{index}",
                    x,
                    identity_or_padding,
                    2 if layer > 1 and index == 0 else 1,
                )
        return x.mean(axis=(1, 2)) @ params["linear.weight"] + params["linear.bias"]

    def resnet18(params, x):
        x = jax.nn.relu(
            norm(params, "bn1", _convolution(x, params["conv1.weight"], 2, convolutions))
        )
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        for layer in (1, 2, 3, 4):
            for index in range(2):
                x = block(
                    params,
                    f"layer{layer}.{index}",
                    x,
                    identity_or_projection,
                    2 if layer > 1 and index == 0 else 1,
                )
        return x.mean(axis=(1, 2)) @ params["fc.weight"] + params["fc.bias"]

    return {"resnet20": resnet20, "resnet18": resnet18}[name], params


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, convolutions: str) -> jax.Array:
    size = kernel.shape[0]
    pad = size // 2  # PyTorch's explicit padding, on both sides
    if convolutions == "native" or size != 3 or max(x.shape[1:3]) > _SMALL_MAP:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_LAYOUT
        )
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((extent + 2 * pad - size) // stride + 1 for extent in x.shape[1:3])
    patches = [
        padded[
            :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride
        ]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
