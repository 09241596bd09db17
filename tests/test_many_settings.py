"""Many settings at once: each is its own replay, one program a kind, and none disturbs another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt.dynamics import many_settings, replay, replay_many
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.schedules import named_schedule
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.reach import in_reach
from tests.networks import normal

SAMPLES, CLASSES, NUM_STEPS = 12, 3, 14
LABELS = np.arange(SAMPLES) % CLASSES


def _features(params, x):
    return jnp.tanh(jnp.tanh(x @ params["first"] + params["shift"]) @ params["second"])


@functools.cache
def small(
    number: int | str = "exact", *, head=True, curvature=True
) -> ntk_tt.surrogate.SmallNetwork:
    params = {
        "first": 0.5 * normal(1, 5, 20),
        "shift": 0.2 * normal(2, 20),
        "second": 0.3 * normal(3, 20, 8),
        "head": {"kernel": 0.4 * normal(4, 8, CLASSES), "bias": 0.1 * normal(5, CLASSES)},
    }
    model = ntk_tt.from_function(
        lambda params, x: _features(params, x) @ params["head"]["kernel"] + params["head"]["bias"],
        params,
        features=_features,
        head="head",
        num_classes=CLASSES,
    )
    return ntk_tt.surrogate.expand(
        model,
        normal(6, SAMPLES, 5),
        LABELS,
        head=head,
        curvature=curvature,
        num_directions=2,
        options=ntk_tt.FeatureOptions(num_projections=number),
    )


@functools.cache
def linear(space: str) -> LinearizedProblem:
    features = normal(7, SAMPLES, CLASSES, 30) / np.linspace(1, 20, 30)
    kernel = PrimalKernel(features)
    if space == "dual":
        kernel = DualKernel(jnp.einsum("iad,jbd->iajb", features, features))
    return LinearizedProblem(
        kernel,
        normal(8, SAMPLES, CLASSES),
        normal(9, SAMPLES, CLASSES),
        jax.nn.one_hot(LABELS, CLASSES),
    )


_COSINE = named_schedule("cosine", 0.3, NUM_STEPS)
SGD = [
    OptimizerConfig(0.05),
    OptimizerConfig(0.02, 0.9, batch_size=5),
    OptimizerConfig(_COSINE, 0.5, nesterov=True, weight_decay=0.1),
    OptimizerConfig(0.1, weight_decay=0.02),
    OptimizerConfig(0.04, 0.8, weight_decay=0.1, batch_size=5),
    OptimizerConfig(0.1, 0.7, nesterov=True),
    OptimizerConfig(0.1, batch_size=4, sampling="replacement"),
    OptimizerConfig(0.2, batch_size=4),
]
_OWN = optax.chain(optax.clip_by_global_norm(0.2), optax.adam(0.02))
OTHERS = [
    OptimizerConfig(0.02, name="adamw", weight_decay=0.1, betas=(0.8, 0.95)),
    OptimizerConfig(0.1, clip_norm=0.3),
    OptimizerConfig(0.005, name="lion", weight_decay=0.3, batch_size=4),
    OptimizerConfig(
        named_schedule("constant", 0.03, NUM_STEPS, warmup_steps=5), name="adamw", eps=1e-4
    ),
    OptimizerConfig(0.2, clip_norm=0.1),
    OptimizerConfig.of(_OWN, batch_size=4),
    OptimizerConfig(0.02, name="adam", clip_norm=0.1),
    OptimizerConfig.of(_OWN, learning_rate=0.5, batch_size=4),
    OptimizerConfig(0.01, name="rmsprop", momentum=0.4),
]


def check(problem, optimizers, **options):
    key = jax.random.key(3)
    found = replay_many(
        problem, optimizers, NUM_STEPS, key=key, record_every=4, save_logits=True, **options
    )
    assert len(found) == len(optimizers)
    curves = []
    for optimizer, curve in zip(optimizers, found, strict=True):
        alone = replay(problem, optimizer, NUM_STEPS, key=key, record_every=4, save_logits=True)
        np.testing.assert_array_equal(curve.steps, alone.steps)
        np.testing.assert_allclose(curve.loss, alone.loss, rtol=2e-5)
        np.testing.assert_allclose(curve.logits, alone.logits, rtol=2e-4, atol=5e-5)
        np.testing.assert_allclose(curve.error, alone.error, atol=1e-6)
        curves.append(curve.loss)
    # they are all different, and all learn
    ends = np.asarray(curves)[:, -1]
    assert len(np.unique(ends.round(6))) == len(ends)
    assert (ends < np.asarray(curves)[:, 0] - 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("space", ["primal", "dual"])
def test_each_is_its_own_replay_on_a_frozen_kernel(space):
    check(linear(space), SGD)


@pytest.mark.slow_but("sgd")
@pytest.mark.parametrize("optimizers", [SGD[1:5:3], OTHERS[:4]], ids=["sgd", "others"])
def test_each_is_its_own_replay_on_a_small_network(optimizers):
    check(small(70), optimizers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "optimizers"), [(True, SGD[:6] + OTHERS), (False, SGD[1:5:3] + OTHERS[::3])]
)
def test_all_kinds_together_on_a_small_network(head, optimizers):
    check(small(70, head=head, curvature=head), optimizers)


@pytest.mark.slow
def test_where_the_head_has_many_outputs(monkeypatch):
    monkeypatch.setattr("ntk_tt.surrogate.small_network._FEW_OUTPUTS", 2)
    # of a shape that nothing was compiled for
    check(small(90), [SGD[1], SGD[4]])


@pytest.mark.slow
def test_sgd_goes_on_in_a_basis_of_what_it_can_reach():
    """Momentum, decay from w₀, the way to the second point and a clipped norm are the same in
    it.
    """
    problem = dataclasses.replace(small(), note="")
    reach = 2 * SAMPLES * 2 + 2
    size = len(problem.weights)
    assert reach < size == 5 * 20 + 20 + 20 * 8
    rotated = problem.alike(is_sgd=True, num_steps=10**6)
    assert len(rotated.weights) == reach
    assert len(problem.alike(is_sgd=True, num_steps=1).weights) == size
    assert len(problem.alike(is_sgd=False, num_steps=10**6).weights) == size
    for optimizer in (
        OptimizerConfig(_COSINE, 0.5, nesterov=True, weight_decay=0.1),
        OptimizerConfig(0.2, 0.9, weight_decay=0.2, clip_norm=0.1, batch_size=5),
    ):
        found, expected = (replay(each, optimizer, NUM_STEPS) for each in (rotated, problem))
        assert expected.loss[-1] < expected.loss[0] - 0.01
        np.testing.assert_allclose(found.loss, expected.loss, rtol=2e-5)
    assert in_reach(problem.jacobian[:, :, :20], None, jnp.ones(20), jnp.ones(20), 10**6) is None


@pytest.mark.slow
def test_so_it_does_where_entries_stand_for_many():
    straight = small(70, curvature=False)
    assert not all(each.is_whole for each in straight.sampled)
    few = dataclasses.replace(
        straight,
        **{
            name: getattr(straight, name)[:6]
            for name in ("outputs", "directions", "jacobian", "targets")
        },
    )
    rotated = few.alike(is_sgd=True, num_steps=10**6)
    assert len(rotated.weights) == 13
    optimizer = OptimizerConfig(0.2, 0.9, weight_decay=0.2, clip_norm=0.1)
    found, expected = (replay(each, optimizer, NUM_STEPS) for each in (rotated, few))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=2e-5)


@pytest.mark.parametrize("problem", [linear("primal"), small()], ids=["frozen", "small network"])
def test_one_that_diverges_leaves_the_others_alone(problem):
    mild = [OptimizerConfig(0.05, 0.9), OptimizerConfig(0.02, 0.9)]
    wild = OptimizerConfig(3e38, 0.9)
    first, lost, second = replay_many(problem, [mild[0], wild, mild[1]], NUM_STEPS)
    assert not np.isfinite(lost.loss[-1])
    for optimizer, found in zip(mild, (first, second), strict=True):
        alone = replay(problem, optimizer, NUM_STEPS)
        np.testing.assert_allclose(found.loss, alone.loss, rtol=2e-5)


def compiled(caplog) -> list[str]:
    return [
        message[:200]
        for message in caplog.messages
        if "Compiling" in message and "_replayed" in message
    ]


@pytest.mark.slow_but("frozen")
@pytest.mark.parametrize(
    ("problem", "setting"),
    [
        (linear("dual"), {"momentum": 0.5}),
        (small(70), {"name": "adamw", "weight_decay": 0.1, "batch_size": 4}),
    ],
    ids=["frozen", "small network"],
)
def test_a_kind_is_compiled_once(caplog, monkeypatch, problem, setting):
    """In blocks of four, the last of which is filled up; other numbers compile nothing more."""
    monkeypatch.setattr(many_settings, "_MOST", 4)
    rates, seen = np.geomspace(0.001, 0.02, 10), []

    def curves(factor):
        return replay_many(
            problem,
            [OptimizerConfig(factor * rate, **setting) for rate in rates],
            9,
            record_every=3,
            progress=lambda done, total: seen.append((done, total)),
        )

    with jax.log_compiles(), caplog.at_level("WARNING"):
        once = curves(1.0)
        assert len(compiled(caplog)) == 1
        caplog.clear()
        twice = curves(2.0)
        assert [message for message in caplog.messages if "Compiling" in message] == []
    assert seen == [(4, 10), (8, 10), (10, 10)] * 2
    ends = np.asarray([[curve.loss[-1] for curve in curves] for curves in (once, twice)])
    assert len(np.unique(ends)) == 20
    alone = replay(problem, OptimizerConfig(2 * rates[-1], **setting), 9, record_every=3)
    np.testing.assert_allclose(twice[-1].loss, alone.loss, rtol=2e-5)


def test_blocks_fit_into_the_memory():
    seen = []
    settings = [OptimizerConfig(rate) for rate in (0.01, 0.02, 0.03)]

    def curves(memory):
        seen.clear()
        return replay_many(
            linear("dual"),
            settings,
            5,
            memory=memory,
            progress=lambda done, _: seen.append(done),
        )

    whole = curves(None)
    assert seen == [3]
    few = curves(1)
    assert seen == [1, 2, 3]
    for one, other in zip(whole, few, strict=True):
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: replay_many(linear("dual"), [], 5), "optimizers: there are none"),
        (lambda: replay_many(small(), SGD, 0), "num_steps: must be a whole number"),
        (lambda: replay_many(small(), SGD, 3, record_every=0), "record_every"),
        (
            lambda: replay_many(small(), [SGD[0], OptimizerConfig(batch_size=13)], 3),
            "batch_size: 13 is larger than the 12 samples",
        ),
        (
            lambda: replay_many(linear("dual"), [SGD[0], OTHERS[0]], 3),
            "optimizer: method 'replay' knows SGD only, got adamw",
        ),
        (
            lambda: replay_many(small(), [SGD[0], OptimizerConfig.of(optax.lamb(0.1))], 3),
            "optimizer: the chain mixes the entries of",
        ),
    ],
)
def test_bad_arguments(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
