"""The structured Jacobian against one output of one sample at a time, over every way parameters can meet activations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features import jacobian_features
from ntk_tt.layers import Product
from ntk_tt.linearize import jacobian_block
from ntk_tt.ntk import empirical_ntk
from ntk_tt.projection import SignFold, make_projection
from ntk_tt.structured import layers, structured_jacobian
from tests.networks import Case, dense_jacobian


def _random(seed: int, **shapes) -> dict:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: 0.5 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def _images(number: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (number, 7, 6, 4))


def _vectors(number: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (number, 5))


def _sequences(number: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (number, 6, 8))


def _convolution(kernel_shape, spec=("NHWC", "HWIO", "NHWC"), **options) -> Case:
    def apply(params, x):
        if spec[0] == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(x, params["kernel"], dimension_numbers=spec, **({"window_strides": (1, 1), "padding": "SAME"} | options))
        y = jnp.tanh(y + params["bias"].reshape([1, -1, 1, 1] if spec[2] == "NCHW" else [-1]))
        return jnp.stack([y.mean((1, 2, 3)), (y**2).sum((1, 2, 3)), jnp.sin(y).sum((1, 2, 3))], -1)

    return Case(apply, _random(1, kernel=kernel_shape, bias=(kernel_shape[spec[1].index("O")],)), _images)


def _attention(params, x):
    def norm(z, scale, shift):
        z = z - z.mean(-1, keepdims=True)
        return z * jax.lax.rsqrt((z**2).mean(-1, keepdims=True) + 1e-5) * scale + shift

    z = norm(x, params["scale"], params["shift"])
    q, k, v = jnp.split(z @ params["qkv"], 3, axis=-1)
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / np.sqrt(8))
    x = x + weights @ v @ params["out"]
    return x.mean(1) @ params["head"]


def _scan(params, x):
    def layer(z, now):
        weight, bias = now
        return jnp.tanh(z @ weight + bias), None

    return jax.lax.scan(layer, x, (params["weights"], params["biases"]))[0][:, :3]


@jax.custom_jvp
def _custom(x, w):
    return x * w


@_custom.defjvp
def _custom_jvp(primals, tangents):
    return _custom(*primals), 2 * tangents[0] * primals[1] + 3 * primals[0] * tangents[1]  # not the derivative, on purpose


def _dense_block(params, x):
    """Two growing layers whose inputs are concatenated, as in DenseNet: every kernel sees all that came before."""
    for name in ("one", "two"):
        y = jax.lax.conv_general_dilated(jax.nn.relu(x * params[name + "_scale"][: x.shape[-1]]), params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.concatenate([x, y], -1)
    return x.mean((1, 2)) @ params["head"]


def _depends_on_parameters_only(params, x):
    return jnp.broadcast_to(params["constant"] ** 2, (x.shape[0], 3)) + x[:, :3] * jnp.exp(params["log_scale"]).sum()


CASES = {
    "convolution, stride and padding": _convolution((3, 3, 4, 5), window_strides=(2, 1), padding=((1, 0), (2, 1))),
    "convolution, dilated": _convolution((3, 2, 4, 5), rhs_dilation=(2, 1), padding="VALID"),
    "convolution, grouped": _convolution((3, 3, 2, 6), feature_group_count=2),
    "convolution, depthwise": _convolution((3, 3, 1, 8), feature_group_count=4),
    "convolution, transposed": _convolution((3, 3, 4, 5), lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "convolution, channels first": _convolution((5, 4, 3, 3), ("NCHW", "OIHW", "NCHW")),
    "convolution, negative padding": _convolution((3, 3, 4, 5), padding=((-1, 0), (0, 0))),
    "dense block": Case(_dense_block, _random(13, one=(3, 3, 4, 3), two=(3, 3, 7, 3), one_scale=(4,), two_scale=(7,), head=(10, 3)), _images),
    "wide dense layers": Case(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], _random(14, a=(5, 600), b=(600, 3)), _vectors),
    "kernel as a matrix": Case(lambda p, x: jnp.tanh(x.reshape(len(x), -1, 24) @ p["kernel"].reshape(24, 9)).mean(1) @ p["b"], _random(15, kernel=(2, 3, 4, 9), b=(9, 3)), _images),
    "kernel on the left": Case(lambda p, x: jnp.einsum("oi,nti->not", p["w"], x).sum(2) @ p["b"], _random(16, w=(7, 8), b=(7, 3)), _sequences),
    "several axes out": Case(lambda p, x: jnp.einsum("nti,ihd->nthd", x, p["w"]).mean(1)[:, 0] * p["v"], _random(17, w=(8, 2, 3), v=(3,)), _sequences),
    "attention and layer norm": Case(_attention, _random(2, qkv=(8, 24), out=(8, 8), head=(8, 3), scale=(8,), shift=(8,)), _sequences),
    "tied weights": Case(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["w"], _random(3, w=(5, 3)), _vectors),
    "scan over layers": Case(_scan, _random(4, weights=(3, 5, 5), biases=(3, 5)), _vectors),
    "remat": Case(lambda p, x: jax.checkpoint(lambda w, z: jnp.tanh(z @ w))(p["a"], x) @ p["b"], _random(5, a=(5, 7), b=(7, 3)), _vectors),
    "jit inside": Case(lambda p, x: jax.jit(lambda w, z: jnp.tanh(z @ w))(p["a"].T, x) @ p["b"], _random(5, a=(7, 5), b=(7, 3)), _vectors),
    "custom jvp": Case(lambda p, x: _custom(x, p["w"])[:, :3] * p["v"], _random(6, w=(5,), v=(3,)), _vectors),
    "embedding": Case(lambda p, x: p["table"][(x > 0).astype(int).sum(-1)] * p["scale"], _random(7, table=(6, 3), scale=(3,)), _vectors),
    "functions of parameters alone": Case(_depends_on_parameters_only, _random(8, constant=(3,), log_scale=(2,)), _vectors),
    "weight normalisation": Case(lambda p, x: x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"]), _random(9, v=(5, 3), g=(3,)), _vectors),
    "a parameter as the output": Case(lambda p, x: jnp.broadcast_to(p["bias"], (x.shape[0], 3)), _random(10, bias=(3,)), _vectors),
    "an unused parameter": Case(lambda p, x: x @ p["w"], _random(11, w=(5, 3), unused=(4,)), _vectors),
    "cond and while": Case(lambda p, x: jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x @ (2 * w), p["w"]), _random(12, w=(5, 3)), _vectors),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_one_output_at_a_time(name):
    case = CASES[name]
    x = case.inputs(3, 0)
    structured = jax.jit(lambda params, x: structured_jacobian(case.apply, params, x))(case.params, x)
    assert jax.tree.map(jnp.shape, structured) == jax.tree.map(lambda leaf: (3, 3, *leaf.shape), case.params)
    flat = np.concatenate([np.asarray(leaf).reshape(3, 3, -1) for leaf in jax.tree.leaves(structured)], -1)
    truth = dense_jacobian(case, x)
    assert np.linalg.norm(flat - truth) <= 1e-5 * np.linalg.norm(truth)
    assert np.linalg.norm(truth) > 0
    plain = jacobian_block(case.apply, case.params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(truth).max()), structured, plain)


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_features_equal_the_plain_path(name):
    """Whatever way each layer takes: Gram block or gradients, folded before or after they are formed."""
    case = CASES[name]
    x = case.inputs(3, 0)
    gradients = dense_jacobian(case, x).reshape(9, -1)
    ntk = np.asarray(empirical_ntk(case.apply, case.params, x)).reshape(9, 9)
    assert np.linalg.norm(ntk - gradients @ gradients.T) <= 1e-5 * np.linalg.norm(gradients @ gradients.T)
    structured, plain = (np.asarray(jacobian_features(case.apply, case.params, x, num_projections=10, path=path)) for path in ("structured", "plain"))
    assert np.linalg.norm(structured - plain) <= 1e-5 * np.linalg.norm(plain)


def test_the_ways_to_an_inner_product_are_chosen_by_their_cost():
    """A wide dense layer takes the Gram block, a small convolution over many positions its gradients."""
    wide = CASES["wide dense layers"]
    assert [layer.prefers_gram_block(100) for layer in layers(wide.apply, wide.params, wide.inputs(2, 0))] == [True, True]
    small = CASES["convolution, stride and padding"]
    kernel = next(layer for layer in layers(small.apply, small.params, small.inputs(2, 0)) if isinstance(layer, Product))
    assert not kernel.prefers_gram_block(100)


@pytest.mark.parametrize(("shape", "num_projections", "num_positions", "factors", "rounds", "unformed"), [
    ((40, 16), 64, 1, 10, 1, True),  # dense, within the product
    ((40, 16), 64, 30, 10, 1, False),  # dense, after the gradients are formed
    ((2, 2, 10, 16), 9000, 9, 1, 1, False),  # a small convolution: nothing to fold
    ((2, 2, 200, 16), 9000, 9, 1, 2, False),  # convolutions: one Kronecker factor
    ((2, 2, 200, 16), 1600, 2, 6, 2, True),  # some
    ((2, 2, 200, 16), 1600, 300, 6, 2, False),
    ((2, 2, 2400, 16), 9000, 2, 1, 18, False),  # so many rounds that their sum is not unrolled
])
@pytest.mark.parametrize("num_outputs", [3, 20])
def test_each_fold_is_taken(shape, num_projections, num_positions, factors, rounds, unformed, num_outputs):
    """A product folds to the same numbers as the gradients it stands for, whichever way it goes."""
    sketch = make_projection("fold", 10**6, num_projections, jax.random.key(0))
    assert isinstance(sketch, SignFold)
    fold = sketch.fold(shape)
    assert (fold.factors, fold.rounds) == (factors, rounds)
    assert fold.moves_less_unformed(num_positions) == unformed
    num_rows = math.prod(shape[:-1])
    activations, signals = jax.random.normal(jax.random.key(1), (2, num_positions, num_rows)), jax.random.normal(jax.random.key(2), (2, num_outputs, num_positions, shape[-1]))
    formed = jnp.einsum("npk,ncpo->ncko", activations, signals, precision="highest").reshape(2 * num_outputs, *shape)
    one = sketch.add_product(sketch.start(2 * num_outputs, jnp.float32), "kernel", shape, activations, signals)
    other = sketch.add(sketch.start(2 * num_outputs, jnp.float32), "kernel", formed)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


def test_a_convolution_forms_no_grouped_convolution():
    """The point of it: the compiled block has no convolution with more groups than the network's own."""
    case = CASES["convolution, stride and padding"]
    text = str(jax.make_jaxpr(lambda params, x: structured_jacobian(case.apply, params, x))(case.params, case.inputs(3, 0)))
    assert "feature_group_count=3" not in text
    plain = str(jax.make_jaxpr(lambda params, x: jacobian_block(case.apply, params, x))(case.params, case.inputs(3, 0)))
    assert "feature_group_count=3" in plain or "batch_group_count=3" in plain
    assert "batch_group_count=3" not in text
