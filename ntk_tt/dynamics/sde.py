"""The SDE of Proposition 1: gradient flow and the noise of mini-batches, solved with diffrax."""

import math
from typing import Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_tt import losses
from ntk_tt.dynamics.batches import noise_variance
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.kernels.operators import PrimalKernel, sum_of_rows
from ntk_tt.optimizer import OptimizerConfig, check_num_steps, check_sgd
from ntk_tt.surrogate.linear import LinearizedProblem, State, check_in_memory
from ntk_tt.surrogate.sharpness import effective_learning_rate, largest_curvature_bound

Noise = Literal["full", "diagonal", "diagonal-constant"]

# of Euler's method for a step of the optimiser; 2/(1−m) at the stability bound
_MAX_SUBSTEPS = 10**4


def solve_sde(
    problem: LinearizedProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    noise: Noise = "full",
    record_every: int = 1,
    save_logits: bool = False,
    substeps: int | None = None,
    path: diffrax.AbstractBrownianPath | None = None,
) -> Trajectory:
    """df = −η̃ Θ ∂L/∂f dt + η̃ √(s/B) J Σ^{1/2} dW, eq. (1), by Euler–Maruyama.

    η̃ = η/(1−m) enters both terms (the noise scale of SGD with momentum is η/(B(1−m)), Smith & Le
    2018); s = (N−B)/(N−1) for batches drawn without replacement, 1 with replacement. The noise:

    - `full`: Σ = Cov(Jᵢᵀ gᵢ) exact and never formed: J Σ^{1/2} dW has the law of (1/√N) Θ[(dWᵢ −
      mean dW) gᵢ], W ∈ R^N.
    - `diagonal` (the paper's): Σ ≈ diag(σ²) in the projected coordinates, estimated at t = 0,
      rescaled by ‖g_t‖/‖g₀‖.
    - `diagonal-constant`: the same without the rescaling, the ablation of Fig. 8.

    Heavy ball lags this SDE by about m/(1−m) steps at the start.

    Args:
        problem: the linearised network; the diagonal kinds need its features (a `PrimalKernel`).
        optimizer: the setting to price.
        num_steps: T, optimiser steps; time is counted in steps.
        key: of the Brownian path; key 0 where none is given.
        noise: see above.
        record_every: steps between records.
        save_logits: keep f at each record.
        substeps: integration steps per optimiser step; None takes enough that Euler's method is
            stable.
        path: a Brownian path over [0, T] instead of one from `key`; of shape (N,) for `full` noise,
            (D',) for diagonal.

    Raises:
        ValueError: an argument out of range, another optimiser than SGD, a batch larger than the
            data, diagonal noise without features, or streamed features.

    Cost: T·substeps products with Θ (full), or 2·N·C·D' flops a step (diagonal).
    """
    check_num_steps(num_steps)
    check_sgd(optimizer, "sde")
    check_in_memory(problem, "sde")
    if noise not in get_args(Noise):
        raise ValueError(f"noise: unknown {noise!r}; give one of {', '.join(get_args(Noise))}")
    if noise != "full" and not isinstance(problem.kernel, PrimalKernel):
        raise ValueError(
            "noise: the diagonal covariance lives in the projected coordinates; build the problem "
            "with a PrimalKernel (space='primal')"
        )
    steps = record_steps(num_steps, record_every)
    dtype = problem.initial_logits.dtype
    rates = effective_learning_rate(optimizer.learning_rates(num_steps), optimizer.momentum)
    if substeps is None:
        wanted = rates.max() * (largest_curvature_bound(problem) + optimizer.weight_decay)
        if not wanted <= _MAX_SUBSTEPS:
            raise ValueError(
                f"learning_rate: the SDE takes {wanted:.3g} integration steps for each of the "
                f"optimiser's at up to {rates.max():.3g} (η/(1−m)), and at most {_MAX_SUBSTEPS} "
                "are possible; the rate is that far past the stability bound: take a smaller one"
            )
        substeps = max(1, math.ceil(wanted))
    if path is None:
        shape = (problem.num_samples,) if noise == "full" else problem.kernel.zero().shape
        path = diffrax.UnsafeBrownianPath(
            jax.ShapeDtypeStruct(shape, dtype), key=jax.random.key(0) if key is None else key
        )
    scale = math.sqrt(noise_variance(problem.num_samples, optimizer))
    loss, error, saved = _integrate(  # pyright: ignore[reportGeneralTypeIssues]
        problem,
        noise,
        substeps,
        save_logits,
        jnp.asarray(scale, dtype),
        float(optimizer.weight_decay),
        jnp.asarray(rates, dtype),
        jnp.asarray(steps, dtype),
        path,
        problem.zero(),
    )
    return Trajectory(
        steps, np.asarray(loss), np.asarray(error), np.asarray(saved) if save_logits else None
    )


@eqx.filter_jit
def _integrate(
    problem: LinearizedProblem,
    noise: Noise,
    substeps: int,
    save_logits: bool,
    scale,
    weight_decay,
    rates: Float[Array, " t"],
    record_at: Float[Array, " s"],
    path,
    start: State,
):
    kernel, num_samples = problem.kernel, problem.num_samples

    def rate_at(t):
        # Half an integration step forward, so rounding of t = k cannot read the rate of step k − 1.
        return rates[jnp.clip(jnp.floor(t + 0.5 / substeps).astype(int), 0, len(rates) - 1)]

    def mean_residuals(state):
        return losses.mean_residuals(problem.loss, problem.logits(state), problem.targets)

    def drift(t, state, _):
        descent = State(
            kernel.pull(mean_residuals(state)) + weight_decay * state.kernel_state,
            weight_decay * (state.decay + 1),
        )
        return jax.tree.map(lambda d: -rate_at(t) * d, descent)

    initial_norm = jnp.linalg.norm(mean_residuals(start))
    deviation = (
        _deviation(kernel, num_samples * mean_residuals(start))
        if isinstance(kernel, PrimalKernel) and noise != "full"
        else None
    )

    def diffusion(t, state, _):
        g = mean_residuals(state)
        amplitude = rate_at(t) * scale

        def full(dw):
            return State(
                amplitude
                * jnp.sqrt(num_samples * 1.0)
                * kernel.pull((dw - dw.mean())[:, None] * g),
                jnp.zeros_like(state.decay),
            )

        def diagonal(dw):
            growth = (
                1.0
                if noise == "diagonal-constant"
                else jnp.linalg.norm(g) / jnp.where(initial_norm > 0, initial_norm, 1)
            )
            return State(amplitude * growth * deviation * dw, jnp.zeros_like(state.decay))

        structure = jax.ShapeDtypeStruct(
            (num_samples,) if noise == "full" else kernel.zero().shape, g.dtype
        )
        return lineax.FunctionLinearOperator(full if noise == "full" else diagonal, structure)

    def record(_, state, __):
        f = problem.logits(state)
        return *problem.metrics(f), f if save_logits else None

    terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))
    times = jnp.arange(len(rates) * substeps + 1, dtype=rates.dtype) / substeps
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.Euler(),
        times[0],
        times[-1],
        None,
        start,
        saveat=diffrax.SaveAt(ts=record_at, fn=record),
        stepsize_controller=diffrax.StepTo(ts=times),
        max_steps=len(times),
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    return solution.ys


def _deviation(kernel: PrimalKernel, residuals: Float[Array, "n c"]) -> Float[Array, " d"]:
    """Standard deviation over the samples of each one's gradient Jᵢᵀ gᵢ, formed for a few of them
    at a time.
    """
    num_samples = len(residuals)
    mean = kernel.pull(residuals) / num_samples

    def squares(rows, counted):
        off = jnp.einsum("nc,ncd->nd", residuals[rows], kernel.features[rows]) - mean
        return (counted * jnp.square(off)).sum(0)

    return jnp.sqrt(
        sum_of_rows(
            squares,
            jnp.arange(num_samples),
            jnp.ones((num_samples, 1), residuals.dtype),
            kernel.features,
        )
        / num_samples
    )
