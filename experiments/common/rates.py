"""Learning rates relative to the largest stable one, so that no task is past the bound by
accident.
"""

import numpy as np

import ntk_tt


def largest_stable_rate(
    problem: ntk_tt.surrogate.LinearizedProblem,
    *,
    momentum: float = 0.0,
    batch_size: int | None = None,
) -> float:
    """The largest stable learning rate at the initial weights, for this momentum and batch size."""
    optimizer = ntk_tt.OptimizerConfig(1.0, momentum, batch_size=batch_size)
    initial = np.asarray(problem.initial_logits)[None]
    return ntk_tt.prediction.stability(problem, optimizer, 1, initial)[1]


def stable_rate(
    problem: ntk_tt.surrogate.LinearizedProblem,
    share: float,
    *,
    momentum: float = 0.0,
    batch_size: int | None = None,
) -> float:
    """This share of the largest stable learning rate, to two digits."""
    largest = largest_stable_rate(problem, momentum=momentum, batch_size=batch_size)
    return two_digits(share * largest)


def two_digits(value: float) -> float:
    """A rate that can be written down."""
    return float(f"{value:.2g}")
