"""The model that is trained instead of the network: one that is linear in all weights, or a small
network with the real head.

Comes in: logits and features at the pre-trained weights. Goes out: a problem that the dynamics
train, and its sharpness.
"""

from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.linear import LinearizedProblem, State
from ntk_tt.surrogate.linear_pass import linearize
from ntk_tt.surrogate.problem import Problem
from ntk_tt.surrogate.sharpness import (
    effective_learning_rate,
    largest_curvature,
    largest_curvature_bound,
    largest_safe_learning_rate,
)
from ntk_tt.surrogate.small_network import SmallNetwork

__all__ = [
    "LinearizedProblem",
    "Problem",
    "SmallNetwork",
    "State",
    "effective_learning_rate",
    "expand",
    "largest_curvature",
    "largest_curvature_bound",
    "largest_safe_learning_rate",
    "linearize",
]
