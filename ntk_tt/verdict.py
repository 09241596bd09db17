"""When a prediction should be believed: stability margin, linearisation residual, and what follows from them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ntk_tt.dynamics import simulate
from ntk_tt.dynamics.head_replay import PATH_SPANS, states_along
from ntk_tt.dynamics.sde import noise_variance
from ntk_tt.finetune import finetune
from ntk_tt.head import HeadProblem, HeadState
from ntk_tt.learning_rate import batch_curvature_variance, largest_curvature, largest_safe_learning_rate
from ntk_tt.linearize import Apply, logits_and_tangent
from ntk_tt.losses import LossName
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.problem import LinearizedProblem

Trust = Literal["high", "medium", "low", "none"]

RESIDUAL_STEPS = 5
RESIDUAL_SAMPLES = 64
# The second limit was chosen on cifar100 and dtd with the bundled network (experiments/trust.py). The first was 0.5 from
# the same data and was tightened after the reporting data showed a median error of 28 % below it: it is not held out.
EXPECTED_RESIDUAL_LIMITS = (0.1, 1.2)
CLOSE_MARGIN = 1.5
# With a real head and a kernel that is followed on its way, the margin along that way is what tells good predictions from
# bad: rank correlation with the error −0.7 on the tuning data, more than residual or growth (python -m experiments.calibrate).
WIDE_MARGIN = 2.5


class Verdict(NamedTuple):
    """How far to trust a prediction.

    Attributes:
        stability_margin: largest stable learning rate over the highest one the setting uses; above 1 is stable.
        largest_safe_learning_rate: that rate, for the same momentum, batch size and weight decay.
        linearization_residual: ‖f(w) − f_lin(w)‖ / ‖f(w) − f₀‖ on a sample of the data after a few real steps; None
            where it was not measured.
        expected_residual: the same, carried on to the last predicted step; None where it was not measured.
        trust: `high`, `medium`, `low`, or `none` past the stability bound.
        reason: one sentence with the numbers.
        seconds_per_sample: of a real training step, measured on the few steps; None where there were none.
    """

    stability_margin: float
    largest_safe_learning_rate: float
    linearization_residual: float | None
    expected_residual: float | None
    trust: Trust
    reason: str
    seconds_per_sample: float | None


class Residual(NamedTuple):
    """Of `linearization_residual`.

    Attributes:
        value: the residual after the few steps.
        expected: `value` times how much further the prediction moves the sample's logits until step T.
        seconds_per_sample: training time a sample and step, without compilation.
    """

    value: float
    expected: float
    seconds_per_sample: float


PredictedPath = Sequence[HeadState] | Float[np.ndarray, "s n c"]


def assess(problem: LinearizedProblem | HeadProblem, apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."],
           labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"], optimizer: OptimizerConfig, num_steps: int, *,
           path: PredictedPath | None = None, seed: int = 0) -> Verdict:
    """The verdict on predictions of this setting; takes a few real steps on a sample of the data.

    Args:
        problem: from `linearize`, of the same network and data.
        apply, params, inputs, labels: that network and data.
        optimizer: the setting.
        num_steps: T.
        path: `Trajectory.states` of this setting's prediction with a real head; without one, or with fewer than six points, it is predicted here.
        seed: of the sample.

    Raises:
        ValueError: an argument out of range.

    Cost: one replay where there is no `path`, a few hundred products with Θ, and about 10 steps' worth of 64 samples.
    """
    if path is None or len(path) < PATH_SPANS:
        path = predicted_path(problem, optimizer, num_steps)
    margin, safe = stability(problem, optimizer, num_steps, path)
    final = problem.logits(path[-1]) if isinstance(problem, HeadProblem) else np.asarray(path[-1])
    residual = linearization_residual(apply, params, inputs, labels, optimizer, final_logits=final, loss=problem.loss, seed=seed)
    return judge(margin, safe, residual, follows_kernel=isinstance(problem, HeadProblem))


def predicted_path(problem: LinearizedProblem | HeadProblem, optimizer: OptimizerConfig, num_steps: int) -> PredictedPath:
    """A handful of predicted points between step 0 and T: logits (S, N, C), or states where the head is real."""
    check_num_steps(num_steps)
    if isinstance(problem, HeadProblem):
        return states_along(problem, optimizer, num_steps)
    trajectory = simulate(problem, optimizer, num_steps, record_every=-(-num_steps // PATH_SPANS), save_logits=True)
    return np.asarray(trajectory.logits)


def stability(problem: LinearizedProblem | HeadProblem, optimizer: OptimizerConfig, num_steps: int, path: PredictedPath | None = None) -> tuple[float, float]:
    """(margin, largest safe learning rate): η_max over the schedule's highest rate, and η_max.

    The curvature λ is that of the Gauss–Newton Hessian of the loss, (1/N) Jᵀ H J, by Lanczos iteration without forming
    Θ: its maximum over the points of `path` (by default `predicted_path`), since cross-entropy sharpens while two
    classes compete. With a `HeadProblem` the kernel is that of each state on the way, so growth that crosses the bound is
    seen. Gradient descent is stable below 2(1+m)/λ; mini-batches lower that, see
    `largest_safe_learning_rate`.
    """
    noise = noise_variance(problem.num_samples, optimizer)
    safe, direction = np.inf, None
    for point in predicted_path(problem, optimizer, num_steps) if path is None else path:
        if isinstance(problem, HeadProblem):
            here = problem.tangent(point)
            logits = here.initial_logits
        else:
            here, logits = problem, jnp.asarray(point)
        if not np.isfinite(logits).all():
            break
        curvature, direction = largest_curvature(here, logits, direction)
        variance = noise * batch_curvature_variance(here, logits, curvature, direction) if noise else 0.0
        safe = min(safe, largest_safe_learning_rate(
            curvature, variance, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay))
        if problem.loss == "mse" and here is problem:
            break  # its curvature does not depend on the logits
    highest = optimizer.learning_rates(num_steps).max()
    return float(safe / highest) if highest > 0 else np.inf, float(safe)


def linearization_residual(apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."], labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
                           optimizer: OptimizerConfig, *, final_logits: Float[Array | np.ndarray, "n c"] | None = None, loss: LossName = "ce",
                           num_steps: int = RESIDUAL_STEPS, num_samples: int = RESIDUAL_SAMPLES, seed: int = 0) -> Residual:
    """‖f(w_k) − f₀ − J(w_k − w₀)‖ / ‖f(w_k) − f₀‖ after k real steps on a random sample of the data.

    The sample is at most `num_samples` large and stands for the full batch, so this costs k small batches whatever N
    is. The residual is of second order in the displacement, so relative to it of first order: it is expected to grow
    with the distance that the logits move, which `final_logits` (predicted, at step T) give.

    Raises:
        ValueError: an argument out of range.
    """
    count = min(num_samples, len(inputs))
    chosen = np.sort(np.random.default_rng(seed).choice(len(inputs), count, replace=False))
    x, y = jnp.asarray(inputs)[chosen], np.asarray(labels)[chosen]
    batch_size = None if optimizer.batch_size is None or optimizer.batch_size >= count else optimizer.batch_size
    setting = dataclasses.replace(optimizer, batch_size=batch_size)
    run = finetune(apply, params, x, y, setting, num_steps, loss=loss, seed=seed, record_every=num_steps)
    seconds = run.seconds / (num_steps * (batch_size or count))
    initial, tangent = logits_and_tangent(apply, params, x, jax.tree.map(jnp.subtract, run.params, params))
    moved = np.asarray(jax.jit(apply)(run.params, x) - initial, np.float64)
    distance = np.linalg.norm(moved)
    if not np.isfinite(distance):
        return Residual(np.inf, np.inf, seconds)
    value = float(np.linalg.norm(moved - np.asarray(tangent)) / max(distance, np.finfo(np.float32).tiny))
    growth = 1.0
    if final_logits is not None:
        growth = max(1.0, float(np.linalg.norm(np.asarray(final_logits)[chosen] - np.asarray(initial)) / max(distance, np.finfo(np.float32).tiny)))
    return Residual(value, value * growth, seconds)


def judge(margin: float, safe_learning_rate: float, residual: Residual | None = None, *, follows_kernel: bool = False) -> Verdict:
    """Trust from the margin and the expected residual, the worse one; from the margin alone where it is that of a kernel followed on its way (`HeadProblem`)."""
    value, expected, seconds = residual or (None, None, None)

    def verdict(trust: Trust, reason: str) -> Verdict:
        return Verdict(margin, safe_learning_rate, value, expected, trust, reason, seconds)

    if margin < 1:
        return verdict("none", f"unstable: the learning rate is {1 / margin:.2g} times the largest stable one, so real training will oscillate or diverge; "
                               f"take at most {safe_learning_rate:.2g}")
    stable = f"stable with a margin of {margin:.2g} (largest safe learning rate {safe_learning_rate:.2g})"
    if follows_kernel:
        trust: Trust = "high" if margin >= WIDE_MARGIN else "medium" if margin >= CLOSE_MARGIN else "low"
        remark = {"high": "", "medium": "; not far from the bound, where real training is often slower",
                  "low": "; close to the stability bound: expect real training to be slower, and take a smaller learning rate for a prediction to rely on"}[trust]
        measured = "" if value is None else f"; linearisation residual {value:.2g} after a few real steps"
        return verdict(trust, f"{stable}, the kernel followed on its way{measured}{remark}")
    if value is None or expected is None:
        return verdict("medium", f"{stable}; the linearisation was not measured")
    reason = f"{stable}; linearisation residual {value:.2g} after a few real steps, {expected:.2g} expected at the end"
    high, medium = EXPECTED_RESIDUAL_LIMITS
    if expected > high:
        reason += "; the kernel changes on the way: `curvature` follows it"
    if margin < CLOSE_MARGIN:
        return verdict("low" if expected > medium else "medium", f"{reason}; close to the stability bound, which curvature that grows in training can cross")
    return verdict("high" if expected <= high else "medium" if expected <= medium else "low", reason)
