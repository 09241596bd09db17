"""Eigenvalues of Θ, what they say of training time under the MSE loss, and how they continue to more data than was seen.

A set of N₀ samples is drawn from the same source as the N that will be trained on. Three ways lead from one to the other:

- `extrapolate_power_law`: appendix D of the paper, a power law with a corrected exponent. It needs a constant, α.
- `extrapolate_resolvent`: the deterministic equivalent of sample kernel matrices. No constant, and it says how late it can be believed.
- `extrapolate_loss`: the loss on subsets of the subset, continued in 1/n (Richardson). No model of the spectrum at all.

The loss is ½‖f − y‖² (mean over samples), its time τ = ∫ η/(1−m) dt [steps × learning rate].
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.stats
from jaxtyping import Array, Float

Vector = Float[Array, " _"] | Float[np.ndarray, " _"]
DEFAULT_ALPHA = 0.15
"""Of the corrected exponent: the middle of the paper's [0.1, 0.2]."""
DEFAULT_KEPT = 100
"""k₀: projections taken as they are on the subset (the paper's value)."""
_FIT_POINTS = 60
_GRID = 160  # eigenvalues that a resolvent is inverted on
_STEEPEST = 30.0


class Spectrum(eqx.Module):
    """What gradient flow under the MSE loss needs of a data set.

    Attributes:
        eigenvalues: λ_k of Θ/N, falling, at least 0 (they converge as N grows; those of Θ grow with N).
        projections: p_k = (δy·v_k)²/N, δy = f₀ − y: their sum is the mean of ‖δyᵢ‖², twice the initial loss.
        num_samples: N.
    """

    eigenvalues: Float[np.ndarray, " k"]
    projections: Float[np.ndarray, " k"]
    num_samples: int = eqx.field(static=True)

    def loss(self, times: Vector) -> Float[np.ndarray, " t"]:
        """L(τ) = ½ Σ_k p_k e^{−2λ_k τ}, eq. (5) with the mean over samples and the ½ in the loss.

        Args:
            times: τ [steps × learning rate]; divide by η/(1−m) for steps.
        """
        times = np.asarray(times, np.float64)
        return np.asarray([0.5 * np.dot(self.projections, np.exp(-2 * self.eigenvalues * time)) for time in times])


class PowerLaw(eqx.Module):
    """λ_k = c k^−s, fitted between two ranks (from 1)."""

    coefficient: float
    exponent: float
    first: int = eqx.field(static=True)
    last: int = eqx.field(static=True)

    def __call__(self, ranks: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        return self.coefficient * np.asarray(ranks, np.float64) ** -self.exponent


def ntk_spectrum(ntk: Float[Array | np.ndarray, "rows rows"], residuals: Float[Array | np.ndarray, "n c"]) -> Spectrum:
    """Eigenvalues of Θ/N and projections of δy = f₀ − y on its eigenvectors.

    Args:
        ntk: Θ (N·C, N·C), rows ordered as (sample, output): `empirical_ntk(...)` reshaped, or `ntk_from_features`.
        residuals: f₀ − y (N, C).

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.

    Cost: one eigen-decomposition, about 9 (N·C)³ flops; three times Θ in memory, in its own precision. In single precision
    eigenvalues below 10⁻⁶ of the largest are rounding.
    """
    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    _check_pair(matrix, delta)
    eigenvalues, eigenvectors = scipy.linalg.eigh(matrix, driver="evd")
    projections = (eigenvectors.T @ delta.reshape(-1)).astype(np.float64) ** 2
    order = slice(None, None, -1)
    return Spectrum(np.maximum(eigenvalues[order].astype(np.float64), 0) / len(delta), projections[order] / len(delta), len(delta))


def fit_power_law(eigenvalues: Vector, first: int = 1, last: int | None = None) -> PowerLaw:
    """c and s of λ_k = c k^−s by Theil–Sen's median slope of log λ against log k.

    Ranks are taken evenly in log k, or the many small eigenvalues would decide alone; the median ignores the few largest,
    which belong to classes rather than to the law, and rounding at the end.

    Args:
        eigenvalues: falling, λ_1 first.
        first, last: ranks (from 1) of the fit's range; None ends where eigenvalues fall below 10⁻⁶ of the largest.

    Raises:
        ValueError: a range with fewer than 3 eigenvalues, or that leaves the positive ones.
    """
    values = np.asarray(eigenvalues, np.float64)
    positive = int(np.sum(values > 1e-6 * values.max(initial=0.0)))
    last = positive if last is None else last
    if not (first >= 1 and last - first >= 2):
        raise ValueError(f"first, last: a power law needs three ranks or more, got {first} … {last}; give a wider range")
    if last > len(values) or not (values[first - 1 : last] > 0).all():
        raise ValueError(f"last: must lie within the {int(np.sum(values > 0))} positive eigenvalues, got {last}")
    ranks = np.unique(np.round(np.geomspace(first, last, _FIT_POINTS)).astype(int))
    slope, intercept = np.asarray(scipy.stats.theilslopes(np.log(values[ranks - 1]), np.log(ranks)))[:2]
    return PowerLaw(float(np.exp(intercept)), float(-slope), first, last)


def continue_projections(projections: Vector, total: float, num_ranks: int, kept: int = DEFAULT_KEPT) -> Float[np.ndarray, " k"]:
    """p_k as they are below rank k₀ = `kept`, and a·k^−b from there on, meeting p_{k₀} and conserving Σ p_k = `total` (appendix D).

    p_k scatters widely from rank to rank, so the law meets the mean of p over k₀/2 … k₀ instead of the one number p_{k₀}.

    Args:
        projections: p_k, squared and divided by the number of samples as in `Spectrum`. Appendix D drops both: without the
            square the sum is not ‖δy‖², and without the division p_k of N₀ and of N samples differ by N/N₀.
        total: mean of ‖δyᵢ‖² over the large set (labels and one forward pass).
        num_ranks: N·C of the large set.

    Raises:
        ValueError: `kept` outside the subset's ranks, or not below `num_ranks`; a total that is not positive.

    Where the kept ones alone pass the total they are scaled to it; where no power law fits, the tail is the steepest allowed.
    """
    values = np.asarray(projections, np.float64)
    if not 2 <= kept <= min(len(values), num_ranks - 1):
        raise ValueError(f"kept: must lie between 2 and {min(len(values), num_ranks - 1)}, the ranks of the subset, got {kept}")
    if not total > 0:
        raise ValueError(f"total: the mean of ‖δy‖² must be positive, got {total}")
    head = values[: kept - 1] * min(1.0, total / max(values.sum(), 1e-300))
    left = total - head.sum()
    start = values[kept // 2 : kept].mean()
    ratios = np.arange(kept, num_ranks + 1) / kept

    def excess(exponent: float) -> float:
        return float(start * np.sum(ratios**-exponent) - left)

    exponent = _STEEPEST
    if start > 0 and excess(_STEEPEST) < 0:
        exponent = _root(excess) if excess(-_STEEPEST) > 0 else -_STEEPEST
    tail = ratios**-exponent
    return np.concatenate([head, tail * left / tail.sum()])


def _root(function: Callable[[float], float]) -> float:
    return scipy.optimize.root_scalar(function, bracket=(-_STEEPEST, _STEEPEST), method="brentq").root


def extrapolate_power_law(subset: Spectrum, num_samples: int, total: float | None = None, *, alpha: float = DEFAULT_ALPHA, kept: int = DEFAULT_KEPT,
                          kept_eigenvalues: int = 0, first: int = 1, last: int | None = None) -> Spectrum:
    """Appendix D: λ̂_k = c k^(−s + α(N₀/N − 1)) with c, s fitted to the subset, and p̂_k of `continue_projections`.

    Args:
        subset: of N₀ samples.
        num_samples: N ≥ N₀.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.
        alpha: how much steeper the spectrum grows; see `measure_alpha`.
        kept: k₀, cut to half of the subset's ranks.
        kept_eigenvalues: leading eigenvalues taken as they are on the subset instead of from the law; 0 is the paper's
            rule, `len(subset.eigenvalues)` with N = N₀ returns the subset.
        first, last: range of the fit.

    Raises:
        ValueError: N below N₀, projections of zeros, or what `fit_power_law` and `continue_projections` raise.
    """
    _check_larger(subset, num_samples)
    _check_something_to_learn(subset.projections)
    ranks_seen = len(subset.eigenvalues)
    if not 0 <= kept_eigenvalues <= ranks_seen:
        raise ValueError(f"kept_eigenvalues: must lie between 0 and the {ranks_seen} of the subset, got {kept_eigenvalues}")
    total = float(subset.projections.sum()) if total is None else total
    if num_samples == subset.num_samples and kept_eigenvalues == ranks_seen:
        return Spectrum(subset.eigenvalues, subset.projections * total / subset.projections.sum(), num_samples)
    law = fit_power_law(subset.eigenvalues, first, last)
    num_ranks = ranks_seen * num_samples // subset.num_samples
    steeper = PowerLaw(law.coefficient, law.exponent + alpha * (1 - subset.num_samples / num_samples), law.first, law.last)
    eigenvalues = steeper(np.arange(1, num_ranks + 1, dtype=np.float64))
    eigenvalues[:kept_eigenvalues] = subset.eigenvalues[:kept_eigenvalues]
    return Spectrum(eigenvalues, continue_projections(subset.projections, total, num_ranks, max(2, min(kept, ranks_seen // 2))), num_samples)


def measure_alpha(ntk: Float[Array | np.ndarray, "rows rows"], residuals: Float[Array | np.ndarray, "n c"], *, parts: Sequence[int] = (4, 2, 1),
                  num_subsets: int = 4, seed: int = 0) -> float:
    """α from the subset itself: the corrected exponent says s(N) = s_∞ − αN₀/N, so it is the slope of s over subsets of N₀/4, N₀/2, N₀ samples.

    All fits end at the rank of the smallest, so that they see the same part of the spectrum.
    """
    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    _check_pair(matrix, delta)
    last = delta.size // max(parts)
    points = [(part, np.mean([fit_power_law(each.eigenvalues, 1, last).exponent for each in _subset_spectra(matrix, delta, part, num_subsets, seed)]))
              for part in parts]
    inverse, exponents = np.asarray(points, float).T
    return float(-np.polyfit(inverse, exponents, 1)[0])


def extrapolate_resolvent(subset: Spectrum, num_samples: int, total: float | None = None) -> tuple[Spectrum, float]:
    """The spectral measure of N samples from that of N₀, by the deterministic equivalent of sample kernel matrices.

    Let G_n(z) = (1/n) δyᵀ(Θ_n/n + z)⁻¹δy. For samples drawn independently, and up to fluctuations, G_n(z) = F(κ) with F the
    same for every n and 1/κ = (1/n) tr(Θ_n/n + z)⁻¹, and z = κ(1 − d(κ)/n) with d, the effective dimension at κ, again the
    same for every n (Marchenko & Pastur 1967; for kernels Jacot et al. 2020, "Kernel alignment risk estimator"; Simon et al.
    2023, "The eigenlearning framework"). So each z on the subset gives κ, F and d, and with them a point of G_N, at
    z_N = κ(1 − d/N) = z + (κ − z)(1 − N₀/N). G_N is inverted to p_k on a grid of λ by non-negative least squares, to about 1 % of
    the loss. Why it is better founded than a power law: it is exact for any spectrum in the limit of many samples, has no
    constant to choose, and takes eigenvalues and projections along together.

    Args:
        subset: of N₀ samples; with several outputs κ is taken to be the same for all of them.
        num_samples: N ≥ N₀.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.

    Returns:
        A spectrum on a grid (its `projections` are those of all eigenvalues near a grid point, its `eigenvalues` have no
        multiplicity), and the time τ up to which it rests on the subset: 1/(2 z_N) at the smallest z_N that the subset reaches.

    Raises:
        ValueError: N below N₀, fewer than 2 samples, residuals or a kernel of zeros.

    Fails where samples are not independent (augmented copies, videos), and past that time, where nothing on the subset decides.
    """
    _check_larger(subset, num_samples)
    if subset.num_samples < 2:
        raise ValueError(f"subset: needs at least 2 samples, got {subset.num_samples}")
    values, weights = subset.eigenvalues, subset.projections
    _check_something_to_learn(weights)
    scale = float(weights.sum())
    total = scale if total is None else total
    largest = float(values.max())
    if not largest > 0:
        raise ValueError("subset: all eigenvalues are zero, the network's outputs do not depend on its parameters, so nothing is ever learned; check what trains")
    arguments = np.geomspace(1e-6 * largest, 1e2 * largest, 240)
    kappas = np.asarray([1 / np.mean(1 / (values + z)) for z in arguments])
    resolvents = np.asarray([np.dot(weights, 1 / (values + z)) for z in arguments]) * total / scale
    moved = arguments + (kappas - arguments) * (1 - subset.num_samples / num_samples)
    grid = np.concatenate([[0.0], np.geomspace(max(1e-2 * moved[0], 1e-7 * largest), 1.2 * largest, _GRID)])
    matrix = 1 / (grid + moved[:, None]) / resolvents[:, None]
    mass = 1e2 * np.ones((1, len(grid))) / total
    found, _ = scipy.optimize.nnls(np.concatenate([matrix, mass]), np.concatenate([np.ones(len(moved)), [1e2]]), maxiter=100 * len(grid))
    return Spectrum(grid[::-1].copy(), found[::-1] * total / found.sum(), num_samples), float(1 / (2 * moved[0]))


def extrapolate_loss(ntk: Float[Array | np.ndarray, "rows rows"], residuals: Float[Array | np.ndarray, "n c"], num_samples: int, times: Vector,
                     total: float | None = None, *, parts: Sequence[int] = (2, 1), num_subsets: int = 8, seed: int = 0) -> Float[np.ndarray, " t"]:
    """L(τ) at N samples from its mean over random subsets of N₀/part samples, by polynomial interpolation in 1/n (Richardson).

    Each coefficient of τ^j in the mean of L_n(τ) over subsets is a polynomial of degree j in 1/n (δyᵀΘ^jδy/n^{j+1} splits by which
    of its samples coincide), so the limit is right at early times, whatever the spectrum; late times are where n decides the rank.
    The interpolation is made monotone and kept between 0 and L(0).

    Args:
        ntk, residuals: of the N₀ samples, as in `ntk_spectrum`.
        num_samples: N ≥ N₀; at N = N₀ the curve is the subset's own.
        times: τ, rising.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.
        parts: divisors of N₀; their number is one more than the order. The noise grows with it: (2, 1) weighs the subset's
            curve at most 2-fold, (4, 2, 1) 2.7-fold.

    Raises:
        ValueError: N below N₀, residuals of zeros, parts that are not distinct positive integers with 1 among them.

    Cost: `num_subsets` eigen-decompositions of N₀/part samples for each part.
    """
    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    _check_pair(matrix, delta)
    if num_samples < len(delta):
        raise ValueError(f"num_samples: must be at least the subset's {len(delta)}, got {num_samples}")
    if len(set(parts)) != len(parts) or 1 not in parts or min(parts) < 1 or len(delta) < 2 * max(parts):
        raise ValueError(f"parts: give distinct divisors with 1 among them, that leave 2 of {len(delta)} samples or more, got {tuple(parts)}")
    _check_something_to_learn(delta)
    curves = [_mean_fall(_subset_spectra(matrix, delta, part, num_subsets, seed), times) for part in parts]
    nodes, wanted = np.asarray([len(delta) / (len(delta) // part) for part in parts]), len(delta) / num_samples
    curve = np.zeros_like(curves[0])
    for index, each in enumerate(curves):
        others = np.delete(nodes, index)
        curve = curve + float(np.prod((wanted - others) / (nodes[index] - others))) * each
    total = float((delta**2).sum() / len(delta)) if total is None else total
    return 0.5 * total * np.minimum.accumulate(np.clip(curve, 0, 1))


def _mean_fall(spectra: list[Spectrum], times: Vector) -> Float[np.ndarray, " t"]:
    """L(τ)/L(0), mean over the spectra that have something to learn."""
    falls = [each.loss(times) / (0.5 * each.projections.sum()) for each in spectra if each.projections.sum() > 0]
    if not falls:
        raise ValueError("residuals: zero on all of the smaller subsets drawn, so there is no curve to continue; give more samples that the network does not fit, or num_subsets")
    return np.mean(falls, 0)


def _subset_spectra(matrix: np.ndarray, delta: np.ndarray, part: int, num_subsets: int, seed: int) -> list[Spectrum]:
    num_samples, num_outputs = delta.shape
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(1 if part == 1 else num_subsets):
        chosen = np.sort(rng.permutation(num_samples)[: num_samples // part])
        rows = (chosen[:, None] * num_outputs + np.arange(num_outputs)).reshape(-1)
        found.append(ntk_spectrum(matrix[np.ix_(rows, rows)], delta[chosen]))
    return found


def _check_pair(matrix: np.ndarray, delta: np.ndarray) -> None:
    if matrix.shape != (delta.size, delta.size):
        raise ValueError(f"ntk: must be ({delta.size}, {delta.size}) for residuals of shape {delta.shape}, got {matrix.shape}; reshape Θ to (N·C, N·C)")
    for name, array in (("ntk", matrix), ("residuals", delta)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: holds {int(np.sum(~np.isfinite(array)))} numbers that are not finite; check the network's weights and inputs")


def _check_something_to_learn(residuals: np.ndarray) -> None:
    if not np.any(residuals):
        raise ValueError("residuals: all are zero, the network gives its targets exactly, so there is no curve to continue; give samples with something left to learn")


def _check_larger(subset: Spectrum, num_samples: int) -> None:
    if num_samples < subset.num_samples:
        raise ValueError(f"num_samples: must be at least the subset's {subset.num_samples}, got {num_samples}; to go down, take fewer samples")
