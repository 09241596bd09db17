"""What the networks share besides convolutions: batch norm, heads and pooling, with PyTorch's
conventions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def batch_norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """ε = 1e-5 and a running mean of ten steps, as in torchvision."""
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


def linear_head(inputs: int, outputs: int | None, rngs: nnx.Rngs) -> nnx.Linear | None:
    """A new last layer, initialised as PyTorch does by default; None where there are no outputs, as
    in a backbone without head.
    """
    if outputs is None:
        return None
    bound = inputs**-0.5

    def uniform(key, shape, dtype, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def apply_head(head: nnx.Module | None, features: Float[Array, "n f"]) -> Float[Array, "n k"]:
    """Logits, or what to do where a backbone was loaded without a head."""
    if head is None:
        raise ValueError(
            "apply: this network has no head, only `features`; load it with num_classes for a new "
            "one"
        )
    return head(features)  # pyright: ignore[reportCallIssue]


def max_pool(
    x: Float[Array, "n h w c"], window: int, stride: int, *, padding: int = 0, ceil: bool = False
) -> Float[Array, "n h2 w2 c"]:
    """The largest value of each window; padding counts as −∞.

    Maxima of strided slices, along one axis and then the other: on CPUs the gradient of
    `reduce_window` takes four to eleven times as long (`python -m benchmarks.convolutions`). Equal
    values share the gradient.

    Args:
        ceil: keep a last window that reaches over the edge (PyTorch's `ceil_mode`), as SqueezeNet
            does.

    Raises:
        ValueError: the padded map is smaller than the window.
    """
    if min(x.shape[1:3]) + 2 * padding < window:
        raise ValueError(
            f"images: a map of {x.shape[1]}×{x.shape[2]} is too small to be pooled "
            f"{window}×{window}; give larger images"
        )
    for axis in (1, 2):
        x = _max_pool_axis(x, axis, window, stride, padding, ceil)
    return x


def _max_pool_axis(
    x: Float[Array, "n h w c"], axis: int, window: int, stride: int, padding: int, ceil: bool
) -> Float[Array, "n h2 w2 c"]:
    size = x.shape[axis]
    count = (size + 2 * padding - window) // stride + 1
    # PyTorch keeps no window that would begin beyond the image.
    if (
        ceil
        and (count - 1) * stride + window < size + 2 * padding
        and count * stride < size + padding
    ):
        count += 1
    after = max(0, (count - 1) * stride + window - size - padding)
    padded = jnp.pad(
        x,
        [(padding, after) if each == axis else (0, 0) for each in range(4)],
        constant_values=-jnp.inf,
    )
    slices = [
        jax.lax.slice_in_dim(padded, offset, offset + (count - 1) * stride + 1, stride, axis)
        for offset in range(window)
    ]
    return functools.reduce(jnp.maximum, slices)


def global_average(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    return x.mean(axis=(1, 2))
