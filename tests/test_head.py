"""A real head on an expanded backbone, against training in weight space and dense kernels."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ntk_tt
from ntk_tt.dynamics import replay, states_along
from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.features.contrasts import contrast_basis
from ntk_tt.features.directions import head_directions
from ntk_tt.schedules import named_schedule
from ntk_tt.surrogate.head_parts import split_head
from ntk_tt.surrogate.head_pass import linearize_head
from ntk_tt.surrogate.real_head import HeadState
from ntk_tt.surrogate.second_point import ANCHOR_FALL, path_to
from tests.networks import normal

SAMPLES, INPUTS, FEATURES, CLASSES = 12, 5, 6, 3


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


@pytest.fixture
def data():
    inputs, labels = jax.random.split(jax.random.key(1))
    return jax.random.normal(inputs, (SAMPLES, INPUTS)), np.asarray(
        jax.random.randint(labels, (SAMPLES,), 0, CLASSES)
    )


def full(model, data, **options):
    num_features = model.params["head"]["kernel"].shape[0] if "head" in model.params else FEATURES
    return linearize_head(
        model,
        *data,
        num_directions=num_features,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        **options,
    )


def trained_in_weight_space(model, data, optimizer, num_steps, batches):
    """optax on f = Wᵀ(φ₀ + J_φ δ) + b, with δ in weight space: no code of the package's
    dynamics.
    """
    inputs, labels = data
    parts = split_head(model)
    features, push = jax.linearize(lambda backbone: parts.embed(backbone, inputs), parts.backbone)
    params = {
        "delta": jax.tree.map(jnp.zeros_like, parts.backbone),
        "kernel": parts.weight,
        "bias": parts.bias,
    }
    targets = jax.nn.one_hot(labels, CLASSES)

    def losses(params):
        return optax.softmax_cross_entropy(
            (features + push(params["delta"])) @ params["kernel"] + params["bias"], targets
        )

    rates = optimizer.learning_rates(num_steps)
    chain = optax.sgd(
        lambda count: jnp.asarray(rates)[count],
        optimizer.momentum or None,
        nesterov=optimizer.nesterov,
    )

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(lambda params: losses(params)[batch].mean())(params)
        weights = {**dict(params), "delta": jax.tree.map(jnp.add, params["delta"], parts.backbone)}
        gradient = jax.tree.map(lambda g, w: g + optimizer.weight_decay * w, gradient, weights)
        updates, state = chain.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, losses(params).mean()

    state, curve = chain.init(params), [losses(params).mean()]
    for batch in (
        np.arange(SAMPLES)[None].repeat(num_steps, 0) if batches is None else np.asarray(batches)
    ):
        params, state, loss = step(params, state, batch)
        curve.append(loss)
    return np.asarray(curve)


@pytest.mark.slow_but("optimizer2")
@pytest.mark.parametrize(
    "optimizer",
    [
        ntk_tt.OptimizerConfig(0.3),
        ntk_tt.OptimizerConfig(0.1, 0.9, batch_size=4),
        ntk_tt.OptimizerConfig(0.1, 0.8, nesterov=True, weight_decay=0.05, batch_size=5),
        ntk_tt.OptimizerConfig(named_schedule("cosine", 0.3, 20), 0.5, weight_decay=0.02),
    ],
)
def test_replay_is_training_of_the_model_in_weight_space(data, optimizer):
    model = network()
    problem = full(model, data, curvature=False)
    batches = batch_indices(SAMPLES, optimizer, 20, jax.random.key(3))
    found = replay(problem, optimizer, 20, batches=batches)
    expected = trained_in_weight_space(model, data, optimizer, 20, batches)
    assert expected[0] - expected[-1] > 0.1
    np.testing.assert_allclose(found.loss, expected, rtol=2e-5)


@pytest.mark.slow_but("optimizer1")
@pytest.mark.parametrize(
    "optimizer",
    [
        ntk_tt.OptimizerConfig(0.2, 0.9),
        ntk_tt.OptimizerConfig(0.2, 0.9, nesterov=True, weight_decay=0.1),
    ],
)
def test_prediction_is_real_training_where_the_backbone_is_linear(data, optimizer):
    model = network(activation=_linear)
    real = ntk_tt.finetune(model.apply, model.params, *data, optimizer, 30)
    np.testing.assert_allclose(
        ntk_tt.predict(full(model, data, curvature=False), optimizer, 30).loss, real.loss, rtol=1e-4
    )
    frozen = ntk_tt.predict(
        ntk_tt.linearize(
            model.apply, model.params, *data, options=ntk_tt.FeatureOptions(num_projections="exact")
        ),
        optimizer,
        30,
    )
    assert abs(frozen.loss[-1] / real.loss[-1] - 1) > 0.02  # a frozen kernel is another model


def test_tangent_is_the_dense_kernel(data):
    model = network()
    tangent = full(model, data, curvature=False)
    tangent = tangent.tangent(tangent.zero())
    ntk = np.asarray(ntk_tt.empirical_ntk(model.apply, model.params, data[0])).reshape(
        SAMPLES, CLASSES, SAMPLES, CLASSES
    )
    vector = normal(5, SAMPLES, CLASSES)
    np.testing.assert_allclose(
        tangent.kernel.product(vector), np.einsum("iajb,jb->ia", ntk, vector), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        tangent.kernel.diagonal_blocks(), np.einsum("iaib->iab", ntk), rtol=1e-4, atol=1e-5
    )
    rows = np.asarray([3, 1])
    np.testing.assert_allclose(
        tangent.kernel.push_rows(tangent.kernel.pull_rows(vector[:2], rows), rows),
        np.einsum("iajb,jb->ia", ntk[rows][:, :, rows], vector[:2]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_tangent_on_the_way_is_the_derivative_of_the_logits(data):
    problem = full(network(activation=jnp.square), data)
    state = states_along(
        problem, ntk_tt.OptimizerConfig(0.3, momentum=0.5, weight_decay=0.01), 25, 6
    )[-1]
    assert 0 < float(problem.curvature.share(state.backbone)) < 2
    kernel = problem.tangent(state).kernel
    backbone, rows = (
        normal(5, *state.backbone.shape),
        normal(6, *kernel.zero()[1].shape),
    )
    step = HeadState(backbone, jnp.zeros(()), rows[:-1], rows[-1])
    np.testing.assert_allclose(
        kernel.push((backbone, rows)),
        jax.jvp(problem.logits, (state,), (step,))[1],
        rtol=1e-4,
        atol=1e-4,
    )
    vector = normal(7, SAMPLES, CLASSES)
    pulled = jax.vjp(problem.logits, state)[1](vector)[0]
    np.testing.assert_allclose(kernel.pull(vector)[0], pulled.backbone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        kernel.pull(vector)[1],
        jnp.concatenate([pulled.weight, pulled.bias[None]]),
        rtol=1e-4,
        atol=1e-4,
    )
    dense = jax.vmap(jax.vmap(kernel.product))(
        jnp.eye(SAMPLES * CLASSES).reshape(SAMPLES, CLASSES, SAMPLES, CLASSES)
    )
    np.testing.assert_allclose(
        kernel.diagonal_blocks(), np.einsum("iaib->iab", dense), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_stability_of_both_problems_agrees_at_the_start_and_follows_the_kernel_later(data):
    model = network()
    optimizer = ntk_tt.OptimizerConfig(0.5)
    frozen = ntk_tt.linearize(
        model.apply, model.params, *data, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    head = full(model, data, curvature=False)
    at_start, _ = ntk_tt.stability(frozen, optimizer, 1, np.asarray(frozen.initial_logits)[None])
    tangent = head.tangent(head.zero())
    assert ntk_tt.stability(tangent, optimizer, 1, np.asarray(tangent.initial_logits)[None])[
        0
    ] == pytest.approx(at_start, rel=1e-3)
    last = states_along(head, optimizer, 60, 6)[-1]
    grown = head.tangent(last)
    assert (
        ntk_tt.stability(head, optimizer, 60)[0]
        <= ntk_tt.stability(grown, optimizer, 1, np.asarray(grown.initial_logits)[None])[0] * 1.001
    )


def test_curvature_is_exact_at_both_ends_of_a_quadratic_backbone(data):
    model = network(activation=jnp.square)  # φ is quadratic in its weights
    problem = full(model, data)
    curvature = problem.curvature
    assert curvature is not None
    assert float(problem.growth) > 0.05
    basis = contrast_basis(CLASSES)
    state, _ = path_to(dataclasses.replace(problem, curvature=None), ANCHOR_FALL)
    np.testing.assert_array_equal(state.backbone, curvature.displacement)
    parts = split_head(model)
    flat, restore = jax.flatten_util.ravel_pytree(parts.backbone)
    for share in (0.4, 1.0, 1.7):
        moved = parts.embed(restore(flat + share * curvature.displacement), data[0])
        seen = (
            problem.jacobian @ (share * curvature.displacement)
            + curvature.move(share * curvature.displacement, None)
        ) @ problem.directions.T
        inside = problem.directions @ curvature.basis  # the directions that B is known along
        assert inside.shape == (FEATURES, basis.shape[1])
        np.testing.assert_allclose(
            seen @ inside, (moved - problem.embeddings) @ inside, rtol=1e-3, atol=1e-4
        )
    # and its Jacobian is that of the network at w₀ + u₁
    direction = normal(7, *flat.shape)
    _, expected = jax.jvp(
        lambda weights: parts.embed(restore(weights), data[0]),
        (flat + curvature.displacement,),
        (direction,),
    )
    _, found = jax.jvp(
        lambda u: problem.jacobian @ u + curvature.move(u, None),
        (curvature.displacement,),
        (direction,),
    )
    np.testing.assert_allclose(
        (found @ problem.directions.T) @ inside, expected @ inside, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_the_second_point_is_nearer_where_the_network_has_no_finite_features(data):
    model = network(activation=jnp.square)
    whole = full(model, data).curvature
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

    nearer = full(dataclasses.replace(model, apply_features=bounded), data).curvature
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
    alike = (
        found.backbone
        @ usual.backbone
        / jnp.linalg.norm(found.backbone)
        / jnp.linalg.norm(usual.backbone)
    )
    assert alike > 0.8


@pytest.mark.slow
def test_curvature_brings_the_prediction_closer_to_real_training(data):
    # wide enough that two points tell of the way between
    model, optimizer = (
        network(num_features=64),
        ntk_tt.OptimizerConfig(0.1, 0.9),
    )
    real = ntk_tt.finetune(model.apply, model.params, *data, optimizer, 40)
    problems = (
        ntk_tt.linearize(
            model.apply, model.params, *data, options=ntk_tt.FeatureOptions(num_projections="exact")
        ),
        full(model, data, curvature=False),
        full(model, data),
    )
    frozen, head, curved = (
        np.abs(np.log(ntk_tt.predict(problem, optimizer, 40).loss / real.loss)).mean()
        for problem in problems
    )
    assert curved < head < 0.6 * frozen


@pytest.mark.slow
def test_projected_problem_is_near_the_exact_one(data):
    model, optimizer = network(), ntk_tt.OptimizerConfig(0.2, 0.9)
    exact = ntk_tt.predict(full(model, data), optimizer, 30)
    few = ntk_tt.predict(
        linearize_head(
            model,
            *data,
            num_directions=FEATURES,
            options=ntk_tt.FeatureOptions(num_projections=32),
            key=jax.random.key(2),
        ),
        optimizer,
        30,
    )
    assert np.abs(np.log(few.loss / exact.loss))[:16].max() < 0.2
    assert np.abs(few.loss - exact.loss).max() > 0


def test_directions_hold_the_head_and_its_path(data):
    model = network()
    parts = split_head(model)
    features, targets, basis = (
        parts.embed(parts.backbone, data[0]),
        jax.nn.one_hot(data[1], CLASSES),
        contrast_basis(CLASSES),
    )
    directions, dropped = head_directions(
        features, parts.weight, parts.bias, targets, basis, loss="ce"
    )
    assert directions.shape[1] <= 3 * (CLASSES - 1)
    assert 0 <= dropped <= 0.4
    np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-5)
    start = parts.weight @ basis
    assert jnp.linalg.norm(start - directions @ (directions.T @ start)) < 0.5 * jnp.linalg.norm(
        start
    )
    everything, nothing_left = head_directions(
        features, parts.weight, parts.bias, targets, basis, loss="ce", num_directions=FEATURES
    )
    assert everything.shape == (FEATURES, FEATURES)
    assert nothing_left == pytest.approx(0, abs=1e-3)


def test_mse_and_head_without_bias(data):
    model = network(activation=_linear)
    model = eqx.tree_at(
        lambda model: model.params,
        model,
        {**model.params, "head": {"kernel": model.params["head"]["kernel"]}},
    )
    inner = network(activation=_linear)
    bare = dataclasses.replace(
        model,
        apply=lambda params, x: (
            inner.features({**params, "head": inner.params["head"]}, x) @ params["head"]["kernel"]
        ),
        apply_features=lambda params, x: inner.features(
            {**params, "head": inner.params["head"]}, x
        ),
    )
    targets = np.asarray(jax.nn.one_hot(data[1], CLASSES))
    optimizer = ntk_tt.OptimizerConfig(0.05, 0.9)
    problem = linearize_head(
        bare,
        data[0],
        targets,
        loss="mse",
        num_directions=FEATURES,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        curvature=False,
    )
    assert problem.bias is None
    real = ntk_tt.finetune(bare.apply, bare.params, data[0], targets, optimizer, 20, loss="mse")
    np.testing.assert_allclose(ntk_tt.predict(problem, optimizer, 20).loss, real.loss, rtol=1e-4)


def test_what_cannot_be_split_is_refused_with_the_remedy(data, unchecked):
    model = network()
    with pytest.raises(ValueError, match=r"no trainable linear head.*method='replay'"):
        linearize_head(dataclasses.replace(model, head=""), *data)
    with pytest.raises(ValueError, match=r"only the head trains.*exact"):
        linearize_head(ntk_tt.restrict(model, "head"), *data)
    with pytest.raises(ValueError, match=r"not its head times its features"):
        linearize_head(
            dataclasses.replace(model, apply=lambda params, x: model.apply(params, x) ** 3), *data
        )
    with pytest.raises(ValueError, match=r"num_directions.*got 7"):
        linearize_head(model, *data, num_directions=7)
    with pytest.raises(ValueError, match=r"labels: there are 3 for 12 inputs"):
        linearize_head(model, data[0], data[1][:3])
    with pytest.raises(ValueError, match=r"real head can only be replayed, got 'ode'"):
        ntk_tt.simulate(
            full(model, data, curvature=False), ntk_tt.OptimizerConfig(0.1), 3, method="ode"
        )


@pytest.mark.slow
def test_trained_parts_and_adapters_are_split_too(data):
    model = network()
    lora = ntk_tt.restrict(model, "lora:2+head")
    problem = full(lora, data, curvature=False)
    optimizer = ntk_tt.OptimizerConfig(0.2)
    real = ntk_tt.finetune(lora.apply, lora.params, *data, optimizer, 3)
    np.testing.assert_allclose(ntk_tt.predict(problem, optimizer, 3).loss, real.loss, rtol=2e-2)


@pytest.mark.slow
def test_a_prediction_keeps_the_path_that_its_verdict_goes_by(data):
    model, optimizer = network(), ntk_tt.OptimizerConfig(0.3, 0.5)
    problem = full(model, data)
    for record_every, count in ((4, 6), (40, 2)):
        run = ntk_tt.predict(problem, optimizer, 40, record_every=record_every).runs[0]
        assert run.states is not None
        assert len(run.states) == count  # spans of whole records, and the rest
        for state, step in ((run.states[0], 0), (run.states[-1], -1)):
            np.testing.assert_allclose(
                problem.metrics(problem.logits(state))[0], run.loss[step], rtol=1e-6
            )
    path, elsewhere = (
        ntk_tt.predict(problem, setting, 40).runs[0].states
        for setting in (optimizer, ntk_tt.OptimizerConfig(0.03))
    )
    assert path is not None
    verdicts = [
        ntk_tt.assess(problem, model.apply, model.params, *data, optimizer, 40, path=each)
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
