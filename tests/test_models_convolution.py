"""The convolution against `nnx.Conv`, and the static rule by which it is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_tt.models.zoo import convolution
from ntk_tt.models.zoo.convolution import Convolution, convolve, preferred_method

# map, input channels, output channels, kernel, stride, padding, groups
CASES = {
    "3×3 on 1×1, where one kernel position meets the map": (
        (1, 1),
        4,
        6,
        (3, 3),
        (1, 1),
        ((1, 1), (1, 1)),
        1,
    ),
    "3×3 on 2×2": ((2, 2), 4, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), 1),
    "3×3 from 4×4 to 2×2": ((4, 4), 4, 6, (3, 3), (2, 2), ((1, 1), (1, 1)), 1),
    "3×3 on 7×6 in groups": ((7, 6), 4, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), 2),
    "1×1 with stride": ((5, 4), 4, 6, (1, 1), (2, 2), ((0, 0), (0, 0)), 1),
    "7×7 with stride on 8×8": ((8, 8), 3, 4, (7, 7), (2, 2), ((3, 3), (3, 3)), 1),
    "oblong everything": ((5, 7), 6, 3, (3, 2), (2, 3), ((0, 2), (1, 0)), 3),
    "a kernel as large as the padded map": ((2, 3), 2, 5, (4, 5), (1, 1), ((1, 1), (1, 1)), 1),
    "depthwise on 2×2": ((2, 2), 4, 4, (3, 3), (1, 1), ((1, 1), (1, 1)), 4),
    "padding wider than the kernel": ((1, 1), 2, 3, (1, 1), (2, 2), ((1, 1), (1, 1)), 1),
}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def reference(x, kernel, stride, padding, groups):
    """`nnx.Conv` with the given kernel."""
    conv = nnx.Conv(
        x.shape[-1],
        kernel.shape[-1],
        kernel.shape[:2],
        strides=stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    conv.kernel[...] = kernel
    return conv(x)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_way_is_that_of_flax_forward_and_backward(case):
    sides, inputs, outputs, kernel_size, stride, padding, groups = case
    x, kernel = normal(2, *sides, inputs), normal(*kernel_size, inputs // groups, outputs)
    ways = {
        method: partial(convolve, stride=stride, padding=padding, groups=groups, method=method)
        for method in ("patches", "xla", "auto")
    }
    ways["flax"] = partial(reference, stride=stride, padding=padding, groups=groups)
    signal = normal(*jax.eval_shape(ways["flax"], x, kernel).shape)

    @jax.jit
    def outputs_and_gradients(x, kernel, signal):
        results = {}
        for name, function in ways.items():
            y, pullback = jax.vjp(function, x, kernel)
            results[name] = (y, *pullback(signal))
        return results

    results = outputs_and_gradients(x, kernel, signal)
    for name in ("patches", "xla", "auto"):
        for result, expected in zip(results[name], results["flax"], strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("method", ["patches", "xla"])
def test_bfloat16_stays_bfloat16(method):
    x, kernel = (
        jnp.asarray(normal(2, 2, 2, 8), jnp.bfloat16),
        jnp.asarray(normal(3, 3, 8, 4), jnp.bfloat16),
    )
    padding = ((1, 1), (1, 1))
    y = jax.jit(lambda x, kernel: convolve(x, kernel, padding=padding, method=method))(x, kernel)
    assert y.dtype == jnp.bfloat16
    exact = jax.jit(
        lambda: reference(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), padding, 1)
    )()
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.02, atol=0.15)


def test_mixed_precision_is_promoted():
    y = convolve(jnp.ones((1, 3, 3, 2), jnp.bfloat16), jnp.full((3, 3, 2, 1), 1 / 3, jnp.float32))
    assert y.dtype == jnp.float32
    assert float(y[0, 0, 0, 0]) == pytest.approx(6, rel=1e-6)


def test_the_module_is_flax_convolution_with_bias():
    ours = Convolution(3, 4, 3, stride=2, padding=1, use_bias=True, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(3, 4, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(1))
    assert ours.bias is not None
    ours.bias[...] = jnp.arange(4.0)
    assert nnx.to_pure_dict(nnx.state(ours)).keys() == nnx.to_pure_dict(nnx.state(theirs)).keys()
    nnx.update(theirs, nnx.state(ours))
    x = normal(2, 4, 4, 3)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_kernels_start_with_he_variance():
    kernel = np.asarray(Convolution(32, 64, 3, rngs=nnx.Rngs(0)).kernel[...])
    # 18,432 numbers: standard error 0.5 %
    assert kernel.std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "method"),
    [
        ((2, 2), (2, 2), (3, 3), "patches"),
        ((4, 4), (2, 2), (3, 3), "patches"),
        ((16, 16), (8, 8), (1, 1), "patches"),
        ((3, 3), (3, 3), (3, 3), "xla"),
        ((4, 4), (4, 4), (3, 3), "xla"),
        ((2, 8), (2, 8), (3, 3), "patches"),
        ((8, 8), (6, 6), (7, 7), "patches"),
    ],
)
def test_the_rule_sees_kernels_larger_than_the_map_on_either_side(inputs, outputs, kernel, method):
    assert preferred_method(inputs, outputs, kernel) == method


def test_the_rule_is_followed_when_traced_and_on_cpus_only(monkeypatch):
    def primitives():
        jaxpr = jax.make_jaxpr(lambda x, k: convolve(x, k, padding=((1, 1), (1, 1))))(
            jnp.ones((1, 2, 2, 3)), jnp.ones((3, 3, 3, 4))
        )
        return {equation.primitive.name for equation in jaxpr.eqns}

    assert "dot_general" in primitives()
    assert "conv_general_dilated" not in primitives()
    monkeypatch.setattr(convolution, "_platform", lambda: "gpu")
    assert "conv_general_dilated" in primitives()
    assert preferred_method((2, 2), (2, 2), (3, 3)) == "xla"


def test_the_default_device_decides():
    assert convolution._platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert convolution._platform() == "cpu"


def test_wrong_sizes_are_explained():
    with pytest.raises(
        ValueError,
        match=r"images: a map of 2×2 is too small for a kernel of 3×3 with padding .*; give larger "
        r"images",
    ):
        convolve(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))
    with pytest.raises(
        ValueError, match="groups: must divide the 3 input and 4 output channels, got 2"
    ):
        Convolution(3, 4, 3, groups=2, rngs=nnx.Rngs(0))
