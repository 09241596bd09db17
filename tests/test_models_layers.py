"""Pooling against Flax's, and against windows written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_tt.models.zoo.blocks import max_pool


def distinct(*shape: int) -> jax.Array:
    """No two values are equal, so that the gradient has one place to go."""
    values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) - 20
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding"),
    [((2, 7, 6, 3), 3, 2, 1), ((1, 8, 8, 2), 3, 2, 0), ((1, 4, 5, 2), 2, 3, 1)],
)
def test_the_maximum_and_its_gradient_are_those_of_flax(shape, window, stride, padding):
    x = distinct(*shape)

    @jax.jit
    def both(x):
        results = []
        for function in (
            lambda x: max_pool(x, window, stride, padding=padding),
            lambda x: nnx.max_pool(
                x, (window, window), strides=(stride, stride), padding=((padding, padding),) * 2
            ),
        ):
            y, pullback = jax.vjp(function, x)
            results.append((y, pullback(jnp.cos(y))[0]))
        return results

    for ours, theirs in zip(*both(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "starts"),
    [
        (6, 3, 2, 0, [0, 2, 4]),
        (7, 3, 2, 0, [0, 2, 4]),
        (5, 2, 3, 1, [-1, 2]),
        (4, 2, 3, 1, [-1, 2]),
        (5, 2, 2, 1, [-1, 1, 3]),
        (3, 3, 2, 0, [0]),
    ],
)
def test_windows_over_the_edge_are_kept_where_they_begin_inside(
    size, window, stride, padding, starts
):
    x = distinct(1, size, size, 1)
    rows = [slice(max(0, start), start + window) for start in starts]
    values = np.asarray(x)
    expected = [[values[0, row, column].max() for column in rows] for row in rows]
    found = jax.jit(lambda x: max_pool(x, window, stride, padding=padding, ceil=True))(x)
    np.testing.assert_array_equal(found[0, :, :, 0], expected)


def test_padding_never_wins():
    assert float(max_pool(jnp.full((1, 1, 1, 1), -5.0), 3, 2, padding=1)[0, 0, 0, 0]) == -5


def test_maps_smaller_than_the_window_are_refused():
    with pytest.raises(
        ValueError, match="images: a map of 2×3 is too small to be pooled 3×3; give larger images"
    ):
        max_pool(jnp.ones((1, 2, 3, 1)), 3, 2)
