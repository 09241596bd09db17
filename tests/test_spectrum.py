"""Spectra and their continuation to more data, against closed forms and sampled kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.dynamics import simulate
from ntk_tt.kernels.operators import DualKernel
from ntk_tt.scaling import continue_projections
from ntk_tt.surrogate.linear import LinearizedProblem


def sampled(num_samples, rng, decay=1.0, dimension=400):
    """Θ and δy of a linear model with Gaussian inputs of variance k^−(1+decay): samples of a known
    operator.
    """
    scales = np.arange(1, dimension + 1.0) ** -(1 + decay)
    inputs = rng.normal(size=(num_samples, dimension)) * np.sqrt(scales)
    target = inputs @ rng.normal(size=dimension) + 0.1 * rng.normal(size=num_samples)
    return inputs @ inputs.T, target[:, None]


def test_exact_power_law_is_recovered():
    law = ntk_tt.kernels.fit_power_law(3.0 * np.arange(1, 301.0) ** -1.4)
    assert law.coefficient == pytest.approx(3.0)
    assert law.exponent == pytest.approx(1.4)
    assert (law.first, law.last) == (1, 300)
    outliers = 3.0 * np.arange(1, 301.0) ** -1.4
    outliers[:3] *= 50
    assert ntk_tt.kernels.fit_power_law(outliers, 1, 300).exponent == pytest.approx(1.4, abs=0.05)


def test_loss_of_the_spectrum_is_the_closed_form():
    rng = np.random.default_rng(0)
    jacobian, logits, targets = (
        rng.normal(size=(6, 2, 30)),
        rng.normal(size=(6, 2)),
        np.eye(2)[rng.integers(0, 2, 6)],
    )
    ntk = np.einsum("iad,jbd->iajb", jacobian, jacobian).astype(np.float32)
    logits, targets = logits.astype(np.float32), targets.astype(np.float32)
    problem = LinearizedProblem(
        DualKernel(jnp.asarray(ntk)),
        jnp.asarray(logits),
        jnp.zeros((6, 2)),
        jnp.asarray(targets),
        "mse",
    )
    optimizer = ntk_tt.OptimizerConfig(0.01, momentum=0.5)
    curve = simulate(problem, optimizer, 50, method="closed-form")
    found = ntk_tt.kernels.ntk_spectrum(ntk.reshape(12, 12), logits - targets)
    assert found.projections.sum() == pytest.approx(((logits - targets) ** 2).sum() / 6)
    np.testing.assert_allclose(found.loss(0.02 * curve.steps.astype(float)), curve.loss, rtol=1e-4)


@pytest.mark.parametrize("total", [0.3, 1.0, 5.0])
def test_continued_projections_conserve_the_sum(total):
    projections = np.arange(1, 101.0) ** -1.2
    projections /= projections.sum()
    continued = continue_projections(projections, total, 1000, kept=40)
    assert continued.shape == (1000,)
    assert continued.sum() == pytest.approx(total)
    assert (continued >= 0).all()
    tail = np.log(continued[39:])
    np.testing.assert_allclose(
        np.diff(tail) / np.diff(np.log(np.arange(40, 1001))),
        (tail[1] - tail[0]) / np.log(41 / 40),
        rtol=1e-6,
        atol=1e-9,
    )
    if total > 1:
        np.testing.assert_allclose(continued[:39], projections[:39])


def test_exponent_is_corrected_as_in_the_paper():
    ranks = np.arange(1, 101.0)
    subset = ntk_tt.kernels.Spectrum(2 * ranks**-1.0, ranks**-1.0, 100)
    large = ntk_tt.scaling.extrapolate_power_law(subset, 400, alpha=0.2)
    np.testing.assert_allclose(
        large.eigenvalues, 2 * np.arange(1, 401.0) ** (-1.0 + 0.2 * (100 / 400 - 1))
    )
    assert large.projections.sum() == pytest.approx(subset.projections.sum())


def test_same_size_gives_the_exact_curve():
    matrix, delta = sampled(80, np.random.default_rng(1))
    subset = ntk_tt.kernels.ntk_spectrum(matrix, delta)
    times = np.geomspace(0.1, 300, 40)
    np.testing.assert_allclose(
        ntk_tt.scaling.extrapolate_power_law(subset, 80, kept_eigenvalues=80).loss(times),
        subset.loss(times),
    )
    np.testing.assert_allclose(
        ntk_tt.scaling.extrapolate_loss(matrix, delta, 80, times), subset.loss(times), rtol=1e-9
    )
    found, _ = ntk_tt.scaling.extrapolate_resolvent(subset, 80)
    np.testing.assert_allclose(
        found.loss(times), subset.loss(times), atol=0.01 * subset.loss(np.zeros(1))[0]
    )


@pytest.mark.slow
def test_estimators_without_a_law_find_a_larger_sample_of_a_known_operator():
    """Mean over eight subsets, whose scatter is not the estimators' fault."""
    matrix, delta = sampled(1200, np.random.default_rng(2))
    truth, total = ntk_tt.kernels.ntk_spectrum(matrix, delta), float((delta**2).mean())
    curves = {"subset": [], "resolvent": [], "richardson": []}
    times = np.geomspace(0.3, 100, 30)
    for start in range(0, 1200, 150):
        part = slice(start, start + 150)
        subset = ntk_tt.kernels.ntk_spectrum(matrix[part, part], delta[part])
        found, until = ntk_tt.scaling.extrapolate_resolvent(subset, 1200, total)
        assert until > times[-1]
        curves["subset"].append(subset.loss(times) * total / subset.projections.sum())
        curves["resolvent"].append(found.loss(times))
        curves["richardson"].append(
            ntk_tt.scaling.extrapolate_loss(matrix[part, part], delta[part], 1200, times, total)
        )
    errors = {
        name: np.abs(np.mean(each, 0) - truth.loss(times)).max() / (0.5 * total)
        for name, each in curves.items()
    }
    assert errors["resolvent"] < min(0.01, 0.4 * errors["subset"]), errors
    assert errors["richardson"] < 0.8 * errors["subset"], errors


def test_resolvent_of_one_eigenvalue_is_the_exact_self_consistent_point():
    """Θ/N₀ with all eigenvalues λ: κ = λ + z, so z_N = z + λ(1 − N₀/N), and G_N(z_N) = p/(z_N +
    λN₀/N): one eigenvalue λN₀/N.
    """
    subset = ntk_tt.kernels.Spectrum(np.full(50, 2.0), np.full(50, 0.02), 50)
    found, _ = ntk_tt.scaling.extrapolate_resolvent(subset, 100)
    times = np.linspace(0, 0.5, 20)
    np.testing.assert_allclose(found.loss(times), 0.5 * np.exp(-2 * 1.0 * times), atol=5e-3)


def test_alpha_is_the_slope_of_the_exponent():
    matrix, delta = sampled(200, np.random.default_rng(3), dimension=2000)
    alpha = ntk_tt.scaling.measure_alpha(matrix, delta)
    exponents = {
        n: np.mean(
            [
                ntk_tt.kernels.fit_power_law(
                    ntk_tt.kernels.ntk_spectrum(
                        matrix[i : i + n, i : i + n], delta[i : i + n]
                    ).eigenvalues,
                    1,
                    50,
                ).exponent
                for i in range(0, 200, n)
            ]
        )
        for n in (50, 200)
    }
    assert np.sign(alpha) == np.sign(exponents[200] - exponents[50])
    assert alpha == pytest.approx((exponents[200] - exponents[50]) / 3, rel=0.25)


def test_wrong_arguments_are_named():
    matrix, delta = sampled(20, np.random.default_rng(4))
    subset = ntk_tt.kernels.ntk_spectrum(matrix, delta)
    times = np.ones(2)
    for message, call in (
        ("ntk: must be", lambda: ntk_tt.kernels.ntk_spectrum(matrix, delta[:10])),
        (
            "ntk: holds 1",
            lambda: ntk_tt.kernels.ntk_spectrum(
                np.where(np.arange(400).reshape(20, 20) == 3, np.nan, matrix), delta
            ),
        ),
        ("last", lambda: ntk_tt.kernels.fit_power_law(np.ones(5), 1, 9)),
        ("first, last", lambda: ntk_tt.kernels.fit_power_law(np.ones(5), 4, 5)),
        ("kept: ", lambda: continue_projections(np.ones(5), 1.0, 20, kept=9)),
        ("total", lambda: continue_projections(np.ones(5), 0.0, 20, kept=3)),
        ("num_samples: .*20", lambda: ntk_tt.scaling.extrapolate_power_law(subset, 10)),
        (
            "kept_eigenvalues",
            lambda: ntk_tt.scaling.extrapolate_power_law(subset, 40, kept_eigenvalues=21),
        ),
        ("num_samples", lambda: ntk_tt.scaling.extrapolate_resolvent(subset, 10)),
        ("num_samples", lambda: ntk_tt.scaling.extrapolate_loss(matrix, delta, 10, times)),
        ("parts", lambda: ntk_tt.scaling.extrapolate_loss(matrix, delta, 40, times, parts=(4, 2))),
    ):
        with pytest.raises(ValueError, match=message):
            call()
