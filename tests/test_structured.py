"""The structured Jacobian against one output of one sample at a time, over every way parameters can
meet activations.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.projection_by_name import make_projection
from ntk_tt.jacobian.layers import Product
from ntk_tt.jacobian.network import jacobian_block
from ntk_tt.jacobian.structured import layers, structured_jacobian
from ntk_tt.kernels.empirical import empirical_ntk
from tests.networks import Case, dense_jacobian, normal


def _random(seed: int, **shapes) -> dict:
    return {
        name: normal(1000 * seed + index, *shape)
        for index, (name, shape) in enumerate(shapes.items())
    }


def _images(number: int, seed: int) -> jax.Array:
    return normal(seed, number, 6, 4, 4)


def _vectors(number: int, seed: int) -> jax.Array:
    return normal(seed, number, 5)


def _sequences(number: int, seed: int) -> jax.Array:
    return normal(seed, number, 6, 8)


def _convolution(kernel_shape, spec=("NHWC", "HWIO", "NHWC"), **options) -> Case:
    def apply(params, x):
        if spec[0] == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            dimension_numbers=spec,
            **({"window_strides": (1, 1), "padding": "SAME"} | options),
        )
        y = jnp.tanh(y + params["bias"].reshape([1, -1, 1, 1] if spec[2] == "NCHW" else [-1]))
        return jnp.stack([y.mean((1, 2, 3)), (y**2).sum((1, 2, 3)), jnp.sin(y).sum((1, 2, 3))], -1)

    return Case(
        apply, _random(1, kernel=kernel_shape, bias=(kernel_shape[spec[1].index("O")],)), _images
    )


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


def _adapted(params, x):
    """Adapters of low rank: beside a frozen matrix, alone, and where they are multiplied for
    something else than activations.
    """
    frozen = jnp.asarray(np.linspace(-1, 1, 40).reshape(5, 8), jnp.float32)
    y = jnp.tanh(x @ (frozen + 0.5 * jnp.matmul(params["a"], params["b"])))
    alone = 2.0 * (params["c"] @ params["d"])
    z = jax.jit(lambda y, w: y @ w)(y, alone) + (alone**2).mean() + y @ alone[:, ::-1]
    return z[:, :3] + y @ params["head"]


def _tables(params, x):
    """The embeddings of texts: rows read once, twice, or by a number that has none."""
    words = (3 * x[:, :, 0]).astype(int)  # from below 0 to beyond 6
    tokens = jnp.take(params["words"], words, axis=0, mode="clip")
    tokens = tokens + jnp.take(params["words"], words[:, ::-1] + 3, axis=0, fill_value=0.5)
    tokens = tokens * jnp.take(params["kinds"], jnp.zeros((1, 6), int), axis=0, mode="clip")
    tokens = tokens.at[:, :3].add(params["positions"][jnp.arange(3)])
    return jnp.tanh(tokens).sum(1) @ params["head"]


@jax.custom_jvp
def _custom(x, w):
    return x * w


@_custom.defjvp
def _custom_jvp(primals, tangents):
    # not the derivative, on purpose
    return _custom(*primals), 2 * tangents[0] * primals[1] + 3 * primals[0] * tangents[1]


def _dense_block(params, x):
    """Two growing layers whose inputs are concatenated, as in DenseNet: every kernel sees all that
    came before.
    """
    for name in ("one", "two"):
        y = jax.lax.conv_general_dilated(
            jax.nn.relu(x * params[name + "_scale"][: x.shape[-1]]),
            params[name],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.concatenate([x, y], -1)
    return x.mean((1, 2)) @ params["head"]


def _depends_on_parameters_only(params, x):
    return (
        jnp.broadcast_to(params["constant"] ** 2, (x.shape[0], 3))
        + x[:, :3] * jnp.exp(params["log_scale"]).sum()
    )


@jax.custom_vjp
def _custom_back(x, w):
    return x * w


# not the derivative, on purpose
_custom_back.defvjp(
    lambda x, w: (x * w, (x, w)), lambda kept, signal: (2 * signal * kept[1], 3 * signal * kept[0])
)


def _fourier(params, x):
    """A layer of a Fourier neural operator: complex weights of two real parameters, times a
    spectrum.
    """
    spectrum = jnp.einsum("nfi,fio->nfo", jnp.fft.rfft(x, axis=1), params["re"] + 1j * params["im"])
    return jnp.einsum("nto,to->no", jnp.tanh(jnp.fft.irfft(spectrum, n=6, axis=1)), params["out"])


def _state_space(params, x):
    """A diagonal linear recurrence with complex eigenvalues, as a parallel scan."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    eigenvalues = jnp.broadcast_to(
        jnp.exp(-jnp.exp(params["decay"]) + 1j * params["angle"]), (len(x), 6, 8)
    )
    return (
        jax.lax.associative_scan(combine, (eigenvalues, x * (1 + 0.5j)), axis=1)[1][:, -1].real
        @ params["head"]
    )


def _complex_loop(params, x):
    def step(carry, weight):
        state, count = carry
        return (jnp.exp(1j * weight) * state + 1, count + 1), state.imag

    (state, _), seen = jax.lax.scan(step, (x[:, :3].astype(jnp.complex64), 0), params["w"])
    return jnp.abs(state) + seen.sum(0)


def _complex_convolution(params, x):
    kernel = params["re"] - 1j * params["im"]
    y = jax.lax.conv_general_dilated(
        x * (1 + 0.5j), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.abs(y).mean((1, 2)) * params["scale"]


def _solved(params, x):
    matrix = params["w"].T @ params["w"] + jnp.eye(3)
    return (
        jnp.linalg.solve(matrix, x[:, :3, None])[..., 0]
        + jax.scipy.sparse.linalg.cg(lambda v: v @ matrix, x[:, :3])[0]
    )


COMPLEX = {
    "complex: a Fourier layer": Case(
        _fourier, _random(20, re=(4, 8, 3), im=(4, 8, 3), out=(6, 3)), _sequences
    ),
    "complex: a state-space layer": Case(
        _state_space, _random(23, decay=(8,), angle=(8,), head=(8, 3)), _sequences
    ),
    "complex: lax.complex, real, conj": Case(
        lambda p, x: (
            (jnp.conj(x @ jax.lax.complex(p["a"], p["b"])) * (x @ (1j * p["c"])) * (2 + 1j)).real
        ),
        _random(24, a=(5, 3), b=(5, 3), c=(5, 3)),
        _vectors,
    ),
    "complex: a phase": Case(
        lambda p, x: ((x + 1j * x[:, ::-1]) @ jnp.exp(1j * p["phase"])).imag * p["scale"],
        _random(25, phase=(5, 3), scale=(3,)),
        _vectors,
    ),
    "complex: a parameter cast": Case(
        lambda p, x: ((x * (1 + 2j)) @ p["w"].astype(jnp.complex64) * (1 - 1j)).real,
        _random(26, w=(5, 3)),
        _vectors,
    ),
    "complex: the spectrum of a parameter": Case(
        lambda p, x: (
            x
            @ jnp.fft.irfft(
                jnp.fft.rfft(p["a"], axis=0) * jnp.fft.rfft(p["b"], axis=0), n=5, axis=0
            )
        ),
        _random(27, a=(5, 3), b=(5, 3)),
        _vectors,
    ),
    "complex: a loop": Case(_complex_loop, _random(28, w=(4, 3)), _vectors),
    "complex: a branch": Case(
        lambda p, x: (
            (
                jax.lax.cond(
                    x.max() > -1e9,
                    lambda w: jnp.exp(1j * w),
                    lambda w: w.astype(jnp.complex64) * 2j,
                    p["w"],
                )
                * (x[:, :3] + 1j)
            ).imag
        ),
        _random(29, w=(3,)),
        _vectors,
    ),
    "complex: a convolution": Case(
        _complex_convolution, _random(30, re=(3, 3, 4, 3), im=(3, 3, 4, 3), scale=(3,)), _images
    ),
}
ODD = {
    "casts to whole numbers": Case(
        lambda p, x: (
            x @ (10 * p["w"]).astype(int).astype(jnp.float32)
            + (x @ p["v"]) * (p["v"][0] > 0)
            + p["v"][1].astype(int)
        ),
        _random(31, w=(5, 3), v=(5, 3)),
        _vectors,
    ),
    "stopped gradients": Case(
        lambda p, x: (
            x @ (p["w"] * jax.lax.stop_gradient(p["w"]))
            + jax.lax.stop_gradient(jnp.round(p["b"]) - p["b"])
            + p["b"]
        ),
        _random(32, w=(5, 3), b=(3,)),
        _vectors,
    ),
    "custom vjp": Case(
        lambda p, x: jax.vmap(_custom_back, (0, None))(x, p["w"])[:, :3] * p["v"],
        _random(33, w=(5,), v=(3,)),
        _vectors,
    ),
    "repeated and turned": Case(
        lambda p, x: (
            x[:, :4] @ jnp.tile(p["w"][::-1], (2, 1)) + x[:, :3] @ jnp.broadcast_to(p["b"], (3, 3))
        ),
        _random(34, w=(2, 3), b=(3,)),
        _vectors,
    ),
    "sorted, looked up and scattered": Case(
        lambda p, x: (
            jnp.sort(p["w"], 0)[:3, 0] * x[:, :3]
            + jnp.zeros((len(x), 3)).at[:, jnp.array([0, 0, 2])].add(p["b"]) * x[:, 1:4]
            + jnp.argsort(p["b"])
        ),
        _random(35, w=(5, 3), b=(3,)),
        _vectors,
    ),
    "linear solves": Case(_solved, _random(36, w=(4, 3)), _vectors),
    "random numbers that depend on a parameter": Case(
        lambda p, x: (
            x
            @ p["w"]
            * jax.random.normal(
                jax.random.fold_in(jax.random.key(0), (p["w"][0, 0] > 0).astype(int)), (3,)
            )
        ),
        _random(37, w=(5, 3)),
        _vectors,
    ),
    "an empty parameter": Case(
        lambda p, x: x @ p["w"] + x[:, :0] @ p["empty"],
        _random(38, w=(5, 3), empty=(0, 3)),
        _vectors,
    ),
    "an empty parameter that is unused": Case(
        lambda p, x: x @ p["w"], _random(39, w=(5, 3), empty=(3, 0)), _vectors
    ),
}
CASES = (
    {
        "convolution, stride and padding": _convolution(
            (3, 3, 4, 5), window_strides=(2, 1), padding=((1, 0), (2, 1))
        ),
        "convolution, dilated": _convolution((3, 2, 4, 5), rhs_dilation=(2, 1), padding="VALID"),
        "convolution, grouped": _convolution((3, 3, 2, 6), feature_group_count=2),
        "convolution, depthwise": _convolution((3, 3, 1, 8), feature_group_count=4),
        "convolution, transposed": _convolution(
            (3, 3, 4, 5), lhs_dilation=(2, 2), padding=((1, 1), (1, 1))
        ),
        "convolution, channels first": _convolution((5, 4, 3, 3), ("NCHW", "OIHW", "NCHW")),
        "convolution, negative padding": _convolution((3, 3, 4, 5), padding=((-1, 0), (0, 0))),
        "dense block": Case(
            _dense_block,
            _random(
                13, one=(3, 3, 4, 3), two=(3, 3, 7, 3), one_scale=(4,), two_scale=(7,), head=(10, 3)
            ),
            _images,
        ),
        "wide dense layers": Case(
            lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
            _random(14, a=(5, 600), b=(600, 3)),
            _vectors,
        ),
        "kernel as a matrix": Case(
            lambda p, x: (
                jnp.tanh(x.reshape(len(x), -1, 24) @ p["kernel"].reshape(24, 9)).mean(1) @ p["b"]
            ),
            _random(15, kernel=(2, 3, 4, 9), b=(9, 3)),
            _images,
        ),
        "kernel on the left": Case(
            lambda p, x: jnp.einsum("oi,nti->not", p["w"], x).sum(2) @ p["b"],
            _random(16, w=(7, 8), b=(7, 3)),
            _sequences,
        ),
        "several axes out": Case(
            lambda p, x: jnp.einsum("nti,ihd->nthd", x, p["w"]).mean(1)[:, 0] * p["v"],
            _random(17, w=(8, 2, 3), v=(3,)),
            _sequences,
        ),
        "attention and layer norm": Case(
            _attention,
            _random(2, qkv=(8, 24), out=(8, 8), head=(8, 3), scale=(8,), shift=(8,)),
            _sequences,
        ),
        "tied weights": Case(
            lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["w"],
            _random(3, w=(5, 3)),
            _vectors,
        ),
        "scan over layers": Case(_scan, _random(4, weights=(3, 5, 5), biases=(3, 5)), _vectors),
        "remat": Case(
            lambda p, x: jax.checkpoint(lambda w, z: jnp.tanh(z @ w))(p["a"], x) @ p["b"],
            _random(5, a=(5, 7), b=(7, 3)),
            _vectors,
        ),
        "jit inside": Case(
            lambda p, x: jax.jit(lambda w, z: jnp.tanh(z @ w))(p["a"].T, x) @ p["b"],
            _random(5, a=(7, 5), b=(7, 3)),
            _vectors,
        ),
        "custom jvp": Case(
            lambda p, x: _custom(x, p["w"])[:, :3] * p["v"], _random(6, w=(5,), v=(3,)), _vectors
        ),
        "embedding": Case(
            lambda p, x: p["table"][(x > 0).astype(int).sum(-1)] * p["scale"],
            _random(7, table=(6, 3), scale=(3,)),
            _vectors,
        ),
        "adapters of low rank": Case(
            _adapted,
            _random(42, a=(5, 2), b=(2, 8), c=(8, 2), d=(2, 5), head=(8, 3)),
            _vectors,
        ),
        "rows of tables, some twice, some beyond": Case(
            _tables,
            _random(41, words=(6, 4), kinds=(2, 4), positions=(3, 4), head=(4, 3)),
            _sequences,
        ),
        "functions of parameters alone": Case(
            _depends_on_parameters_only, _random(8, constant=(3,), log_scale=(2,)), _vectors
        ),
        "weight normalisation": Case(
            lambda p, x: x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"]),
            _random(9, v=(5, 3), g=(3,)),
            _vectors,
        ),
        "a parameter as the output": Case(
            lambda p, x: jnp.broadcast_to(p["bias"], (x.shape[0], 3)),
            _random(10, bias=(3,)),
            _vectors,
        ),
        "an unused parameter": Case(
            lambda p, x: x @ p["w"], _random(11, w=(5, 3), unused=(4,)), _vectors
        ),
        "cond and while": Case(
            lambda p, x: jax.lax.cond(
                x.max() > -1e9, lambda w: x @ w, lambda w: x @ (2 * w), p["w"]
            ),
            _random(12, w=(5, 3)),
            _vectors,
        ),
    }
    | COMPLEX
    | ODD
)


# rules that differ most
QUICK = (
    "convolution, grouped",
    "attention and layer norm",
    "scan over layers",
    "adapters of low rank",
    "complex: a loop",
)


@pytest.mark.slow_but("attention and layer norm", "scan over layers", "convolution, grouped")
@pytest.mark.parametrize("name", CASES)
def test_equals_one_output_at_a_time(name):
    case = CASES[name]
    x = case.inputs(3, 0)
    structured = jax.jit(lambda params, x: structured_jacobian(case.apply, params, x))(
        case.params, x
    )
    assert jax.tree.map(jnp.shape, structured) == jax.tree.map(
        lambda leaf: (3, 3, *leaf.shape), case.params
    )
    flat = np.concatenate(
        [np.asarray(leaf).reshape(3, 3, -1) for leaf in jax.tree.leaves(structured)], -1
    )
    truth = dense_jacobian(case, x)
    assert np.linalg.norm(flat - truth) <= 1e-5 * np.linalg.norm(truth)
    assert np.linalg.norm(truth) > 0
    plain = jax.jit(lambda params, x: jacobian_block(case.apply, params, x))(case.params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(truth).max()),
        structured,
        plain,
    )


@pytest.mark.slow_but("scan over layers")
@pytest.mark.parametrize("name", CASES)
def test_kernel_and_features_equal_the_plain_path(name):
    """Whatever way each layer takes: Gram block or gradients, folded before or after they are
    formed.
    """
    case = CASES[name]
    x = case.inputs(3, 0)
    gradients = dense_jacobian(case, x).reshape(9, -1)
    ntk = np.asarray(empirical_ntk(case.apply, case.params, x)).reshape(9, 9)
    assert np.linalg.norm(ntk - gradients @ gradients.T) <= 1e-5 * np.linalg.norm(
        gradients @ gradients.T
    )
    structured, plain = (
        np.asarray(
            jacobian_features(
                case.apply, case.params, x, options=FeatureOptions(num_projections=10, path=path)
            )
        )
        for path in ("structured", "plain")
    )
    assert np.linalg.norm(structured - plain) <= 1e-5 * np.linalg.norm(plain)


@pytest.mark.slow_but("8-structured", "exact-plain")
@pytest.mark.parametrize("path", ["structured", "plain"])
@pytest.mark.parametrize("num_projections", ["auto", "exact", 8])
def test_a_function_of_none_of_its_parameters_has_a_kernel_of_zeros(path, num_projections):
    params, x = _random(1, w=(5, 3), b=(3,)), _vectors(4, 0)
    features = jacobian_features(
        lambda p, x: x[:, :3],
        params,
        x,
        options=FeatureOptions(num_projections=num_projections, path=path),
    )
    assert features.shape == (4, 3, 8 if num_projections == 8 else 18)
    assert not features.any()
    np.testing.assert_array_equal(
        empirical_ntk(lambda p, x: x[:, :3], params, x, path=path), np.zeros((4, 3, 4, 3))
    )


@pytest.mark.slow_but("plain-fold", "structured-fold")
@pytest.mark.parametrize("projection", ["fold", "achlioptas", "gaussian"])
@pytest.mark.parametrize("path", ["structured", "plain"])
def test_parameters_without_numbers_change_nothing(path, projection):
    """An axis of length zero, with and without a projection."""
    case, x = CASES["an empty parameter"], _vectors(3, 0)
    alone = Case(lambda p, x: x @ p["w"], {"w": case.params["w"]}, _vectors)
    for num_projections in ("exact", 8):
        with_empty, without = (
            jacobian_features(
                each.apply,
                each.params,
                x,
                options=FeatureOptions(
                    num_projections=num_projections, projection=projection, path=path
                ),
            )
            for each in (case, alone)
        )
        np.testing.assert_allclose(with_empty, without, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="params: the arrays hold no numbers"):
        jacobian_features(
            lambda p, x: x[:, :3], {"w": jnp.zeros((0, 3))}, x, options=FeatureOptions(path=path)
        )


def _cast_through_single_precision(params, x):
    return (x.astype(jnp.float32) @ params["w"].astype(jnp.float32)).astype(x.dtype) * params[
        "scale"
    ]


def _grouped_query_attention(params, x):
    # (n, 6, heads, 2)
    queries, keys = (x[:, :, None, None] * params[name] for name in ("queries", "keys"))
    return (
        jax.nn.dot_product_attention(queries, keys, jnp.sin(keys))[:, 0].reshape(len(x), 8)
        @ params["head"]
    )


def _in_double(number: int, seed: int) -> jax.Array:
    return normal(seed, number, 6, dtype=jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("apply", "shapes"),
    [
        (_cast_through_single_precision, {"w": (6, 3), "scale": (3,)}),
        (_grouped_query_attention, {"queries": (4, 2), "keys": (2, 2), "head": (8, 3)}),
    ],
)
def test_single_precision_inside_double_is_rounding_and_no_more(apply, shapes):
    """A network of double precision that computes a part in single (as JAX's attention does its
    softmax) has gradients good to single precision, and not better by the plain path.
    """
    with jax.enable_x64(True):
        params, x = (
            jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _random(40, **shapes)),
            _in_double(3, 0),
        )
        assert "f32" in str(jax.make_jaxpr(apply)(params, x))
        truth = dense_jacobian(Case(apply, params, _in_double), x)
        found = jacobian_features(apply, params, x, options=FeatureOptions(num_projections="exact"))
        assert found.dtype == jnp.float64
        for gradients in (
            found,
            jacobian_features(
                apply, params, x, options=FeatureOptions(num_projections="exact", path="plain")
            ),
        ):
            assert np.linalg.norm(gradients - truth) < 1e-6 * np.linalg.norm(truth)


@pytest.mark.slow
def test_the_ways_to_an_inner_product_are_chosen_by_their_cost():
    """A wide dense layer takes the Gram block, a small convolution over many positions its
    gradients.
    """
    wide = CASES["wide dense layers"]
    assert [
        layer.prefers_gram_block(100)
        for layer in layers(wide.apply, wide.params, wide.inputs(2, 0))
    ] == [True, True]
    small = CASES["convolution, stride and padding"]
    kernel = next(
        layer
        for layer in layers(small.apply, small.params, small.inputs(2, 0))
        if isinstance(layer, Product)
    )
    assert not kernel.prefers_gram_block(100)


@pytest.mark.slow_but("3-shape0*", "3-shape4*")
@pytest.mark.parametrize(
    ("shape", "num_projections", "num_positions", "factors", "rounds", "unformed"),
    [
        ((40, 16), 64, 1, 10, 1, True),  # dense, within the product
        ((40, 16), 64, 30, 10, 1, False),  # dense, after the gradients are formed
        ((2, 2, 10, 16), 9000, 9, 1, 1, False),  # a small convolution: nothing to fold
        ((2, 2, 200, 16), 9000, 9, 1, 2, False),  # convolutions: one Kronecker factor
        ((2, 2, 200, 16), 1600, 2, 6, 2, True),  # some
        ((2, 2, 200, 16), 1600, 300, 6, 2, False),
        ((2, 2, 2400, 16), 9000, 2, 1, 18, False),  # so many rounds that their sum is not unrolled
    ],
)
@pytest.mark.parametrize("num_outputs", [3, 20])
def test_each_fold_is_taken(
    shape, num_projections, num_positions, factors, rounds, unformed, num_outputs
):
    """A product folds to the same numbers as the gradients it stands for, whichever way it goes."""
    sketch = make_projection("fold", 10**6, num_projections, jax.random.key(0))
    assert isinstance(sketch, CountSketch)
    fold = sketch.fold(shape)
    assert (fold.factors, fold.rounds) == (factors, rounds)
    assert fold.moves_less_unformed(num_positions) == unformed
    num_rows = math.prod(shape[:-1])
    activations, signals = (
        normal(1, 2, num_positions, num_rows),
        normal(2, 2, num_outputs, num_positions, shape[-1]),
    )
    formed = jnp.einsum("npk,ncpo->ncko", activations, signals, precision="highest").reshape(
        2 * num_outputs, *shape
    )

    @jax.jit
    def folded(activations, signals, formed):
        start = sketch.start(2 * num_outputs, jnp.float32)
        return (
            sketch.add_product(start, "kernel", shape, activations, signals),
            sketch.add(start, "kernel", formed),
        )

    one, other = folded(activations, signals, formed)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(np.abs(other).max()))


def test_a_convolution_forms_no_grouped_convolution():
    """The point of it: the compiled block has no convolution with more groups than the network's
    own.
    """
    case = CASES["convolution, stride and padding"]
    text = str(
        jax.make_jaxpr(lambda params, x: structured_jacobian(case.apply, params, x))(
            case.params, case.inputs(3, 0)
        )
    )
    assert "feature_group_count=3" not in text
    plain = str(
        jax.make_jaxpr(lambda params, x: jacobian_block(case.apply, params, x))(
            case.params, case.inputs(3, 0)
        )
    )
    assert "feature_group_count=3" in plain or "batch_group_count=3" in plain
    assert "batch_group_count=3" not in text


def _one_axis(params, x):
    """1-D convolutions with stride, dilation and uneven padding."""
    y = jax.lax.conv_general_dilated(
        x,
        params["one"],
        (2,),
        ((2, 1),),
        rhs_dilation=(2,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    return jnp.tanh(y).mean(1) @ params["head"]


ENTRIES = {
    name: CASES[name]
    for name in (
        "convolution, stride and padding",
        "convolution, dilated",
        "convolution, negative padding",
        "kernel as a matrix",
        "attention and layer norm",
        "dense block",
    )
} | {
    "convolution, stride and dilation": _convolution(
        (2, 3, 4, 5), window_strides=(2, 1), rhs_dilation=(3, 2), padding=((2, 0), (3, 1))
    ),
    "convolution of one axis": Case(_one_axis, _random(40, one=(3, 8, 6), head=(6, 3)), _sequences),
}


@pytest.mark.slow_but("convolution, dilated", "attention and layer norm")
@pytest.mark.parametrize("name", ENTRIES)
def test_single_entries_of_products_are_those_of_the_gradient(name):
    """Every entry in a random order, by the dot products alone, against one output at a time."""
    case = ENTRIES[name]
    x = case.inputs(3, 0)
    leaves = jax.tree.leaves(case.params)
    bounds = np.cumsum([0, *(leaf.size for leaf in leaves)])
    formed = set()

    @jax.jit
    def found(params, x):
        products, windows = {}, []
        for layer in layers(case.apply, params, x):
            leaf = layer.source.leaf
            if not (isinstance(layer, Product) and layer.is_leaf_matrix):
                formed.add(leaf)  # a part of its gradient is formed
                continue
            if layer.windows is not None:
                patches = layer.windows.patches().reshape(3, -1, layer.activations.shape[-1])
                rows = np.random.default_rng(0).permutation(patches.shape[-1])
                columns = layer.windows.columns(jnp.asarray(rows))
                windows.append((columns, patches.transpose(0, 2, 1)[:, rows]))
            index = np.random.default_rng(leaf).permutation(leaves[leaf].size)
            width = layer.signals.shape[-1]
            entries = layer.entries(jnp.asarray(index // width), jnp.asarray(index % width))
            products[leaf] = products.get(leaf, 0) + entries
        return products, windows

    products, windows = found(case.params, x)
    for columns, patches in windows:
        np.testing.assert_array_equal(columns, patches)
    truth, seen = dense_jacobian(case, x), 0
    for leaf in set(products) - formed:
        index = np.random.default_rng(leaf).permutation(leaves[leaf].size)
        expected = truth[..., bounds[leaf] : bounds[leaf + 1]][..., index]
        size = np.abs(expected).max()
        np.testing.assert_allclose(products[leaf], expected, rtol=1e-4, atol=1e-5 * size)
        seen += 1
    assert seen > 0
    assert any(leaves[leaf].ndim > 1 for leaf in products)


def test_adapters_meet_activations_themselves():
    """No gradient of the whole matrix: each adapter is a layer of its own."""
    frozen = jnp.asarray(np.ones((5, 8)), jnp.float32)
    params = _random(42, a=(5, 2), b=(2, 8))
    found = layers(lambda p, x: x @ (frozen + 0.5 * (p["a"] @ p["b"])), params, _vectors(3, 0))
    assert sorted(layer.signals.shape[-1] for layer in found) == [2, 8]
    assert all(isinstance(layer, Product) and layer.is_leaf_matrix for layer in found)


def test_patches_are_found_by_indices_of_either_width():
    """Where JAX computes in double precision, indices of 32 bits meet numbers of 64."""
    case = ENTRIES["convolution, stride and dilation"]
    with jax.enable_x64(True):
        x = case.inputs(2, 0)
        windows = next(
            layer.windows
            for layer in layers(case.apply, case.params, x)
            if isinstance(layer, Product) and layer.windows is not None
        )
        patches = windows.patches()
        patches = patches.reshape(2, -1, windows.padded.shape[-1] * np.prod(windows.window))
        rows = np.arange(patches.shape[-1])[::-3]
        for kind in (np.int32, np.int64):
            columns = jax.jit(windows.columns)(jnp.asarray(rows, kind))
            np.testing.assert_array_equal(columns, patches.transpose(0, 2, 1)[:, rows])
