"""When a prediction should be believed: stability margin, linearisation residual, and what follows from them."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ntk_tt.dynamics import replay
from ntk_tt.finetune import TrainingRun, finetune
from ntk_tt.learning_rate import batch_curvature_variance, largest_curvature, largest_safe_learning_rate
from ntk_tt.linearize import Apply, logits_and_tangent
from ntk_tt.losses import LossName
from ntk_tt.dynamics.sde import noise_variance
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.problem import LinearizedProblem

Trust = Literal["high", "medium", "low", "none"]

RESIDUAL_STEPS = 5
RESIDUAL_SAMPLES = 64
_CURVATURE_RECORDS = 6
# Chosen on cifar100 and dtd (experiments/trust.py), reported on others.
RESIDUAL_LIMITS = (0.1, 0.3)


class Verdict(NamedTuple):
    """How far to trust a prediction.

    Attributes:
        stability_margin: largest stable learning rate over the highest one the setting uses; above 1 is stable.
        largest_safe_learning_rate: that rate, for the same momentum, batch size and weight decay.
        linearization_residual: ‖f(w) − f_lin(w)‖ / ‖f(w) − f₀‖ on a sample of the data after a few real steps; None
            where it was not measured.
        trust: `high`, `medium`, `low`, or `none` past the stability bound.
        reason: one sentence with the numbers.
    """

    stability_margin: float
    largest_safe_learning_rate: float
    linearization_residual: float | None
    trust: Trust
    reason: str


class Residual(NamedTuple):
    """Of `linearization_residual`: the value, the steps taken, and the run (whose seconds a step can be read from)."""

    value: float
    num_steps: int
    run: TrainingRun
    num_samples: int


def stability(problem: LinearizedProblem, optimizer: OptimizerConfig, num_steps: int) -> tuple[float, float]:
    """(margin, largest safe learning rate): η_max over the schedule's highest rate, and η_max.

    The curvature λ is that of the Gauss–Newton Hessian of the loss, (1/N) Jᵀ H J, by Lanczos iteration without forming
    Θ: its maximum over the initial logits and those predicted on the way, since cross-entropy sharpens while two
    classes compete. Gradient descent is stable below 2(1+m)/λ; mini-batches lower that, see
    `largest_safe_learning_rate`.
    """
    rates = optimizer.learning_rates(num_steps)
    noise = noise_variance(problem.num_samples, optimizer)
    path = [problem.initial_logits]
    if problem.loss == "ce":
        horizon = min(num_steps, max(_CURVATURE_RECORDS, num_steps // 2))
        trajectory = replay(problem, optimizer, horizon, record_every=-(-horizon // _CURVATURE_RECORDS), save_logits=True)
        path += [jnp.asarray(logits) for logits in trajectory.logits[1:] if np.isfinite(logits).all()]  # pyright: ignore[reportOptionalSubscript]
    safe = np.inf
    for logits in path:
        curvature, direction = largest_curvature(problem, logits)
        variance = noise * batch_curvature_variance(problem, logits, curvature, direction) if noise else 0.0
        safe = min(safe, largest_safe_learning_rate(
            curvature, variance, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay))
    return float(safe / rates.max()) if rates.max() > 0 else np.inf, float(safe)


def linearization_residual(apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."], labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
                           optimizer: OptimizerConfig, *, loss: LossName = "ce", num_steps: int = RESIDUAL_STEPS, num_samples: int = RESIDUAL_SAMPLES, seed: int = 0) -> Residual:
    """‖f(w_k) − f₀ − J(w_k − w₀)‖ / ‖f(w_k) − f₀‖ after k real steps on a random sample of the data.

    The sample is at most `num_samples` large, so this costs k small batches whatever N is; the full batch is
    replaced by the sample.
    """
    count = min(num_samples, len(inputs))
    chosen = np.sort(np.random.default_rng(seed).choice(len(inputs), count, replace=False))
    x, y = jnp.asarray(inputs)[chosen], np.asarray(labels)[chosen]
    batch_size = None if optimizer.batch_size is None or optimizer.batch_size >= count else optimizer.batch_size
    setting = OptimizerConfig(**{**vars(optimizer), "batch_size": batch_size})
    run = finetune(apply, params, x, y, setting, num_steps, loss=loss, seed=seed, record_every=num_steps)
    displacement = jax.tree.map(jnp.subtract, run.params, params)
    initial, tangent = logits_and_tangent(apply, params, x, displacement)
    moved = jax.jit(apply)(run.params, x) - initial
    value = float(jnp.linalg.norm(moved - tangent) / jnp.maximum(jnp.linalg.norm(moved), jnp.finfo(moved.dtype).tiny))
    return Residual(value if np.isfinite(value) else np.inf, num_steps, run, count)


def judge(margin: float, safe_learning_rate: float, residual: float | None) -> Verdict:
    """Trust from the two numbers; the worse one decides."""
    if margin < 1:
        reason = (f"unstable: the learning rate is {1 / margin:.2g} times the largest stable one; real training will oscillate or diverge, "
                  f"so take at most {safe_learning_rate:.2g}")
        return Verdict(margin, safe_learning_rate, residual, "none", reason)
    parts, trust = [f"stable with a margin of {margin:.2g} (largest safe learning rate {safe_learning_rate:.2g})"], "high"
    if margin < 1.5:
        trust = "medium"
        parts.append("close to the bound, where curvature that grows in training can cross it")
    if residual is None:
        parts.append("linearisation not measured")
        trust = "medium"
    else:
        good, fair = RESIDUAL_LIMITS
        parts.append(f"linearisation residual {residual:.2g} after a few real steps")
        if residual > fair:
            trust = "low"
        elif residual > good and trust == "high":
            trust = "medium"
    return Verdict(margin, safe_learning_rate, residual, trust, "; ".join(parts))
