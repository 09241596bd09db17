"""Gradient flow: the limit of small steps and full batches, solved with diffrax."""

import contextlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps, check_sgd
from ntk_tt.surrogate.linear import LinearizedProblem, State, check_in_memory
from ntk_tt.surrogate.sharpness import effective_learning_rate

_MAX_SOLVER_STEPS = 1_000_000
_DENSE_IMPLICIT_SIZE = 256  # states up to this size are cheap to solve implicitly


def solve_ode(
    problem: LinearizedProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    record_every: int = 1,
    save_logits: bool = False,
    solver: diffrax.AbstractAdaptiveSolver | None = None,
    relative_tolerance: float = 1e-4,
    absolute_tolerance: float = 1e-6,
) -> Trajectory:
    """df/dt = −η̃ Θ ∂L/∂f with η̃ = η/(1−m): the deterministic part of eq. (1), with the sign of
    F.2 corrected.

    Solved in the time τ = ∫ η̃ dt, in which the flow does not depend on the learning rate: a
    schedule only decides at which τ each step is read. Weight decay flows along: du/dτ = −(Jᵀ ∂L/∂f
    + λ(u + w₀)).

    Says nothing of batch noise, of instability at large steps, nor of the lag of about m/(1−m)
    steps with which heavy ball starts; replay has all three.

    Args:
        problem: the linearised network and its data.
        optimizer: its batch size and Nesterov flag do not enter the flow.
        num_steps: T, optimiser steps.
        record_every: steps between records.
        save_logits: keep f at each record.
        solver: any adaptive diffrax solver. By default Kvaerno5 (implicit) for states up to 256
            numbers, where a dense factorisation costs less than many small steps, else Tsit5:
            inside the stability bound of the optimiser the flow needs fewer explicit steps than the
            optimiser takes.
        relative_tolerance, absolute_tolerance: of the step-size controller.

    Raises:
        ValueError: an argument out of range, another optimiser than SGD, a flow too stiff for the
            solver, or streamed features.

    Implicit solvers work in double precision, which takes twice the kernel's memory: their steps
    may be thousands of times what the fastest mode allows, and rounding of that mode in single
    precision, as many times larger, would be all that the error estimate sees.
    """
    check_num_steps(num_steps)
    check_sgd(optimizer, "ode")
    check_in_memory(problem, "ode")
    steps = record_steps(num_steps, record_every)
    times = clock(optimizer, num_steps)[steps]
    if solver is None:
        small = sum(leaf.size for leaf in jax.tree.leaves(problem.zero())) <= _DENSE_IMPLICIT_SIZE
        solver = diffrax.Kvaerno5() if small else diffrax.Tsit5()
    implicit = isinstance(solver, diffrax.AbstractImplicitSolver)
    tolerances = (relative_tolerance, absolute_tolerance)
    with jax.enable_x64(True) if implicit else contextlib.nullcontext():
        if implicit:
            problem = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem)
        times = jnp.asarray(times, problem.initial_logits.dtype)
        loss, error, saved, succeeded = _flow(
            problem,
            solver,
            tolerances,
            save_logits,
            float(optimizer.weight_decay),
            times,
            problem.zero(),
        )
    if not bool(succeeded):
        remedy = "" if implicit else "solver=diffrax.Kvaerno5(), "
        raise ValueError(
            f"learning_rate: the flow is too stiff for {type(solver).__name__} within "
            f"{_MAX_SOLVER_STEPS} steps; give {remedy}a smaller learning rate, or use replay"
        )
    return Trajectory(
        steps, np.asarray(loss), np.asarray(error), np.asarray(saved) if save_logits else None
    )


def clock(optimizer: OptimizerConfig, num_steps: int) -> Float[np.ndarray, " steps"]:
    """τ after each step 0 … T: the sum of the effective learning rates so far, shape (T+1,)."""
    rates = effective_learning_rate(optimizer.learning_rates(num_steps), optimizer.momentum)
    return np.concatenate([[0.0], np.cumsum(rates)])


@eqx.filter_jit
def _flow(
    problem: LinearizedProblem,
    solver,
    tolerances,
    save_logits: bool,
    weight_decay,
    times: Float[Array, " s"],
    start: State,
):
    def velocity(_, state, __):
        mean = losses.mean_residuals(problem.loss, problem.logits(state), problem.targets)
        return State(
            -problem.kernel.pull(mean) - weight_decay * state.kernel_state,
            -weight_decay * (state.decay + 1),
        )

    def record(_, state, __):
        f = problem.logits(state)
        return *problem.metrics(f), f if save_logits else None

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        times[0],
        times[-1],
        None,
        start,
        saveat=diffrax.SaveAt(ts=times, fn=record),
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1]),
        max_steps=_MAX_SOLVER_STEPS,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    loss, error, saved = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    return loss, error, saved, solution.result == diffrax.RESULTS.successful
