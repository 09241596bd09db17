"""Gradient flow under the MSE loss in closed form, eqs. (4)–(5)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.dynamics.ode import clock
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.optimizer import OptimizerConfig, check_num_steps, check_sgd
from ntk_tt.surrogate.linear import LinearizedProblem, check_in_memory


def solve_closed_form(
    problem: LinearizedProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    record_every: int = 1,
    save_logits: bool = False,
) -> Trajectory:
    """f_t = y + V e^{−Λτ/N} Vᵀ (f₀ − y), Θ = V Λ Vᵀ, τ = ∫ η/(1−m) dt; L_t = (1/2N) Σ_k p_k
    e^{−2λ_k τ/N}, p_k = (v_k·(f₀ − y))².

    Of eq. (5) with the mean over samples and the ½ in the loss, hence e^{−2…} here as there; the
    square in p_k, which appendix D drops, is needed for Σ p_k = ‖f₀ − y‖².

    Raises:
        ValueError: the loss is not `mse`, the optimiser is not SGD, weight decay is not zero, or
            the features are streamed.

    Cost: one eigen-decomposition, (N·C)³.
    """
    check_num_steps(num_steps)
    check_sgd(optimizer, "closed-form")
    check_in_memory(problem, "closed-form")
    if problem.loss != "mse":
        raise ValueError(
            "loss: the closed form is for 'mse'; use the ode or replay method for 'ce'"
        )
    if optimizer.weight_decay:
        raise ValueError("weight_decay: the closed form has none; use the ode or replay method")
    steps = record_steps(num_steps, record_every)
    eigenvalues, eigenvectors = _spectrum(problem)
    shape = problem.initial_logits.shape
    start = (problem.initial_logits - problem.targets).reshape(-1)
    projections = eigenvectors.T @ start
    # of the span of Θ: it stays
    outside = (
        start - eigenvectors @ projections
        if len(projections) < len(start)
        else jnp.zeros_like(start)
    )
    # In double precision: times run over many orders of magnitude, and what does not decay must not
    # at any of them.
    exponents = np.outer(
        clock(optimizer, num_steps)[steps],
        np.asarray(eigenvalues, np.float64) / problem.num_samples,
    )
    losses_, errors, saved = [], [], []
    for decay in np.exp(-exponents):
        f = problem.targets + (
            outside + eigenvectors @ (jnp.asarray(decay, projections.dtype) * projections)
        ).reshape(shape)
        loss, error = problem.metrics(f)
        losses_.append(loss)
        errors.append(error)
        if save_logits:
            saved.append(f)
    return Trajectory(
        steps, np.asarray(losses_), np.asarray(errors), np.asarray(saved) if save_logits else None
    )


def _spectrum(problem: LinearizedProblem) -> tuple[Float[Array, " k"], Float[Array, "nc k"]]:
    """Eigenvalues and -vectors of Θ; those that are rounding are zero: nothing decays along
    directions that Θ does not have.

    Of a matrix of rank below N·C the rest come out as about ±eps·λ_max, which decays in long times.
    The features' singular values tell more: rounding is eps of the largest there, eps² of λ_max.
    """
    if isinstance(problem.kernel, PrimalKernel):
        eigenvectors, singular, _ = jnp.linalg.svd(
            problem.kernel.features.reshape(problem.initial_logits.size, -1), full_matrices=False
        )
        return jnp.square(_without_rounding(singular)), eigenvectors
    eigenvalues, eigenvectors = jnp.linalg.eigh(_matrix(problem))
    return _without_rounding(eigenvalues), eigenvectors


def _without_rounding(values: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.where(values > len(values) * jnp.finfo(values.dtype).eps * values.max(), values, 0)


def _matrix(problem: LinearizedProblem) -> Float[Array, "nc nc"]:
    match problem.kernel:
        case DualKernel(ntk=ntk):
            return ntk.reshape(problem.initial_logits.size, -1)
        case other:
            raise ValueError(f"kernel: no matrix form of {type(other).__name__}")
