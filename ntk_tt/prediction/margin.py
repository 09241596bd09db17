"""The stability margin of a setting along its own predicted way."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_tt.dynamics.batches import batch_indices, noise_variance
from ntk_tt.dynamics.optimizer_replay import PATH_SPANS, replay
from ntk_tt.dynamics.steps import ChainSteps, Steps, steps_of
from ntk_tt.losses import mean_loss
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.problem import Problem
from ntk_tt.surrogate.sharpness import (
    batch_curvature_variance,
    largest_curvature,
    largest_curvature_bound,
    largest_safe_learning_rate,
)
from ntk_tt.targets import chance_loss, least_loss

PredictedPath = Sequence[Any] | Float[np.ndarray, "s n c"]
_CHUNKS = (4, 64, 1024)  # steps that are compiled together: the shortest at first
# of the steps at which the way is looked at: near the bound curvature rises and falls early,
# whatever T is
_SPACING = 1.5
# of the loss at the start: past it the softmax only gets flatter, and a kernel has done its growing
_LEARNT = 0.2
# times the loss at the start, or that of chance: a way that is not stable, whatever the curvature
# is by then
_RISEN = 3.0
# Steps that an optimiser's own moments need before they say how it answers to a gradient: Adam's
# first steps are those of a sign.
_SETTLED = 10
# Of λ, relative, where a small network is looked at, which is no nearer to the real one than that.
# A rough look comes first, and is enough where the bound that it makes is so many times the least.
_CLOSELY, _ROUGHLY, _FAR = 1e-2, 0.1, 1.3
# of the largest curvature that the loss can have: less, at a loss well above chance, says nothing
# of stability
_SATURATED = 0.01


def predicted_path(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
) -> PredictedPath:
    """A handful of predicted points between step 0 and T (`Problem.point`): logits (S, N, C), or
    what the steps carry where the kernel changes on the way.
    """
    check_num_steps(num_steps)
    trajectory = replay(
        problem,
        optimizer,
        num_steps,
        key=key,
        record_every=-(-num_steps // PATH_SPANS),
        save_logits=not problem.follows_kernel,
    )
    return np.asarray(trajectory.logits) if trajectory.states is None else trajectory.states


def stability(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    path: PredictedPath | None = None,
) -> tuple[float, float]:
    """(margin, bound): η_max over the schedule's highest rate, and η_max, the bound along this
    setting's own way.

    The curvature λ is that of the Gauss–Newton Hessian of the loss, (1/N) Jᵀ H J, by Lanczos
    iteration without forming Θ: its maximum over the points of `path` (by default
    `predicted_path`), since cross-entropy sharpens while two classes compete. Where the problem
    follows its kernel, it is that of each state on the way, so growth that crosses the bound is
    seen. Gradient descent is stable below 2(1+m)/λ; mini-batches lower that, see
    `largest_safe_learning_rate`. A larger rate goes another way, along which the bound may be
    lower: `safe_learning_rate` is the rate that holds on its own way.

    Any other optimiser is looked at as the linear filter that it is at each point: how its next
    updates answer to a gradient, entry by entry. λ is then that of the Hessian between the roots of
    these answers, as for Adam, which is stable below (2+2β₁)/((1−β₁)η) (Cohen et al. 2022).

    The margin is 0 where the way itself leaves the finite numbers.
    """
    points = predicted_path(problem, optimizer, num_steps) if path is None else path
    looked = _Looked(problem, optimizer, steps_of(problem, optimizer, num_steps))
    for point in points:
        looked.at(point)
        if not looked.is_finite or problem.has_one_sharpness:
            break
    safe = looked.safe_rate(points[0])
    highest = optimizer.learning_rates(num_steps).max()
    if not looked.is_finite:
        return 0.0, float(safe)
    return float(safe / highest) if highest > 0 else np.inf, float(safe)


class Sharpness(NamedTuple):
    """Of one point: its loss, the largest curvature λ, how much single samples scatter around it
    over the batch size, and the direction of λ.
    """

    loss: float
    curvature: float
    variance: float
    direction: Any


Start = dict[str, Sharpness]  # what was found before training, which is the same on every way


class _Looked:
    """What is known of the stability of a setting after looking at some points of its way."""

    def __init__(
        self,
        problem: Problem,
        optimizer: OptimizerConfig,
        steps: Steps,
        start: "Start | None" = None,
    ):
        self.problem, self.optimizer, self.steps = problem, optimizer, steps
        self.highest = float(steps.rates.max())
        self.noise = noise_variance(problem.num_samples, optimizer)
        targets = np.asarray(problem.targets)
        self.chance = chance_loss(targets, problem.loss)
        self.least = least_loss(targets, problem.loss)
        self.bound, self.curvature, self.losses, self.is_finite = np.inf, 0.0, [], True
        self.start = {} if start is None else start
        self._direction = None

    def at(self, point: Any) -> None:
        """Look at one more point."""
        is_first = not self.losses and self.optimizer.is_sgd
        if is_first and self.start:  # SGD begins there at every rate
            rate_of, found = self._rate, self.start["found"]
        else:
            found, rate_of = self._sharpness(point)
            if is_first:
                self.start["found"] = found
        loss, curvature, variance, self._direction = found
        self.is_finite = bool(np.isfinite([loss, curvature, variance]).all())
        if not self.is_finite:
            return
        self.losses.append(loss)
        if rate_of is None:
            return
        self.curvature = max(self.curvature, curvature)
        self.bound = min(self.bound, rate_of(curvature, variance))

    def _sharpness(self, point: Any) -> tuple["Sharpness", Callable[[float, float], float] | None]:
        """What is found at a point, and the bound on the rate that it makes; None where the
        optimiser's own moments say nothing yet.
        """
        here, rate_of = self._here(point)
        outputs = here.initial_logits
        loss = float(mean_loss(here.loss, outputs, here.targets))
        if not np.isfinite(outputs).all():
            loss = np.nan
        is_settled = self.optimizer.is_sgd or int(point[2]) >= min(_SETTLED, len(self.steps.rates))
        if not np.isfinite(loss) or not is_settled:
            return Sharpness(loss, 0.0, 0.0, self._direction), None
        if not self.problem.takes_any_optimizer:
            return self._at_logits(here, loss, self._direction, 1e-4), rate_of
        found = self._at_logits(here, loss, self._direction, _ROUGHLY)
        if not rate_of(found.curvature, found.variance) > _FAR * self.bound:
            found = self._at_logits(here, loss, found.direction, _CLOSELY, mixed=0.0)
        return found, rate_of

    def _at_logits(
        self,
        here: LinearizedProblem,
        loss: float,
        start: Any,
        tolerance: float,
        mixed: float = 0.1,
    ) -> "Sharpness":
        outputs = here.initial_logits
        curvature, direction = largest_curvature(
            here, outputs, start, tolerance=tolerance, mixed=mixed
        )
        variance = 0.0
        if self.noise:
            variance = self.noise * batch_curvature_variance(here, outputs, curvature, direction)
        return Sharpness(loss, curvature, variance, direction)

    def safe_rate(self, first: Any) -> float:
        """The least bound that was seen; where all there was to see is a softmax saturated on wrong
        classes, that of the sharpest it can be at the first point.
        """
        if self.problem.loss == "ce" and self.losses and min(self.losses) > 2 * self.chance:
            here, rate_of = self._here(first)
            sharpest = largest_curvature_bound(here)
            if not self.curvature >= _SATURATED * sharpest:
                return min(self.bound, rate_of(sharpest, 0.0))
        return self.bound if self.losses else 0.0

    def _here(self, point: Any) -> tuple[LinearizedProblem, Callable[[float, float], float]]:
        """The frozen problem at a point, and the bound on the rate that curvature and its variance
        there make.
        """
        if self.optimizer.is_sgd:
            state = point[0] if self.problem.follows_kernel else point
            return _tangent(self.problem, state, None), self._rate
        assert isinstance(self.steps, ChainSteps)
        scale, first, second, third = _answer(self.problem, self.steps, point)
        # u_t = −Σ_j h_j g_{t−j} with h_j = h₁ ρ^{j−1}: for heavy ball h₁ = ρ h₀, and then 1
        decay = min(float(third / second), 1 - 1e-6) if second > 0 else 0.0
        share = 1 + decay - (float(second / first) if first > 0 else 0.0)

        def rate_of(curvature: float, variance: float) -> float:
            return self.highest * largest_safe_learning_rate(
                share * curvature, share**2 * variance, momentum=decay
            )

        return _tangent(self.problem, point[0], scale), rate_of

    def has_risen(self) -> bool:
        return self.losses[-1] > _RISEN * max(self.losses[0], self.chance)

    def has_learnt(self) -> bool:
        return self.losses[-1] - self.least < _LEARNT * (self.losses[0] - self.least)

    def _rate(self, curvature: float, variance: float) -> float:
        return largest_safe_learning_rate(
            curvature,
            variance,
            momentum=self.optimizer.momentum,
            nesterov=self.optimizer.nesterov,
            weight_decay=self.optimizer.weight_decay,
        )


def margin_on_the_way(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    start: Start | None = None,
) -> float:
    """The margin of `stability`, looked at closer: at steps 0, 4, 8, … that soon lie 1.5 times
    apart, until the loss is learnt or the margin is below 1.

    Near the bound curvature rises and falls again within a few dozen steps, between the points of
    `predicted_path`. `start` keeps what was found before training for the next way of the same
    problem and batches, at another rate. A way on which the loss rises to three times what it was
    has a margin of 0.

    Raises:
        ValueError: the optimiser is not SGD.
    """
    highest = optimizer.learning_rates(num_steps).max()
    steps, first = steps_of(problem, optimizer, num_steps), None
    looked = _Looked(problem, optimizer, steps, start)
    for point in _way(problem, optimizer, num_steps, key):
        first = point if first is None else first
        looked.at(point)
        if not looked.is_finite or looked.has_risen():
            return 0.0
        if looked.bound < highest or looked.has_learnt() or problem.has_one_sharpness:
            break
    return float(looked.safe_rate(first) / highest) if highest > 0 else np.inf


def first_point(problem: Problem, optimizer: OptimizerConfig, num_steps: int) -> Any:
    """The point before training, as `predicted_path` has it."""
    if not problem.follows_kernel:
        return problem.point(problem.zero())
    return steps_of(problem, optimizer, num_steps).begin(problem)


def _way(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    key: Key[Array, ""] | None,
) -> Iterator[Any]:
    """The points of a replay as they come, as `predicted_path` has them."""
    if problem.streamed:
        yield from predicted_path(problem, optimizer, num_steps, key=key)
        return
    steps = steps_of(problem, optimizer, num_steps)
    indices = batch_indices(
        problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key
    )
    carry, taken = steps.begin(problem), 0
    for step in look_steps(num_steps):
        carry = _advance(problem, steps, carry, indices, taken, step) if step > taken else carry
        taken = step
        yield carry if problem.follows_kernel else problem.point(carry[0])


def look_steps(num_steps: int) -> list[int]:
    """The steps at which `margin_on_the_way` looks at a way."""
    found, taken, look = [], 0, 0.0
    while True:
        chunk = max(size for size in _CHUNKS if size == _CHUNKS[0] or 8 * size <= taken)
        ends = taken + chunk > num_steps
        if taken >= look or ends:
            found.append(taken)
            look = _SPACING * taken
        if ends:
            return found
        taken += chunk


def _advance(problem: Problem, steps: Steps, carry: Any, indices: Any, start: int, stop: int):
    return _steps_between(problem, steps, carry, indices, jnp.asarray(start), jnp.asarray(stop))


@eqx.filter_jit
def _steps_between(problem: Problem, steps: Steps, carry, indices, start, stop):
    """The carry after some steps: one program, however many these are."""

    def step(number, carry):
        return steps.step(problem, carry, None if indices is None else indices[number])

    return jax.lax.fori_loop(start, stop, step, carry)


def _tangent(problem: Problem, state: Any, scale: Any) -> LinearizedProblem:
    if problem.streamed or not problem.follows_kernel:
        return problem.tangent(state, scale)
    return _tangent_in_one(problem, state, scale)


@eqx.filter_jit
def _tangent_in_one(problem: Problem, state, scale):
    found = problem.tangent(state, scale)
    return dataclasses.replace(found, kernel=found.kernel.in_one())


@eqx.filter_jit
def _answer(problem: Problem, steps: ChainSteps, carry):
    """What each entry's gradient is multiplied by, and the sums of that and of the next two
    answers.
    """
    answers = steps.response(problem.gradient(carry[0]), carry)
    sums = [sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(each)) for each in answers]
    return answers[0], *sums
