"""A few real steps first, then the prediction from where they led: what they settle need not be
predicted.
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.dynamics.optimizer_replay import own_way, replay
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.features.directions import usual_directions
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.jacobian.network import check_network
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.optimizer import OptimizerConfig, check_num_seeds, check_num_steps
from ntk_tt.runtime.input_trees import Inputs, num_samples
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.small_network import SmallNetwork
from ntk_tt.targets import chance_loss, encode_targets
from ntk_tt.training import TrainingRun, finetune

# times the loss at the start, or that of chance: nothing can be predicted from where such steps led
_BLOWN_UP = 10.0


@dataclasses.dataclass(frozen=True)
class OneShot:
    """A prediction that begins with real steps.

    Attributes:
        problem: the head-aware problem at the weights after them.
        run: the real steps.
        trajectories: a curve a seed: the real records, then the predicted ones.
    """

    problem: SmallNetwork
    run: TrainingRun
    trajectories: tuple[Trajectory, ...]


def affordable_steps(num_samples: int, batch_size: int, num_directions: int) -> int:
    """k, the most real steps that cost no more than the feature pass: N·(1 + r) passes of a sample
    against 3·B a step; at least 1.

    A backward pass through activations alone costs about a forward pass, one with weight gradients
    two.
    """
    return max(1, num_samples * (1 + num_directions) // (3 * batch_size))


@takes_former_keywords
def predict_after(
    model: Model,
    inputs: Inputs,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    first_steps: int | None = None,
    curvature: bool = True,
    loss: LossName = "ce",
    options: FeatureOptions = DEFAULT_OPTIONS,
    num_seeds: int = 5,
    record_every: int = 1,
    seed: int = 0,
    key: Key[Array, ""] | None = None,
    progress: Progress = silent,
) -> OneShot:
    """Train for k real steps, expand the network there, and replay the rest with the optimiser's
    momentum as it is by then.

    Args:
        model, inputs, labels, loss, curvature, options, progress: as `expand`.
        optimizer, num_steps, num_seeds, record_every: as `predict`.
        first_steps: k; None takes what costs as much as the feature pass (`affordable_steps`), but
            at most T/4.
        seed: of the order of the data of the real steps.
        key: of the projection and of the orders that follow; key 0 where none is given.

    Raises:
        ValueError: as `expand`, T below 2, k outside 1 … T−1, or real steps that diverge,
            blow up or end in a dead network.

    Cost: k real steps, and `expand` for this setting alone.
    """
    check_num_steps(num_steps, least=2)
    check_num_seeds(num_seeds)
    count = num_samples(inputs)
    batch_size = optimizer.checked_batch_size(count)
    if first_steps is None:
        num_outputs = check_network(model.apply, model.params, inputs)
        directions = usual_directions(num_outputs, loss, preconditioned=not optimizer.is_sgd)
        first_steps = min(
            max(1, num_steps // 4),
            affordable_steps(count, batch_size, 2 * sum(directions)),  # of both points
        )
    if not 1 <= first_steps < num_steps:
        raise ValueError(
            f"first_steps: must lie in 1 … {num_steps - 1} (one less than the steps to predict), "
            f"got {first_steps}"
        )
    run = finetune(
        model,
        inputs,
        labels,
        optimizer,
        first_steps,
        loss=loss,
        seed=seed,
        record_every=record_every,
    )
    check_beginning(run, "first", loss, labels)
    key = jax.random.key(0) if key is None else key
    moved = dataclasses.replace(model, params=run.params)
    problem = expand(
        moved,
        inputs,
        labels,
        curvature=curvature,
        way=own_way(optimizer, num_steps, key=key),
        loss=loss,
        options=options,
        key=key,
        progress=progress,
    )
    carried = problem.of_optimizer(run.opt_state, run.params)
    steps = record_steps(num_steps, record_every)
    # the replay's own count starts after the real steps
    every = math.gcd(record_every, first_steps)
    num_runs = 1 if optimizer.is_full_batch(count) else num_seeds
    trajectories = []
    for each in jax.random.split(key, num_runs):
        batches = batch_indices(count, optimizer, num_steps - first_steps, each)
        replayed = replay(
            problem,
            optimizer,
            num_steps - first_steps,
            batches=batches,
            optimizer_state=carried,
            steps_before=first_steps,
            record_every=every,
        )
        known, predicted = steps[steps <= first_steps], steps[steps > first_steps]
        real, later_records = (
            np.searchsorted(run.steps, known),
            np.searchsorted(replayed.steps, predicted - first_steps),
        )
        losses, errors = (
            np.concatenate([getattr(run, name)[real], getattr(replayed, name)[later_records]])
            for name in ("loss", "error")
        )
        trajectories.append(Trajectory(steps, losses, errors))
    return OneShot(problem, run, tuple(trajectories))


def check_beginning(
    run: TrainingRun,
    which: str,
    loss: LossName,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
) -> None:
    """Raises ValueError unless the real steps that a prediction begins with led somewhere that it
    can go on from.
    """
    taken, remedy = int(run.steps[-1]), "take a smaller one"
    if run.diverged_at is not None:
        raise ValueError(
            f"learning_rate: real training diverged at step {run.diverged_at} of the {which} "
            f"{taken}; {remedy}"
        )
    labels = np.asarray(labels)
    targets = encode_targets(labels, int(labels.max()) + 1) if labels.ndim == 1 else labels
    if run.loss[-1] > _BLOWN_UP * max(float(run.loss[0]), chance_loss(np.asarray(targets), loss)):
        raise ValueError(
            f"learning_rate: the {which} {taken} real steps raised the loss from {run.loss[0]:.3g} "
            f"to {run.loss[-1]:.3g}; {remedy}"
        )
    if run.collapsed_at is not None:
        raise ValueError(
            f"learning_rate: real training died within the {which} {taken} steps, by step "
            f"{run.collapsed_at}: the outputs are the same for all samples; {remedy}"
        )
