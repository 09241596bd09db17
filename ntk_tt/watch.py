"""Remaining steps and time of a run, from its loss log as it grows."""

import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ntk_tt.calibration import has_interval
from ntk_tt.closed_loop import Predictor
from ntk_tt.extrapolation import MIN_POINTS, fit_power_law
from ntk_tt.training_time import crossing_time

STEP_NAMES, LOSS_NAMES = ("step", "global_step", "iteration", "steps"), ("loss", "train_loss", "train/loss", "training_loss")
_DEFAULT_HORIZON = 3  # times the observed steps, for a log without a prediction


class Status(NamedTuple):
    """What is known of a run.

    Attributes:
        step, loss: the last record.
        target: the loss that is waited for.
        remaining_steps, low, high: until it is reached; None is not within `horizon`, or not known yet. The interval is 90 %.
        probability: that it is reached within `horizon`; None without a prediction.
        seconds: that the remaining steps take, at the speed of the log; None where that is not known.
        horizon: the last step that was predicted, or looked at.
    """

    step: int
    loss: float
    target: float
    remaining_steps: float | None
    low: float | None
    high: float | None
    probability: float | None
    seconds: float | None
    horizon: int

    def __str__(self) -> str:
        if self.loss < self.target:
            return f"step {self.step}: loss {self.loss:.4g}, below {self.target:g}: reached"
        if self.remaining_steps is None:
            left = f"not below {self.target:g} within {self.horizon} steps"
        else:
            left = f"below {self.target:g} in {self.remaining_steps:.0f} steps"
            if self.low is not None:
                left += f" (90 %: {self.low:.0f} … {'not reached' if self.high is None else f'{self.high:.0f}'})"
            if self.seconds is not None:
                left += f", {_duration(self.seconds)}"
        chance = "" if self.probability is None else f"; reached within {self.horizon} with probability {self.probability:.0%}"
        return f"step {self.step}: loss {self.loss:.4g}; {left}{chance}"


class LossLog:
    """The records of a CSV file with a header, or of JSON lines, read as they are appended.

    Args:
        path: the file; it may not be there yet.
        step, loss: names of the columns; None takes the first usual name (step, global_step, …; loss, train_loss, …).
    """

    def __init__(self, path: Path, *, step: str | None = None, loss: str | None = None):
        self.path, self.names = path, {"step": step, "loss": loss}
        self._position, self._header, self._partial = 0, None, ""

    def read(self) -> list[tuple[int, float]]:
        """(step, loss) of the whole lines that are new.

        Raises:
            ValueError: a line that is neither, or without step or loss (with its text and the columns there are).
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self._position:
            raise ValueError(f"log: {str(self.path)!r} has become shorter; a new run has begun, watch it anew")
        with self.path.open() as file:
            file.seek(self._position)
            text = self._partial + file.read()
            self._position = file.tell()
        *lines, self._partial = text.split("\n")
        return [record for line in lines if line.strip() for record in self._record(line)]

    def _record(self, line: str) -> Iterator[tuple[int, float]]:
        if line.lstrip().startswith("{"):
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"log: cannot read the line {line[:80]!r} of {str(self.path)!r} as JSON ({error.msg}); give one object a line") from error
        else:
            (values,) = csv.reader([line])
            if self._header is None:
                self._header = [name.strip() for name in values]
                return
            fields = dict(zip(self._header, values, strict=False))
        step, loss = (self._value(fields, kind, usual, line) for kind, usual in (("step", STEP_NAMES), ("loss", LOSS_NAMES)))
        if step is not None and loss is not None:  # a line of something else, such as validation
            yield int(step), loss

    def _value(self, fields: dict[str, Any], kind: str, usual: tuple[str, ...], line: str) -> float | None:
        given = self.names[kind]
        name = given if given in fields else next((name for name in usual if given is None and name in fields), None)
        if name is None:
            raise ValueError(f"log: no column {given or ' or '.join(usual)} in {str(self.path)!r}, there are {', '.join(fields)}; name it with --{kind}-column")
        value = fields[name]
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"log: {kind} is {value!r} in the line {line[:80]!r} of {str(self.path)!r}; it must be a number") from error


class Watcher:
    """Feeds a log to a prediction, or, without one, to a power law.

    Args:
        target: the loss to wait for; None takes a tenth of the first one.
        predictor: corrected by the log; None where there is no prediction.
        seconds_per_step: None is measured from when records appear.
    """

    def __init__(self, *, target: float | None = None, predictor: Predictor | None = None, seconds_per_step: float | None = None):
        if target is not None and not target > 0:
            raise ValueError(f"target: must be a positive loss, got {target}")
        self.target, self.predictor, self.seconds_per_step = target, predictor, seconds_per_step
        self.records: dict[int, float] = {}
        self._first_seen: tuple[int, float] | None = None

    def take(self, records: list[tuple[int, float]], now: float) -> Status | None:
        """The status after new records; None while there are none at all. `now` is any clock [s]."""
        for step, loss in records:
            self.records[step] = loss
            if self.predictor is not None:
                self.predictor.observe(step, loss)
        if not self.records:
            return None
        last = max(self.records)
        if self.target is None:
            self.target = 0.1 * self.records[min(self.records)]
        if self._first_seen is None:
            self._first_seen = last, now
        pace = self.seconds_per_step
        if pace is None and last > self._first_seen[0]:
            pace = (now - self._first_seen[1]) / (last - self._first_seen[0])
        if self.predictor is not None:
            found = self.predictor.remaining(self.target)
            steps, low, high, probability, horizon = found.steps, found.low, found.high, found.probability, self.predictor.horizon
        else:
            horizon = _DEFAULT_HORIZON * max(last, 1)
            steps, low, high, probability = self._continued(last, horizon), None, None, None
        return Status(last, self.records[last], self.target, steps, low, high, probability, None if pace is None or steps is None else pace * steps, horizon)

    def _continued(self, last: int, horizon: int) -> float | None:
        if len(self.records) < MIN_POINTS:
            return None
        assert self.target is not None
        steps = np.asarray(sorted(self.records), float)
        law = fit_power_law(steps, np.maximum([self.records[int(step)] for step in steps], 1e-12))
        later = np.linspace(last, horizon, 400)
        time = crossing_time(later, law(later), self.target)
        return None if time is None else time - last


def predictor_of(report: Path) -> tuple[Predictor, float]:
    """The predictor of a report that `ntk-tt predict --json` wrote, and the seconds a step takes.

    Raises:
        ValueError: a file that is no such report.
    """
    try:
        document = json.loads(report.read_text())
        curve, cost = document["prediction"], document["cost"]
        steps, loss = np.asarray(curve["steps"]), np.asarray([np.nan if value is None else value for value in curve["loss"]], float)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"prediction: {str(report)!r} is no report of `ntk-tt predict --json` ({error!r})") from error
    verdict = document.get("verdict") or {}
    return Predictor(steps, loss, method=curve["method"] if has_interval(curve["method"]) else "replay", margin=verdict.get("stability_margin")), cost["seconds_per_step"]


def follow(log: LossLog, watcher: Watcher, show: Callable[[Status], None], *, poll_seconds: float = 1.0, once: bool = False) -> None:
    """Shows the status after every new record, until the target or the last predicted step is reached; for ever without those."""
    while True:
        records = log.read()
        status = watcher.take(records, time.monotonic()) if records else None
        if status is not None:
            show(status)
            if status.loss < status.target or (watcher.predictor is not None and status.step >= status.horizon):
                return
        if once:
            if not watcher.records:
                raise ValueError(f"log: {str(log.path)!r} has no records yet; write lines with a step and a loss, or leave --once out to wait for them")
            return
        time.sleep(poll_seconds)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
