"""Stability margins of many settings, looked at together on the ways that they took."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.dynamics.batches import noise_variance
from ntk_tt.dynamics.many_on_the_way import Block
from ntk_tt.dynamics.steps import ChainSteps, Steps
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.assessment import LOOK_CLOSER
from ntk_tt.prediction.margin import (
    _LEARNT,
    _RISEN,
    _SATURATED,
    _SETTLED,
    look_steps,
    stability,
)
from ntk_tt.runtime.memory import available_bytes
from ntk_tt.surrogate.many_sharpnesses import grams_of, largest_eigenvalue, scatter_by
from ntk_tt.surrogate.problem import Problem
from ntk_tt.surrogate.safe_rates import largest_safe_learning_rates
from ntk_tt.surrogate.sharpness import (
    curvature_product,
    curvature_scatter,
    largest_curvature_bound,
)
from ntk_tt.targets import chance_loss, least_loss

_AT_ONCE = 32  # settings; one program for any block
# Tolerances of the residual, not of λ: without a direction to begin with, with one, and far from
# the bound.
_COLD, _CLOSE, _FAR = 3e-3, 2e-2, 0.1
_FAR_MARGIN = 8.0
_ROUGH = (
    0.1  # of the norm of where an iteration begins: an eigenvector would be taken for the first
)


class Looks(NamedTuple):
    """What was found at one step, of each setting.

    Attributes:
        loss: there.
        bound: the largest rate that is stable there; infinity where nothing can be said yet, NaN
            where something is not finite.
        curvature: λ.
        direction: of λ (s, N, C).
    """

    loss: Float[np.ndarray, " s"]
    bound: Float[np.ndarray, " s"]
    curvature: Float[np.ndarray, " s"]
    direction: Float[Array, "s n c"]


def margins_of(
    block: Block, optimizers: Sequence[OptimizerConfig], num_steps: int, path: Sequence[int]
) -> Float[np.ndarray, " s"]:
    """The margin of each member of a block: the lesser of `stability` along its path and
    `margin_on_the_way`, as `assess` has it, from the states that the block kept.

    Margins above 8 are rougher than others: nothing hangs on them.

    Args:
        optimizers: all settings; the block has its members' places.
        num_steps: T.
        path: steps of the path, 0 and T among them. The block holds these and `look_steps(T)`.

    Cost: a handful of looks at all samples for each setting, two to four products with Θ each; a
    dozen more for those that are near the bound.
    """
    settings = [optimizers[index] for index in block.members]
    looking = _Looking(block, settings, num_steps)
    margins = looking.along(np.arange(len(settings)), path, until_sure=False)
    near = np.flatnonzero((margins < LOOK_CLOSER) & (margins > 0))
    if len(near):
        found = looking.along(near, look_steps(num_steps), until_sure=True)
        margins[near] = np.minimum(margins[near], found)
    return margins


class _Looking:
    """At the settings of a block."""

    def __init__(self, block: Block, settings: Sequence[OptimizerConfig], num_steps: int):
        self.block, self.settings, self.num_steps = block, settings, num_steps
        self.problem = block.problem
        first = settings[0]
        self.is_sgd, self.nesterov = first.is_sgd, first.nesterov
        self.noise = noise_variance(self.problem.num_samples, first)
        self.highest = np.asarray(block.steps.rates.max(1), np.float64)[: len(settings)]
        targets = np.asarray(self.problem.targets)
        self.chance = chance_loss(targets, self.problem.loss)
        self.least = least_loss(targets, self.problem.loss)
        self.size = min(_AT_ONCE, len(block.steps.rates), self._fitting())
        self._first: list[Any] | None = None
        self._grams = None
        if self.is_sgd and self.noise:
            self._grams = _grams(self.problem)

    def _fitting(self) -> int:
        """Settings that are looked at together, as memory allows."""
        state = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.problem.zero)))
        numbers = 12 * self.problem.targets.size + 8 * state + 4 * self.problem.numbers_a_pass
        size = numbers * jnp.dtype(self.problem.dtype).itemsize
        return max(1, int(available_bytes() // size))

    def along(self, rows: np.ndarray, steps: Sequence[int], *, until_sure: bool) -> np.ndarray:
        """The margins of some of the settings over their looks at these steps. `until_sure` leaves
        a setting where it is not stable, or has learnt, or its loss has risen.
        """
        bound, begun = np.full(len(rows), np.inf), np.full(len(rows), np.nan)
        lowest, curvature = np.full(len(rows), np.inf), np.zeros(len(rows))
        is_lost, is_open = np.zeros(len(rows), bool), np.ones(len(rows), bool)
        highest = self.highest[rows]
        directions: list[Any] = [None] * len(rows)
        for step in steps:
            asked = np.flatnonzero(is_open & ~is_lost)
            if not len(asked):
                break
            if step not in self.block.states:  # the block was left: nothing in it is finite
                is_lost[asked] = True
                break
            rough = bound[asked] > _FAR_MARGIN * highest[asked]
            found = self.at(step, rows[asked], [directions[each] for each in asked], rough)
            is_first = step == steps[0]
            begun[asked] = found.loss if is_first else begun[asked]
            is_lost[asked] = ~np.isfinite(found.loss) | np.isnan(found.bound)
            lowest[asked] = np.fmin(lowest[asked], found.loss)
            bound[asked] = np.fmin(bound[asked], found.bound)
            curvature[asked] = np.fmax(curvature[asked], found.curvature)
            for place, each in enumerate(asked):
                directions[each] = found.direction[place]
            if until_sure:
                has_risen = found.loss > _RISEN * np.maximum(begun[asked], self.chance)
                is_lost[asked] |= has_risen
                is_over = bound[asked] < highest[asked]
                fallen = found.loss - self.least < _LEARNT * (begun[asked] - self.least)
                is_open[asked] = ~(is_over | fallen)
        safe = self._unsaturated(rows, bound, np.where(is_lost, 0.0, lowest), curvature)
        with np.errstate(divide="ignore"):
            margins = np.where(highest > 0, safe / np.maximum(highest, 1e-300), np.inf)
        return np.where(is_lost, 0.0, margins)

    def at(self, step: int, rows: np.ndarray, directions: list[Any], rough: np.ndarray) -> Looks:
        """A look at some settings at one step."""
        is_shared = step == 0 and self.is_sgd  # SGD begins there at every rate
        if is_shared and self._first is not None:
            return self._bounded(rows, self._first, step)
        asked, parts = rows[:1] if is_shared else rows, []
        directions, rough = directions[: len(asked)], rough[: len(asked)]
        for start in range(0, len(asked), self.size):
            place = slice(start, start + self.size)
            parts.append(self._of(step, asked[place], directions[place], rough[place]))
        found: list[Any] = [
            np.concatenate(each) for each in zip(*(p[:6] for p in parts), strict=True)
        ]
        found.append(jnp.concatenate([part[6] for part in parts]))
        if is_shared:
            self._first = found
        return self._bounded(rows, found, step)

    def _of(self, step: int, rows: np.ndarray, directions: list[Any], rough: np.ndarray) -> Any:
        filled = np.concatenate([rows, np.repeat(rows[-1:], self.size - len(rows))])
        carry = jax.tree.map(lambda leaf: leaf[filled], self.block.states[step])
        steps = jax.tree.map(lambda leaf: leaf[filled], self.block.steps)
        shape = self.problem.targets.shape
        noise = np.random.default_rng(0).standard_normal(shape)
        noise = jnp.asarray(noise / np.linalg.norm(noise), self.problem.dtype)
        starts = [noise if each is None else each + _ROUGH * noise for each in directions]
        starts += [starts[-1]] * (self.size - len(rows))
        is_cold = np.asarray([each is None for each in directions])
        tolerances = np.where(is_cold, _COLD, np.where(rough, _FAR, _CLOSE))
        tolerances = np.concatenate([tolerances, np.full(self.size - len(rows), _FAR)])
        found = _look(
            self.problem,
            steps,
            carry,
            jnp.stack(starts),
            jnp.asarray(tolerances, self.problem.dtype),
            self._grams,
            self.is_sgd,
            bool(self.noise),
        )
        *numbers, direction = found
        return (
            *(np.asarray(each, np.float64)[: len(rows)] for each in numbers),
            direction[: len(rows)],
        )

    def _bounded(self, rows: np.ndarray, found: list[Any], step: int) -> Looks:
        """The bounds on the rate that curvatures and their scatter make; what was found of one
        setting counts for all of them.
        """
        count, direction = len(rows), found[6]
        direction = jnp.broadcast_to(direction, (count, *direction.shape[1:]))
        loss, curvature, scatter, first, second, third = (
            np.broadcast_to(each, (count,)) for each in found[:6]
        )
        variance = self.noise * scatter
        broken = ~np.isfinite(loss) | ~np.isfinite(curvature) | ~np.isfinite(variance)
        if self.is_sgd:
            bound = self._rates_of_sgd(rows, curvature, variance)
        elif step < min(_SETTLED, self.num_steps):
            bound, curvature = np.full(count, np.inf), np.zeros(count)
            broken = ~np.isfinite(loss)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                kept = np.where(second > 0, np.minimum(third / second, 1 - 1e-6), 0.0)
                share = 1 + kept - np.where(first > 0, second / first, 0.0)
            bound = self.highest[rows] * largest_safe_learning_rates(
                share * curvature, share**2 * variance, momentum=kept
            )
        return Looks(loss, np.where(broken, np.nan, bound), curvature, direction)

    def _rates_of_sgd(self, rows: np.ndarray, curvature: Any, variance: Any) -> np.ndarray:
        settings = [self.settings[row] for row in rows]
        return largest_safe_learning_rates(
            np.broadcast_to(curvature, (len(rows),)),
            np.broadcast_to(variance, (len(rows),)),
            momentum=np.asarray([each.momentum for each in settings]),
            nesterov=self.nesterov,
            weight_decay=np.asarray([each.weight_decay for each in settings]),
        )

    def _unsaturated(
        self, rows: np.ndarray, bound: np.ndarray, lowest: np.ndarray, curvature: np.ndarray
    ) -> np.ndarray:
        """The least bound that was seen; where all there was to see is a softmax saturated on wrong
        classes, that of the sharpest it can be at the first point.
        """
        doubted = np.flatnonzero(lowest > 2 * self.chance)
        if self.problem.loss != "ce" or not len(doubted):
            return bound
        safe = bound.copy()
        if self.is_sgd:
            first = jax.tree.map(lambda leaf: leaf[0], self.block.states[0])
            here = self.problem.tangent(self.problem.point(first[0]))
            sharpest = largest_curvature_bound(here)
            flat = doubted[~(curvature[doubted] >= _SATURATED * sharpest)]
            safe[flat] = np.fmin(bound[flat], self._rates_of_sgd(rows[flat], sharpest, 0.0))
            return safe
        for each in doubted:  # few, and only where the head begins far off
            row = int(rows[each])
            states = [
                jax.tree.map(lambda leaf, row=row: leaf[row], state)
                for _, state in sorted(self.block.states.items())
            ]
            _, safe[each] = stability(self.problem, self.settings[row], self.num_steps, states)
        return safe


@eqx.filter_jit
def _grams(problem: Problem) -> Array:
    kernel: Any = problem.tangent(problem.zero()).kernel
    return grams_of(kernel)


@eqx.filter_jit
def _look(
    problem: Problem,
    steps: Steps,
    carry: Any,
    starts: Float[Array, "s n c"],
    tolerances: Float[Array, " s"],
    grams: Array | None,
    is_sgd: bool,
    is_noisy: bool,
) -> tuple[Array, ...]:
    """Loss, λ, the scatter of single samples, the sums of an optimiser's answers, and the direction
    of λ, of each setting.
    """

    def of_one(steps: Steps, carry: Any, start: Array, tolerance: Array) -> tuple[Array, ...]:
        scale, sums = None, (jnp.zeros(()),) * 3
        if not is_sgd:
            assert isinstance(steps, ChainSteps)
            answers = steps.response(problem.gradient(carry[0]), carry)
            sums = tuple(
                jnp.asarray(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(each)))
                for each in answers
            )
            scale = answers[0]
        here = problem.tangent(problem.point(carry[0]), scale)
        outputs = here.initial_logits

        def product(vector: Array) -> Array:
            return curvature_product(here, outputs, vector.reshape(outputs.shape)).reshape(-1)

        value, vector = largest_eigenvalue(product, start.reshape(-1), tolerance)
        direction, scatter = vector.reshape(outputs.shape), jnp.zeros(())
        if is_noisy:
            tiny = jnp.finfo(value.dtype).tiny
            some = jnp.maximum(value, tiny)
            found = (
                curvature_scatter(here, outputs, direction, some)
                if grams is None
                else scatter_by(grams, here, direction, some)
            )
            scatter = jnp.where(value > 0, found, 0.0)
        loss = losses.mean_loss(here.loss, outputs, here.targets)
        loss = jnp.where(jnp.isfinite(outputs).all(), loss, jnp.nan)
        return loss, value, scatter, *sums, direction

    return jax.vmap(of_one)(steps, carry, starts, tolerances)
