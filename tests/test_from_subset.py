"""From n samples to N, on Gaussian data, where all of them can be had."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.dynamics import replay
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.kernels.operators import ContrastKernel, DualKernel, PrimalKernel
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.scaling import halves_of, replay_at_size
from ntk_tt.scaling.own_influence import band_rates, own_influence
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.linear import LinearizedProblem
from tests.test_small_network import CLASSES, INPUTS, network

WIDTH, LARGE, SMALL = 80, 3000, 150
VARIANCES = 1.0 / np.arange(1, WIDTH + 1)


@functools.cache
def population(num_samples: int, outputs: int, seed: int) -> LinearizedProblem:
    """Outputs linear in Gaussian inputs; targets of a teacher with noise."""
    rng = np.random.default_rng(seed)
    teacher = np.random.default_rng(7).normal(size=(WIDTH, max(outputs, 1)))
    x = rng.normal(size=(num_samples, WIDTH)) * np.sqrt(VARIANCES)
    answers = x @ teacher + 0.5 * rng.normal(size=(num_samples, outputs))
    if outputs == 1:
        features, targets, loss = x[:, None], answers, "mse"
    else:
        features = np.einsum("cd,ne->ncde", np.eye(outputs), x)
        features = features.reshape(num_samples, outputs, -1)
        targets, loss = np.eye(outputs)[answers.argmax(1)], "ce"
    zeros = jnp.asarray(np.zeros((num_samples, outputs), np.float32))
    return LinearizedProblem(
        PrimalKernel(jnp.asarray(features, jnp.float32)),
        zeros,
        zeros,
        jnp.asarray(targets, jnp.float32),
        loss,
    )


@functools.cache
def kernel(num_samples: int):
    rows = np.asarray(population(num_samples, 1, 0).kernel.features)[:, 0]
    return (rows @ rows.T)[:, None, :, None], np.ones((num_samples, 1, 1))


def test_bands_are_positive_and_add_up_to_each_samples_own_kernel():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 2, 30))
    ntk = np.einsum("iad,jbd->iajb", rows, rows)
    roots = rng.normal(size=(20, 2, 2))
    found, _, leverage = own_influence(ntk, roots @ roots.transpose(0, 2, 1))
    blocks = np.asarray(found.blocks)
    assert np.linalg.eigvalsh(blocks).min() > -1e-4
    np.testing.assert_allclose(blocks.sum(1), np.einsum("iaib->iab", ntk), rtol=1e-4, atol=1e-3)
    assert (np.diff(leverage) > 0).all()
    assert 0 < leverage[0] < 0.2
    assert leverage[-1] < 1


def test_influence_fades_as_over_the_whole_population():
    """E Jᵢ e^{−Hτ} Jᵢᵀ = Σ σ e^{−στ}; a sample's own spectrum fades faster."""
    ntk, ones = kernel(SMALL)
    found, _, _ = own_influence(ntk, ones)
    total = np.asarray(found.blocks).sum((0, 2, 3)) / SMALL
    own = np.linalg.eigvalsh(ntk[:, 0, :, 0] / SMALL)
    for time in (1.0, 5.0, 20.0):
        right = (VARIANCES * np.exp(-VARIANCES * time)).sum()
        told = total @ np.exp(-np.asarray(found.rates) * time)
        plain = (own * np.exp(-own * time)).sum()
        assert abs(np.log(told / right)) < 0.25
        assert abs(np.log(told / right)) < abs(np.log(plain / right))


@pytest.mark.slow
def test_of_all_samples_it_is_the_replay():
    problem = population(60, 3, 1)
    optimizer = OptimizerConfig(0.05, momentum=0.9, batch_size=16)
    right = replay(problem, optimizer, 12, key=jax.random.key(3), record_every=4)
    found = replay_at_size(problem, optimizer, 12, 60, key=jax.random.key(3), record_every=4)
    np.testing.assert_allclose(found.loss, right.loss, rtol=1e-4)
    np.testing.assert_allclose(found.error, right.error, atol=1e-6)
    assert (found.validation_loss[1:] > found.loss[1:]).all()


def small_network(curvature: bool):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % CLASSES
    inputs = rng.normal(size=(24, INPUTS)).astype(np.float32) + labels[:, None]
    return expand(
        network(), inputs, labels, curvature=curvature, options=FeatureOptions(num_projections=20)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curvature", "optimizer"),
    [
        (True, OptimizerConfig(0.05, momentum=0.9, batch_size=8)),
        (False, OptimizerConfig(0.01, name="adamw", weight_decay=0.01, batch_size=8)),
    ],
)
def test_a_real_head_and_any_optimizer(curvature, optimizer):
    problem, key = small_network(curvature), jax.random.key(3)
    right = replay(problem, optimizer, 18, key=key, record_every=6)
    same = replay_at_size(problem, optimizer, 18, 24, key=key, record_every=6)
    np.testing.assert_allclose(same.loss, right.loss, rtol=1e-4)
    many = replay_at_size(problem, optimizer, 18, 2400, key=key, record_every=6)
    # samples that are not trained on learn from the others alone
    assert (same.validation_loss[1:] > same.loss[1:]).all()
    assert right.loss[-1] < many.loss[-1] < right.loss[0]
    assert 0 < many.leverage[-1] < 1


def test_some_samples_of_a_small_network():
    problem, rows = small_network(True), np.asarray([5, 0, 9])
    some = problem.of_samples(rows)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, problem.params)
    np.testing.assert_allclose(some.logits(moved), problem.logits(moved)[rows], rtol=1e-5)
    shifted = problem.shifted(jnp.ones((24, CLASSES))).of_samples(rows)
    np.testing.assert_allclose(shifted.logits(moved), some.logits(moved) + 1, rtol=1e-5)


def of_many(outputs: int, optimizer: OptimizerConfig, num_steps: int):
    """|log| of the predicted over the true loss, of the subset's own, and on unseen samples."""
    every = num_steps // 10
    right = replay(population(LARGE, outputs, 0), optimizer, num_steps, record_every=every)
    found, plain, told = [], [], None
    for seed in range(1, 7):
        few = population(SMALL, outputs, seed)
        told = replay_at_size(few, optimizer, num_steps, LARGE, record_every=every)
        found.append(np.log(told.loss / right.loss))
        batch = min(optimizer.batch_size or LARGE, SMALL)
        own = OptimizerConfig(optimizer.learning_rate, momentum=0.9, batch_size=batch)
        plain.append(np.log(replay(few, own, num_steps, record_every=every).loss / right.loss))
    assert told is not None
    return np.abs(np.mean(found, 0)), np.abs(np.mean(plain, 0)), told


@pytest.mark.slow
def test_full_batch_least_squares():
    off, plain, told = of_many(1, OptimizerConfig(0.05, momentum=0.9, batch_size=LARGE), 100)
    assert off.max() < 0.08
    assert plain[-1] > 0.2
    assert told.trusted_until == 100


@pytest.mark.slow
def test_mini_batches_of_cross_entropy():
    off, plain, told = of_many(3, OptimizerConfig(0.03, momentum=0.9, batch_size=32), 200)
    assert off.max() < 0.06
    assert plain[-1] > 0.3
    # what comes for the first time has not been trained on: 93 steps an epoch
    np.testing.assert_allclose(told.batch_loss[:3], told.validation_loss[:3], rtol=1e-5)
    assert told.loss[-1] < told.batch_loss[-1] < told.validation_loss[-1]


@pytest.mark.slow
def test_validation_loss_is_that_of_samples_not_trained_on():
    optimizer = OptimizerConfig(0.05, momentum=0.9, batch_size=200)
    fresh, found, right, trained = population(4000, 1, 99), [], [], []
    for seed in (5, 6, 7, 8):
        few = population(200, 1, seed)
        told = replay_at_size(few, optimizer, 400, 200, record_every=40)
        found.append(told.validation_loss)
        trained.append(told.loss)
        right.append(_losses_on(fresh, few))
    off = np.log(np.mean(found, 0) / np.mean(right, 0))
    assert np.abs(off).max() < 0.15
    assert np.log(np.mean(trained, 0) / np.mean(right, 0))[-1] < -0.6


def _losses_on(fresh: LinearizedProblem, few: LinearizedProblem) -> np.ndarray:
    """Of 400 steps of momentum 0.9 and rate 0.05 in weight space."""
    (x, y), (other, answers) = (
        (np.asarray(each.kernel.features)[:, 0].astype(np.float64), np.asarray(each.targets)[:, 0])
        for each in (few, fresh)
    )
    state, velocity, losses = np.zeros(WIDTH), np.zeros(WIDTH), []
    for step in range(401):
        if step % 40 == 0:
            losses.append(0.5 * np.square(other @ state - answers).mean())
        velocity = 0.9 * velocity + x.T @ (x @ state - y) / len(x)
        state = state - 0.05 * velocity
    return np.asarray(losses)


def test_too_few_samples_are_said():
    optimizer = OptimizerConfig(0.05, momentum=0.9, batch_size=LARGE)
    told = replay_at_size(population(20, 1, 1), optimizer, 300, LARGE, record_every=30)
    assert told.trusted_until < 300
    assert told.samples_needed > 20


def test_halves_predict_the_whole():
    optimizer = OptimizerConfig(0.03, momentum=0.9, batch_size=32)
    found = halves_of(population(SMALL, 3, 1), optimizer, 100, record_every=20)
    assert found.misfit < 0.08
    assert 0.5 <= found.speed <= 2
    assert abs(found.bias) <= found.misfit
    with pytest.raises(ValueError, match="at least 8"):
        halves_of(population(4, 3, 1), optimizer, 10)


@pytest.mark.parametrize("space", ["primal", "dual", "contrasts"])
def test_some_samples_of_a_kernel(space):
    features = population(6, 3, 1).kernel.features
    whole = {
        "primal": PrimalKernel(features),
        "dual": DualKernel(jnp.einsum("iad,jbd->iajb", features, features)),
        "contrasts": ContrastKernel(PrimalKernel(features), jnp.eye(3)),
    }[space]
    rows = np.asarray([4, 1])
    right = np.einsum("iad,jbd->iajb", features, features)[np.ix_(rows, range(3), rows, range(3))]
    vectors = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    found = whole.of_samples(rows).product(jnp.asarray(vectors))
    np.testing.assert_allclose(found, np.einsum("iajb,jb->ia", right, vectors), rtol=1e-4)


def test_arguments():
    problem = population(60, 3, 1)
    with pytest.raises(ValueError, match="num_samples"):
        replay_at_size(problem, OptimizerConfig(0.1), 10, 59)


def test_bands_fall():
    rates = band_rates(3.0)
    assert rates[0] > 3
    assert (np.diff(rates) < 0).all()
