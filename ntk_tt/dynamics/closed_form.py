"""Gradient flow under the MSE loss in closed form, eqs. (4)–(5)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.dynamics.ode import clock
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.kernel import DualKernel, PrimalKernel
from ntk_tt.ntk import ntk_from_features
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.problem import LinearizedProblem, check_in_memory


def solve_closed_form(problem: LinearizedProblem, optimizer: OptimizerConfig, num_steps: int, *, record_every: int = 1, save_logits: bool = False) -> Trajectory:
    """f_t = y + V e^{−Λτ/N} Vᵀ (f₀ − y), Θ = V Λ Vᵀ, τ = ∫ η/(1−m) dt; L_t = (1/2N) Σ_k p_k e^{−2λ_k τ/N}, p_k = (v_k·(f₀ − y))².

    Of eq. (5) with the mean over samples and the ½ in the loss, hence e^{−2…} here as there; the square in p_k, which
    appendix D drops, is needed for Σ p_k = ‖f₀ − y‖².

    Raises:
        ValueError: the loss is not `mse`, weight decay is not zero, or the features are streamed.

    Cost: one eigen-decomposition, (N·C)³.
    """
    check_num_steps(num_steps)
    check_in_memory(problem, "closed-form")
    if problem.loss != "mse":
        raise ValueError("loss: the closed form is for 'mse'; use the ode or replay method for 'ce'")
    if optimizer.weight_decay:
        raise ValueError("weight_decay: the closed form has none; use the ode or replay method")
    steps = record_steps(num_steps, record_every)
    eigenvalues, eigenvectors = jnp.linalg.eigh(_matrix(problem))
    shape = problem.initial_logits.shape
    projections = eigenvectors.T @ (problem.initial_logits - problem.targets).reshape(-1)
    times = jnp.asarray(clock(optimizer, num_steps)[steps], eigenvalues.dtype)
    losses_, errors, saved = [], [], []
    for time in times:
        decayed = jnp.exp(-jnp.maximum(eigenvalues, 0) * time / problem.num_samples) * projections
        f = problem.targets + (eigenvectors @ decayed).reshape(shape)
        loss, error = problem.metrics(f)
        losses_.append(loss)
        errors.append(error)
        if save_logits:
            saved.append(f)
    return Trajectory(steps, np.asarray(losses_), np.asarray(errors), np.asarray(saved) if save_logits else None)


def _matrix(problem: LinearizedProblem) -> Float[Array, "nc nc"]:
    match problem.kernel:
        case DualKernel(ntk=ntk):
            return ntk.reshape(problem.initial_logits.size, -1)
        case PrimalKernel(features=features):
            return ntk_from_features(features)
        case other:
            raise ValueError(f"kernel: no matrix form of {type(other).__name__}")
