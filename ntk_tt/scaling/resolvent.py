"""The deterministic equivalent of sample kernel matrices continues the spectrum: no constant, and
it says how late it can be believed.
"""

import numpy as np

from ntk_tt.kernels.spectrum import Spectrum
from ntk_tt.scaling.subsets import check_larger, check_something_to_learn

_GRID = 160  # eigenvalues that a resolvent is inverted on


def extrapolate_resolvent(
    subset: Spectrum, num_samples: int, total: float | None = None
) -> tuple[Spectrum, float]:
    """The spectral measure of N samples from that of N₀, by the deterministic equivalent of sample
    kernel matrices.

    Let G_n(z) = (1/n) δyᵀ(Θ_n/n + z)⁻¹δy. For samples drawn independently, and up to fluctuations,
    G_n(z) = F(κ) with F the same for every n and 1/κ = (1/n) tr(Θ_n/n + z)⁻¹, and z = κ(1 − d(κ)/n)
    with d, the effective dimension at κ, again the same for every n (Marchenko & Pastur 1967; for
    kernels Jacot et al. 2020, "Kernel alignment risk estimator"; Simon et al. 2023, "The
    eigenlearning framework"). So each z on the subset gives κ, F and d, and with them a point of
    G_N, at z_N = κ(1 − d/N) = z + (κ − z)(1 − N₀/N). G_N is inverted to p_k on a grid of λ by
    non-negative least squares, to about 1 % of the loss. Why it is better founded than a power law:
    it is exact for any spectrum in the limit of many samples, has no constant to choose, and takes
    eigenvalues and projections along together.

    Args:
        subset: of N₀ samples; with several outputs κ is taken to be the same for all of them.
        num_samples: N ≥ N₀.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.

    Returns:
        A spectrum on a grid (its `projections` are those of all eigenvalues near a grid point, its
        `eigenvalues` have no multiplicity), and the time τ up to which it rests on the subset: 1/(2
        z_N) at the smallest z_N that the subset reaches.

    Raises:
        ValueError: N below N₀, fewer than 2 samples, residuals or a kernel of zeros.

    Fails where samples are not independent (augmented copies, videos), and past that time, where
    nothing on the subset decides.
    """
    import scipy.optimize

    check_larger(subset, num_samples)
    if subset.num_samples < 2:
        raise ValueError(f"subset: needs at least 2 samples, got {subset.num_samples}")
    values, weights = subset.eigenvalues, subset.projections
    check_something_to_learn(weights)
    scale = float(weights.sum())
    total = scale if total is None else total
    largest = float(values.max())
    if not largest > 0:
        raise ValueError(
            "subset: all eigenvalues are zero, the network's outputs do not depend on its "
            "parameters, so nothing is ever learned; check what trains"
        )
    arguments = np.geomspace(1e-6 * largest, 1e2 * largest, 240)
    kappas = np.asarray([1 / np.mean(1 / (values + z)) for z in arguments])
    resolvents = np.asarray([np.dot(weights, 1 / (values + z)) for z in arguments]) * total / scale
    moved = arguments + (kappas - arguments) * (1 - subset.num_samples / num_samples)
    grid = np.concatenate(
        [[0.0], np.geomspace(max(1e-2 * moved[0], 1e-7 * largest), 1.2 * largest, _GRID)]
    )
    matrix = 1 / (grid + moved[:, None]) / resolvents[:, None]
    mass = 1e2 * np.ones((1, len(grid))) / total
    found, _ = scipy.optimize.nnls(
        np.concatenate([matrix, mass]),
        np.concatenate([np.ones(len(moved)), [1e2]]),
        maxiter=100 * len(grid),
    )
    return Spectrum(grid[::-1].copy(), found[::-1] * total / found.sum(), num_samples), float(
        1 / (2 * moved[0])
    )
