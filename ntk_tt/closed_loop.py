"""A prediction that watches the run: each observed loss corrects the curve, the remaining steps and their interval.

The predicted curve is moved in time and level, log L(t) = log L̂(e^α t) + β, to what was observed, recent records most; α
and β are held to 0. Beside it a power law is fitted to the observations alone, and the two are averaged with weights by how
well each, fitted to the first two thirds, would have told the last.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ntk_tt.calibration import Interval, interval
from ntk_tt.extrapolation import MIN_POINTS, fit_power_law
from ntk_tt.training_time import crossing_time, late_slope, smooth

# Set beforehand, but for DISTRUST (first 0.1), which `python -m experiments.calibrate --tune` chose among others on the tuning data.
TIME_SPREAD, LEVEL_SPREAD = 0.3, 0.1  # of α and β, before anything was seen
RECENT = 0.5  # of what was observed, the time over which older records lose weight by e
DISTRUST = 0.3  # added to the past error of the power law: it is free, so it must earn its weight


class Forecast(NamedTuple):
    """What a run is expected to do from here.

    Attributes:
        steps, loss: the corrected curve from step 0 to the end of the prediction; observed where it was.
        error: the predicted error rate, moved in time alike; None where none was predicted.
        time_scale: e^α, by which real training is faster than predicted.
        weight: of the corrected prediction; the rest is the power law's.
        observed: last observed step.
    """

    steps: Float[np.ndarray, " s"]
    loss: Float[np.ndarray, " s"]
    error: Float[np.ndarray, " s"] | None
    time_scale: float
    weight: float
    observed: int


class Remaining(NamedTuple):
    """Steps from the last observation until a loss is reached.

    Attributes:
        steps: expected; None is not within the prediction's steps.
        low, high: of the 90 % interval; None as above.
        probability: that it is reached within the prediction's steps.
    """

    steps: float | None
    low: float | None
    high: float | None
    probability: float


class Predictor:
    """Corrects a predicted curve by the run it predicted; for any training loop.

    `update` after any steps, in order, with the loss of the training set or of a batch; `forecast` and `remaining` any time.

    Args:
        steps: (S,) of the predicted records, from 0.
        loss: (S,) predicted.
        error: (S,) predicted error rate, where it is wanted corrected too.
        method: that predicted, for the width of the intervals.
        margin: stability margin of the run (`Verdict.stability_margin`), on which the width depends too.
        horizon: T, the step that `Remaining.probability` is for; None is the last predicted one.

    Raises:
        ValueError: a curve that is empty, not finite or does not begin at step 0.
    """

    def __init__(self, steps: Int[np.ndarray, " s"] | Float[np.ndarray, " s"], loss: Float[np.ndarray, " s"], *, error: Float[np.ndarray, " s"] | None = None,
                 method: str = "curvature", margin: float | None = None, horizon: int | None = None):
        self.steps, self.loss, self.error, self.method = np.asarray(steps, float), np.asarray(loss, float), error, method
        if len(self.steps) != len(self.loss) or len(self.steps) < 2 or self.steps[0] != 0 or not (np.isfinite(self.loss) & (self.loss >= 0)).all():
            raise ValueError("prediction: needs a finite curve of two records or more that begins at step 0; an unstable one cannot be corrected")
        self.horizon = int(self.steps[-1]) if horizon is None else horizon
        self.margin = margin
        self.seen: dict[int, float] = {}

    def update(self, step: int, loss: float, error: float | None = None) -> Forecast:
        """Take an observation in.

        Args:
            step: optimiser steps taken; later than those before.
            loss: mean loss there. `error` is accepted, so that loops can pass what they have; the loss tells more.

        Raises:
            ValueError: a step that is not later than the last one, or a loss that is not finite.
        """
        del error
        self.observe(step, loss)
        return self.forecast()

    def observe(self, step: int, loss: float) -> None:
        """`update` without the forecast: for several observations at once."""
        if step < 0 or (self.seen and step <= max(self.seen)):
            raise ValueError(f"step: {step} does not come after {max(self.seen, default=-1)}; observations must be in order, from step 0 on")
        if not np.isfinite(loss):
            raise ValueError(f"loss: {loss} at step {step}; the run has diverged, there is nothing left to predict. Take a smaller learning rate")
        self.seen[int(step)] = max(float(loss), 1e-12)

    def forecast(self) -> Forecast:
        """The corrected curve."""
        steps, losses = self._observed()
        if len(steps) == 0 or steps[-1] == 0:
            return Forecast(self.steps, self.loss, self.error, 1.0, 1.0, 0)
        scale, curve = self._corrected(steps, losses)
        weight, combined = 1.0, curve
        if len(steps) >= 2 * MIN_POINTS:
            early = max(MIN_POINTS, (2 * len(steps)) // 3)
            past = self._past_errors(steps, losses, early)
            weight = float(past[1] ** 2 / (past[0] ** 2 + past[1] ** 2))
            law = fit_power_law(steps, losses)(self.steps)
            combined = np.exp(weight * np.log(curve) + (1 - weight) * np.log(law))
        before = self.steps <= steps[-1]
        combined = np.where(before, np.interp(self.steps, steps, losses), combined)
        error = None if self.error is None else np.interp(self.steps * scale, self.steps, self.error)
        return Forecast(self.steps, combined, error, scale, weight, int(steps[-1]))

    def remaining(self, loss: float) -> Remaining:
        """Steps until the loss falls below a value."""
        forecast = self.forecast()
        time = crossing_time(forecast.steps, forecast.loss, loss)
        spread: Interval = interval(self.method, forecast.observed / self.horizon, self.margin)
        return remaining(time, forecast.observed, self.horizon, float(self.steps[-1]), spread)

    def _observed(self) -> tuple[np.ndarray, np.ndarray]:
        steps = np.asarray(sorted(self.seen))
        losses = np.asarray([self.seen[step] for step in steps])
        window = max(1, len(steps) // 10)
        return steps, np.exp(smooth(np.log(losses), window)) if len(steps) else losses

    def _corrected(self, steps: np.ndarray, losses: np.ndarray) -> tuple[float, np.ndarray]:
        """e^α, and the prediction moved onto the observations."""
        logs, target = np.log(np.maximum(self.loss, 1e-12)), np.log(losses)
        weights = np.exp(-(steps[-1] - steps) / (RECENT * steps[-1]))
        noise = 0.05**2  # of a log-loss: what no correction explains
        best = (np.inf, 0.0, 0.0)
        for alpha in np.linspace(-1, 1, 81):
            difference = target - np.interp(steps * np.exp(alpha), self.steps, logs)
            beta = (weights * difference).sum() / (weights.sum() + noise / LEVEL_SPREAD**2)
            cost = (weights * (difference - beta) ** 2).sum() / noise + (alpha / TIME_SPREAD) ** 2 + (beta / LEVEL_SPREAD) ** 2
            if cost < best[0]:
                best = (cost, alpha, beta)
        _, alpha, beta = best
        times = self.steps * np.exp(alpha)
        moved = np.interp(times, self.steps, logs)
        beyond = times > self.steps[-1]  # past the prediction's end: go on as it ended, in log-loss
        slope = late_slope(self.steps, self.loss)
        moved = np.where(beyond, logs[-1] + slope * (times - self.steps[-1]), moved)
        return float(np.exp(alpha)), np.exp(moved + beta)

    def _past_errors(self, steps: np.ndarray, losses: np.ndarray, early: int) -> tuple[float, float]:
        """Mean |error| of log L on the later observations, of the prediction corrected by and of the power law fitted to the earlier ones."""
        late = slice(early, None)
        _, curve = self._corrected(steps[:early], losses[:early])
        corrected = np.interp(steps[late], self.steps, np.log(curve))
        law = np.log(fit_power_law(steps[:early], losses[:early])(steps[late]))
        ours, theirs = (float(np.abs(each - np.log(losses[late])).mean()) for each in (corrected, law))
        return ours + 0.01, theirs + 0.01 + DISTRUST


def remaining(time: float | None, observed: int, horizon: int, last: float, spread: Interval) -> Remaining:
    """A time with its interval, from an expected time (None: later than `last`)."""
    at = last if time is None else max(time, observed + 1e-9)
    low, high = max(0.0, at * spread.low - observed), at * spread.high - observed
    within = last - observed
    return Remaining(None if time is None else at - observed, low if low <= within else None, high if time is not None and high <= within else None,
                     1.0 if at <= observed else spread.probability(horizon / at))


def loss_callback(predictor: Predictor, report: Callable[[Forecast], None], *, every: int = 1) -> Callable[[int, float], None]:
    """`callback(step, loss)` for a training loop: feeds the predictor and reports a forecast every so many steps.

    In an optax loop call it with `optax.tree_utils.tree_get(opt_state, "count")` or the loop's own counter after each update.
    """

    def callback(step: int, loss: float) -> None:
        forecast = predictor.update(int(step), float(loss))
        if int(step) % every == 0:
            report(forecast)

    return callback
