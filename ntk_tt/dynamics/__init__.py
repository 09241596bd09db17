"""Training of the surrogate: replay of the very optimiser, its ODE, its SDE, or in closed form.

Comes in: a problem and an optimiser setting. Goes out: one `Trajectory`, the training curve.
"""

from ntk_tt.dynamics.closed_form import solve_closed_form
from ntk_tt.dynamics.many_settings import replay_many
from ntk_tt.dynamics.methods import Method, is_random, simulate
from ntk_tt.dynamics.ode import solve_ode
from ntk_tt.dynamics.optimizer_replay import own_way, replay, states_along
from ntk_tt.dynamics.sde import solve_sde
from ntk_tt.dynamics.trajectory import Trajectory

__all__ = [
    "Method",
    "Trajectory",
    "is_random",
    "own_way",
    "replay",
    "replay_many",
    "simulate",
    "solve_closed_form",
    "solve_ode",
    "solve_sde",
    "states_along",
]
