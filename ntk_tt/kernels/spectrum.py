"""Eigenvalues of Θ, the projections of the residuals on its eigenvectors, and the power law that
the eigenvalues follow.

The loss is ½‖f − y‖² (mean over samples), its time τ = ∫ η/(1−m) dt [steps × learning rate].
"""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

Vector = Float[Array, " _"] | Float[np.ndarray, " _"]
_FIT_POINTS = 60


class Spectrum(eqx.Module):
    """What gradient flow under the MSE loss needs of a data set.

    Attributes:
        eigenvalues: λ_k of Θ/N, falling, at least 0 (they converge as N grows; those of Θ grow with
            N).
        projections: p_k = (δy·v_k)²/N, δy = f₀ − y: their sum is the mean of ‖δyᵢ‖², twice the
            initial loss.
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
        return np.asarray(
            [0.5 * np.dot(self.projections, np.exp(-2 * self.eigenvalues * time)) for time in times]
        )


class PowerLaw(eqx.Module):
    """λ_k = c k^−s, fitted between two ranks (from 1)."""

    coefficient: float
    exponent: float
    first: int = eqx.field(static=True)
    last: int = eqx.field(static=True)

    def __call__(self, ranks: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        return self.coefficient * np.asarray(ranks, np.float64) ** -self.exponent


def ntk_spectrum(
    ntk: Float[Array | np.ndarray, "rows rows"], residuals: Float[Array | np.ndarray, "n c"]
) -> Spectrum:
    """Eigenvalues of Θ/N and projections of δy = f₀ − y on its eigenvectors.

    Args:
        ntk: Θ (N·C, N·C), rows ordered as (sample, output): `empirical_ntk(...)` reshaped, or
            `ntk_from_features`.
        residuals: f₀ − y (N, C).

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.

    Cost: one eigen-decomposition, about 9 (N·C)³ flops; three times Θ in memory, in its own
    precision. In single precision eigenvalues below 10⁻⁶ of the largest are rounding.
    """
    import scipy.linalg

    matrix, delta = np.asarray(ntk), np.asarray(residuals)
    check_pair(matrix, delta)
    eigenvalues, eigenvectors = scipy.linalg.eigh(matrix, driver="evd")
    projections = (eigenvectors.T @ delta.reshape(-1)).astype(np.float64) ** 2
    order = slice(None, None, -1)
    return Spectrum(
        np.maximum(eigenvalues[order].astype(np.float64), 0) / len(delta),
        projections[order] / len(delta),
        len(delta),
    )


def fit_power_law(eigenvalues: Vector, first: int = 1, last: int | None = None) -> PowerLaw:
    """c and s of λ_k = c k^−s by Theil–Sen's median slope of log λ against log k.

    Ranks are taken evenly in log k, or the many small eigenvalues would decide alone; the median
    ignores the few largest, which belong to classes rather than to the law, and rounding at the
    end.

    Args:
        eigenvalues: falling, λ_1 first.
        first, last: ranks (from 1) of the fit's range; None ends where eigenvalues fall below 10⁻⁶
            of the largest.

    Raises:
        ValueError: a range with fewer than 3 eigenvalues, or that leaves the positive ones.
    """
    import scipy.stats

    values = np.asarray(eigenvalues, np.float64)
    positive = int(np.sum(values > 1e-6 * values.max(initial=0.0)))
    last = positive if last is None else last
    if not (first >= 1 and last - first >= 2):
        raise ValueError(
            f"first, last: a power law needs three ranks or more, got {first} … {last}; give a "
            "wider range"
        )
    if last > len(values) or not (values[first - 1 : last] > 0).all():
        raise ValueError(
            f"last: must lie within the {int(np.sum(values > 0))} positive eigenvalues, got {last}"
        )
    ranks = np.unique(np.round(np.geomspace(first, last, _FIT_POINTS)).astype(int))
    slope, intercept = np.asarray(
        scipy.stats.theilslopes(np.log(values[ranks - 1]), np.log(ranks))
    )[:2]
    return PowerLaw(float(np.exp(intercept)), float(-slope), first, last)


def check_pair(matrix: np.ndarray, delta: np.ndarray) -> None:
    if matrix.shape != (delta.size, delta.size):
        raise ValueError(
            f"ntk: must be ({delta.size}, {delta.size}) for residuals of shape {delta.shape}, got "
            f"{matrix.shape}; reshape Θ to (N·C, N·C)"
        )
    for name, array in (("ntk", matrix), ("residuals", delta)):
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name}: holds {int(np.sum(~np.isfinite(array)))} numbers that are not finite; "
                "check the network's weights and inputs"
            )
