"""A run that is watched from within its own loop: remaining steps and time, to the target and to
the last step.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ntk_tt.times.prior import predictor_of
from ntk_tt.times.watcher import Status, Watcher, time_words

Prior = str | Path | Mapping[str, Any]


class RunStatus(NamedTuple):
    """Where a run is.

    Attributes:
        status: until the target, as `ntk-tt watch` has it.
        last_step: at which the run ends; None where that is not known.
        steps_left, seconds_left: to the last step; None where they are not known.
    """

    status: Status
    last_step: int | None
    steps_left: float | None
    seconds_left: float | None

    def __str__(self) -> str:
        text = str(self.status)
        if self.steps_left is None or self.status.diverged:
            return text
        spent = "" if self.seconds_left is None else f", {time_words(self.seconds_left)}"
        return f"{text}; to the last step {self.steps_left:.0f} steps{spent}"


class RunFollower:
    """Tells a training loop how far it is: call it with the step and the loss, as often as there
    is a loss.

    The prediction is the prior, and what is observed corrects it (`ntk_tt.times.online`). Without
    one the run's own curve is continued. It goes on through resumed runs and losses that are not
    finite.

    ```
    follower = RunFollower(report.document, target=0.3, num_steps=2000)
    for step in range(2000):
        loss = train_step()
        follower(step + 1, loss)
    ```

    Args:
        prediction: a report's `document`, or the file that `write_json` or `ntk-tt predict --json`
            wrote; None continues the run's own curve.
        target: the loss to wait for; None is a tenth of the first one.
        num_steps: at which the run ends; None is the prediction's last step, else not known.
        every_seconds: between two lines; 0 is one for each loss.
        say: is given each line's status; None prints it.
        clock: seconds; None is this machine's.

    Raises:
        ValueError: a prediction, target or number that is none.
    """

    def __init__(
        self,
        prediction: Prior | None = None,
        *,
        target: int | float | None = None,
        num_steps: int | None = None,
        every_seconds: int | float = 10.0,
        say: Callable[[RunStatus], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        predictor, pace = (None, None) if prediction is None else predictor_of(prediction)
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps: must be at least 1, got {num_steps}")
        if not every_seconds >= 0:
            raise ValueError(f"every_seconds: must be 0 or more, got {every_seconds}")
        self.num_steps = num_steps
        if num_steps is None and predictor is not None:
            self.num_steps = int(predictor.steps[-1])
        self._watcher = Watcher(target=target, predictor=predictor)
        self._expected_pace, self._every, self._clock = pace, every_seconds, clock
        self._say = print if say is None else say
        self._told: float | None = None
        self.last: RunStatus | None = None

    def __call__(self, step: Any, loss: Any) -> RunStatus | None:
        """Take a loss in; the status where a line was said, else None.

        Args:
            step: optimiser steps taken so far, from 1 on.
            loss: the mean loss there, a number of any library; None passes it over.
        """
        if loss is None:
            return None
        now = self._clock()
        self._watcher.add([(float(step), float(loss), now)])
        if self._told is not None and now - self._told < self._every:
            return None
        self._told = now
        found = self.status()
        if found is not None:
            self._say(found)
        return found

    def status(self) -> RunStatus | None:
        """Where the run is; None before the first loss."""
        status = self._watcher.status(self._clock())
        if status is None:
            return None
        pace = self._watcher.seconds_a_step or self._expected_pace
        if status.seconds is None and status.remaining_steps is not None and pace:
            status = status._replace(seconds=pace * status.remaining_steps)
        left = None if self.num_steps is None else max(0.0, self.num_steps - status.step)
        seconds = None if left is None or not pace else left * pace
        self.last = RunStatus(status, self.num_steps, left, seconds)
        return self.last

    def replan(self, prediction: Prior, *, num_steps: int | None = None) -> None:
        """Goes on with another prediction: of a run whose rate or schedule was changed on its way
        (`ntk_tt.optimizer.changed_at`). What was observed stays and corrects the new one.

        Args:
            prediction: of the whole run, from its first step.
            num_steps: at which the run ends now; None is the prediction's last step.
        """
        predictor, pace = predictor_of(prediction)
        predictor.observations = self._watcher.observations
        self._watcher.predictor = predictor
        self._expected_pace = pace
        self.num_steps = int(predictor.steps[-1]) if num_steps is None else num_steps

    @property
    def reached(self) -> bool:
        """Whether the last loss that was looked at is below the target."""
        found = self.status()
        return found is not None and found.status.loss < found.status.target

    @property
    def probability(self) -> float | None:
        """The chance that the target is reached within the run; None where it is not known."""
        found = self.status()
        probability = None if found is None else found.status.probability
        return None if probability is None or not math.isfinite(probability) else probability
