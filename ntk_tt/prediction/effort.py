"""A prediction that costs at most a share of training: from a subset, for all samples."""

import dataclasses

import jax
import numpy as np

from ntk_tt.dynamics import Trajectory
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.by_method import Predicted, PredictionMethod, Recording
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.one_setting import plateau_window, summarize_runs
from ntk_tt.prediction.price import OF_A_STEP, directions_of_setting, num_passes
from ntk_tt.prediction.verdict import Verdict
from ntk_tt.runtime.input_trees import take
from ntk_tt.runtime.limits import is_fraction
from ntk_tt.runtime.progress import part_of, progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.scaling import ScaledTrajectory, halves_of, replay_at_size
from ntk_tt.surrogate.problem import Problem

_OF_PASSES = 0.5  # of the effort; replay and verdict take about as much (docs/costs.md)
_PILOT = 200  # samples that are looked at twice before the passes, and 64 with weight gradients
_PER_CLASS, _LEAST, _MOST = 8, 64, 2000  # samples of a subset
_SEEDS = 2  # orders of the data: chance is of the subset, more than of the order


@dataclasses.dataclass(frozen=True)
class Subset:
    """What a prediction is made of.

    Attributes:
        what: some of the samples, of each class its share.
        method: `curvature`, or `head` where two points cost too much.
        share: what the passes are expected to cost, of training.
        asked: of the whole prediction.
    """

    what: Finetuning
    method: PredictionMethod
    share: float
    asked: float

    @property
    def words(self) -> str:
        count = self.what.num_samples
        text = f"predicting from {count:,} of the samples, method {self.method}"
        if self.share <= _OF_PASSES * self.asked * 1.01:
            return text
        return (
            f"{text}: as few as say anything, whose passes cost {self.share:.0%} of training; the "
            f"effort that was asked for is {self.asked:.0%} for all"
        )


def subset_for(
    what: Finetuning, optimizer: OptimizerConfig, num_steps: int, effort: int | float
) -> Subset:
    """The most samples, at two points or else at one, whose passes cost half of the effort.

    Raises:
        ValueError: no effort, targets that are no classes, or augmentation.
    """
    if not (is_fraction(effort) and effort > 0):
        raise ValueError(
            f"effort: must lie between 0 and 1, a share of what training costs, got {effort!r}"
        )
    labels = np.asarray(what.labels)
    if labels.ndim != 1 or what.augment is not None:
        raise ValueError(
            "effort: a subset is drawn by classes, of samples as they are; leave it out with real "
            "targets or augmentation"
        )
    trained = num_steps * optimizer.checked_batch_size(what.num_samples)
    budget = _OF_PASSES * effort * OF_A_STEP * trained
    classes, directions = len(np.unique(labels)), directions_of_setting(what, optimizer)
    least = min(what.num_samples, max(_LEAST, _PER_CLASS * classes))
    most = min(what.num_samples, _MOST)
    chosen: tuple[PredictionMethod, int] = ("head", least)
    ways: tuple[tuple[PredictionMethod, int], ...] = (("curvature", 2), ("head", 1))
    for method, points in ways:
        found = _affordable(budget, num_passes(points, directions))
        if found >= least:
            chosen = method, min(found, most)
            break
    method, count = chosen
    cost = _cost(count, num_passes(2 if method == "curvature" else 1, directions))
    share = cost / (OF_A_STEP * trained)
    return Subset(_drawn(what, labels, count), method, share, float(effort))


def _cost(count: int, passes: int) -> int:
    """In passes of a sample, the pilot among them."""
    return passes * count + 2 * min(_PILOT, count) + 2 * 64


def _affordable(budget: int | float, passes: int) -> int:
    """The most samples that cost no more."""
    low = int((budget - 2 * 64) / (passes + 2))
    if low > _PILOT:
        low = int((budget - 2 * 64 - 2 * _PILOT) / passes)
    return max(0, low)


def _drawn(what: Finetuning, labels: np.ndarray, count: int) -> Finetuning:
    """So many samples at random, of each class its share, and at least one."""
    if count >= what.num_samples:
        return dataclasses.replace(what, validation=None)
    rng = np.random.default_rng([what.seed, 2])
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    places = np.linspace(0, len(labels), count, endpoint=False) + rng.uniform() * (
        len(labels) / count
    )
    _, first = np.unique(labels[order], return_index=True)
    rows = order[np.minimum(places.astype(int), len(labels) - 1)]
    rows = np.unique(np.concatenate([rows, order[first]]))
    return dataclasses.replace(
        what, inputs=take(what.inputs, rows), labels=labels[rows], validation=None
    )


def capped(optimizer: OptimizerConfig, num_samples: int) -> OptimizerConfig:
    """With batches of at most so many samples."""
    if optimizer.batch_size is None or optimizer.batch_size <= num_samples:
        return optimizer
    return dataclasses.replace(optimizer, batch_size=num_samples)


def predicted_at_size(
    problem: Problem,
    whole: Finetuning,
    optimizer: OptimizerConfig,
    recording: Recording,
    num_seeds: int,
    watch: Stopwatch,
) -> tuple[Predicted, tuple[ScaledTrajectory, ...]]:
    """The curve of all samples, from the surrogate of some; with the misfit of halves of these."""
    dynamics = Stopwatch()
    count = 1 if optimizer.is_full_batch(whole.num_samples) else min(num_seeds, _SEEDS)
    runs = []
    with dynamics, progress_bar("dynamics") as progress:
        for number, key in enumerate(jax.random.split(whole.orders, count)):
            runs.append(
                replay_at_size(
                    problem,
                    optimizer,
                    recording.num_steps,
                    whole.num_samples,
                    key=key,
                    record_every=recording.record_every,
                    progress=part_of(progress, number, count + 1),
                )
            )
        misfit = 0.0
        if problem.num_samples < whole.num_samples:
            found = halves_of(
                problem,
                optimizer,
                recording.num_steps,
                record_every=recording.record_every,
                key=whole.orders,
                progress=part_of(progress, count, count + 1),
            )
            misfit = found.misfit
    names = ["loss", "error"]
    if whole.validation is not None:
        names += ["validation_loss", "validation_error"]
    told = [Trajectory(run.steps, **{name: getattr(run, name) for name in names}) for run in runs]
    prediction = summarize_runs(
        told, plateau_window(optimizer, whole.num_samples), **recording.of_times
    )
    predicted = Predicted(
        problem,
        prediction,
        None,
        0,
        {"features": watch, "dynamics": dynamics},
        is_calibrated=optimizer.is_sgd,
        misfit=misfit,
    )
    return predicted, tuple(runs)


def doubted(verdict: Verdict, runs: tuple[ScaledTrajectory, ...], misfit: float) -> Verdict:
    """With what speaks against a subset: trust is at most medium, and low where it has too few
    samples.
    """
    first = runs[0]
    reason = (
        f"from {first.subset_size:,} of {first.num_samples:,} samples, whose halves predict it "
        f"with a misfit of {misfit:.0%}"
    )
    most = "medium"
    if first.trusted_until < first.steps[-1]:
        most = "low"
        reason += (
            f"; beyond step {first.trusted_until:,} these are too few, and the loss comes out too "
            f"high: about {first.samples_needed:,} are needed"
        )
    if verdict.trust == "none":
        return verdict
    worse = "low" if "low" in (most, verdict.trust) else "medium"
    return verdict._replace(trust=worse, reason=f"{verdict.reason}; {reason}")
