"""Which runs to start with a budget, which first, and when to stop each."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_tt.times.calibration import Interval

_LEAST_CHANCE = 0.05  # of a run that is worth a start
_SURE = 0.99  # chance that something has reached the target, from which on nothing is added
_MOST = 20  # runs
_CHECK = 0.25  # of the time until a run is stopped, at which it is looked at


class Candidate(NamedTuple):
    """A run that could be started.

    Attributes:
        time: steps at which it is predicted to reach the target, perhaps past its end; None: never.
        num_steps: T, where it ends.
        seconds_per_step: of it.
        spread: of real over predicted times.
    """

    time: float | None
    num_steps: int
    seconds_per_step: float
    spread: Interval


class PlannedRun(NamedTuple):
    """A run of a plan.

    Attributes:
        candidate: its place among those that were given.
        stop: steps after which it is stopped, whatever it is by then.
        chance: that it has reached the target by then.
        seconds: of these steps.
        expected_seconds: of it, as it ends where it reaches the target.
        begins: seconds after which it begins where all before it went to their stops.
        check: a step before, at which a run that is slower than 95 of 100 is left.
        late: of the predicted time at `check`, by which such a run is behind: it is where the
            prediction was at `check`/`late`.
    """

    candidate: int
    stop: int
    chance: float
    seconds: float
    expected_seconds: float
    begins: float
    check: int
    late: float


def plan_runs(candidates: Sequence[Candidate], budget: float | int) -> tuple[PlannedRun, ...]:
    """The runs to start, in order, so that their stops together stay within the budget.

    Of independent runs the one with the largest chance per expected second comes first, which is
    best where all may be tried (Mitten 1960); where to stop one is chosen alike: at the step where
    that ratio is largest, since longer each further second buys less than it did.

    Args:
        candidates: what could be run.
        budget: seconds.

    Returns:
        At most 20 runs; none where no run has a chance of 5 % within the budget.
    """
    ranked = sorted(
        (found for index, each in enumerate(candidates) if (found := _best(index, each, budget))),
        key=lambda run: -run.chance / max(run.expected_seconds, 1e-12),
    )
    chosen: list[PlannedRun] = []
    used, missed = 0.0, 1.0
    for run in ranked:
        if len(chosen) == _MOST or 1 - missed >= _SURE:
            break
        if used + run.seconds > budget:
            shorter = _best(run.candidate, candidates[run.candidate], budget - used)
            if shorter is None:
                continue
            run = shorter
        chosen.append(run._replace(begins=used))
        used += run.seconds
        missed *= 1 - run.chance
    return tuple(chosen)


def shortest(candidates: Sequence[Candidate]) -> float | None:
    """Seconds of the shortest run that has a chance; None where none has."""
    found = [_best(index, each, math.inf) for index, each in enumerate(candidates)]
    return min((run.seconds for run in found if run is not None), default=None)


def _best(index: int, candidate: Candidate, budget: float | int) -> PlannedRun | None:
    """Where to stop a run so that its chance per expected second is largest; None where it has
    none.
    """
    time, pace, spread = candidate.time, candidate.seconds_per_step, candidate.spread
    if time is None or not time < math.inf:
        return None
    last = min(candidate.num_steps, budget / pace)
    if last < 1:
        return None
    time = max(time, 1.0)
    stops = np.unique(np.minimum(np.ceil(time * np.exp(spread.ratios)), math.floor(last)))
    best: PlannedRun | None = None
    for stop in stops[stops >= 1]:
        chance = spread.reached_within(float(stop), time)
        if chance < _LEAST_CHANCE:
            continue
        seconds = _expected(float(stop), time, spread) * pace
        if best is None or chance * best.expected_seconds > best.chance * seconds:
            check = max(1, round(_CHECK * float(stop)))
            best = PlannedRun(
                index, int(stop), chance, float(stop) * pace, seconds, 0.0, check, spread.high
            )
    return best


def _expected(stop: float, time: float, spread: Interval) -> float:
    """E[min(real time, stop)]: the integral of the chance that it is not yet reached."""
    ends = np.unique(np.minimum(time * np.exp(spread.ratios), stop))
    points: Float[np.ndarray, " q"] = np.unique(np.concatenate([[0.0], ends, [stop]]))
    middle = (points[1:] + points[:-1]) / 2
    left = [1 - spread.reached_within(float(each), time) for each in middle]
    return float((np.diff(points) * left).sum())
