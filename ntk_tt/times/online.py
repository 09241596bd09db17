"""A prediction that watches the run: each observed loss corrects the curve, the remaining steps and
their interval.

The predicted curve is moved in time and level, log L(t) = log L̂(e^α t) + β, to what was observed,
recent records most; α and β are held to 0. Beside it a power law is fitted to the observations
alone, and the two are averaged with weights by how well each, fitted to the first two thirds, would
have told the last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ntk_tt.times.calibration import Interval, interval
from ntk_tt.times.crossing import continued_time, late_slope, smooth
from ntk_tt.times.loss_law import MIN_POINTS, fit_loss_law
from ntk_tt.times.observations import MAX_STEP, Observations

# Set beforehand, but for DISTRUST (first 0.1), which `python -m tools.calibrate --tune` chose
# among others on the tuning data.
TIME_SPREAD, LEVEL_SPREAD = 0.3, 0.1  # of α and β, before anything was seen
RECENT = 0.5  # of what was observed, the time over which older records lose weight by e
DISTRUST = 0.3  # added to the past error of the power law: it is free, so it must earn its weight


class Forecast(NamedTuple):
    """What a run is expected to do from here.

    Attributes:
        steps, loss: the corrected curve from step 0 to the end of the prediction; observed where it
            was.
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
    observed: float | int


class Remaining(NamedTuple):
    """Steps from the last observation until a loss is reached.

    Attributes:
        steps: expected; None is not within the prediction's steps. 0 where what was observed fell
            below it before.
        low, high: of the 90 % interval; None as above.
        probability: that it is reached within the horizon. Where the curve does not get there
            within the prediction's steps, from the time at which it would if it went on as it ends
            (an exponential), and never above one half; 0 where it does not fall at its end, or
            where the horizon has passed; None without `chances`.
    """

    steps: float | None
    low: float | None
    high: float | None
    probability: float | None


class Predictor:
    """Corrects a predicted curve by the run it predicted; for any training loop.

    `update` after any steps with the loss of the training set or of a batch; `forecast` and
    `remaining` any time. A step that is repeated, or to which the steps go back (a run that was
    resumed, or begun anew), and a loss that is not finite are no errors: `Observations` says what
    counts.

    Args:
        steps: (S,) of the predicted records, from 0, rising.
        loss: (S,) predicted.
        error: (S,) predicted error rate, where it is wanted corrected too.
        method: that predicted, for the width of the intervals.
        margin: stability margin of the run (`Verdict.stability_margin`), on which the width depends
            too.
        horizon: T, the step that `Remaining.probability` is for; None is the last predicted one.
        chances: whether `remaining` gives intervals and probabilities; not for a prediction that
            its verdict refuses.

    Raises:
        ValueError: a curve that is empty, not finite or does not begin at step 0, or steps that do
            not rise.
    """

    def __init__(
        self,
        steps: Int[np.ndarray, " s"] | Float[np.ndarray, " s"],
        loss: Float[np.ndarray, " s"],
        *,
        error: Float[np.ndarray, " s"] | None = None,
        method: str = "curvature",
        margin: float | None = None,
        horizon: int | None = None,
        chances: bool = True,
    ):
        self.steps, self.loss, self.error, self.method = (
            np.asarray(steps, float),
            np.asarray(loss, float),
            error,
            method,
        )
        if (
            self.loss.ndim != 1
            or self.steps.shape != self.loss.shape
            or len(self.steps) < 2
            or self.steps[0] != 0
            or not (np.isfinite(self.loss) & (self.loss >= 0)).all()
        ):
            raise ValueError(
                "prediction: needs a finite curve of two records or more that begins at step 0; an "
                "unstable one cannot be corrected"
            )
        if not ((np.diff(self.steps) > 0).all() and self.steps[-1] <= MAX_STEP):
            raise ValueError("prediction: its steps must rise from record to record, up to 2^53")
        if horizon is not None and not 1 <= horizon <= MAX_STEP:
            raise ValueError(f"horizon: must be a step from 1 to 2^53, got {horizon}")
        self.horizon = int(self.steps[-1]) if horizon is None else horizon
        self.margin, self.chances = margin, chances
        self.observations = Observations()

    def update(self, step: Any, loss: Any, error: Any = None) -> Forecast:
        """Take an observation in.

        Args:
            step: optimiser steps taken, a number of any library.
            loss: mean loss there, alike. `error` is accepted, so that loops can pass what they
                have; the loss tells more.

        Raises:
            ValueError: a step that is negative or not finite, or the second loss in a row that is
                not finite: the run has diverged.
        """
        del error
        self.observe(step, loss)
        return self.forecast()

    def observe(self, step: Any, loss: Any) -> None:
        """`update` without the forecast: for several observations at once. A run that has diverged
        is no error here.
        """
        self.observations.add(float(step), float(loss))

    def forecast(self) -> Forecast:
        """The corrected curve.

        Raises:
            ValueError: the last observations, two or more, are not finite.
        """
        if self.observations.diverged:
            raise ValueError(
                f"loss: not finite since step {self.observations.bad_since:.6g}; the run has "
                "diverged, there is nothing left to predict. Take a smaller learning rate"
            )
        steps, losses = self._observed()
        if len(steps) == 0 or steps[-1] == 0:
            return Forecast(self.steps, self.loss, self.error, 1.0, 1.0, 0)
        scale, curve = self._corrected(steps, losses)
        weight, combined = 1.0, curve
        if len(steps) >= 2 * MIN_POINTS:
            early = max(MIN_POINTS, (2 * len(steps)) // 3)
            past = self._past_errors(steps, losses, early)
            weight = float(past[1] ** 2 / (past[0] ** 2 + past[1] ** 2))
            law = fit_loss_law(steps, losses)(self.steps)
            combined = np.exp(weight * np.log(curve) + (1 - weight) * np.log(law))
        before = self.steps <= steps[-1]
        combined = np.where(before, np.interp(self.steps, steps, losses), combined)
        error = (
            None if self.error is None else np.interp(self.steps * scale, self.steps, self.error)
        )
        return Forecast(self.steps, combined, error, scale, weight, _whole(steps[-1]))

    def remaining(self, loss: float | int) -> Remaining:
        """Steps until the loss falls below a value."""
        forecast = self.forecast()
        time = continued_time(forecast.steps, forecast.loss, loss)
        spread: Interval = interval(self.method, forecast.observed / self.horizon, self.margin)
        found = remaining(time, forecast.observed, self.horizon, float(self.steps[-1]), spread)
        return found if self.chances else Remaining(found.steps, None, None, None)

    def _observed(self) -> tuple[np.ndarray, np.ndarray]:
        steps, logs = self.observations.points()
        return steps, np.exp(smooth(logs, max(1, len(steps) // 10))) if len(steps) else logs

    def _corrected(self, steps: np.ndarray, losses: np.ndarray) -> tuple[float, np.ndarray]:
        """e^α, and the prediction moved onto the observations."""
        logs, target = np.log(np.maximum(self.loss, 1e-12)), np.log(losses)
        weights = np.exp(-(steps[-1] - steps) / (RECENT * steps[-1]))
        noise = 0.05**2  # of a log-loss: what no correction explains
        best = (np.inf, 0.0, 0.0)
        for alpha in np.linspace(-1, 1, 81):
            difference = target - np.interp(steps * np.exp(alpha), self.steps, logs)
            beta = (weights * difference).sum() / (weights.sum() + noise / LEVEL_SPREAD**2)
            cost = (
                (weights * (difference - beta) ** 2).sum() / noise
                + (alpha / TIME_SPREAD) ** 2
                + (beta / LEVEL_SPREAD) ** 2
            )
            if cost < best[0]:
                best = (cost, alpha, beta)
        _, alpha, beta = best
        times = self.steps * np.exp(alpha)
        moved = np.interp(times, self.steps, logs)
        beyond = times > self.steps[-1]  # past the prediction's end: go on as it ended, in log-loss
        slope = late_slope(self.steps, self.loss)
        moved = np.where(beyond, logs[-1] + slope * (times - self.steps[-1]), moved)
        return float(np.exp(alpha)), np.exp(moved + beta)

    def _past_errors(
        self, steps: np.ndarray, losses: np.ndarray, early: int
    ) -> tuple[float, float]:
        """Mean |error| of log L on the later observations, of the prediction corrected by and of
        the power law fitted to the earlier ones.
        """
        late = slice(early, None)
        _, curve = self._corrected(steps[:early], losses[:early])
        corrected = np.interp(steps[late], self.steps, np.log(curve))
        law = np.log(fit_loss_law(steps[:early], losses[:early])(steps[late]))
        ours, theirs = (
            float(np.abs(each - np.log(losses[late])).mean()) for each in (corrected, law)
        )
        return ours + 0.01, theirs + 0.01 + DISTRUST


def remaining(
    time: float | None, observed: float | int, horizon: float | int, last: float, spread: Interval
) -> Remaining:
    """A time with its interval and probability.

    Args:
        time: at which the level is expected, `last` being no bound; None: never.
        observed: last step that was seen.
        horizon: T, that the probability is for.
        last: step of the prediction; what is expected later is not within it.
        spread: distribution of real/predicted times.
    """
    if time is None:
        return Remaining(None, None, None, 0.0)
    # it was reached; but what is continued past the prediction's end was not seen there
    if time <= observed:
        return Remaining(0.0, 0.0, 0.0, 1.0) if time <= last else Remaining(None, None, None, 0.0)
    low, high, within = (
        max(0.0, time * spread.low - observed),
        time * spread.high - observed,
        last - observed,
    )
    probability = 0.0 if observed >= horizon else spread.reached_within(horizon, time)
    return Remaining(
        time - observed if time <= last else None,
        low if low <= within else None,
        high if high <= within else None,
        probability,
    )


def loss_callback(
    predictor: Predictor, report: Callable[[Forecast], None], *, every: int = 1
) -> Callable[[Any, Any], None]:
    """`callback(step, loss)` for a training loop: feeds the predictor and reports a forecast every
    so many steps.

    In an optax loop call it with `optax.tree_utils.tree_get(opt_state, "count")` or the loop's own
    counter after each update. It does not end the loop for a loss that is not finite: such a step
    is not reported.
    """
    if every < 1:
        raise ValueError(f"every: must be at least 1, got {every}")

    def callback(step: Any, loss: Any) -> None:
        predictor.observe(step, loss)
        if step % every == 0 and np.isfinite(loss):
            report(predictor.forecast())

    return callback


def _whole(step: float) -> float | int:
    return int(step) if step == int(step) else float(step)
