"""The small network of sampled parameters, against training in weight space and dense kernels."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import ntk_tt
from ntk_tt import losses
from ntk_tt.dynamics import replay, states_along
from ntk_tt.dynamics.optimizer_replay import own_way
from ntk_tt.models.linear_head import Head
from ntk_tt.prediction.margin import predicted_path
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.schedules import named_schedule
from ntk_tt.surrogate import backbone
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.second_point import ANCHOR_FALL, path_to
from tests.networks import Case, dense_jacobian, normal

SAMPLES, INPUTS, FEATURES, CLASSES = 12, 5, 6, 3
HEAD = Head("head.kernel", "head.bias")
ENTRIES = INPUTS * FEATURES + FEATURES  # of the backbone
NUM_STEPS = 20


def _linear(x):
    return x


class Network(nnx.Module):
    """φ = activation(x A + a), f = φ W + b."""

    def __init__(self, activation, num_features, rngs):
        self.first = nnx.Linear(INPUTS, num_features, rngs=rngs)
        self.head = nnx.Linear(num_features, CLASSES, rngs=rngs)
        self.activation = activation

    def features(self, x):
        return self.activation(self.first(x))

    def __call__(self, x):
        return self.head(self.features(x))


@functools.cache
def network(activation=jnp.tanh, num_features=FEATURES):
    return ntk_tt.from_nnx(
        Network(activation, num_features, nnx.Rngs(0)), head="head", num_classes=CLASSES
    )


@pytest.mark.parametrize(("gain", "least", "most"), [(100, 0.999, 1), (0.01, 0, 0.99)])
def test_directions_are_of_the_head_as_far_as_it_turns_while_the_rest_trains(gain, least, most):
    """Inputs times a gain, and weights over it: the same outputs, and another backbone's gradient.
    Where the backbone learns all, the head stays as it is, and its columns are the directions;
    where the head learns all, it turns.
    """
    model = network(_linear)
    first = model.params["first"]
    params = {**model.params, "first": {**first, "kernel": first["kernel"] / gain}}
    inputs = gain * np.asarray(normal(3, SAMPLES, INPUTS))
    small = expand(
        dataclasses.replace(model, params=params),
        inputs,
        np.arange(SAMPLES) % CLASSES,
        curvature=False,
        num_directions=CLASSES - 1,
    )
    weight = np.asarray(model.params["head"]["kernel"])
    span = np.linalg.svd(weight - weight.mean(1, keepdims=True))[0][:, : CLASSES - 1]
    overlap = np.linalg.svd(np.asarray(small.directions[0]) @ span, compute_uv=False)
    assert least <= overlap.min() <= most + 1e-5


@pytest.fixture
def data():
    inputs, labels = jax.random.split(jax.random.key(1))
    return jax.random.normal(inputs, (SAMPLES, INPUTS)), np.asarray(
        jax.random.randint(labels, (SAMPLES,), 0, CLASSES)
    )


def full(model, data, *, number: int | str = "exact", **options):
    """Every output of every sample, and all the parameters unless a number is given."""
    return expand(
        model,
        *data,
        num_directions="all",
        options=ntk_tt.FeatureOptions(num_projections=number),
        **options,
    )


def linearized_logits(model, inputs, with_head):
    """params -> f of the network that is linear in its backbone, or in all its parameters."""
    start = model.params
    if not with_head:
        logits, push = jax.linearize(lambda params: model.apply(params, inputs), start)
        return lambda params: logits + push(jax.tree.map(jnp.subtract, params, start))
    backbone = {name: part for name, part in start.items() if name != "head"}
    features, push = jax.linearize(
        lambda part: model.apply_features({**part, "head": start["head"]}, inputs), backbone
    )

    def logits_of(params):
        moved = {
            name: jax.tree.map(jnp.subtract, params[name], backbone[name]) for name in backbone
        }
        return (features + push(moved)) @ params["head"]["kernel"] + params["head"]["bias"]

    return logits_of


def mean_loss(logits_of, labels):
    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_of(params)[batch], jnp.asarray(labels)[batch]
        ).mean()

    return loss


def trained(loss, params, chain, batches):
    """The curve of a plain optax loop, and what it ends with: no code of the package's dynamics."""

    @jax.jit
    def start(params):
        return chain.init(params), loss(params, np.arange(SAMPLES))

    @jax.jit
    def step(params, state, batch):
        updates, state = chain.update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, loss(params, np.arange(SAMPLES))

    state, first = start(params)
    curve = [first]
    for batch in np.asarray(batches):
        params, state, now = step(params, state, batch)
        curve.append(now)
    return np.asarray(curve), params, state


def _layer(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)


def _matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


_COSINE = named_schedule("cosine", 0.3, NUM_STEPS)
_WARM = named_schedule("constant", 0.03, NUM_STEPS, warmup_steps=5)
# a setting of the package, and the optax chain that it stands for
CHAINS = {
    "sgd": (
        ntk_tt.OptimizerConfig(_COSINE, 0.9, nesterov=True, weight_decay=0.01),
        optax.chain(optax.add_decayed_weights(0.01), optax.sgd(_COSINE, 0.9, nesterov=True)),
    ),
    "adamw": (
        ntk_tt.OptimizerConfig(_WARM, name="adamw", weight_decay=0.05),
        optax.adamw(_WARM, weight_decay=0.05),
    ),
    "lion": (
        ntk_tt.OptimizerConfig(0.01, name="lion", weight_decay=0.1),
        optax.lion(0.01, weight_decay=0.1),
    ),
    "clipped": (
        ntk_tt.OptimizerConfig(0.05, name="adam", clip_norm=0.3),
        optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.05)),
    ),
} | {
    name: (ntk_tt.OptimizerConfig.of(chain), chain)
    for name, chain in {
        "by layer": optax.multi_transform(
            {
                "first": optax.adamw(0.02, weight_decay=0.1, mask=_matrices),
                "head": optax.sgd(0.1, momentum=0.9),
            },
            _layer,
        ),
        "chain": optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.05)),
        "gathered": optax.MultiSteps(optax.adam(0.05), 2),
    }.items()
}


@functools.cache
def _whole(with_head):
    """One for all chains: its programs are compiled once."""
    model = network()
    inputs, labels = jax.random.split(jax.random.key(1))
    inputs = jax.random.normal(inputs, (SAMPLES, INPUTS))
    labels = np.asarray(jax.random.randint(labels, (SAMPLES,), 0, CLASSES))
    problem = full(model, (inputs, labels), head=with_head, curvature=False)
    return problem, mean_loss(linearized_logits(model, inputs, with_head), labels)


@pytest.mark.slow_but("clipped-no head")
@pytest.mark.parametrize("with_head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("name", CHAINS)
def test_replay_is_training_of_the_linearised_network_in_weight_space(name, with_head):
    optimizer, chain = CHAINS[name]
    problem, loss = _whole(with_head)
    assert problem.num_projections is None
    assert problem.head == (HEAD if with_head else None)
    batches = np.random.default_rng(3).integers(0, SAMPLES, (NUM_STEPS, 5))
    found = replay(problem, optimizer, NUM_STEPS, batches=batches)
    expected, _, _ = trained(loss, network().params, chain, batches)
    assert expected[0] - expected[-1] > 0.05
    np.testing.assert_allclose(found.loss, expected, rtol=2e-5)


@pytest.mark.slow_but("sgd")
@pytest.mark.parametrize(
    "optimizer",
    [
        ntk_tt.OptimizerConfig(0.2, 0.9, nesterov=True, weight_decay=0.1),
        ntk_tt.OptimizerConfig(0.02, name="adamw", weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_prediction_is_real_training_where_the_backbone_is_linear(data, optimizer):
    model = network(activation=_linear)
    real = ntk_tt.finetune(model, *data, optimizer, 30)
    head, frozen = (
        ntk_tt.prediction.predict(full(model, data, head=head, curvature=False), optimizer, 30).loss
        for head in (True, False)
    )
    np.testing.assert_allclose(head, real.loss, rtol=1e-4)
    assert abs(frozen[-1] / real.loss[-1] - 1) > 0.01  # a frozen kernel is another model


@pytest.mark.slow
def test_training_goes_on_from_the_optimisers_own_state(data):
    """Where the backbone is linear the second half is that of real training, moments and schedule
    and all.
    """
    model = network(activation=_linear)
    rates = named_schedule("cosine", 0.05, NUM_STEPS)
    chain = optax.MultiSteps(optax.adamw(rates, weight_decay=0.1), 2)
    loss = mean_loss(lambda params: model.apply(params, data[0]), data[1])
    batches, half = np.arange(SAMPLES)[None].repeat(NUM_STEPS, 0), NUM_STEPS // 2 + 1
    expected, _, _ = trained(loss, model.params, chain, batches)
    _, params, state = trained(loss, model.params, chain, batches[:half])
    problem = full(dataclasses.replace(model, params=params), data, curvature=False)
    setting = ntk_tt.OptimizerConfig.of(chain)

    def goes_on(state):
        # the package multiplies a chain by a schedule of its own, which counts steps too
        started: Any = setting.chain(NUM_STEPS).init(params)
        whole = (state, started[1])
        return replay(
            problem,
            setting,
            NUM_STEPS - half,
            optimizer_state=problem.of_optimizer(whole, params),
            steps_before=half,
        ).loss

    np.testing.assert_allclose(goes_on(state), expected[half:], rtol=1e-4)
    fresh = goes_on(chain.init(params))
    assert np.abs(fresh - expected[half:]).max() > 1e-3


@pytest.mark.slow_but("block rms")
@pytest.mark.parametrize(
    ("chain", "parameter"),
    [
        (optax.lamb(0.01), "first.bias"),
        (optax.contrib.muon(0.01), "first.kernel"),
        (optax.adafactor(0.01), "first.bias"),
        (optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)), "first.bias"),
        (optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)), "first.kernel"),
    ],
    ids=["lamb", "muon", "adafactor", "block rms", "adaptive clipping"],
)
def test_an_optimiser_that_mixes_entries_is_refused_in_one_line(chain, parameter):
    problem, _ = _whole(True)
    with pytest.raises(
        ValueError, match=rf"optimizer: the chain mixes the entries of '{parameter}'"
    ) as raised:
        replay(problem, ntk_tt.OptimizerConfig.of(chain), 3)
    assert "\n" not in str(raised.value)


@pytest.mark.slow_but("gathered", "masked")
@pytest.mark.parametrize(
    "chain",
    [
        optax.adamw(0.01, weight_decay=0.1),
        optax.lion(0.01),
        optax.chain(optax.masked(optax.clip(0.01), _matrices), optax.sgd(0.1)),
        optax.MultiSteps(optax.rmsprop(0.01), 2),
    ],
    ids=["adamw", "lion", "masked", "gathered"],
)
def test_an_optimiser_that_treats_each_entry_alone_is_carried(chain):
    problem, _ = _whole(True)
    loss = replay(problem, ntk_tt.OptimizerConfig.of(chain), 6).loss
    assert loss[-1] < loss[0]


@pytest.mark.slow_but("head")
@pytest.mark.parametrize("with_head", [True, False], ids=["head", "no head"])
def test_sampled_entries_have_their_own_gradients_and_the_norm_is_that_of_all(data, with_head):
    model = network()
    problem = full(model, data, number=ENTRIES // 2, head=with_head, curvature=False)
    assert problem.num_projections is not None
    assert 0.4 * ENTRIES < problem.num_projections < 0.6 * ENTRIES
    assert problem.num_projections == len(problem.weights) == problem.jacobian.shape[-1]
    loss = mean_loss(linearized_logits(model, data[0], with_head), data[1])
    slope = named_leaves(jax.jit(jax.grad(loss))(model.params, np.arange(SAMPLES)))
    gradient = eqx.filter_jit(problem.gradient)(problem.zero())
    found, squares, start = jax.tree.map(np.asarray, named_leaves(gradient)), 0.0, 0
    for each in problem.sampled:
        expected = np.asarray(slope[each.name]).ravel()[problem.entries[each.name]]
        mine = found[each.name].ravel()
        np.testing.assert_allclose(mine[: each.size], expected, rtol=1e-4, atol=1e-7)
        weights = np.asarray(problem.weights)[start : start + each.size]
        start += each.size
        # what clipping goes by: each entry's square as often as it stands for one
        squares += weights @ expected**2
        np.testing.assert_allclose(np.linalg.norm(mine) ** 2, weights @ expected**2, rtol=1e-4)
        np.testing.assert_allclose(
            np.linalg.norm(np.ravel(named_leaves(problem.params)[each.name])),
            np.linalg.norm(np.ravel(named_leaves(model.params)[each.name])),
            rtol=1e-5,
        )
    whole = {name for name in slope if with_head and name.startswith("head.")}
    for name in whole:
        np.testing.assert_allclose(found[name], slope[name], rtol=1e-4, atol=1e-7)
        squares += np.square(slope[name]).sum()
    assert len(whole) == 2 * with_head
    np.testing.assert_allclose(optax.global_norm(gradient), np.sqrt(squares), rtol=1e-5)
    # so a step of a clipped chain is the gradient over that norm
    clip = optax.clip_by_global_norm(0.01)
    updates, _ = jax.jit(clip.update)(gradient, clip.init(gradient))
    np.testing.assert_allclose(
        named_leaves(updates)["first.kernel"],
        0.01 / np.sqrt(squares) * found["first.kernel"],
        rtol=1e-5,
    )


ORDERS = ["a list of twelve layers", "a module of Equinox"]


class Reversed(eqx.Module):
    """Its tree has the names in the order of the fields: later, earlier."""

    later: eqx.nn.Linear
    earlier: eqx.nn.Linear

    def __call__(self, x):
        return self.later(jnp.tanh(self.earlier(x)))


def _of_another_order(name):
    """A network whose tree does not have its parameters in the order of their names, and whose
    first parameter by name is not like the others.
    """
    keys = jax.random.split(jax.random.key(3), 12)
    if name == ORDERS[1]:
        module = Reversed(
            eqx.nn.Linear(FEATURES, CLASSES, key=keys[0]),
            eqx.nn.Linear(INPUTS, FEATURES, key=keys[1]),
        )
        return ntk_tt.from_equinox(module, num_classes=CLASSES)
    sizes = [INPUTS, *[FEATURES] * 11, CLASSES]
    params = [
        normal(index, *shape) * 1.5 / np.sqrt(shape[0])
        for index, shape in enumerate(itertools.pairwise(sizes))
    ]

    def apply(params, x):
        for weight in params[:-1]:
            x = jnp.tanh(x @ weight)
        return x @ params[-1]

    return ntk_tt.Model(params, apply, num_classes=CLASSES)


@pytest.mark.slow_but("40-a module of Equinox")
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("number", ["exact", 40])
def test_derivatives_go_to_their_parameters_whatever_the_order_of_names(data, name, number):
    model = _of_another_order(name)
    problem = full(model, data, number=number, head=False, curvature=False)
    logits = linearized_logits(model, data[0], False)
    slope = named_leaves(
        jax.jit(jax.grad(mean_loss(logits, data[1])))(model.params, np.arange(SAMPLES))
    )
    assert list(slope) != sorted(slope)
    found = named_leaves(eqx.filter_jit(problem.gradient)(problem.zero()))
    for each in problem.sampled:
        expected = np.asarray(slope[each.name]).ravel()[problem.entries[each.name]]
        mine = np.asarray(found[each.name]).ravel()[: each.size]
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_derivatives_of_another_parameter_are_refused(data, monkeypatch):
    """A planted fault, that of a sample taken apart in another order than it was put together."""
    right = backbone.Backbone.leaves.fget

    def turned(self):
        return dict(reversed(right(self).items()))

    monkeypatch.setattr(backbone.Backbone, "leaves", property(turned))
    with pytest.raises(ValueError, match="sampled derivatives of"):
        full(_of_another_order(ORDERS[0]), data, head=False, curvature=False)


def _positive(tree):
    """A tree of the same shapes with random numbers above 0."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure,
        [
            jnp.asarray(0.2 + np.abs(normal(20 + index, *leaf.shape)))
            for index, leaf in enumerate(leaves)
        ],
    )


@pytest.mark.parametrize("with_head", [True, False], ids=["head", "no head"])
def test_tangent_is_the_dense_kernel(data, with_head):
    model = network()
    problem, _ = _whole(with_head)
    jacobian = dense_jacobian(Case(model.apply, model.params, lambda *_: data[0]), data[0])
    vector, rows = normal(5, SAMPLES, CLASSES), np.asarray([3, 1])
    for scale in (None, _positive(model.params)):
        factors = 1.0 if scale is None else jax.flatten_util.ravel_pytree(scale)[0]
        ntk = np.einsum("iad,jbd->iajb", jacobian * np.asarray(factors), jacobian)

        @eqx.filter_jit
        def found(problem, scale):
            kernel = problem.tangent(problem.zero(), scale).kernel
            of_rows = kernel.push_rows(kernel.pull_rows(vector[:2], rows), rows)
            return kernel.product(vector), kernel.diagonal_blocks(), of_rows

        for one, other in zip(
            found(problem, scale),
            (
                np.einsum("iajb,jb->ia", ntk, vector),
                np.einsum("iaib->iab", ntk),
                np.einsum("iajb,jb->ia", ntk[rows][:, :, rows], vector[:2]),
            ),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["exact", ENTRIES // 2])
def test_tangent_on_the_way_is_the_derivative_of_the_logits(data, number):
    problem = full(network(activation=jnp.square), data, number=number)
    state = states_along(
        problem, ntk_tt.OptimizerConfig(0.1, momentum=0.5, weight_decay=0.01), 25, 6
    )[-1][0]
    assert problem.bend is not None
    assert 0 < float(problem.bend.share(problem.moved(state))) < 2
    rows = jax.tree.leaves(jax.jit(jax.jacrev(problem.logits))(state))
    # an entry of the sample stands for so many: what moves all alike is divided among them
    stands = dict(
        zip(
            problem.entries,
            np.split(problem.weights, np.cumsum([each.size for each in problem.sampled])[:-1]),
            strict=True,
        )
    )

    @eqx.filter_jit
    def products_and_blocks(problem, state, scale):
        kernel = problem.tangent(state, scale).kernel
        each = jnp.eye(SAMPLES * CLASSES).reshape(SAMPLES, CLASSES, SAMPLES, CLASSES)
        return jax.vmap(jax.vmap(kernel.product))(each), kernel.diagonal_blocks()

    for scale in (jax.tree.map(np.ones_like, state), _positive(state)):
        dense = 0.0
        for (name, factor), row in zip(named_leaves(scale).items(), rows, strict=True):
            row, factor = np.asarray(row).reshape(SAMPLES, CLASSES, -1), np.ravel(factor)
            if name in stands:
                if number != "exact":
                    np.testing.assert_array_equal(row[..., -1], 0)  # the one for the rest
                size = len(stands[name])
                row, factor = row[..., :size], factor[:size] / stands[name]
            dense = dense + np.einsum("iad,d,jbd->iajb", row, factor, row)
        found, blocks = products_and_blocks(problem, state, scale)
        near = {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(dense).max())}
        np.testing.assert_allclose(found, dense, **near)
        np.testing.assert_allclose(blocks, np.einsum("iaib->iab", dense), **near)
    np.testing.assert_allclose(
        eqx.filter_jit(problem.tangent)(state).initial_logits,
        eqx.filter_jit(problem.logits)(state),
        rtol=1e-5,
        atol=1e-5,
    )


def _squares():
    """A network without any head that is quadratic in its weights."""
    params = {"w": 0.5 * normal(4, INPUTS, CLASSES), "b": 0.3 * normal(5, CLASSES)}
    return ntk_tt.from_function(
        lambda params, x: jnp.square(x @ params["w"] + params["b"]), params, num_classes=CLASSES
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_head", [True, False], ids=["head", "no head"])
def test_curvature_is_exact_at_both_ends_of_a_quadratic_backbone(data, with_head):
    model = network(activation=jnp.square) if with_head else _squares()
    apply = model.apply_features if with_head else model.apply
    assert apply is not None
    problem = full(model, data)
    assert problem.head == (HEAD if with_head else None)
    bend = problem.bend
    assert bend is not None
    assert float(problem.growth) > 0.05
    straight = dataclasses.replace(problem, bend=None)
    state, _ = path_to(straight, ANCHOR_FALL)
    np.testing.assert_allclose(straight.moved(state), bend.displacement, rtol=1e-3, atol=1e-5)
    flat, restore = jax.flatten_util.ravel_pytree(
        {name: part for name, part in model.params.items() if name != "head"}
    )

    def outputs(weights):
        return apply({**model.params, **restore(weights)}, data[0])

    def seen(moved):
        along = problem.jacobian @ moved + bend.move(moved, None)
        return jnp.einsum("nk,nkf->nf", along, problem.directions)

    start = outputs(flat)
    for share in (0.4, 1.0, 1.7):
        moved = share * bend.displacement
        np.testing.assert_allclose(seen(moved), outputs(flat + moved) - start, rtol=1e-3, atol=1e-4)
    # and its Jacobian is that of the network at w₀ + u₁
    direction = normal(7, *flat.shape)
    _, expected = jax.jvp(outputs, (flat + bend.displacement,), (direction,))
    _, found = jax.jvp(seen, (bend.displacement,), (direction,))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_second_point_is_nearer_where_the_network_has_no_finite_features(data):
    model = network(activation=jnp.square)
    whole = full(model, data).bend
    assert whole is not None
    limit = 0.7 * float(jnp.linalg.norm(whole.displacement))

    def bounded(params, inputs):
        away = jax.flatten_util.ravel_pytree(
            jax.tree.map(jnp.subtract, params["first"], model.params["first"])
        )[0]
        return jnp.where(
            jax.lax.stop_gradient(jnp.square(away).sum()) > limit**2,
            jnp.nan,
            model.apply_features(params, inputs),
        )

    nearer = full(dataclasses.replace(model, apply_features=bounded), data).bend
    assert nearer is not None
    np.testing.assert_allclose(nearer.displacement, whole.displacement / 2, rtol=1e-5)
    assert bool(jnp.isfinite(nearer.change).all())


def test_the_path_to_the_second_point_takes_smaller_steps_where_it_blows_up(data, monkeypatch):
    problem = full(network(activation=jnp.square), data, curvature=False)
    usual, _ = path_to(problem, ANCHOR_FALL)
    monkeypatch.setattr("ntk_tt.surrogate.second_point._FLOW_RATE", 1e4)
    found, _ = path_to(problem, ANCHOR_FALL)
    start, end = (
        float(problem.metrics(problem.logits(state))[0]) for state in (problem.zero(), found)
    )
    assert end < ANCHOR_FALL * start
    one, other = problem.moved(found), problem.moved(usual)
    assert one @ other / jnp.linalg.norm(one) / jnp.linalg.norm(other) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [ntk_tt.OptimizerConfig(0.1, 0.9), ntk_tt.OptimizerConfig(0.01, name="adam")],
    ids=["sgd", "adam"],
)
def test_curvature_brings_the_prediction_closer_to_real_training(data, optimizer):
    # wide enough that two points tell of the way between
    model = network(num_features=64)
    real = ntk_tt.finetune(model, *data, optimizer, 40)
    way = own_way(optimizer, 40)
    frozen, head, curved = (
        np.abs(np.log(ntk_tt.prediction.predict(problem, optimizer, 40).loss / real.loss)).mean()
        for problem in (
            full(model, data, head=False, curvature=False),
            full(model, data, curvature=False),
            full(model, data, way=way),
        )
    )
    assert curved < head < 0.6 * frozen


@pytest.mark.slow
def test_few_entries_and_directions_are_near_all(data):
    model, optimizer = network(num_features=64), ntk_tt.OptimizerConfig(0.05, 0.9)
    exact = ntk_tt.prediction.predict(full(model, data), optimizer, 30)
    few = expand(
        model,
        *data,
        options=ntk_tt.FeatureOptions(num_projections=200),
        key=jax.random.key(2),
    )
    assert few.directions.shape[1] == 4
    assert 0 <= float(few.dropped) < 0.3
    assert few.num_projections is not None
    assert few.num_projections == pytest.approx(200, rel=0.1)
    found = ntk_tt.prediction.predict(few, optimizer, 30)
    assert 0 < np.abs(np.log(found.loss / exact.loss))[:16].max() < 0.1


def test_mse_and_head_without_bias(data):
    inner = network(activation=_linear)

    def features(params, x):
        return inner.apply_features({**params, "head": inner.params["head"]}, x)

    bare = dataclasses.replace(
        inner,
        params={**inner.params, "head": {"kernel": inner.params["head"]["kernel"]}},
        apply=lambda params, x: features(params, x) @ params["head"]["kernel"],
        apply_features=features,
    )
    targets = np.asarray(jax.nn.one_hot(data[1], CLASSES))
    optimizer = ntk_tt.OptimizerConfig(0.05, 0.9)
    problem = full(bare, (data[0], targets), loss="mse", curvature=False)
    assert problem.head == Head("head.kernel")
    assert set(problem.params["head"]) == {"kernel"}
    real = ntk_tt.finetune(bare, data[0], targets, optimizer, 20, loss="mse")
    np.testing.assert_allclose(
        ntk_tt.prediction.predict(problem, optimizer, 20).loss, real.loss, rtol=1e-4
    )


@pytest.mark.slow
def test_where_only_the_head_trains_it_is_real_training(data):
    model, optimizer = ntk_tt.restrict(network(), "head"), ntk_tt.OptimizerConfig(0.05, name="adam")
    problem = full(model, data)
    assert problem.bend is None
    assert problem.jacobian.shape[-1] == 0
    real = ntk_tt.finetune(model, *data, optimizer, 20)
    np.testing.assert_allclose(
        ntk_tt.prediction.predict(problem, optimizer, 20).loss, real.loss, rtol=1e-4
    )


def _dead(x):
    return jax.nn.relu(x - 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [ntk_tt.OptimizerConfig(0.05, 0.9), ntk_tt.OptimizerConfig(0.01, name="adamw")],
    ids=["sgd", "adamw"],
)
def test_a_backbone_that_does_not_move_is_predicted_by_its_head(data, optimizer):
    model = network(activation=_dead)
    problem = full(model, data, way=own_way(optimizer, 20))
    assert float(problem.growth) == 0
    real = ntk_tt.finetune(model, *data, optimizer, 20)
    np.testing.assert_allclose(
        ntk_tt.prediction.predict(problem, optimizer, 20).loss, real.loss, rtol=1e-4
    )


def test_a_network_without_a_linear_head_is_expanded_at_its_logits(data):
    model = network()
    headless = dataclasses.replace(
        model, head="", apply=lambda params, x: jax.nn.log_softmax(model.apply(params, x))
    )
    found, expected = (full(headless, data, head=head, curvature=False) for head in (True, False))
    assert found.head is None
    np.testing.assert_array_equal(found.outputs, expected.outputs)
    np.testing.assert_array_equal(found.jacobian, expected.jacobian)


@pytest.mark.slow_but("bias")
@pytest.mark.parametrize("tied", ["kernel", "bias"])
def test_a_head_whose_numbers_the_backbone_uses_too_is_not_taken_apart(data, tied):
    model = network()

    def features(params, x):
        shift = jnp.sum(params["head"][tied])
        return model.apply_features(params, x) + jnp.tanh(shift)

    def apply(params, x):
        return features(params, x) @ params["head"]["kernel"] + params["head"]["bias"]

    problem = full(dataclasses.replace(model, apply=apply, apply_features=features), data)
    assert problem.head is None
    expected = dense_jacobian(Case(apply, model.params, lambda *_: data[0]), data[0])
    np.testing.assert_allclose(problem.jacobian, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_draws_random_numbers_is_told_so(data):
    model, draws = network(), np.random.default_rng(0)

    def features(params, x):
        kept = draws.uniform(size=FEATURES) > 0.5  # at each trace others
        return model.apply_features(params, x) * kept

    def apply(params, x):
        return features(params, x) @ params["head"]["kernel"] + params["head"]["bias"]

    with pytest.raises(ValueError, match=r"apply: .*(random numbers|depends on the others)"):
        expand(dataclasses.replace(model, apply=apply, apply_features=features), *data)


def test_logits_that_overflow_in_half_precision_are_said(data):
    model = network()
    half = jax.tree.map(lambda leaf: (1e5 * leaf).astype(jnp.float16), model.params)
    half["first"] = model.params["first"]
    half["head"]["kernel"] = jnp.full_like(half["head"]["kernel"], 6e4)

    def features(params, x):
        return jnp.abs(model.apply_features(params, x)).astype(jnp.float16)

    def apply(params, x):
        return features(params, x) @ params["head"]["kernel"] + params["head"]["bias"]

    with pytest.raises(ValueError, match="logits: the network gives NaN or infinity"):
        expand(dataclasses.replace(model, params=half, apply=apply, apply_features=features), *data)


def test_what_cannot_be_expanded_is_refused_with_the_remedy(data, unchecked):
    model = network()
    with pytest.raises(ValueError, match=r"not its head times its features.*method='replay'"):
        expand(
            dataclasses.replace(model, apply=lambda params, x: model.apply(params, x) ** 3), *data
        )
    for number in (7, 0, "some", 2.5):
        with pytest.raises(ValueError, match=rf"num_directions.*1 to the 6.*got {number!r}"):
            expand(model, *data, num_directions=number)
    with pytest.raises(ValueError, match=r"labels: there are 3 for 12 inputs"):
        expand(model, data[0], data[1][:3])
    with pytest.raises(ValueError, match=r"fall: must lie strictly between 0 and 1, got 1"):
        expand(model, *data, fall=1.0)
    with pytest.raises(ValueError, match=r"can only be replayed, got 'ode'"):
        ntk_tt.dynamics.simulate(
            full(model, data, curvature=False), ntk_tt.OptimizerConfig(0.1), 3, method="ode"
        )


@pytest.mark.slow
def test_trained_parts_and_adapters_are_expanded_too(data):
    model = network()
    lora = ntk_tt.restrict(model, "lora:2+head")
    problem = full(lora, data, curvature=False)
    optimizer = ntk_tt.OptimizerConfig(0.2)
    real = ntk_tt.finetune(lora, *data, optimizer, 3)
    np.testing.assert_allclose(
        ntk_tt.prediction.predict(problem, optimizer, 3).loss, real.loss, rtol=2e-2
    )


@pytest.mark.slow
def test_a_prediction_keeps_the_path_that_its_verdict_goes_by(data):
    model, optimizer = network(), ntk_tt.OptimizerConfig(0.3, 0.5)
    problem = full(model, data)
    for record_every, count in ((4, 6), (40, 2)):
        run = ntk_tt.prediction.predict(problem, optimizer, 40, record_every=record_every).runs[0]
        assert run.states is not None
        assert len(run.states) == count  # spans of whole records, and the rest
        for point, step in ((run.states[0], 0), (run.states[-1], -1)):
            np.testing.assert_allclose(
                problem.metrics(problem.logits(point[0]))[0], run.loss[step], rtol=1e-6
            )
    path, elsewhere = (
        ntk_tt.prediction.predict(problem, setting, 40).runs[0].states
        for setting in (optimizer, ntk_tt.OptimizerConfig(0.03))
    )
    assert path is not None
    verdicts = [
        ntk_tt.prediction.assess(problem, model, *data, optimizer, 40, path=each)
        for each in (path, None, path[:2], elsewhere)
    ]
    margins, residuals = (
        [getattr(verdict, name) for verdict in verdicts]
        for name in ("stability_margin", "expected_residual")
    )
    np.testing.assert_allclose(margins[:3], margins[0], rtol=1e-3)
    np.testing.assert_allclose(residuals[:3], residuals[0], rtol=1e-3)
    assert margins[3] > 1.01 * margins[0]  # it is the path that is looked at
    assert residuals[3] < 0.9 * residuals[0]


@pytest.mark.slow
def test_stability_is_that_of_a_frozen_kernel_at_the_start_and_follows_it_later(data):
    model, optimizer = network(), ntk_tt.OptimizerConfig(0.5)
    frozen = ntk_tt.surrogate.linearize(
        model, *data, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    problem = full(model, data, curvature=False)
    expected, _ = ntk_tt.prediction.stability(
        frozen, optimizer, 1, np.asarray(frozen.initial_logits)[None]
    )
    points = predicted_path(problem, optimizer, 60)
    at_start, later, along = (
        ntk_tt.prediction.stability(problem, optimizer, 60, path)[0]
        for path in (points[:1], points[-1:], points)
    )
    assert at_start == pytest.approx(expected, rel=1e-3)
    assert along == pytest.approx(
        min(ntk_tt.prediction.stability(problem, optimizer, 60, [point])[0] for point in points),
        rel=1e-3,
    )
    assert later != pytest.approx(at_start, rel=0.05)


@pytest.mark.slow
def test_stability_of_adam_is_that_of_the_preconditioned_hessian(data):
    """(2 + 2β₁)/((1 − β₁) λ), λ the largest eigenvalue of P^-½ H P^-½ where the path ends."""
    targets, rate, num_steps = np.asarray(jax.nn.one_hot(data[1], CLASSES)), 1e-3, 500
    problem = full(network(), (data[0], targets), loss="mse", curvature=False)
    optimizer = ntk_tt.OptimizerConfig(rate, name="adam")
    point = predicted_path(problem, optimizer, num_steps)[-1]
    state, opt_state, count = point
    assert int(count) == num_steps
    moments = next(
        part
        for part in jax.tree.leaves(
            opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState)
        )
        if isinstance(part, optax.ScaleByAdamState)
    )
    second = jax.flatten_util.ravel_pytree(moments.nu)[0] / (1 - 0.999**num_steps)
    roots = 1 / np.sqrt(np.sqrt(np.asarray(second, np.float64)) + 1e-8)
    jacobian = jnp.concatenate(
        [
            leaf.reshape(SAMPLES * CLASSES, -1)
            for leaf in jax.tree.leaves(jax.jacrev(problem.logits)(state))
        ],
        1,
    )
    # of the loss as the package has it, in the logits
    one = jnp.zeros(CLASSES)
    of_loss = jax.hessian(lambda f: losses.mean_loss("mse", f[None], one[None]))(one)
    rows = np.asarray(jacobian, np.float64).reshape(SAMPLES, CLASSES, -1) * roots
    hessian = np.einsum("nad,ab,nbe->de", rows, np.asarray(of_loss, np.float64), rows) / SAMPLES
    expected = (2 + 2 * 0.9) / ((1 - 0.9) * rate * np.linalg.eigvalsh(hessian)[-1])
    margin, bound = ntk_tt.prediction.stability(problem, optimizer, num_steps, [point])
    assert margin == pytest.approx(expected, rel=0.05)
    assert bound == pytest.approx(rate * margin)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stability_of_a_chain_of_sgd_is_that_of_sgd(data, momentum):
    problem = full(network(), data)
    named = ntk_tt.OptimizerConfig(0.05, momentum)
    chain = ntk_tt.OptimizerConfig.of(optax.sgd(0.05, momentum=momentum or None))
    found, expected = (
        ntk_tt.prediction.stability(problem, each, 40, predicted_path(problem, each, 40)[2:])[0]
        for each in (chain, named)
    )
    assert found == pytest.approx(expected, rel=0.02)
    assert np.isfinite(expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["exact", 300])
def test_other_data_of_the_same_shape_compiles_nothing(caplog, number):
    """As long as the sample has as many entries of each parameter."""
    model = network(num_features=64)
    optimizer = ntk_tt.OptimizerConfig(0.01, name="adamw", batch_size=4)
    inputs, labels = np.asarray(normal(0, 40, INPUTS)), np.arange(40) % CLASSES

    def predicted(inputs, labels):
        problem = expand(
            model, inputs, labels, options=ntk_tt.FeatureOptions(num_projections=number)
        )
        return problem, replay(problem, optimizer, 12)

    first, once = predicted(inputs, labels)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        jax.jit(lambda x: x + 2)(jnp.ones(3))  # the log does tell of new programs
        assert any("Compiling" in message for message in caplog.messages)
        caplog.clear()
        second, then = predicted(inputs + np.float32(0.1), labels[::-1].copy())
        compiled = [message[:200] for message in caplog.messages if "Compiling" in message]
    assert first.sampled == second.sampled
    assert np.abs(then.loss - once.loss).max() > 1e-4
    assert compiled == []
