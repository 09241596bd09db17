"""How well half of a subset predicts the whole of it."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.optimizer_replay import replay
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.scaling.from_subset import replay_at_size
from ntk_tt.surrogate.problem import Problem

_FACTOR = 1.5  # between the two speeds that are tried
_SPEEDS = (0.5, 2.0)  # outside of these it would be another theory
_LEARNT = 0.02  # of the loss at the start: below it a logarithm is all noise


class Halves(NamedTuple):
    """What halves say of the whole.

    Attributes:
        speed: of fading, at which halves of the subset predict its own curve.
        misfit: mean |log| of predicted over own loss along the curve, at speed 1.
        bias: its mean with its sign: above 0 where halves predict too high a loss.
    """

    speed: float
    misfit: float
    bias: float


def halves_of(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    num_pairs: int = 1,
    record_every: int = 1,
    key: Key[Array, ""] | None = None,
    progress: Progress = silent,
) -> Halves:
    """Predict the subset from its halves, by `replay_at_size`, and compare.

    Each pair of halves is all of the subset, so what is odd about the subset cancels. What is left
    is how far the theory is off where 1 − n/N is one half.

    Args:
        problem: the surrogate of the subset.
        optimizer: the setting; batches larger than the subset are the whole of it.
        num_steps: T.
        num_pairs: of random halves, equally many of each class.
        record_every: steps between records.
        key: of the halves and of the order of the data.
        progress: called as `progress(done, total)` after each half.

    Raises:
        ValueError: fewer than 8 samples, or what `replay_at_size` raises.

    Cost: four runs of half the subset for each pair, and one of all of it.
    """
    count = problem.num_samples
    if count < 8 or num_pairs < 1:
        raise ValueError(
            f"problem: halves need at least 8 samples and one pair, got {count} samples and "
            f"num_pairs={num_pairs}"
        )
    of_order, of_halves = jax.random.split(jax.random.key(0) if key is None else key)
    if optimizer.batch_size is not None and optimizer.batch_size > count:
        optimizer = dataclasses.replace(optimizer, batch_size=count)
    own = replay(problem, optimizer, num_steps, key=of_order, record_every=record_every).loss
    halves = _halves(np.asarray(problem.targets), num_pairs, of_halves)
    total, done = 2 * len(halves), 0

    def off(speed: float) -> Float[np.ndarray, " s"]:
        nonlocal done
        curves = []
        for indices in halves:
            told = replay_at_size(
                problem.of_samples(indices),
                optimizer,
                num_steps,
                count,
                key=of_order,
                record_every=record_every,
                speed=speed,
            )
            curves.append(told.loss)
            done += 1
            progress(done, total)
        ratio = np.mean(curves, 0) / np.maximum(own, 1e-12)
        return np.log(np.maximum(ratio, 1e-12))[own > _LEARNT * own[0]]

    first = off(1.0)
    bias = float(first.mean())
    # a loss that is too high wants influence to fade faster
    other = _FACTOR if bias > 0 else 1 / _FACTOR
    slope = (float(off(other).mean()) - bias) / np.log(other)
    step = -bias / slope if slope < 0 else 0.0
    speed = float(np.clip(np.exp(np.clip(step, -2, 2)), *_SPEEDS))
    return Halves(speed, float(np.abs(first).mean()), bias)


def _halves(
    targets: Float[np.ndarray, "n c"], num_pairs: int, key: Key[Array, ""]
) -> list[Int[np.ndarray, " h"]]:
    """Pairs of halves with equally many of each class."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    found = []
    for _ in range(num_pairs):
        order = rng.permutation(len(targets))
        order = order[np.argsort(targets[order].argmax(1), kind="stable")]
        order = order[: len(order) // 2 * 2]
        found += [np.sort(order[0::2]), np.sort(order[1::2])]
    return found
