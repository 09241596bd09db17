"""Loss and error read at a moving average of the weights, against loops that average by hand."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt.dynamics import replay, replay_many
from tests.test_small_network import SAMPLES, data, full, mean_loss, network  # noqa: F401

EMA, STEPS = 0.8, 12


def _linear(x):
    return x


def by_hand(model, data, chain, batches) -> np.ndarray:  # noqa: F811
    """The loss at the average after each step of a plain optax loop."""
    loss = mean_loss(lambda params: model.apply(params, data[0]), data[1])

    @jax.jit
    def step(params, average, state, batch):
        updates, state = chain.update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, w: EMA * a + (1 - EMA) * w, average, params)
        return params, average, state, loss(average, np.arange(SAMPLES))

    params = average = model.params
    state, curve = chain.init(params), [jax.jit(loss)(params, np.arange(SAMPLES))]
    for batch in batches:
        params, average, state, now = step(params, average, state, batch)
        curve.append(now)
    return np.asarray(curve)


@pytest.mark.slow_but("sgd")
@pytest.mark.parametrize(
    ("optimizer", "chain"),
    [
        (ntk_tt.OptimizerConfig(0.2, 0.9, weight_ema=EMA), optax.sgd(0.2, 0.9)),
        (
            ntk_tt.OptimizerConfig(0.02, name="adamw", weight_decay=0.1, weight_ema=EMA),
            optax.adamw(0.02, weight_decay=0.1),
        ),
        (
            ntk_tt.OptimizerConfig(
                1.0, transformation=optax.lion(0.01, weight_decay=0.0), weight_ema=EMA
            ),
            optax.lion(0.01, weight_decay=0.0),
        ),
    ],
    ids=["sgd", "adamw", "chain"],
)
def test_prediction_and_training_read_the_average(data, optimizer, chain):  # noqa: F811
    model = network(activation=_linear)
    everything = [np.arange(SAMPLES)] * STEPS
    expected = by_hand(model, data, chain, everything)
    real = ntk_tt.finetune(model, *data, optimizer, STEPS)
    np.testing.assert_allclose(real.loss, expected, rtol=1e-5)
    assert not np.allclose(real.loss[1:], by_hand_without(model, data, optimizer)[1:], rtol=1e-2)
    problem = full(model, data, curvature=False)
    np.testing.assert_allclose(replay(problem, optimizer, STEPS).loss, expected, rtol=1e-4)


def by_hand_without(model, data, optimizer) -> np.ndarray:  # noqa: F811
    """What the weights themselves are read as."""
    plain = dataclasses.replace(optimizer, weight_ema=None)
    return ntk_tt.finetune(model, *data, plain, STEPS).loss


@pytest.mark.slow
def test_batches_and_many_settings_are_averaged_too(data):  # noqa: F811
    problem = full(network(activation=_linear), data, curvature=False)
    settings = [
        ntk_tt.OptimizerConfig(rate, 0.9, batch_size=4, weight_ema=ema)
        for rate, ema in ((0.1, 0.5), (0.2, 0.9))
    ]
    each = [replay(problem, optimizer, STEPS) for optimizer in settings]
    for alone, together in zip(each, replay_many(problem, settings, STEPS), strict=True):
        np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-4)
    # an average over nothing but the last step is that step
    last = ntk_tt.OptimizerConfig(0.1, 0.9, batch_size=4, weight_ema=0.0)
    plain = ntk_tt.OptimizerConfig(0.1, 0.9, batch_size=4)
    np.testing.assert_allclose(
        replay(problem, last, STEPS).loss, replay(problem, plain, STEPS).loss, rtol=1e-5
    )
