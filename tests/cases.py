"""One table of networks that feeds the tests of operators: every way in which a parameter can meet
an activation.

Each is a plain function of (params, inputs) with the shapes of its parameters and of one input;
`network` draws the numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Network(NamedTuple):
    apply: Callable
    params: Any
    inputs: jax.Array


class Entry(NamedTuple):
    apply: Callable
    shapes: dict[str, tuple[int, ...]]
    one_input: tuple[int, ...]


IMAGE, SEQUENCE, VECTOR = (6, 5, 4), (5, 8), (6,)
CASES: dict[str, Entry] = {}


def case(one_input: tuple[int, ...], **shapes: tuple[int, ...]):
    """Adds the function below it to the table; its name, with blanks, is the case's."""

    def add(function):
        CASES[function.__name__.strip("_").replace("_", " ")] = Entry(function, shapes, one_input)
        return function

    return add


def network(name: str, num_samples: int = 3, seed: int = 0, dtype: Any = jnp.float64) -> Network:
    """A case with numbers in it."""
    entry, rng = CASES[name], np.random.default_rng(17)
    params = {
        key: jnp.asarray(0.5 * rng.normal(size=shape) + (1.0 if "scale" in key else 0.0), dtype)
        for key, shape in entry.shapes.items()
    }
    return Network(
        entry.apply,
        params,
        jnp.asarray(
            np.random.default_rng(seed).normal(size=(num_samples, *entry.one_input)), dtype
        ),
    )


def _convolve(x, kernel, strides=(1, 1), padding="SAME", **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def _read(y, head):
    return jnp.tanh(y).mean((1, 2)) @ head


# Convolutions


@case(IMAGE, kernel=(3, 3, 4, 5), head=(5, 3))
def _convolution_strided(p, x):
    return _read(_convolve(x, p["kernel"], (2, 1), ((1, 0), (2, 1))), p["head"])


@case(IMAGE, kernel=(3, 2, 4, 5), head=(5, 3))
def _convolution_dilated(p, x):
    return _read(_convolve(x, p["kernel"], padding="VALID", rhs_dilation=(2, 1)), p["head"])


@case(IMAGE, kernel=(3, 3, 2, 6), bias=(6,), head=(6, 3))
def _convolution_grouped(p, x):
    return _read(_convolve(x, p["kernel"], feature_group_count=2) + p["bias"], p["head"])


@case(IMAGE, kernel=(3, 3, 1, 8), pointwise=(1, 1, 8, 3))
def _convolution_depthwise_separable(p, x):
    return jnp.tanh(
        _convolve(jnp.tanh(_convolve(x, p["kernel"], feature_group_count=4)), p["pointwise"])
    ).sum((1, 2))


@case(IMAGE, kernel=(3, 3, 4, 5), head=(5, 3))
def _convolution_transposed(p, x):
    return _read(jax.lax.conv_transpose(x, p["kernel"], (2, 2), "SAME"), p["head"])


@case(SEQUENCE, kernel=(3, 8, 3))
def _convolution_causal_in_one_dimension(p, x):
    y = jax.lax.conv_general_dilated(
        x, p["kernel"], (1,), ((2, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jnp.tanh(y).sum(1)


@case((3, 4, 3, 2), kernel=(2, 2, 2, 2, 3))
def _convolution_in_three_dimensions(p, x):
    y = jax.lax.conv_general_dilated(
        x, p["kernel"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return jnp.tanh(y).sum((1, 2, 3))


@case(IMAGE, kernel=(3, 3, 4, 6), scale=(6,), head=(6, 3))
def _weight_standardisation(p, x):
    kernel = p["kernel"] - p["kernel"].mean((0, 1, 2))
    kernel = kernel / jnp.sqrt(jnp.square(kernel).mean((0, 1, 2)) + 1e-5) * p["scale"]
    return _read(_convolve(x, kernel), p["head"])


@case(IMAGE, kernel=(3, 3, 4, 4), head=(4, 3))
def _convolution_used_twice(p, x):
    return _read(_convolve(jnp.tanh(_convolve(x, p["kernel"])), p["kernel"]), p["head"])


@case(IMAGE, one=(3, 3, 4, 4), two=(3, 3, 8, 3))
def _skip_and_concatenation_and_pool(p, x):
    y = jnp.concatenate([x, x + jnp.tanh(_convolve(x, p["one"]))], -1)
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.tanh(_convolve(y, p["two"])).mean((1, 2))


# Attention and sequences


def _heads(z, weight, count):
    y = z @ weight
    return y.reshape(*y.shape[:2], count, -1)


@case(SEQUENCE, q=(8, 8), k=(8, 8), v=(8, 8), out=(8, 3))
def _attention_with_a_causal_mask(p, x):
    q, k, v = (_heads(x, p[name], 2) for name in "qkv")
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / 2
    scores = jnp.where(np.tril(np.ones((5, 5), bool)), scores, -1e9)
    y = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
    return y.reshape(*y.shape[:2], -1).mean(1) @ p["out"]


@case(SEQUENCE, q=(8, 8), k=(8, 4), v=(8, 4), out=(8, 3))
def _attention_of_grouped_queries(p, x):
    y = jax.nn.dot_product_attention(
        _heads(x, p["q"], 4), _heads(x, p["k"], 2), _heads(x, p["v"], 2)
    )
    return y.reshape(*y.shape[:2], -1).mean(1) @ p["out"]


@case(SEQUENCE, q=(8, 8), k=(8, 8), v=(8, 3))
def _attention_with_rotations(p, x):
    angle = np.arange(5)[:, None] * np.array([1.0, 0.3, 0.1, 0.03])

    def turn(z):
        a, b = z[..., :4], z[..., 4:]
        return jnp.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1
        )

    weights = jax.nn.softmax(turn(x @ p["q"]) @ turn(x @ p["k"]).swapaxes(1, 2))
    return (weights @ (x @ p["v"])).mean(1)


@case(SEQUENCE, token=(1, 8), position=(6, 8), w=(8, 8), head=(8, 3))
def _class_token_and_positions(p, x):
    z = jnp.concatenate([jnp.broadcast_to(p["token"], (len(x), 1, 8)), x], 1) + p["position"]
    return (z + jax.nn.softmax(z @ z.swapaxes(1, 2)) @ z @ p["w"])[:, 0] @ p["head"]


@case(SEQUENCE, w=(8, 4), u=(4, 4), b=(4,), head=(4, 3))
def _recurrent_network_by_scan(p, x):
    def step(state, now):
        return jnp.tanh(now @ p["w"] + state @ p["u"] + p["b"]), None

    return jax.lax.scan(step, jnp.zeros((len(x), 4), x.dtype), x.swapaxes(0, 1))[0] @ p["head"]


@case(SEQUENCE, w=(8, 12), u=(4, 12), head=(4, 3))
def _gated_recurrent_unit(p, x):
    def step(state, now):
        a, b = now @ p["w"], state @ p["u"]
        reset, update = jax.nn.sigmoid(a[:, :4] + b[:, :4]), jax.nn.sigmoid(a[:, 4:8] + b[:, 4:8])
        return update * state + (1 - update) * jnp.tanh(a[:, 8:] + reset * b[:, 8:]), None

    return jax.lax.scan(step, jnp.zeros((len(x), 4), x.dtype), x.swapaxes(0, 1))[0] @ p["head"]


@case(VECTOR, weights=(3, 6, 6), biases=(3, 6))
def _scan_over_layers(p, x):
    return jax.lax.scan(
        lambda z, now: (jnp.tanh(z @ now[0] + now[1]), None), x, (p["weights"], p["biases"])
    )[0][:, :3]


@case(VECTOR, w=(6, 6), head=(6, 3))
def _fori_loop_of_one_layer(p, x):
    return jax.lax.fori_loop(0, 3, lambda _, z: jnp.tanh(z @ p["w"]), x) @ p["head"]


@case(SEQUENCE, decay=(8,), w=(8, 3))
def _associative_scan(p, x):
    rate = jax.nn.sigmoid(p["decay"])
    a, b = jnp.broadcast_to(rate, x.shape), x
    _, y = jax.lax.associative_scan(
        lambda one, two: (one[0] * two[0], one[1] * two[0] + two[1]), (a, b), axis=1
    )
    return y[:, -1] @ p["w"]


# Tables, ties and norms


@case(VECTOR, table=(7, 4), w=(4, 3))
def _embedding(p, x):
    return jnp.tanh(p["table"][(x > 0).astype(int).sum(-1)] + p["table"][0]) @ p["w"]


@case(VECTOR, table=(7, 5), w=(5, 5))
def _embedding_tied_to_the_head(p, x):
    tokens = (x > 0).astype(int).cumsum(-1)
    return jnp.tanh(p["table"][tokens] @ p["w"]).mean(1) @ p["table"][:3].T


@case(VECTOR, w=(6, 4))
def _auto_encoder_with_tied_weights(p, x):
    return (jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["w"])[:, :3]


@case(VECTOR, w=(6, 3))
def _parameter_in_different_roles(p, x):
    return (
        jnp.tanh(x @ p["w"]) * p["w"][0] + jnp.square(p["w"]).sum(0) + x[:, :3] * jnp.exp(p["w"][1])
    )


@case(SEQUENCE, scale=(8,), shift=(8,), w=(8, 3))
def _layer_norm(p, x):
    z = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * p[
        "scale"
    ] + p["shift"]
    return jnp.tanh(z @ p["w"]).sum(1)


@case(IMAGE, kernel=(1, 1, 4, 6), scale=(6,), shift=(6,), w=(6, 3))
def _group_norm(p, x):
    y = _convolve(x, p["kernel"])
    grouped = y.reshape(*y.shape[:3], 2, 3)
    grouped = (grouped - grouped.mean((1, 2, 4), keepdims=True)) * jax.lax.rsqrt(
        grouped.var((1, 2, 4), keepdims=True) + 1e-5
    )
    return _read(grouped.reshape(y.shape) * p["scale"] + p["shift"], p["w"])


@case(IMAGE, kernel=(3, 3, 4, 5), scale=(5,), shift=(5,), w=(5, 3))
def _batch_norm_frozen(p, x):
    y = (_convolve(x, p["kernel"]) - np.linspace(-0.2, 0.3, 5)) / np.sqrt(
        np.linspace(0.5, 1.5, 5) + 1e-5
    )
    return _read(y * p["scale"] + p["shift"], p["w"])


@case(VECTOR, v=(6, 3), g=(3,))
def _weight_norm(p, x):
    return x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"])


@case(VECTOR, w=(6, 5), head=(5, 3))
def _spectral_norm(p, x):
    u, v = jnp.ones(6, x.dtype), jnp.zeros(5, x.dtype)
    for _ in range(3):
        v = p["w"].T @ u
        v = v / jnp.linalg.norm(v)
        u = p["w"] @ v
        u = u / jnp.linalg.norm(u)
    return (
        jnp.tanh(x @ (p["w"] / (jax.lax.stop_gradient(u) @ p["w"] @ jax.lax.stop_gradient(v))))
        @ p["head"]
    )


@case(VECTOR, a=(6, 2), b=(2, 5), head=(5, 3))
def _low_rank_update_of_a_frozen_matrix(p, x):
    frozen = np.random.default_rng(1).normal(size=(6, 5))
    return jnp.tanh(x @ (frozen + 0.5 * p["a"] @ p["b"])) @ p["head"]


# Contractions


@case(SEQUENCE, w=(8, 2, 3), v=(3, 2, 3))
def _einsum_with_several_axes(p, x):
    return jnp.einsum("nthd,dhc->nc", jnp.tanh(jnp.einsum("nti,ihd->nthd", x, p["w"])), p["v"])


@case(SEQUENCE, w=(7, 8), v=(7, 3))
def _einsum_with_the_kernel_first(p, x):
    return jnp.tanh(jnp.einsum("oi,nti->not", p["w"], x)).sum(2) @ p["v"]


@case(SEQUENCE, w=(5, 8, 3))
def _einsum_with_a_kernel_a_position(p, x):
    return jnp.tanh(jnp.einsum("nti,tio->nto", x, p["w"])).sum(1)


@case(VECTOR, w=(6, 6, 3))
def _bilinear_form(p, x):
    return jnp.einsum("ni,ijc,nj->nc", x, p["w"], jnp.tanh(x))


@case(SEQUENCE, up=(4, 8, 5), down=(4, 5, 3), gate=(8, 4))
def _mixture_of_experts(p, x):
    gate = jax.nn.softmax(x @ p["gate"])
    return jnp.einsum(
        "ntec,nte->nc",
        jnp.einsum("nteo,eoc->ntec", jnp.tanh(jnp.einsum("nti,eio->nteo", x, p["up"])), p["down"]),
        gate,
    )


# Complex numbers


@case(SEQUENCE, real=(3, 8), imaginary=(3, 8), w=(8, 3))
def _fourier_layer(p, x):
    y = jnp.fft.irfft(
        jnp.fft.rfft(x, axis=1) * jax.lax.complex(p["real"], p["imaginary"]), n=5, axis=1
    )
    return jnp.tanh(y).mean(1) @ p["w"]


@case(VECTOR, phase=(6,), w=(6, 3))
def _phases(p, x):
    return jnp.abs((x * jnp.exp(1j * p["phase"])) @ p["w"].astype(complex) + 0.3)


@case(VECTOR, kernel=(6,), w=(6, 3))
def _circular_convolution_by_fft(p, x):
    return jnp.tanh(jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(p["kernel"])).real) @ p["w"]


# Transformations and control


@case(VECTOR, a=(6, 7), b=(7, 3))
def _remat(p, x):
    return jax.checkpoint(lambda w, z: jnp.tanh(z @ w))(p["a"], x) @ p["b"]


@case(VECTOR, a=(7, 6), b=(7, 3))
def _jit_within(p, x):
    return jax.jit(lambda w, z: jnp.tanh(z @ w))(p["a"].T, x) @ p["b"]


@case(SEQUENCE, a=(8, 4), b=(4, 3))
def _vmap_within(p, x):
    return jax.vmap(
        lambda one: jax.vmap(lambda token: jnp.tanh(token @ p["a"]))(one).sum(0) @ p["b"]
    )(x)


@case(VECTOR, a=(2, 6, 4), b=(4, 3))
def _vmap_over_parameters(p, x):
    return jax.vmap(lambda w: jnp.tanh(x @ w))(p["a"]).prod(0) @ p["b"]


@jax.custom_vjp
def _round_through(w):
    return jnp.round(4 * w) / 4


_round_through.defvjp(lambda w: (_round_through(w), None), lambda _, g: (g,))


@case(VECTOR, a=(6, 5), b=(5, 3))
def _rounded_weights_with_a_straight_gradient(p, x):
    return jnp.tanh(x @ _round_through(p["a"])) @ p["b"]


@jax.custom_jvp
def _swish(x, slope):
    return x * jax.nn.sigmoid(slope * x)


@_swish.defjvp
def _swish_jvp(primals, tangents):
    # not the derivative, on purpose
    return _swish(*primals), tangents[0] * primals[1] + 3 * tangents[1] * primals[0]


@case(VECTOR, a=(6, 5), slope=(5,), b=(5, 3))
def _activation_with_its_own_rule(p, x):
    return _swish(x @ p["a"], p["slope"]) @ p["b"]


@case(VECTOR, a=(6, 3), b=(3,))
def _cond_on_a_parameter(p, x):
    return (
        jax.lax.cond(p["b"].sum() > 0, lambda w: x @ w, lambda w: jnp.sin(x @ w), p["a"]) + p["b"]
    )


@case(VECTOR, a=(6, 3), b=(6, 3))
def _choice_a_sample(p, x):
    return jnp.where(x[:, :1] > 0, x @ p["a"], jnp.tanh(x @ p["b"]))


@case(VECTOR, a=(6, 4), b=(4, 3))
def _gradient_stopped_in_part(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"] + jax.lax.stop_gradient(x @ p["a"])[:, :3]


@case(VECTOR, w=(6, 5), matrix=(3, 3))
def _inverse_of_a_parameter(p, x):
    return jnp.tanh(x @ p["w"])[:, :3] @ jnp.linalg.inv(p["matrix"] + 3 * jnp.eye(3, dtype=x.dtype))


@case(VECTOR, w=(5, 3), order=(5,))
def _sorted_and_gathered(p, x):
    return jnp.sort(x[:, :5] * p["order"], -1) @ p["w"] + jax.lax.top_k(p["order"], 3)[0]


# Edges


@case(VECTOR, w=(6, 1))
def _one_output(p, x):
    return jnp.tanh(x @ p["w"])


@case(VECTOR, w=(6, 3), empty=(0, 4))
def _parameter_without_numbers(p, x):
    return x @ p["w"] + p["empty"].sum()


@case(VECTOR, w=(6, 3), unused=(4, 2))
def _unused_parameter(p, x):
    return x @ p["w"]


@case(VECTOR, w=(6, 3))
def _parameters_without_influence(p, x):
    return x[:, :3]


@case(VECTOR, w=(6, 3), steps=(3,))
def _parameter_through_a_cast_to_integers(p, x):
    return x @ p["w"] + (10 * p["steps"]).astype(int) + p["steps"]


@case(VECTOR, w=(6, 3), bias=())
def _scalar_parameter(p, x):
    return jnp.tanh(x @ p["w"] * p["bias"]) + p["bias"] ** 2


@case(VECTOR, bias=(3,))
def _parameter_as_the_output(p, x):
    return jnp.broadcast_to(p["bias"], (len(x), 3))
