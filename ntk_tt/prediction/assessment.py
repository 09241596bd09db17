"""The verdict on predictions of one setting, from a few looks and a few real steps."""

import math

import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.optimizer_replay import PATH_SPANS
from ntk_tt.models.former_network import takes_former_network
from ntk_tt.models.model import Model
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.margin import PredictedPath, margin_on_the_way, predicted_path, stability
from ntk_tt.prediction.residual import linearization_residual
from ntk_tt.prediction.safe_rate import safe_learning_rate
from ntk_tt.prediction.verdict import Trust, Verdict, judge
from ntk_tt.runtime.input_trees import Inputs
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.problem import Problem
from ntk_tt.targets import chance_loss

LOOK_CLOSER = 4.0  # below, the margin is looked at between the points of the path too
# D' over the rank of what it stands for, below which trust is at most medium and low. The second is
# the default's half of 2·N·(C−1), less what rounding leaves: its projection is of the backbone
# alone, and the predictions that trust was fitted to have it.
SKETCH_LIMITS = {"frozen": (4.0, 1.0), "head": (1.6, 0.5)}
_SAMPLED = (1024, 256)  # a sample of so many parameters says as much, whatever the rank
_WAYS = 3  # that the search for the largest safe rate follows, as a rule
_PARTS = 3 + _WAYS  # of a verdict
_RISEN = 3.0  # times the initial loss, or that of chance, which no stable run's prediction passes


@takes_former_network
def assess(
    problem: Problem,
    model: Model,
    inputs: Inputs,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    path: PredictedPath | None = None,
    curve: Float[np.ndarray, " s"] | None = None,
    key: Key[Array, ""] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Verdict:
    """The verdict on predictions of this setting; takes a few real steps on a sample of the data.

    Args:
        problem: from `linearize`, of the same network and data.
        model, inputs, labels: that network and data.
        optimizer: the setting.
        num_steps: T.
        path: `Trajectory.states` of this setting's prediction with a real head; without one, or
            with fewer than six points, it is predicted here.
        curve: the predicted loss, where it came from other dynamics than a replay: one that is not
            finite, or rises, is not trusted.
        key: of the order of the data, as the prediction has it; key 0 where none is given.
        seed: of the sample.
        progress: called as `progress(done, total)` after each part, of about the same cost.

    Raises:
        ValueError: an argument out of range.

    Cost: one replay where there is no `path`, two or three short ones for the largest safe rate, a
    few hundred products with Θ, and about 10 steps' worth of 64 samples.
    """
    if path is None or len(path) < PATH_SPANS:
        path = predicted_path(problem, optimizer, num_steps, key=key)
    margin, _ = stability(problem, optimizer, num_steps, path)
    progress(1, _PARTS)
    if margin < LOOK_CLOSER:
        margin = min(margin, margin_on_the_way(problem, optimizer, num_steps, key=key))
    progress(2, _PARTS)
    last = path[-1][0] if problem.follows_kernel else path[-1]
    final = problem.tangent(last).initial_logits
    residual = linearization_residual(
        model, inputs, labels, optimizer, final_logits=final, loss=problem.loss, seed=seed
    )
    progress(3, _PARTS)
    doubts = doubts_of(problem, optimizer, curve)
    is_broken = not math.isfinite(residual.value) or any(most == "none" for most, _ in doubts)
    safe = safe_learning_rate(
        problem,
        optimizer,
        num_steps,
        margin=0.0 if is_broken else margin,
        key=key,
        progress=lambda done, _: progress(3 + min(done, _WAYS), _PARTS),
    )
    progress(_PARTS, _PARTS)
    return judge(margin, safe, residual, follows_kernel=problem.follows_kernel, doubts=doubts)


def doubts_of(
    problem: Problem, optimizer: OptimizerConfig, curve: Float[np.ndarray, " s"] | None
) -> tuple[tuple[Trust, str], ...]:
    """What else speaks against a prediction: the most trust that it leaves, and why."""
    found: list[tuple[Trust, str]] = []
    if not optimizer.is_sgd:
        found.append(
            (
                "low",
                f"how far predictions of {optimizer.label} are off is not known: trust and "
                "intervals come from runs with SGD",
            )
        )
    if curve is not None:
        highest = _RISEN * max(
            float(curve[0]), chance_loss(np.asarray(problem.targets), problem.loss)
        )
        if not np.isfinite(curve).all():
            found.append(
                (
                    "none",
                    "unstable: the predicted loss is not finite, "
                    "so the run is predicted to diverge",
                )
            )
        elif curve.max() > highest:
            found.append(
                (
                    "none",
                    f"unstable: the predicted loss rises from {curve[0]:.3g} to {curve.max():.3g}",
                )
            )
    rank, dimension = problem.rank, problem.num_projections
    medium, low = SKETCH_LIMITS["head" if problem.follows_kernel else "frozen"]
    wanted, least = medium * rank, low * rank
    if problem.takes_any_optimizer:
        wanted, least = min(wanted, _SAMPLED[0]), min(least, _SAMPLED[1])
    if dimension is not None and dimension < wanted:
        effect = (
            "only some of the eigenvalues of Θ are seen, so times are wrong"
            if dimension < least
            else "the small eigenvalues of Θ come out too small, so late times come too late"
        )
        found.append(
            (
                "low" if dimension < least else "medium",
                f"D' = {dimension} projections are few for a kernel of rank {rank}: {effect}; take "
                f"at least {math.ceil(wanted)}",
            )
        )
    return tuple(found)
