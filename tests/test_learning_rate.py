"""Curvature and stability bounds against dense eigenvalues and against optimisers that do or do not
diverge.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt import losses
from ntk_tt.kernels.operators import DualKernel
from ntk_tt.surrogate.sharpness import (
    batch_curvature_variance,
    largest_curvature,
    largest_curvature_bound,
    largest_safe_learning_rate,
)
from tests.networks import dense_jacobian, mlp


def make(loss, space="dual", num_samples=9, num_outputs=3):
    case = mlp(num_outputs, width=20)
    x = case.inputs(num_samples, 0)
    labels = np.arange(num_samples) % num_outputs
    problem = ntk_tt.surrogate.linearize(
        case.model,
        x,
        labels,
        loss=loss,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        space=space,
    )
    return case, x, problem, dense_jacobian(case, x)


def sample_hessians(jacobian, logits, loss):
    """Hᵢ = Jᵢᵀ Sᵢ Jᵢ, dense."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
    outputs = jacobian.shape[1]
    curvatures = [
        np.eye(outputs) if loss == "mse" else np.diag(row) - np.outer(row, row) for row in p
    ]
    return np.stack([j.T @ s @ j for j, s in zip(jacobian, curvatures, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("space", ["primal", "dual"])
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_curvature_and_scatter_equal_dense(loss, space):
    _, _, problem, jacobian = make(loss, space)
    logits = 2 * problem.initial_logits
    hessians = sample_hessians(jacobian, logits, loss)
    values, vectors = np.linalg.eigh(hessians.mean(0))
    curvature, direction = largest_curvature(problem, logits)
    assert curvature == pytest.approx(values[-1], rel=1e-3)
    top = vectors[:, -1]
    expected = np.mean([top @ h @ h @ top for h in hessians]) - values[-1] ** 2
    assert batch_curvature_variance(problem, logits, curvature, direction) == pytest.approx(
        expected, rel=1e-2
    )
    flat = jacobian.reshape(-1, jacobian.shape[-1])
    factor = 1.0 if loss == "mse" else 0.5
    bound = largest_curvature_bound(problem)
    assert bound == pytest.approx(
        factor * np.linalg.eigvalsh(flat @ flat.T).max() / problem.num_samples, rel=1e-3
    )
    assert curvature <= bound * (1 + 1e-4)


def test_curvature_from_a_start_is_the_largest_even_where_that_is_another_direction():
    _, _, problem, _ = make("ce")
    logits = problem.initial_logits
    expected, direction = largest_curvature(problem, logits)
    product = jax.vmap(
        lambda vector: losses.curvature_sqrt_transpose(
            "ce",
            logits,
            problem.kernel.product(losses.curvature_sqrt_product("ce", logits, vector)),
        )
    )
    matrix = product(jnp.eye(logits.size).reshape(-1, *logits.shape)).reshape(logits.size, -1)
    _, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    for start in (direction, jnp.asarray(vectors[:, -2].reshape(logits.shape), logits.dtype)):
        found, again = largest_curvature(problem, logits, start)
        assert found == pytest.approx(expected, rel=1e-4)
        assert abs(float(jnp.vdot(again, direction))) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "expected"),
    [
        (0.0, False, 2.0),
        (0.9, False, 3.8),
        (0.5, False, 3.0),
        (0.9, True, 3.8 / 2.8),
        (0.5, True, 1.5),
    ],
)
def test_bounds_without_noise(momentum, nesterov, expected):
    assert largest_safe_learning_rate(
        4.0, 0.0, momentum=momentum, nesterov=nesterov
    ) == pytest.approx(expected / 4, rel=1e-6)
    assert largest_safe_learning_rate(
        3.0, 0.0, momentum=momentum, nesterov=nesterov, weight_decay=1.0
    ) == pytest.approx(expected / 4, rel=1e-6)


def test_bound_with_noise():
    assert largest_safe_learning_rate(2.0, 5.0) == pytest.approx(2 * 2 / (2**2 + 5), rel=1e-6)
    assert largest_safe_learning_rate(0.0, 0.0) == np.inf


@pytest.mark.parametrize(
    ("momentum", "nesterov", "variance"),
    [(0.0, False, 3.0), (0.8, False, 3.0), (0.8, True, 3.0), (0.9, False, 0.0), (0.9, True, 0.0)],
)
@pytest.mark.parametrize("side", [0.93, 1.07])
def test_both_sides_of_the_bound(momentum, nesterov, variance, side):
    """E[x²] of the scalar recursion, propagated by explicit updates of the moments over ±√variance,
    falls below and rises above.
    """
    mean = 2.0
    rate = side * largest_safe_learning_rate(mean, variance, momentum=momentum, nesterov=nesterov)
    moments = np.array([[1.0, 0.0], [0.0, 0.0]])
    for _ in range(3000):
        total = np.zeros((2, 2))
        for h in (mean - np.sqrt(variance), mean + np.sqrt(variance)):

            def step(x, a, h=h):
                a_new = momentum * a + h * x
                return x - rate * (h * x + momentum * a_new if nesterov else a_new), a_new

            matrix = np.array([step(1.0, 0.0), step(0.0, 1.0)]).T
            total += 0.5 * matrix @ moments @ matrix.T
        moments = total
        if moments[0, 0] > 1e6:
            break
    assert (moments[0, 0] < 1e-3) == (side < 1)


@pytest.mark.slow_but("setting1")
@pytest.mark.parametrize("setting", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_replay_of_mse_diverges_exactly_past_the_bound(setting):
    _, _, problem, _ = make("mse")
    for side, stable in ((0.97, True), (1.03, False)):
        _, safe = ntk_tt.prediction.stability(problem, ntk_tt.OptimizerConfig(1e-3, **setting), 10)
        curve = ntk_tt.dynamics.simulate(
            problem, ntk_tt.OptimizerConfig(side * safe, **setting), 1500
        )
        assert (curve.loss[-1] < curve.loss[0]) == stable


def test_margin_uses_the_schedules_highest_rate():
    _, _, problem, _ = make("ce")
    constant, safe = ntk_tt.prediction.stability(problem, ntk_tt.OptimizerConfig(0.1), 20)
    falling, same = ntk_tt.prediction.stability(
        problem, ntk_tt.OptimizerConfig(lambda step: 0.2 / (1 + step)), 20
    )
    assert constant == pytest.approx(safe / 0.1)
    assert falling == pytest.approx(same / 0.2)


def test_products_that_overflow_have_no_bound_that_is_safe():
    _, _, problem, _ = make("mse")
    huge = dataclasses.replace(problem, kernel=DualKernel(problem.kernel.ntk * 1e38))
    curvature, direction = largest_curvature(huge, problem.initial_logits)
    assert curvature == np.inf
    assert np.isfinite(direction).all()
    assert largest_safe_learning_rate(curvature, 0.0) == 0.0
    assert ntk_tt.prediction.stability(huge, ntk_tt.OptimizerConfig(1e-3), 5)[0] == 0.0
