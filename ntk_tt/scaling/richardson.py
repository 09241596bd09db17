"""The loss on subsets of the subset, continued in 1/n (Richardson): no model of the spectrum at
all.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from ntk_tt.kernels.spectrum import Spectrum, Vector, check_pair
from ntk_tt.scaling.subsets import check_something_to_learn, subset_spectra


def extrapolate_loss(
    ntk: Float[Array | np.ndarray, "rows rows"],
    residuals: Float[Array | np.ndarray, "n c"],
    num_samples: int,
    times: Vector,
    total: float | None = None,
    *,
    parts: Sequence[int] = (2, 1),
    num_subsets: int = 8,
    seed: int = 0,
) -> Float[np.ndarray, " t"]:
    """L(τ) at N samples from its mean over random subsets of N₀/part samples, by polynomial
    interpolation in 1/n (Richardson).

    Each coefficient of τ^j in the mean of L_n(τ) over subsets is a polynomial of degree j in 1/n
    (δyᵀΘ^jδy/n^{j+1} splits by which of its samples coincide), so the limit is right at early
    times, whatever the spectrum; late times are where n decides the rank. The interpolation is made
    monotone and kept between 0 and L(0).

    Args:
        ntk, residuals: of the N₀ samples, as in `ntk_spectrum`.
        num_samples: N ≥ N₀; at N = N₀ the curve is the subset's own.
        times: τ, rising.
        total: mean of ‖δyᵢ‖² over the N samples; None takes the subset's.
        parts: divisors of N₀; their number is one more than the order. The noise grows with it: (2,
            1) weighs the subset's curve at most 2-fold, (4, 2, 1) 2.7-fold.

    Raises:
        ValueError: N below N₀, residuals of zeros, parts that are not distinct positive integers
            with 1 among them.

    Cost: `num_subsets` eigen-decompositions of N₀/part samples for each part.
    """
    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    check_pair(matrix, delta)
    if num_samples < len(delta):
        raise ValueError(
            f"num_samples: must be at least the subset's {len(delta)}, got {num_samples}"
        )
    if (
        len(set(parts)) != len(parts)
        or 1 not in parts
        or min(parts) < 1
        or len(delta) < 2 * max(parts)
    ):
        raise ValueError(
            f"parts: give distinct divisors with 1 among them, that leave 2 of {len(delta)} "
            f"samples or more, got {tuple(parts)}"
        )
    check_something_to_learn(delta)
    curves = [
        _mean_fall(subset_spectra(matrix, delta, part, num_subsets, seed), times) for part in parts
    ]
    nodes, wanted = (
        np.asarray([len(delta) / (len(delta) // part) for part in parts]),
        len(delta) / num_samples,
    )
    curve = np.zeros_like(curves[0])
    for index, each in enumerate(curves):
        others = np.delete(nodes, index)
        curve = curve + float(np.prod((wanted - others) / (nodes[index] - others))) * each
    total = float((delta**2).sum() / len(delta)) if total is None else total
    return 0.5 * total * np.minimum.accumulate(np.clip(curve, 0, 1))


def _mean_fall(spectra: list[Spectrum], times: Vector) -> Float[np.ndarray, " t"]:
    """L(τ)/L(0), mean over the spectra that have something to learn."""
    falls = [
        each.loss(times) / (0.5 * each.projections.sum())
        for each in spectra
        if each.projections.sum() > 0
    ]
    if not falls:
        raise ValueError(
            "residuals: zero on all of the smaller subsets drawn, so there is no curve to "
            "continue; give more samples that the network does not fit, or num_subsets"
        )
    return np.mean(falls, 0)
