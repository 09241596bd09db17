"""The largest learning rate that is stable on its own way: where the margin is 1."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from ntk_tt.optimizer import OptimizerConfig, check_sgd, scaled
from ntk_tt.prediction.margin import Start, first_point, margin_on_the_way, stability
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.problem import Problem

CLOSE_TO_ONE = (
    1.08  # a margin from 1 to this is that of the largest safe rate; half of it is aimed at
)
NARROW = 1.15  # between a rate that is stable and one that is not, where the margin jumps
# most ways that the search for that rate follows, but for those that it takes to find a stable one
EVALUATIONS = 6
_STEP = 0.6  # from a rate that is not stable to the next
# of the rate that is found, which must be stable too: margins are no smooth function of the rate
_UNDER = 0.93
STREAMED_EVALUATIONS = 1  # each is as many passes over the disk as the prediction


class SafeRate(NamedTuple):
    """Of `safe_learning_rate`.

    Attributes:
        rate: the highest rate of the schedule, with which the predicted way is stable; 0 where none
            was found.
        is_largest: whether the margin on that way is close to 1, or some rate at most 15 % larger
            is not stable; False where larger ones were not looked at.
    """

    rate: float
    is_largest: bool


def safe_learning_rate(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    margin: float | None = None,
    key: Key[Array, ""] | None = None,
    evaluations: int | None = None,
    progress: Progress = silent,
) -> SafeRate:
    """The largest rate of this schedule that is stable on its own way: where `margin_on_the_way` at
    that very rate is 1 to `CLOSE_TO_ONE`.

    Found by a bracket in log η: the margin falls with the rate, faster than 1/η where the kernel or
    the curvature of the softmax grows on the way.

    Args:
        margin: of the setting itself, where it is known; else it is looked at first.
        key: of the order of the data.
        evaluations: most further ways; None takes 6, or 1 where the features are streamed from
            disk.
        progress: called as `progress(done, most)` after each way.

    Raises:
        ValueError: an argument out of range, or an optimiser that the problem cannot carry.

    Cost: a replay until the loss is learnt, or the bound is passed, for each of the ways, two or
    three as a rule.
    """
    if not problem.takes_any_optimizer:
        check_sgd(optimizer, "replay")
    highest = float(optimizer.learning_rates(num_steps).max())
    first = margin_on_the_way(problem, optimizer, num_steps, key=key) if margin is None else margin
    if highest == 0 or not np.isfinite(first):
        return SafeRate(highest, False)
    if problem.has_one_sharpness:
        return SafeRate(first * highest, True)  # the same on every way
    if evaluations is None:
        evaluations = STREAMED_EVALUATIONS if problem.streamed else EVALUATIONS
    if first == 0:  # which says nothing of how far: the start does
        first = min(
            0.99,
            stability(
                problem,
                optimizer,
                num_steps,
                [first_point(problem, optimizer, num_steps)],
            )[0],
        )
    seen = {1.0: first}  # margins by factor
    start: Start = {}
    for count in range(2 * evaluations):
        low, high = _ends(seen)
        if low is not None and count >= evaluations:
            break
        factor = (
            _next(low, high, seen)
            if not _is_closed(low, high, seen)
            else _UNDER * low
            if low is not None
            else 0.0
        )
        if any(0.97 * factor <= each <= factor / 0.97 for each in seen):
            break
        there = scaled(optimizer, factor)
        found = margin_on_the_way(problem, there, num_steps, key=key, start=start)
        if not np.isfinite(found):
            break
        seen[factor] = found
        progress(count + 1, 2 * evaluations)
    low, high = _ends(seen)
    return (
        SafeRate(0.0, False)
        if low is None
        else SafeRate(low * highest, _is_closed(low, high, seen))
    )


def _ends(seen: dict[float, float]) -> tuple[float | None, float | None]:
    """The least factor that is not stable, and below it the largest that is; None where there is
    none.
    """
    high = min((factor for factor, margin in seen.items() if not margin >= 1), default=None)
    return max(
        (
            factor
            for factor, margin in seen.items()
            if margin >= 1 and (high is None or factor < high)
        ),
        default=None,
    ), high


def _is_closed(low: float | None, high: float | None, seen: dict[float, float]) -> bool:
    return low is not None and (
        seen[low] <= CLOSE_TO_ONE or (high is not None and high <= NARROW * low)
    )


def _next(low: float | None, high: float | None, seen: dict[float, float]) -> float:
    """The next factor of the rate: where the margin would be half of what counts as close to 1 if
    the bound were as it was, then between the ends.
    """
    aim = math.sqrt(CLOSE_TO_ONE)
    if high is None:
        assert low is not None
        return low * seen[low] / aim
    if low is not None and high <= 2 * low:
        return math.sqrt(low * high)
    # A way is left where it first passes the bound: just below 1 may be far below it further on.
    return high * (seen[high] / aim if low is None and 0 < seen[high] < _STEP else _STEP)
