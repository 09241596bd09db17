"""Learning-curve extrapolation: what the first real steps say of the rest, without a kernel."""

import numpy as np
import scipy.optimize


def power_law(steps: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """a + b (1 + t/c)^−p with a, b ≥ 0, fitted to `values` at `steps`, at `wanted`."""
    def curve(parameters, t):
        floor, height, scale, power = parameters
        return floor + height * (1 + t / scale) ** -power
    return _fit(curve, [(0.0, 1.0), (0.0, 2.0), (1.0, 1e4), (0.05, 10.0)], steps, values, wanted)


def stretched_exponential(steps: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """a + b exp(−(t/c)^p) with a, b ≥ 0, fitted to `values` at `steps`, at `wanted`."""
    def curve(parameters, t):
        floor, height, scale, power = parameters
        return floor + height * np.exp(-((t / scale) ** power))
    return _fit(curve, [(0.0, 1.0), (0.0, 2.0), (1.0, 1e4), (0.3, 1.5)], steps, values, wanted)


def _fit(curve, bounds, steps, values, wanted) -> np.ndarray:
    """Least squares from several starts; floor and height are in units of the first value. A curve that is not finite extrapolates to itself."""
    if not np.isfinite(values).all() or values[0] <= 0:
        return np.full(len(wanted), values[0])
    low, high = (np.asarray(side) for side in zip(*bounds, strict=True))
    target = values / values[0]
    last = max(float(steps[-1]), 1.0)
    best = None
    for floor in (0.01, 0.5):
        for scale in (last, 10 * last):
            start = np.clip([floor, 1 - floor, scale, 1.0], low + 1e-6, high - 1e-6)
            found = scipy.optimize.least_squares(lambda parameters: curve(parameters, steps) - target, start, bounds=(low, high), x_scale=[1, 1, scale, 1])
            if best is None or found.cost < best.cost:
                best = found
    assert best is not None
    return values[0] * curve(best.x, wanted)
