"""Real training against its own definition, and the linearised dynamics against real training on
toy networks.
"""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ntk_tt
from ntk_tt.models import from_nnx
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.residual import Residual
from ntk_tt.training.programs import padded_blocks
from tests.networks import _ConvNet, mlp, normal


def problem_of(width, num_samples=24, num_outputs=3, seed=0):
    case = mlp(num_outputs, width=width, seed=seed)
    x = case.inputs(num_samples, 0)
    labels = np.random.default_rng(5).integers(0, num_outputs, num_samples)
    return case, x, labels


def test_finetune_imports_nothing_of_the_prediction():
    folder = Path(ntk_tt.__file__).parent / "training"
    nodes = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    assert {name for name in imported if name.startswith("ntk_tt")} == {
        "ntk_tt.runtime.input_trees",
        "ntk_tt.models.former_network",
        "ntk_tt.models.model",
        "ntk_tt.models.switches",
        "ntk_tt.data.augmentation",  # what is done to an image, which both have to do
        "ntk_tt.data.order",
        "ntk_tt.optax_chain",
        "ntk_tt.optimizer",
        "ntk_tt.runtime.progress",
        "ntk_tt.targets",
        "ntk_tt.training.course",
        "ntk_tt.training.programs",
    }


@pytest.mark.slow_but("5-ce", "100-mse")
@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("block_size", [5, 7, 100])
def test_gradient_descent_equals_a_plain_loop_in_any_block_size(loss, block_size):
    case, x, labels = problem_of(12)
    optimizer = OptimizerConfig(0.2, 0.9, nesterov=True, weight_decay=0.01)
    run = ntk_tt.finetune(case.model, x, labels, optimizer, 6, loss=loss, block_size=block_size)

    def objective(params):
        logits, y = case.apply(params, x), jax.nn.one_hot(labels, 3)
        return (
            -(y * jax.nn.log_softmax(logits)).sum(-1)
            if loss == "ce"
            else 0.5 * ((logits - y) ** 2).sum(-1)
        ).mean()

    @jax.jit
    def step(params, velocity):
        loss, gradient = jax.value_and_grad(objective)(params)
        gradient = jax.tree.map(lambda g, w: g + 0.01 * w, gradient, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        moved = jax.tree.map(lambda w, g, v: w - 0.2 * (g + 0.9 * v), params, gradient, velocity)
        return moved, velocity, loss

    params, velocity, losses = case.params, jax.tree.map(np.zeros_like, case.params), []
    for _ in range(6):
        params, velocity, loss = step(params, velocity)
        losses.append(float(loss))
    losses.append(float(step(params, velocity)[2]))
    np.testing.assert_allclose(run.loss, losses, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), run.params, params
    )
    assert run.error[-1] == pytest.approx(
        float((case.apply(params, x).argmax(-1) != labels).mean())
    )


@pytest.mark.slow
def test_by_default_a_cpu_trains_in_small_blocks_with_the_same_numbers(monkeypatch):
    case, x, labels = problem_of(12, num_samples=70)
    optimizer, blocks = OptimizerConfig(0.2, 0.9), []
    monkeypatch.setattr(
        sys.modules["ntk_tt.training.programs"],
        "padded_blocks",
        lambda indices, size: blocks.append(size) or padded_blocks(indices, size),
    )
    run = ntk_tt.finetune(case.model, x, labels, optimizer, 4)
    # 70 in three blocks, none above 32
    assert jax.default_backend() != "cpu" or set(blocks) == {24}
    whole = ntk_tt.finetune(case.model, x, labels, optimizer, 4, block_size=70)
    np.testing.assert_allclose(run.loss, whole.loss, rtol=1e-5)
    with pytest.raises(ValueError, match="block_size"):
        ntk_tt.finetune(case.model, x, labels, optimizer, 4, block_size=0)


def test_mini_batches_records_and_schedule():
    case, x, labels = problem_of(12)
    optimizer = OptimizerConfig(optax.cosine_decay_schedule(0.2, 20), batch_size=5)
    run = ntk_tt.finetune(case.model, x, labels, optimizer, 20, record_every=6)
    np.testing.assert_array_equal(run.steps, [0, 6, 12, 18, 20])
    again = ntk_tt.finetune(case.model, x, labels, optimizer, 20, record_every=1)
    np.testing.assert_allclose(again.loss[run.steps], run.loss, rtol=1e-5)
    other = ntk_tt.finetune(case.model, x, labels, optimizer, 20, seed=1)
    assert np.abs(other.loss - again.loss).max() > 1e-4
    logits = case.apply(run.params, x)
    assert run.loss[-1] == pytest.approx(
        float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()), rel=1e-4
    )


def test_batch_norm_frozen_and_training():
    module = _ConvNet(3, True, rngs=nnx.Rngs(0), dtype=jnp.float32)
    model = from_nnx(module)
    x = normal(1, 12, 6, 6, 2)
    labels = np.arange(12) % 3
    optimizer = OptimizerConfig(0.1, batch_size=6)
    frozen = ntk_tt.finetune(model, x, labels, optimizer, 10)
    training = ntk_tt.finetune(model, x, labels, optimizer, 10, train_statistics=True)
    # the same network to begin with
    assert frozen.loss[0] == pytest.approx(training.loss[0], rel=1e-5)
    assert abs(frozen.loss[-1] - training.loss[-1]) > 1e-3


def test_divergence_ends_the_run_and_is_named():
    case, x, labels = problem_of(12)
    run = ntk_tt.finetune(case.model, x, labels, OptimizerConfig(1e4, 0.9), 60, loss="mse")
    assert run.diverged_at is not None
    assert run.diverged_at < 60
    assert np.isnan(run.loss[-1])


def relu_network(scale=1.0):
    """Two layers; with a zero last layer (`scale` 0) the run begins at ln C."""
    params = {
        "first": normal(0, 6, 8),
        "bias": jnp.zeros(8),
        "last": scale * normal(1, 8, 3) / 3,
        "head_bias": jnp.zeros(3),
    }
    return lambda w, x: jax.nn.relu(x @ w["first"] + w["bias"]) @ w["last"] + w["head_bias"], params


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_network_that_died_at_chance_level_is_an_outcome(batch_size, scale):
    apply, params = relu_network(scale)
    x, labels = jnp.abs(normal(1, 24, 6)), np.arange(24) % 3
    run = ntk_tt.finetune(
        ntk_tt.from_function(apply, params),
        x,
        labels,
        OptimizerConfig(100.0 if scale else 1000.0, 0.5, batch_size=batch_size),
        40,
        record_every=4,
    )
    assert run.diverged_at is None
    assert run.collapsed_at is not None
    assert 0 < run.collapsed_at <= 12
    assert np.ptp(np.asarray(apply(run.params, x)), 0).max() < 1e-4
    assert (run.loss[run.steps >= run.collapsed_at] > 0.999 * np.log(3)).all()


@pytest.mark.slow_but("8-0.05-*")
@pytest.mark.parametrize("scale", [0.0, 1e-8])
@pytest.mark.parametrize("rate", [1e-12, 1e-4, 0.05])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_slow_run_from_chance_level_is_alive(scale, rate, batch_size):
    apply, params = relu_network(scale)
    x, labels = normal(1, 24, 6), np.arange(24) % 3
    run = ntk_tt.finetune(
        ntk_tt.from_function(apply, params),
        x,
        labels,
        OptimizerConfig(rate, batch_size=batch_size),
        5,
    )
    assert run.loss[0] == pytest.approx(np.log(3), rel=1e-5)
    assert run.collapsed_at is None
    assert run.diverged_at is None


def test_a_run_is_not_called_dead_for_what_it_learns():
    case, x, _ = problem_of(12)
    # one class: constant outputs are right
    assert (
        ntk_tt.finetune(case.model, x, np.zeros(24, int), OptimizerConfig(1.0), 50).collapsed_at
        is None
    )
    assert (
        ntk_tt.finetune(case.model, x[:1], np.zeros(1, int), OptimizerConfig(1.0), 5).collapsed_at
        is None
    )


def test_divergence_in_the_last_step_is_seen():
    """The loss before that step is finite; the one after it, which nothing but the last record
    shows, is not.
    """
    case, x, labels = problem_of(12)
    for batch_size in (None, 6):
        run = ntk_tt.finetune(
            case.model,
            x,
            labels,
            OptimizerConfig(1e38, batch_size=batch_size),
            1,
            loss="mse",
        )
        assert run.diverged_at == 1
        assert np.isfinite(run.loss[0])
        assert np.isnan([run.loss[-1], run.error[-1]]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 10**10}, "num_steps: 10000000000 is more"),
        ({"num_steps": 0}, "num_steps"),
        ({"record_every": 0}, "record_every"),
        ({"optimizer": OptimizerConfig(0.1, batch_size=25)}, "batch_size: 25"),
    ],
)
def test_bad_arguments(change, message):
    case, x, labels = problem_of(8)
    arguments = {"optimizer": OptimizerConfig(0.1), "num_steps": 3} | change
    with pytest.raises(ValueError, match=message):
        ntk_tt.finetune(case.model, x, labels, **arguments)


def gap(width, learning_rate, num_steps, seed=0, **setting):
    """Largest distance of the predicted from the real loss curve, relative to how far the loss
    fell.
    """
    case, x, labels = problem_of(width, seed=seed)
    optimizer = OptimizerConfig(learning_rate, **setting)
    problem = ntk_tt.surrogate.linearize(
        case.model, x, labels, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    predicted = ntk_tt.prediction.predict(problem, optimizer, num_steps)
    real = ntk_tt.finetune(case.model, x, labels, optimizer, num_steps)
    assert real.loss[0] - real.loss[-1] > 0.01
    return np.abs(predicted.loss - real.loss).max() / (real.loss[0] - real.loss[-1])


@pytest.mark.slow
def test_agreement_tightens_with_width():
    gaps = [gap(width, 1.0, 300) for width in (8, 64, 512)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.05


@pytest.mark.slow
def test_agreement_tightens_with_smaller_steps():
    # of a network whose loss curve is that of its linear model where steps are small
    gaps = [gap(24, learning_rate, 60, seed=2) for learning_rate in (1.0, 0.1, 0.01)]
    assert gaps[0] > 1.5 * gaps[1] > 1.5**2 * gaps[2]
    assert gaps[2] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("side", [0.9, 1.1, 2.0])
def test_past_the_stability_bound_real_training_diverges_and_the_verdict_says_so(side):
    """Just past the bound a real network is thrown to a flatter place and recovers; well past it,
    it is lost.
    """
    case, x, labels = problem_of(256)
    problem = ntk_tt.surrogate.linearize(
        case.model,
        x,
        labels,
        loss="mse",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    _, safe = ntk_tt.prediction.stability(problem, OptimizerConfig(1e-3), 100)
    optimizer = OptimizerConfig(side * safe)
    verdict = ntk_tt.prediction.assess(problem, case.model, x, labels, optimizer, 100)
    real = ntk_tt.finetune(case.model, x, labels, optimizer, 100, loss="mse")
    assert verdict.stability_margin == pytest.approx(1 / side, rel=1e-3)
    assert verdict.largest_safe_learning_rate == pytest.approx(safe, rel=1e-3)
    assert (verdict.trust == "none") == (side > 1)
    assert ("unstable" in verdict.reason) == (side > 1)
    if side < 1:
        assert real.loss.max() == real.loss[0]
    elif side < 2:
        assert np.nanmax(real.loss) > 1.5 * real.loss[0]
    else:
        assert real.diverged_at is not None or real.loss[-1] > 1e6 * real.loss[0]


def test_residual_grows_with_the_step_and_vanishes_for_a_linear_model():
    case, x, labels = problem_of(24)
    small, large = (
        ntk_tt.prediction.linearization_residual(case.model, x, labels, OptimizerConfig(rate)).value
        for rate in (0.01, 0.5)
    )
    assert 0 < small < 0.2 * large
    linear = {"weight": jnp.zeros((6, 3))}
    assert (
        ntk_tt.prediction.linearization_residual(
            ntk_tt.from_function(lambda params, x: x @ params["weight"], linear),
            x,
            labels,
            OptimizerConfig(0.5),
        ).value
        < 1e-5
    )


def test_a_frozen_kernel_that_will_change_points_to_the_method_that_follows_it():
    moved, still = (
        ntk_tt.prediction.judge(10.0, 0.1, Residual(0.01, expected, 1e-3))
        for expected in (0.5, 0.05)
    )
    assert "`curvature`" in moved.reason
    assert moved.trust == "medium"
    assert "`curvature`" not in still.reason
    assert still.trust == "high"


def test_no_step_counts_a_compilation(monkeypatch):
    """The parameters move in a program that is compiled before the clock runs."""
    case, x, labels = problem_of(12)
    seen, plain = [], optax.apply_updates

    def watched(params, updates):
        seen.append(isinstance(jax.tree.leaves(updates)[0], jax.core.Tracer))
        return plain(params, updates)

    monkeypatch.setattr(optax, "apply_updates", watched)
    run = ntk_tt.finetune(case.model, x, labels, OptimizerConfig(0.1, 0.9), 4)
    assert seen == [True]
    assert 0 < run.step_seconds <= run.seconds
