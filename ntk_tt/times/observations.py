"""What was seen of a run: its losses in order of steps, with what loss logs do on the way, in
bounded memory.

Logs repeat steps, go back when a run is resumed, begin again when another run is appended, and skip
steps whose loss overflowed. What is kept here is the run that is going on: finite losses at steps
that rise.
"""

import bisect
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

LIMIT = 1024  # records kept one by one; from twice as many on, neighbours are joined
MAX_STEP = 2**53  # from here on floats skip whole numbers
# losses in a row that are not finite, from which on a run has diverged; one alone is a step that
# was skipped
FEW = 2
NEAR_START = (
    0.02  # of a run's length: steps that go back to there belong to a new run, not to a checkpoint
)
_LEAST = 1e-12  # a loss of zero has no logarithm
_SKIPPED = 1e-3  # a loss of exactly zero before one above this was a step that overflowed


class Observations:
    """The records of the run that is going on.

    * A step that is repeated, or to which the steps go back: the later record counts, and all from
    that step on are dropped (a run that was resumed). * Steps that go back to the first, next to
    it, or to within 2 % of the run's length: a new run. All before are dropped. * One record before
    the last that is followed by one after it (a stray line): it is dropped, the run goes on. * A
    loss that is not finite is left out; so is a loss of exactly zero that a larger one follows (an
    overflow that was filtered). * From 2·`limit` records on neighbours are joined, as means of
    steps and log-losses, each over equally many records: more than `limit` points stay.

    Attributes:
        first: (step, loss) of the run's first finite record, or None.
        last: of its last finite one, or None.
        last_step: the last step of all, those with a loss that is not finite included; None before
            any.
        num_bad: losses in a row, up to the last record, that are not finite.
        bad_since: the step of the first of those.
        whole: whether all steps are whole numbers.
        turns: how often a run was resumed or begun anew.
        note: what was last noticed of steps that go back, or None.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.turns, self.note, self._falls = 0, None, 0
        self._undo: tuple | None = None
        self._clear()

    def _clear(self) -> None:
        self.first: tuple[float | int, float | int] | None = None
        self.last: tuple[float | int, float | int] | None = None
        self.num_bad, self.bad_since, self._bad_step, self.whole = 0, 0.0, 0.0, True
        # of the joined records: mean step, mean log-loss, last step
        self._steps, self._logs, self._ends = (
            [],
            [],
            [],
        )
        # records a point; of the unfinished one: count, sums of steps and log-losses
        self._stride, self._open = (
            1,
            (0, 0.0, 0.0),
        )

    def __len__(self) -> int:
        """Points that are kept."""
        return len(self._steps) + (self._open[0] > 0) + (self.last is not None)

    @property
    def last_step(self) -> float | int | None:
        if self.num_bad:
            return self._bad_step
        return None if self.last is None else self.last[0]

    @property
    def diverged(self) -> bool:
        """Whether the last records, two or more, are not finite."""
        return self.num_bad >= FEW

    def add(self, step: float | int, loss: float | int) -> None:
        """Take a record in.

        Raises:
            ValueError: a step that is not a number from 0 to 2⁵³.
        """
        step, loss = float(step), float(loss)
        if not 0 <= step <= MAX_STEP:
            raise ValueError(f"step: must be a number from 0 to 2^53, got {step:g}")
        self.extend([(step, loss)])

    def extend(self, records: Iterable[tuple[float | int, float | int]]) -> None:
        """`add` of many (step, loss), without the check of their steps."""
        for step, loss in records:
            if not math.isfinite(loss):
                self._skip(step)
                continue
            if self.last is None:
                self._start(step, loss)
                continue
            if self._undo is not None:
                self._settle(step)
            if step <= self.last[0]:
                self._go_back(step, loss)
                continue
            self._falls = 0
            self._keep(loss)
            self.last = (step, loss)
            self.first = self.first or self.last
            self.num_bad = 0
            if self.whole and step != int(step):
                self.whole = False

    def points(self) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
        """Steps, rising, and log-losses; the last point is the last record."""
        steps, logs = list(self._steps), list(self._logs)
        count, sum_steps, sum_logs = self._open
        if count:
            steps.append(sum_steps / count)
            logs.append(sum_logs / count)
        if self.last is not None:
            steps.append(self.last[0])
            logs.append(_log(self.last[1]))
        return np.asarray(steps, float), np.asarray(logs, float)

    def _skip(self, step: float | int) -> None:
        if self.num_bad == 0:
            self.bad_since = step
        self.num_bad += 1
        self._bad_step = step

    def _start(self, step: float | int, loss: float | int) -> None:
        self.first = self.last = (step, loss)
        self.num_bad, self.whole = 0, self.whole and step == int(step)

    def _keep(self, following: float | int) -> None:
        """Put the last record among those before it, unless it was a filtered overflow."""
        assert self.last is not None
        step, loss = self.last
        if loss == 0 and (following == 0 or following > _SKIPPED):
            if self.first == self.last and following:
                self.first = None
            return
        if self._stride == 1:
            self._steps.append(step)
            self._logs.append(_log(loss))
            self._ends.append(step)
        else:
            count, steps, logs = self._open[0] + 1, self._open[1] + step, self._open[2] + _log(loss)
            if count < self._stride:
                self._open = (count, steps, logs)
                return
            self._steps.append(steps / count)
            self._logs.append(logs / count)
            self._ends.append(step)
            self._open = (0, 0.0, 0.0)
        if len(self._steps) >= 2 * self.limit:
            self._join()

    def _join(self) -> None:
        self._steps, self._logs = (
            np.asarray(each).reshape(-1, 2).mean(1).tolist() for each in (self._steps, self._logs)
        )
        self._ends = self._ends[1::2]
        self._stride *= 2

    def _go_back(self, step: float | int, loss: float | int) -> None:
        assert self.last is not None
        last, first = self.last[0], (self.first or self.last)[0]
        if step == last:
            if self.first == self.last:
                self.first = (step, loss)
            self.last, self.num_bad = (step, loss), 0
            return
        kept = bisect.bisect_left(self._ends, step)  # points that end before the step
        new = kept * self._stride <= 1 or step - first <= NEAR_START * (last - first)
        if new:
            kept = 0
        lists = self._steps, self._logs, self._ends
        self._undo = (
            kept,
            *(each[kept:] for each in lists),
            self._stride,
            self._open,
            self.first,
            self.last,
            self.whole,
            self.turns,
            self.note,
        )
        for each in lists:
            del each[kept:]
        self._open = (0, 0.0, 0.0)
        self.turns += 1
        if new:
            self._stride = 1
            self.note = (
                f"the steps go back from {last:g} to {step:g}: a new run; what was before "
                "it is left out"
            )
            self.whole = True
            self._start(step, loss)
        else:
            self.note = (
                f"the steps go back from {last:g} to {step:g}: the run was resumed, the "
                "later records count"
            )
            self.last, self.num_bad = (step, loss), 0
        self._falls += 1
        if self._falls > FEW:
            self.note = (
                "the steps fall from record to record: what comes last counts as the newest; write "
                "the log with the oldest first"
            )

    def _settle(self, step: float | int) -> None:
        """Undo the last going back where it was one stray record: the run goes on after where it
        was before.
        """
        assert self._undo is not None
        kept, steps, logs, ends, stride, open_, first, last, whole, turns, note = self._undo
        self._undo = None
        if step <= last[0]:
            return
        self._steps[kept:], self._logs[kept:], self._ends[kept:] = steps, logs, ends
        self._stride, self._open, self.first, self.last, self.whole, self.turns, self.note = (
            stride,
            open_,
            first,
            last,
            whole,
            turns,
            note,
        )


def _log(loss: float | int) -> float:
    return math.log(max(loss, _LEAST))
