"""The model that is trained instead of the network: linear in all weights, or with the network's
real head.

Comes in: logits and features at the pre-trained weights. Goes out: a problem that the dynamics
train, and its sharpness.
"""

from ntk_tt.surrogate.head_pass import linearize_head
from ntk_tt.surrogate.linear import LinearizedProblem, State
from ntk_tt.surrogate.linear_pass import linearize
from ntk_tt.surrogate.problem import Problem
from ntk_tt.surrogate.real_head import HeadProblem, HeadState
from ntk_tt.surrogate.sharpness import (
    effective_learning_rate,
    largest_curvature,
    largest_curvature_bound,
    largest_safe_learning_rate,
)

__all__ = [
    "HeadProblem",
    "HeadState",
    "LinearizedProblem",
    "Problem",
    "State",
    "effective_learning_rate",
    "largest_curvature",
    "largest_curvature_bound",
    "largest_safe_learning_rate",
    "linearize",
    "linearize_head",
]
