"""The head that is found in a network's trace, against the one named by hand and real training."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ntk_tt
from examples import nnx_model
from ntk_tt.models.adapters import from_function
from ntk_tt.models.equinox_adapter import from_equinox
from ntk_tt.models.linear_head import Embeddings, Head, find_head
from ntk_tt.models.linen_adapter import from_linen
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.surrogate.expansion import expand
from tests.networks import normal

SAMPLES, INPUTS, WIDTH, CLASSES = 10, 5, 4, 3
FLAT = normal(0, SAMPLES, INPUTS)
IMAGES = normal(1, SAMPLES, 8, 8, 3)
LABELS = np.arange(SAMPLES) % CLASSES


def body(params, x):
    return jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])


def plain(*, bias=True, shape=(WIDTH, CLASSES), **more):
    return {
        "in": {"w": normal(2, INPUTS, WIDTH), "b": normal(3, WIDTH)},
        "out": {"w": normal(4, *shape)} | ({"b": normal(5, shape[-1])} if bias else {}),
        **more,
    }


def dictionary(params, x):
    return body(params, x) @ params["out"]["w"] + params["out"]["b"]


def layers(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


class Layer(NamedTuple):
    matrix: jax.Array
    offset: jax.Array


def turned(params, x):
    """(C, F) and one sample at a time, the offset first and with an axis more."""
    first, last = params

    def one(x):
        return last.offset[0] + last.matrix @ jnp.tanh(first.matrix @ x + first.offset[0])

    return jax.vmap(one)(x)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, images, train: bool):
        x = linen.Conv(WIDTH, (3, 3))(images)
        x = jax.nn.relu(linen.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        return linen.Dense(CLASSES)(linen.Dropout(0.5, deterministic=not train)(x))


class Own(nnx.Module):
    """Convolution, batch norm, global pooling, dropout; it has no `features`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, WIDTH, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.top = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.gelu(self.norm(self.conv(images))).mean((1, 2))
        return self.top(self.dropout(x))


@functools.cache
def model(name: str) -> ntk_tt.Model:
    key, key2 = jax.random.key(0), jax.random.key(1)
    match name:
        case "dict":
            return from_function(dictionary, plain())
        case "list":
            sizes = [INPUTS, WIDTH, WIDTH, CLASSES]
            params = [(normal(7 + a, a, b), normal(9, b)) for a, b in itertools.pairwise(sizes)]
            return from_function(jax.jit(layers), params)
        case "named tuple":
            params = (
                Layer(normal(2, WIDTH, INPUTS), normal(3, 1, WIDTH)),
                Layer(normal(4, CLASSES, WIDTH), normal(5, 1, CLASSES)),
            )
            return from_function(turned, params)
        case "no bias":
            return from_function(
                jax.checkpoint(lambda params, x: body(params, x) @ params["out"]["w"]),
                plain(bias=False),
            )
        case "einsum":
            return from_function(
                lambda params, x: jnp.einsum("nf,fc->nc", body(params, x), params["out"]["w"]),
                plain(bias=False),
            )
        case "one output":
            return from_function(
                lambda params, x: dictionary(params, x).squeeze(), plain(shape=(WIDTH, 1))
            )
        case "zeros, square":
            params = plain(shape=(WIDTH, WIDTH))
            return from_function(
                lambda params, x: body(params, x) @ params["out"]["w"].T + params["out"]["b"],
                params | {"out": jax.tree.map(jnp.zeros_like, params["out"])},
            )
        case "half":
            return from_function(
                lambda params, x: dictionary(params, x.astype(jnp.float16)).astype(jnp.float32),
                jax.tree.map(lambda leaf: leaf.astype(jnp.float16), plain()),
            )
        case "linear alone":
            return from_function(lambda params, x: x @ params["w"], {"w": normal(4, INPUTS, 3)})
        case "equinox":
            return from_equinox(eqx.nn.MLP(INPUTS, CLASSES, WIDTH, 2, key=key))
        case "linen":
            variables = Linen().init(key, IMAGES, train=False)
            return from_linen(Linen(), variables)
        case "nnx":
            return ntk_tt.from_nnx(Own(nnx.Rngs(0)))
        case "example":
            return ntk_tt.from_nnx(nnx_model.factory(CLASSES, key2))
    raise KeyError(name)


FOUND = {
    "dict": Head("out.w", "out.b"),
    "list": Head("2.0", "2.1"),
    "named tuple": Head("1.matrix", "1.offset", is_transposed=True),
    "no bias": Head("out.w"),
    "einsum": Head("out.w"),
    "one output": Head("out.w", "out.b"),
    "zeros, square": Head("out.w", "out.b", is_transposed=True),
    "half": Head("out.w", "out.b"),
    "linear alone": Head("w"),
    "equinox": Head("layers.2.weight", "layers.2.bias", is_transposed=True),
    "linen": Head("Dense_0.kernel", "Dense_0.bias"),
    "nnx": Head("top.kernel", "top.bias"),
    "example": Head("head.kernel", "head.bias"),
}


def inputs_of(name: str):
    return IMAGES if name in ("linen", "nnx", "example") else FLAT


@pytest.mark.slow_but("named tuple", "dict")
@pytest.mark.parametrize("name", FOUND)
def test_the_head_is_found_and_reads_the_embeddings(name):
    network, inputs = model(name), inputs_of(name)
    found = find_head(network.apply, network.params, inputs)
    assert found is not None
    head, embeddings = found
    assert head == FOUND[name]
    assert embeddings == Embeddings(network.apply, head.weight)  # so programs are shared
    # away from where it was found, for other numbers of samples, one at a time and compiled
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * normal(leaf.size, *leaf.shape, dtype=leaf.dtype), network.params
    )
    weight, bias = head.read(params, jnp.float32)

    @jax.jit
    def one(x):
        read = embeddings(params, x[None])[0].astype(jnp.float32) @ weight
        return read if bias is None else read + bias

    logits = network.apply(params, inputs[:3])
    np.testing.assert_allclose(
        jax.vmap(one)(inputs[:3]),
        logits.reshape(3, -1),
        rtol=1e-2 if name == "half" else 1e-4,
        atol=1e-2 if name == "half" else 1e-5,
    )


def tied(params, x):
    embedded = x @ params["w"]
    return jnp.tanh(embedded) @ params["w"].T


def bias_in_the_body(params, x):
    return jnp.tanh(x + params["b"]) @ params["w"] + params["b"]


@jax.custom_jvp
def clipped(logits):
    return logits


@clipped.defjvp
def _(primals, tangents):
    return primals[0], jnp.clip(tangents[0], -1, 1)


NOT_FOUND = {
    "log softmax": lambda params, x: jax.nn.log_softmax(dictionary(params, x)),
    "scaled": lambda params, x: dictionary(params, x) / 2,
    "scaled before the bias": lambda params, x: (
        body(params, x) @ params["out"]["w"] / 2 + params["out"]["b"]
    ),
    "two products": lambda params, x: dictionary(params, x) + x[:, :WIDTH] @ params["out"]["w"],
    "two biases": lambda params, x: dictionary(params, x) + params["out"]["b"],
    "no parameter": lambda params, x: body(params, x) @ np.ones((WIDTH, CLASSES), np.float32),
    "of parameters": lambda params, x: (
        body(params, x) @ (params["out"]["w"] - params["out"]["w"].mean())
    ),
    "frozen": lambda params, x: (
        body(params, x) @ jax.lax.stop_gradient(params["out"]["w"]) + params["out"]["b"]
    ),
    "derivatives of its own": lambda params, x: clipped(dictionary(params, x)),
    "in a loop": lambda params, x: jax.lax.map(lambda x: dictionary(params, x[None])[0], x),
    "input left out": lambda params, x: (
        jnp.broadcast_to(jnp.tanh(params["in"]["b"]), (len(x), WIDTH)) @ params["out"]["w"]
    ),
    "many rows a sample": lambda params, x: (
        jnp.stack([body(params, x), body(params, 2 * x)], 1) @ params["out"]["w"]
    ).reshape(len(x), -1),
    "one bias for all": lambda params, x: (
        body(params, x) @ params["out"]["w"] + params["in"]["b"][:1]
    ),
    "other orders": lambda params, x: dictionary(params, x)[:, ::-1],
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_is_no_linear_head_is_not_taken_for_one(name):
    assert find_head(NOT_FOUND[name], plain(), FLAT) is None


@pytest.mark.parametrize("apply", [tied, bias_in_the_body])
def test_a_head_that_the_body_uses_too_is_none(apply):
    params = {"w": normal(1, INPUTS, INPUTS), "b": normal(2, INPUTS)}
    assert find_head(apply, params, FLAT) is None


def test_rows_turned_around_are_no_head():
    """A reversal only moves numbers: it is the look at random numbers that tells."""

    def apply(params, x):
        return jax.lax.rev(body(params, x) @ params["out"]["w"], (1,))

    assert find_head(apply, plain(bias=False), FLAT) is None


def test_where_it_differs_with_the_number_of_samples_it_is_said():
    def apply(params, x):
        logits = dictionary(params, x)
        return logits if len(x) in (2, SAMPLES) else logits / 2

    found = find_head(apply, plain(), FLAT)
    assert found is not None
    with pytest.raises(ValueError, match=r"shape \(3, 5\).*does not end in.*'out.w'.*head=False"):
        found[1](plain(), FLAT[:3])


def exact(network, inputs, **options):
    return expand(
        network,
        inputs,
        LABELS,
        num_directions="all",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        curvature=False,
        **options,
    )


def trained(network, inputs, head, chain, num_steps):
    """An optax loop over the network whose backbone is linear and whose head is real: from
    `model.apply` alone, no code of the package.
    """
    start, structure = named_leaves(network.params), jax.tree.structure(network.params)
    backbone = {name: leaf for name, leaf in start.items() if name not in head.names}
    weight = start[head.weight]
    # with the identity for a head the logits are the embeddings
    width = weight.shape[1 if head.is_transposed else 0]

    def embeddings(backbone):
        leaves = dict(backbone)
        columns = []
        for unit in np.eye(width, dtype=np.float32):
            probe = jnp.zeros(weight.shape)
            probe = probe.at[0].set(unit) if head.is_transposed else probe.at[:, 0].set(unit)
            leaves[head.weight] = probe
            if head.bias:
                leaves[head.bias] = jnp.zeros_like(start[head.bias])
            tree = jax.tree.unflatten(structure, [leaves[name] for name in start])
            columns.append(network.apply(tree, inputs)[:, 0])
        return jnp.stack(columns, 1)

    at_start, push = jax.linearize(embeddings, backbone)

    def loss(params):
        moved = {name: params[name] - leaf for name, leaf in backbone.items()}
        matrix = params[head.weight].T if head.is_transposed else params[head.weight]
        logits = (at_start + push(moved)) @ matrix
        if head.bias:
            logits = logits + params[head.bias].reshape(-1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, slope = jax.value_and_grad(loss)(params)
            updates, state = chain.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), curve = jax.lax.scan(step, (params, chain.init(params)), length=num_steps)
        return jnp.append(curve, loss(params))

    return run(start)


@pytest.mark.slow_but("no bias")
@pytest.mark.parametrize("name", ["named tuple", "no bias", "equinox", "linen", "nnx"])
def test_replay_is_training_of_the_network_with_a_linear_backbone(name):
    network, inputs = model(name), inputs_of(name)
    problem = exact(network, inputs)
    assert problem.head == FOUND[name]
    assert problem.facts()["linear_head"] == FOUND[name].weight
    # an eps that gradients of nothing but rounding, as of a unit that is dead, do not come near
    numbers = {"eps": 1e-4, "weight_decay": 0.1}
    optimizer = ntk_tt.OptimizerConfig(0.05, name="adamw", **numbers)
    found = ntk_tt.prediction.predict(problem, optimizer, 15).loss
    expected = trained(network, inputs, FOUND[name], optax.adamw(0.05, **numbers), 15)
    assert expected[0] - expected[-1] > 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # the frozen kernel is another model: the head does matter
    frozen = ntk_tt.prediction.predict(exact(network, inputs, head=False), optimizer, 15).loss
    assert np.abs(frozen / expected - 1).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("curvature", [False, True])
def test_what_is_found_is_what_would_be_named(curvature):
    network = model("nnx")
    named = dataclasses.replace(
        network,
        head="top",
        apply_features=lambda params, x: network.apply(
            {**params, "top": {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}}, x
        ),
    )
    found, expected = (
        expand(each, IMAGES, LABELS, curvature=curvature, key=jax.random.key(3))
        for each in (network, named)
    )
    assert found.head == expected.head == Head("top.kernel", "top.bias")
    assert found.sampled == expected.sampled
    optimizer = ntk_tt.OptimizerConfig(0.05, 0.9, batch_size=4)
    losses = [ntk_tt.prediction.predict(each, optimizer, 10).loss for each in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow_but("bias")
@pytest.mark.parametrize("trainable", ["glob:conv.*", "lora:2", "bias"])
def test_a_head_that_does_not_train_as_it_is_belongs_to_the_backbone(trainable):
    network = model("nnx")
    restricted = ntk_tt.restrict(network, trainable)
    problem = exact(restricted, IMAGES)
    assert problem.head is None
    assert problem.facts()["linear_head"] is None
    expected = exact(restricted, IMAGES, head=False)
    np.testing.assert_array_equal(problem.jacobian, expected.jacobian)


@pytest.mark.slow_but("lora*")
@pytest.mark.parametrize(
    ("trainable", "prefix"), [("glob:top.*", ""), ("lora:2+glob:top.*", "trained.")]
)
def test_a_head_that_trains_is_found_in_a_restricted_network(trainable, prefix):
    """Where only it trains, the prediction is real training."""
    restricted = ntk_tt.restrict(model("nnx"), trainable)
    problem = exact(restricted, IMAGES)
    assert problem.head == Head(f"{prefix}top.kernel", f"{prefix}top.bias")
    if not prefix:
        optimizer = ntk_tt.OptimizerConfig(0.05, name="adam")
        real = ntk_tt.finetune(restricted, IMAGES, LABELS, optimizer, 10)
        np.testing.assert_allclose(
            ntk_tt.prediction.predict(problem, optimizer, 10).loss, real.loss, rtol=1e-4
        )


@pytest.mark.slow
def test_with_rounded_products_the_same_head_is_found():
    problem = expand(
        model("equinox"), FLAT, LABELS, options=ntk_tt.FeatureOptions(precision="bfloat16")
    )
    assert problem.head == FOUND["equinox"]


def test_a_name_that_is_no_linear_head_gives_way_to_what_is_found():
    network = dataclasses.replace(model("equinox"), head="layers.0")
    assert exact(network, FLAT).head == FOUND["equinox"]
