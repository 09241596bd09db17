"""Learning-curve extrapolation: what the first real steps say of the rest, without a kernel."""

import numpy as np
import scipy.optimize

from ntk_tt.times.loss_law import fit_loss_law

FLOOR = 1e-4
"""Of the first value: an error of 0 has no logarithm."""


def power_law(steps: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """a + b (1 + t/c)^−p, fitted to the logarithm of `values` at `steps`, at `wanted`; a curve that
    diverged stays at its first value.
    """
    if not _continuable(values):
        return np.full(len(wanted), values[0])
    return fit_loss_law(steps, np.maximum(values, FLOOR * values[0]))(wanted)


def stretched_exponential(steps: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """a + b exp(−(t/c)^p) with a, b ≥ 0, fitted to `values` at `steps`, at `wanted`; a curve that
    diverged stays at its first value.
    """
    if not _continuable(values):
        return np.full(len(wanted), values[0])

    def curve(parameters, t):
        floor, height, scale, power = parameters
        return floor + height * np.exp(-((t / scale) ** power))

    low, high = np.asarray([0.0, 0.0, 1.0, 0.3]), np.asarray([1.0, 2.0, 1e4, 1.5])
    last = max(float(steps[-1]), 1.0)
    best = None
    for floor in (0.01, 0.5):
        for scale in (last, 10 * last):
            start = np.clip([floor, 1 - floor, scale, 1.0], low + 1e-6, high - 1e-6)
            found = scipy.optimize.least_squares(
                lambda parameters: curve(parameters, steps) - values / values[0],
                start,
                bounds=(low, high),
                x_scale=[1, 1, scale, 1],
            )
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return values[0] * curve(best.x, wanted)


def _continuable(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and values[0] > 0)
