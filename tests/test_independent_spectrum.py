"""Spectra and their continuation to more data, on Gaussian data whose limit is known (Marchenko and
Pastur; deterministic equivalents).
"""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import ntk_tt


def gaussian(num_samples, variances, rng, target=None, noise=0.0):
    """Θ (N, N) and δy (N, 1) of a linear model with independent Gaussian inputs of given
    variances.
    """
    inputs = rng.normal(size=(num_samples, len(variances))) * np.sqrt(variances)
    target = rng.normal(size=len(variances)) if target is None else target
    return inputs @ inputs.T, (inputs @ target + noise * rng.normal(size=num_samples))[:, None]


def limit_of_resolvent(variances, target, noise, num_samples, z):
    """G_N(z) = (1/N) δyᵀ(Θ/N + z)⁻¹δy in the limit: (Σ β² λ κ/(λ + κ) + σ²)/κ, with z = κ − (κ/N) Σ
    λ/(λ + κ).
    """
    kappa = scipy.optimize.brentq(
        lambda k: k - k / num_samples * np.sum(variances / (variances + k)) - z,
        1e-12,
        z + variances.sum(),
    )
    return (np.sum(target**2 * variances * kappa / (variances + kappa)) + noise**2) / kappa


# Eigenvalues and projections


@pytest.mark.parametrize(
    ("num_samples", "num_outputs", "rank"),
    [(1, 1, 5), (7, 3, 40), (7, 3, 4), (12, 2, 1), (5, 4, 0)],
)
def test_spectrum_is_numpy_s(num_samples, num_outputs, rank):
    rng = np.random.default_rng(0)
    rows = num_samples * num_outputs
    jacobian = rng.normal(size=(rows, rank))
    ntk, residuals = jacobian @ jacobian.T, rng.normal(size=(num_samples, num_outputs))
    found = ntk_tt.kernels.ntk_spectrum(ntk, residuals)
    np.testing.assert_allclose(
        found.eigenvalues,
        np.maximum(np.linalg.eigvalsh(ntk)[::-1], 0) / num_samples,
        atol=1e-12 * max(1, rank * rows),
    )
    assert len(found.eigenvalues) == rows
    assert (np.diff(found.eigenvalues) <= 0).all()
    assert found.projections.sum() == pytest.approx((residuals**2).sum() / num_samples)
    times = np.asarray([0.0, 0.1, 3.0])
    values, vectors = np.linalg.eigh(ntk / num_samples)
    expected = [
        0.5 * ((np.exp(-values * time) * (vectors.T @ residuals.ravel())) ** 2).sum() / num_samples
        for time in times
    ]
    np.testing.assert_allclose(found.loss(times), expected, rtol=1e-9)


def test_projections_of_equal_eigenvalues_are_theirs_together():
    """Which eigenvectors are found is arbitrary; their sum is the norm of δy within their space."""
    rng = np.random.default_rng(1)
    vectors = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    values = np.asarray([4.0, 4, 4, 1, 1, 0.25, 0, 0, 0])
    residuals = rng.normal(size=(9, 1))
    found = ntk_tt.kernels.ntk_spectrum(vectors @ np.diag(values) @ vectors.T, residuals)
    inner = (vectors.T @ residuals[:, 0]) ** 2 / 9
    for part in (slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 9)):
        assert found.projections[part].sum() == pytest.approx(inner[part].sum())


# Exact laws


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("coefficient", [1e-8, 3.0, 1e6])
@pytest.mark.parametrize("number", [3, 10, 2_000])
def test_a_power_law_is_its_own_fit(exponent, coefficient, number):
    law = ntk_tt.kernels.fit_power_law(coefficient * np.arange(1, number + 1.0) ** -exponent)
    assert law.exponent == pytest.approx(exponent, rel=1e-6)
    assert law.coefficient == pytest.approx(coefficient, rel=1e-6)


def test_a_power_law_of_a_population_is_found_from_samples():
    """Leading eigenvalues of Θ/N of 600 samples of λ_k = k^−1.5 keep its exponent."""
    matrix, delta = gaussian(600, np.arange(1, 3_001.0) ** -1.5, np.random.default_rng(0))
    law = ntk_tt.kernels.fit_power_law(
        ntk_tt.kernels.ntk_spectrum(matrix, delta).eigenvalues, 1, 60
    )
    assert law.exponent == pytest.approx(1.5, abs=0.1)
    assert law.coefficient == pytest.approx(1.0, rel=0.15)


def test_extrapolation_by_an_exact_law_is_the_law_s_own_loss():
    """λ_k = 2 k^−1.2 and p_k ∝ k^−1.5 at all ranks, with no correction of the exponent: the curve
    of 2,000 ranks from 400 of them.
    """

    def spectrum(ranks, num_samples):
        return ntk_tt.kernels.Spectrum(
            2 * np.arange(1, ranks + 1.0) ** -1.2, np.arange(1, ranks + 1.0) ** -1.5, num_samples
        )

    small, large = spectrum(400, 400), spectrum(2_000, 2_000)
    found = ntk_tt.scaling.extrapolate_power_law(
        small, 2_000, float(large.projections.sum()), alpha=0.0
    )
    times = np.geomspace(0.01, 1e4, 30)
    np.testing.assert_allclose(found.eigenvalues, large.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(
        found.loss(times), large.loss(times), rtol=0.02, atol=0.01 * large.loss(np.zeros(1))[0]
    )


# The resolvent


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_isotropic_data_have_the_spectrum_of_marchenko_and_pastur(ratio):
    """N = 400, d = ratio·N, variances 1: support (1 ± √ratio)², and the mean of (λ + z)⁻¹."""
    num_samples = 400
    dimension = int(ratio * num_samples)
    found = ntk_tt.kernels.ntk_spectrum(
        *gaussian(num_samples, np.ones(dimension), np.random.default_rng(0))
    )
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    positive = found.eigenvalues[: min(num_samples, dimension)]
    assert positive[0] == pytest.approx(high, rel=0.03)
    assert positive[-1] == pytest.approx(low, rel=0.12)
    assert found.eigenvalues[len(positive) :].max(initial=0) < 1e-10

    def density(x):
        # of the N eigenvalues, per N
        return np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * x)

    for z in (0.1, 1.0):
        expected = (
            scipy.integrate.quad(lambda x, z=z: density(x) / (x + z), low, high)[0]
            + max(0.0, 1 - ratio) / z
        )
        assert np.mean(1 / (found.eigenvalues + z)) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow_but("power law-0.0", "two levels-0.5")
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("name", ["isotropic", "power law", "two levels"])
def test_the_resolvent_of_more_samples_is_the_deterministic_equivalent(name, noise):
    """150 samples tell the transform of 150, 600 and 15,000 to 6 %, mean of six subsets; the
    subset's own is up to several times off.
    """
    variances = {
        "isotropic": np.full(100, 1.0),
        "power law": 20 * np.arange(1, 1_001.0) ** -1.5,
        "two levels": np.concatenate([np.full(5, 10.0), np.full(300, 0.1)]),
    }[name]
    rng = np.random.default_rng(3)
    target = rng.normal(size=len(variances)) / np.sqrt(len(variances))
    total = float(np.sum(target**2 * variances) + noise**2)
    subsets = [
        ntk_tt.kernels.ntk_spectrum(*gaussian(150, variances, rng, target, noise)) for _ in range(6)
    ]
    for num_samples in (150, 600, 15_000):
        found = [
            ntk_tt.scaling.extrapolate_resolvent(subset, num_samples, total) for subset in subsets
        ]
        for z in (0.3, 1.0, 5.0):
            assert all(1 / (2 * z) < until for _, until in found)
            mean = np.mean(
                [np.sum(spectrum.projections / (spectrum.eigenvalues + z)) for spectrum, _ in found]
            )
            expected = limit_of_resolvent(variances, target, noise, num_samples, z)
            assert mean == pytest.approx(expected, rel=0.06), (num_samples, z)
    alone = np.mean([np.sum(subset.projections / (subset.eigenvalues + 0.3)) for subset in subsets])
    assert abs(alone / limit_of_resolvent(variances, target, noise, 15_000, 0.3) - 1) > 0.1


@pytest.mark.slow
def test_many_samples_of_few_directions_decay_as_their_population():
    """d = 20 directions, from 200 samples to 10⁶: L(τ) is that of the covariance itself, ½ Σ β² λ
    e^{−2λτ}.
    """
    variances = np.geomspace(4, 0.25, 20)
    rng = np.random.default_rng(0)
    target = rng.normal(size=20)
    total = float(np.sum(target**2 * variances))
    times = np.geomspace(0.01, 3, 12)
    curves = []
    for _ in range(6):
        spectrum, until = ntk_tt.scaling.extrapolate_resolvent(
            ntk_tt.kernels.ntk_spectrum(*gaussian(200, variances, rng, target)), 10**6, total
        )
        assert until > times[-1]
        curves.append(spectrum.loss(times))
    truth = np.asarray(
        [0.5 * np.sum(target**2 * variances * np.exp(-2 * variances * time)) for time in times]
    )
    np.testing.assert_allclose(np.mean(curves, 0), truth, atol=0.015 * total)


@pytest.mark.slow
def test_effective_dimension_is_that_of_ridge_regression():
    """N(1 − z/κ) on the sample is tr Σ(Σ + κ)⁻¹, the degrees of freedom of ridge regression at
    κ.
    """
    variances = 5 * np.arange(1, 501.0) ** -1.2
    values = np.concatenate(
        [
            ntk_tt.kernels.ntk_spectrum(
                *gaussian(300, variances, np.random.default_rng(seed))
            ).eigenvalues[None]
            for seed in range(4)
        ]
    )
    for z in (0.05, 0.5):
        kappa = float(1 / np.mean(1 / (values + z)))
        assert 300 * (1 - z / kappa) == pytest.approx(
            np.sum(variances / (variances + kappa)), rel=0.02
        )


@pytest.mark.parametrize(
    "extrapolate",
    [
        lambda matrix, delta, times: ntk_tt.scaling.extrapolate_resolvent(
            ntk_tt.kernels.ntk_spectrum(matrix, delta), 100
        )[0].loss(times),
        lambda matrix, delta, times: ntk_tt.scaling.extrapolate_power_law(
            ntk_tt.kernels.ntk_spectrum(matrix, delta), 100
        ).loss(times),
        lambda matrix, delta, times: ntk_tt.scaling.extrapolate_loss(matrix, delta, 100, times),
    ],
)
def test_degenerate_subsets_give_their_curve_or_a_reason(extrapolate):
    """Nothing to learn, a kernel of zeros, samples that are all alike: a finite curve that does not
    rise, or ValueError; never NaN.
    """
    rng, times = np.random.default_rng(0), np.asarray([0.0, 1.0, 10.0])
    inputs, alike = rng.normal(size=(20, 8)), np.tile(rng.normal(size=(1, 8)), (20, 1))
    for matrix, delta in (
        (inputs @ inputs.T, np.zeros((20, 1))),
        (np.zeros((20, 20)), rng.normal(size=(20, 1))),
        (alike @ alike.T, np.ones((20, 1))),
    ):
        curve, message = np.zeros(3), "residuals: "
        try:
            curve = extrapolate(matrix, delta, times)
        except ValueError as error:
            message = str(error)
        assert message.startswith(("residuals: ", "subset: ", "first, last: ", "total: "))
        assert np.isfinite(curve).all()
        assert (np.diff(curve) <= 1e-12).all()
