"""Appendix D of the paper: a power law with a corrected exponent continues the spectrum. It needs a
constant, α.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from ntk_tt.kernels.spectrum import PowerLaw, Spectrum, Vector, check_pair, fit_power_law
from ntk_tt.scaling.subsets import check_larger, check_something_to_learn, subset_spectra

DEFAULT_ALPHA = 0.15
"""Of the corrected exponent: the middle of the paper's [0.1, 0.2]."""
DEFAULT_KEPT = 100
"""k₀: projections taken as they are on the subset (the paper's value)."""
_STEEPEST = 30.0


def continue_projections(
    projections: Vector, total: float, num_ranks: int, kept: int = DEFAULT_KEPT
) -> Float[np.ndarray, " k"]:
    """p_k as they are below rank k₀ = `kept`, and a·k^−b from there on, meeting p_{k₀} and
    conserving Σ p_k = `total` (appendix D).

    p_k scatters widely from rank to rank, so the law meets the mean of p over k₀/2 … k₀ instead of
    the one number p_{k₀}.

    Args:
        projections: p_k, squared and divided by the number of samples as in `Spectrum`. Appendix D
            drops both: without the square the sum is not ‖δy‖², and without the division p_k of N₀
            and of N samples differ by N/N₀.
        total: mean of ‖δyᵢ‖² over the large set (labels and one forward pass).
        num_ranks: N·C of the large set.

    Raises:
        ValueError: `kept` outside the subset's ranks, or not below `num_ranks`; a total that is not
            positive.

    Where the kept ones alone pass the total they are scaled to it; where no power law fits, the
    tail is the steepest allowed.
    """
    values = np.asarray(projections, np.float64)
    if not 2 <= kept <= min(len(values), num_ranks - 1):
        raise ValueError(
            f"kept: must lie between 2 and {min(len(values), num_ranks - 1)}, the ranks of the "
            f"subset, got {kept}"
        )
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


def extrapolate_power_law(
    subset: Spectrum,
    num_samples: int,
    total: float | None = None,
    *,
    alpha: float = DEFAULT_ALPHA,
    kept: int = DEFAULT_KEPT,
    kept_eigenvalues: int = 0,
    first: int = 1,
    last: int | None = None,
) -> Spectrum:
    """Appendix D: λ̂_k = c k^(−s + α(N₀/N − 1)) with c, s fitted to the subset, and p̂_k of
    `continue_projections`.

    Args:
        subset: of N₀ samples.
        num_samples: N ≥ N₀.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.
        alpha: how much steeper the spectrum grows; see `measure_alpha`.
        kept: k₀, cut to half of the subset's ranks.
        kept_eigenvalues: leading eigenvalues taken as they are on the subset instead of from the
            law; 0 is the paper's rule, `len(subset.eigenvalues)` with N = N₀ returns the subset.
        first, last: range of the fit.

    Raises:
        ValueError: N below N₀, projections of zeros, or what `fit_power_law` and
            `continue_projections` raise.
    """
    check_larger(subset, num_samples)
    check_something_to_learn(subset.projections)
    ranks_seen = len(subset.eigenvalues)
    if not 0 <= kept_eigenvalues <= ranks_seen:
        raise ValueError(
            f"kept_eigenvalues: must lie between 0 and the {ranks_seen} of the subset, got "
            f"{kept_eigenvalues}"
        )
    total = float(subset.projections.sum()) if total is None else total
    if num_samples == subset.num_samples and kept_eigenvalues == ranks_seen:
        return Spectrum(
            subset.eigenvalues, subset.projections * total / subset.projections.sum(), num_samples
        )
    law = fit_power_law(subset.eigenvalues, first, last)
    num_ranks = ranks_seen * num_samples // subset.num_samples
    steeper = PowerLaw(
        law.coefficient,
        law.exponent + alpha * (1 - subset.num_samples / num_samples),
        law.first,
        law.last,
    )
    eigenvalues = steeper(np.arange(1, num_ranks + 1, dtype=np.float64))
    eigenvalues[:kept_eigenvalues] = subset.eigenvalues[:kept_eigenvalues]
    return Spectrum(
        eigenvalues,
        continue_projections(
            subset.projections, total, num_ranks, max(2, min(kept, ranks_seen // 2))
        ),
        num_samples,
    )


def measure_alpha(
    ntk: Float[Array | np.ndarray, "rows rows"],
    residuals: Float[Array | np.ndarray, "n c"],
    *,
    parts: Sequence[int] = (4, 2, 1),
    num_subsets: int = 4,
    seed: int = 0,
) -> float:
    """α from the subset itself: the corrected exponent says s(N) = s_∞ − αN₀/N, so it is the slope
    of s over subsets of N₀/4, N₀/2, N₀ samples.

    All fits end at the rank of the smallest, so that they see the same part of the spectrum.
    """
    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    check_pair(matrix, delta)
    last = delta.size // max(parts)
    points = [
        (
            part,
            np.mean(
                [
                    fit_power_law(each.eigenvalues, 1, last).exponent
                    for each in subset_spectra(matrix, delta, part, num_subsets, seed)
                ]
            ),
        )
        for part in parts
    ]
    inverse, exponents = np.asarray(points, float).T
    return float(-np.polyfit(inverse, exponents, 1)[0])


def _root(function: Callable[[float], float]) -> float:
    import scipy.optimize

    return scipy.optimize.root_scalar(
        function, bracket=(-_STEEPEST, _STEEPEST), method="brentq"
    ).root
