"""Remaining steps and time of a run, from its loss log as it grows."""

import collections
import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ntk_tt.times.calibration import chance_words
from ntk_tt.times.crossing import crossing_time
from ntk_tt.times.log_columns import EPOCH_NAMES
from ntk_tt.times.loss_law import MIN_POINTS, fit_loss_law
from ntk_tt.times.loss_log import LossLog
from ntk_tt.times.observations import Observations
from ntk_tt.times.online import Predictor

__all__ = ["LossLog", "Status", "Watcher", "follow"]

_DEFAULT_HORIZON = 3  # times the observed steps, for a log without a prediction
_CLOCKED = 1000  # last records that the pace is measured on
_PAUSE = 100  # times the usual pace: the run stood still
_CENTURY = 100 * 365.25 * 86400


class Status(NamedTuple):
    """What is known of a run.

    Attributes:
        step, loss: the last record.
        target: the loss that is waited for.
        remaining_steps, low, high: until it is reached; None is not within `horizon`, or not known
            yet. The interval is 90 %.
        probability: that it is reached within `horizon`; None without a prediction, or with one
            that its verdict refuses. See `ntk_tt.times.online.Remaining`.
        seconds: that the remaining steps take, at the speed of the log; None where that is not
            known.
        horizon: the last step that was predicted, or looked at.
        bad_since: the step from which on no loss is finite, or None; `loss` is the last finite one,
            but where the run has diverged.
        diverged: whether that is so of two records or more.
        whole: whether steps are whole numbers (not fractions of an epoch).
    """

    step: float | int
    loss: float
    target: float
    remaining_steps: float | None
    low: float | None
    high: float | None
    probability: float | None
    seconds: float | None
    horizon: float | int
    bad_since: float | int | None = None
    diverged: bool = False
    whole: bool = True

    def __str__(self) -> str:
        if self.diverged:
            return (
                f"step {_step(self.step)}: loss not finite since step "
                f"{_step(self.bad_since or 0)}: the run has diverged; take a smaller learning "
                "rate"
            )
        bad = (
            ""
            if self.bad_since is None
            else f"; loss not finite at step {_step(self.bad_since)}: the step was skipped, or the "
            "run has diverged"
        )
        if self.loss < self.target:
            return (
                f"step {_step(self.step)}: loss {self.loss:.4g}, below {self.target:g}: "
                f"reached{bad}"
            )
        if self.remaining_steps is None:
            left = f"not expected below {self.target:g} within {_step(self.horizon)} steps"
        else:
            left = f"below {self.target:g} in {self._count(self.remaining_steps)} steps"
            if self.low is not None:
                left += (
                    f" (90 %: {self._count(self.low)} … "
                    f"{'not reached' if self.high is None else self._count(self.high)})"
                )
            if self.seconds is not None:
                left += f", {time_words(self.seconds)}"
        chance = (
            ""
            if self.probability is None
            else f"; reached within {_step(self.horizon)} with probability "
            f"{chance_words(self.probability)}"
        )
        return f"step {_step(self.step)}: loss {self.loss:.4g}; {left}{chance}{bad}"

    def _count(self, steps: float | int) -> str:
        return f"{steps:.0f}" if self.whole else f"{steps:.3g}"


class Watcher:
    """Feeds a log to a prediction, or, without one, to a power law.

    Args:
        target: the loss to wait for; None takes a tenth of the run's first one.
        predictor: corrected by the log; None where there is no prediction.
        seconds_per_step: None is measured, by the log's own clock where it has one, else from when
            records appear.
        expected_seconds_per_step: taken where nothing is measured.
    """

    def __init__(
        self,
        *,
        target: float | int | None = None,
        predictor: Predictor | None = None,
        seconds_per_step: float | int | None = None,
        expected_seconds_per_step: float | int | None = None,
    ):
        if target is not None and not 0 < target < math.inf:
            raise ValueError(f"target: must be a positive loss, got {target}")
        for value in (seconds_per_step, expected_seconds_per_step):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"seconds-per-step: must be positive and finite, got {value}")
        self.target, self.predictor, self.seconds_per_step, self.expected_seconds_per_step = (
            target,
            predictor,
            seconds_per_step,
            expected_seconds_per_step,
        )
        self.observations = Observations() if predictor is None else predictor.observations
        self._first_seen: tuple[float | int, float | int] | None = None
        self._turns = self.observations.turns
        self._clock: collections.deque[tuple[float | int, float]] = collections.deque(
            maxlen=_CLOCKED
        )

    def take(self, records: Iterable[tuple], now: float | int) -> Status | None:
        """The status after new records (step, loss) or (step, loss, seconds on the log's clock);
        None while there are none at all. `now` is any clock [s].
        """
        self.add(records)
        return self.status(now)

    def add(self, records: Iterable[tuple]) -> None:
        """`take` without the status."""
        records = list(records)
        self.observations.extend([record[:2] for record in records])
        for step, _, *clock in records:
            if clock and clock[0] is not None:
                if self._clock and (step < self._clock[-1][0] or clock[0] < self._clock[-1][1]):
                    self._clock.clear()
                self._clock.append((step, clock[0]))

    def status(self, now: float | int) -> Status | None:
        """Where the run is; `now` as in `take`.

        Raises:
            ValueError: no target was given and the first loss is none to take a tenth of; fractions
                of epochs where the prediction counts steps.
        """
        seen = self.observations
        if seen.last is None and not seen.num_bad:
            return None
        if self.predictor is not None and not seen.whole:
            raise ValueError(
                "log: its steps are fractions, those of the prediction are the optimiser's; name "
                "the column that counts them with --step-column"
            )
        bad_since = seen.bad_since if seen.num_bad else None
        if seen.last is None or seen.diverged:
            assert seen.last_step is not None
            return Status(
                seen.last_step,
                math.nan,
                float(self.target or math.nan),
                None,
                None,
                None,
                None,
                None,
                seen.last_step,
                bad_since,
                True,
                seen.whole,
            )
        last, loss = seen.last
        target = self._target()
        pace = self._pace(last, now)
        if self.predictor is not None:
            found = self.predictor.remaining(target)
            steps, low, high, probability, horizon = (
                found.steps,
                found.low,
                found.high,
                found.probability,
                self.predictor.horizon,
            )
        else:
            horizon = _DEFAULT_HORIZON * (max(last, 1) if seen.whole else last)
            steps, low, high, probability = self._continued(target, last, horizon), None, None, None
        return Status(
            last,
            float(loss),
            target,
            steps,
            low,
            high,
            probability,
            None if pace is None or steps is None else pace * steps,
            horizon,
            bad_since,
            False,
            seen.whole,
        )

    @property
    def seconds_a_step(self) -> float | None:
        """By what was given, or the log's own clock; None where neither is known."""
        return self.seconds_per_step or self._clocked()

    def _target(self) -> float:
        if self.target is not None:
            return float(self.target)
        first = self.observations.first or self.observations.last
        assert first is not None
        if not first[1] > 0:
            raise ValueError(
                f"target: the first loss is {first[1]:.4g}, a tenth of which is no level to wait "
                "for; give --target"
            )
        return 0.1 * float(first[1])

    def _pace(self, last: float | int, now: float | int) -> float | None:
        """Seconds a step."""
        if self._turns != self.observations.turns:
            self._turns, self._first_seen = self.observations.turns, None
        if self._first_seen is None:
            self._first_seen = last, now
        if self.seconds_per_step is not None:
            return self.seconds_per_step
        if (pace := self._clocked()) is not None:
            return pace
        if self.expected_seconds_per_step is None and last > self._first_seen[0]:
            return (now - self._first_seen[1]) / (last - self._first_seen[0])
        return self.expected_seconds_per_step

    def _clocked(self) -> float | None:
        """Seconds a step by the log's own clock, pauses left out."""
        if len(self._clock) < 2:
            return None
        steps, clock = np.diff(np.asarray(self._clock), axis=0).T
        paces = clock[steps > 0] / steps[steps > 0]
        if not len(paces):
            return None
        usual = np.median(paces)
        going = (steps > 0) & (clock <= _PAUSE * usual * steps) if usual > 0 else steps > 0
        pace = float(clock[going].sum() / steps[going].sum())
        return pace if 0 < pace < math.inf else None

    def _continued(self, target: float, last: float | int, horizon: float | int) -> float | None:
        steps, logs = self.observations.points()
        if len(steps) < MIN_POINTS:
            return None
        law = fit_loss_law(steps, np.exp(logs))
        later = np.linspace(last, horizon, 400)
        time = crossing_time(later, law(later), target)
        return None if time is None else time - last


def follow(
    log: LossLog,
    watcher: Watcher,
    show: Callable[[Status], None],
    *,
    poll_seconds: float = 1.0,
    once: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Shows the status after every new record, until the target or the last predicted step is
    reached; for ever without those.

    Args:
        log, watcher: read and fed.
        show: is given each status.
        poll_seconds: between two looks.
        once: the present status, and no more.
        note: is given what the user should know: lines that were passed over, a run that began
            anew, a log in which nothing is found yet.

    Raises:
        ValueError: with `once`, a log without records, one whose run has diverged, or whose last
            record has no step; always, a log that cannot be read as one.
        OSError: the log cannot be read.
    """
    waiting = turns = None
    while True:
        new = False
        for batch in log.batches(last=once):
            watcher.add(batch)
            new = True
        if once:
            log.check()
            if log.odd_step is not None:
                raise ValueError(log.odd_step)
            if not new:
                raise ValueError(
                    f"log: {str(log.path)!r} has no records yet; write lines with a step and a "
                    "loss, or leave --once out to wait for them"
                )
        for text in log.new_notes():
            note(text)
        if watcher.observations.turns and watcher.observations.note != turns:
            turns = watcher.observations.note
            note(f"{str(log.path)!r}: {turns}")
        if (
            watcher.predictor is not None
            and log.columns is not None
            and log.names["step"] is None
            and log.columns.step.lower() in EPOCH_NAMES
        ):
            raise ValueError(
                f"log: {str(log.path)!r} has epochs and no steps, the prediction is in the "
                "optimiser's steps; name their column with --step-column "
                f"({log.columns.step}, if each epoch is one step)"
            )
        if not once and not new and (problem := log.problem()) and problem != waiting:
            waiting = problem
            note(f"{problem}. Waiting for such lines")
        status = watcher.status(time.monotonic()) if new else None
        if once and status is not None and status.diverged:
            raise ValueError(
                f"loss: not finite since step {_step(status.bad_since or 0)} in {str(log.path)!r}; "
                "the run has diverged, there is nothing left to predict. Take a smaller learning "
                "rate"
            )
        if status is not None:
            show(status)
            if not status.diverged and (
                status.loss < status.target
                or (watcher.predictor is not None and status.step >= status.horizon)
            ):
                return
        if once:
            return
        time.sleep(poll_seconds)


def _step(step: float | int) -> str:
    return f"{step:.0f}" if step == int(step) else f"{step:.6g}"


def time_words(seconds: float | int) -> str:
    """Seconds in hours, minutes and seconds."""
    if seconds > _CENTURY:
        return "more than a century"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {seconds} s"
        if minutes
        else f"{seconds} s"
    )
