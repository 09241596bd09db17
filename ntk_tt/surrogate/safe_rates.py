"""The bound on the learning rate for many curvatures at once, without eigenvalues."""

from typing import Any

import numpy as np
from jaxtyping import Float

BISECTIONS = 60
Numbers = Float[np.ndarray, "..."]


def largest_safe_learning_rates(
    curvature: Numbers,
    variance: Numbers,
    *,
    momentum: Numbers | float,
    nesterov: bool = False,
    weight_decay: Numbers | float = 0.0,
) -> Numbers:
    """`largest_safe_learning_rate` of arrays, element by element.

    The second moments (E[x²], E[xa], E[a²]) of one step make a cubic, whose roots lie in the unit
    circle where the three conditions of Jury hold; so a bisection is arithmetic alone.

    Args:
        curvature, variance, momentum, weight_decay: arrays that broadcast; see there.
        nesterov: of all of them.

    Returns:
        The bounds; infinity for zero curvature, 0 where a curvature is not finite.
    """
    mean, variance, momentum = np.broadcast_arrays(
        np.asarray(curvature, np.float64) + weight_decay,
        np.asarray(variance, np.float64),
        np.asarray(momentum, np.float64),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        is_known = np.isfinite(mean) & np.isfinite(mean**2 + variance)
    is_some = is_known & (mean > 0)
    unit = np.where(is_some, mean, 1.0)
    noise = np.where(is_some, variance, 0.0) / unit**2  # rates are in units of 1/mean
    low, high = np.zeros_like(unit), 4 * (1 + momentum)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        stable = moments_shrink(middle, noise, momentum, nesterov)
        low, high = np.where(stable, middle, low), np.where(stable, high, middle)
    return np.where(is_some, low / unit, np.where(is_known, np.inf, 0.0))


def moments_shrink(rate: Any, noise: Any, momentum: Any, nesterov: bool) -> Any:
    """Whether second moments shrink at a curvature of mean 1 and this variance: of numbers, or of
    arrays element by element.
    """
    # (x, a) -> M (x, a), M linear in the curvature: its mean, and what multiplies the noise
    push = rate * (1 + momentum) if nesterov else rate
    a, b, c, d = 1 - push, -rate * (momentum**2 if nesterov else momentum), 1.0, momentum
    slope_a, slope_c = -push, 1.0
    moments = (
        (a * a + noise * slope_a**2, 2 * a * b, b * b),
        (a * c + noise * slope_a * slope_c, a * d + b * c, b * d),
        (c * c + noise * slope_c**2, 2 * c * d, d * d),
    )
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = moments
    trace = m00 + m11 + m22
    minors = m00 * m11 - m01 * m10 + m00 * m22 - m02 * m20 + m11 * m22 - m12 * m21
    determinant = (
        m00 * (m11 * m22 - m12 * m21)
        - m01 * (m10 * m22 - m12 * m20)
        + m02 * (m10 * m21 - m11 * m20)
    )
    return (
        (abs(determinant) < 1)
        & (1 - trace + minors - determinant > 0)
        & (1 + trace + minors + determinant > 0)
        & (1 - determinant**2 > abs(minors - determinant * trace))
    )
