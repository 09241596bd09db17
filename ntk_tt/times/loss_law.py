"""Curves continued from their beginning alone: no network, no kernel. What every prediction has to
beat.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

MIN_POINTS = 4  # of a curve, for three constants


class LossLaw(NamedTuple):
    """L(t) = c + a·(1 + t/s)^−b, or an exponential's beginning of it where s and b are large.

    Attributes:
        offset, amplitude, exponent, scale: c, a, b and s [steps].
    """

    offset: float
    amplitude: float
    exponent: float
    scale: float

    def __call__(
        self, steps: Float[np.ndarray, " t"] | Int[np.ndarray, " t"]
    ) -> Float[np.ndarray, " t"]:
        return (
            self.offset
            + self.amplitude * (1 + np.asarray(steps, float) / self.scale) ** -self.exponent
        )


def fit_loss_law(
    steps: Float[np.ndarray, " t"] | Int[np.ndarray, " t"], loss: Float[np.ndarray, " t"]
) -> LossLaw:
    """The power law with offset nearest to a curve, by least squares of log L from several starts.

    Args:
        steps: (t,) of the records; at least 4.
        loss: (t,) positive.

    Raises:
        ValueError: too few records, or losses that are not positive and finite.
    """
    import scipy.optimize

    steps, loss = np.asarray(steps, float), np.asarray(loss, float)
    if len(steps) < MIN_POINTS or len(steps) != len(loss):
        raise ValueError(
            f"steps: need at least {MIN_POINTS} records with a loss each, got {len(steps)} and "
            f"{len(loss)}"
        )
    if not (np.isfinite(loss) & (loss > 0)).all():
        raise ValueError("loss: must be positive and finite to be continued; leave out what is not")
    # fractions of an epoch are steps too
    logs, span, top = (
        np.log(loss),
        steps[-1] if steps[-1] > 0 else 1.0,
        loss.max(),
    )

    def residuals(parameters):
        return np.log(LossLaw(*np.exp(parameters))(steps)) - logs

    def derivatives(parameters):
        """Of the residuals in log c, log a, log b and log s."""
        offset, amplitude, exponent, scale = np.exp(parameters)
        grown = 1 + steps / scale
        falling = amplitude * grown**-exponent
        relative = falling / (offset + falling)
        bent = exponent * relative
        return np.stack(
            [1 - relative, relative, -bent * np.log(grown), bent * (1 - 1 / grown)], axis=1
        )

    low, high = (
        np.log([1e-6 * top, 1e-6 * top, 0.05, 1e-2 * span]),
        np.log([2 * top, 10 * top, 20.0, 1e3 * span]),
    )
    jac: Any = derivatives  # scipy's stubs know names only
    best = None
    for offset in (0.01, 0.3, 0.8):
        for exponent in (0.5, 3.0):
            start = np.clip(
                np.log(
                    [
                        offset * loss.min(),
                        max(loss[0] - offset * loss.min(), 1e-3 * top),
                        exponent,
                        span,
                    ]
                ),
                low + 1e-6,
                high - 1e-6,
            )
            found = scipy.optimize.least_squares(
                residuals, start, jac, bounds=(low, high), max_nfev=200
            )
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return LossLaw(*map(float, np.exp(best.x)))
