"""The training curve of N samples, from n of them.

What the other samples do to one of the n is right on average. What a sample does to itself is N/n
too strong: it is what memorises it. So every push of sample i on its own outputs is remembered, and
fades as `OwnInfluence` says. With sᵢ what is left of them all, and f the outputs of the surrogate
that is trained on n samples,

    f + s                 are the outputs that a sample would have if it had not been trained on,
    f + (1 − n/N) s       those of a sample among N.

The surrogate is trained at the latter, so it goes the way of N samples. In a ridge regression that
is the leave-one-out residual r/(1 − A_ii), and the effective ridge of N samples (generalised
cross-validation). Nothing is subtracted from the kernel, which stays positive semidefinite.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt import losses
from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.dynamics.steps import ChainSteps, SgdSteps, Steps, steps_of
from ntk_tt.dynamics.trajectory import record_steps
from ntk_tt.kernels.operators import AbstractKernel
from ntk_tt.losses import LossName
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.scaling.own_influence import (
    BANDS,
    OwnInfluence,
    curvature_along,
    own_influence,
    pulling_directions,
)
from ntk_tt.scaling.scaled_trajectory import ScaledTrajectory
from ntk_tt.surrogate.problem import Problem

_PILOT = 10  # steps after which an optimiser's moments say how it answers to a gradient
_ROWS = 64  # of the kernel that are made at a time


class _Carry(eqx.Module):
    """What the steps of a subset carry.

    Attributes:
        inner: of the surrogate's own steps.
        memory: (n, q, k) pushes of each sample on itself, faded by band.
        before: the same of what was there at the start of the epoch.
        lagging: (n, k) what momentum has yet to bring.
        clock: how far training has come, ∫ rate · curvature dt.
    """

    inner: Any
    memory: Float[Array, "n q k"]
    before: Float[Array, "n q k"]
    lagging: Float[Array, "n k"]
    clock: Float[Array, ""]


class _Setting(eqx.Module):
    """Of one run.

    Attributes:
        steps: the optimiser's.
        directions: (n, k, C).
        influence: at the last look.
        gain: (T,) how far a unit of gradient moves an entry in the end, of mean scale.
        lag: share of a push that comes a step later.
        share: 1 − n/N.
        speed: of fading; 1 is what theory says.
    """

    steps: Steps
    directions: Float[Array, "n k c"]
    influence: OwnInfluence
    gain: Float[Array, " t"]
    lag: Float[Array, ""]
    share: Float[Array, ""]
    speed: Float[Array, ""]

    def at_size(self, problem: Problem, carry: _Carry) -> Problem:
        """The surrogate with outputs as they are among N samples."""
        return problem.shifted(self.share * self.in_logits(self.influence.of(carry.memory)))

    def in_logits(self, along: Float[Array, "n k"]) -> Float[Array, "n c"]:
        return jnp.einsum("nk,nkc->nc", along, self.directions)


def replay_at_size(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    num_samples: int,
    *,
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
    speed: float = 1.0,
    progress: Progress = silent,
) -> ScaledTrajectory:
    """The curve of `num_samples` samples, from the surrogate of a subset of them.

    Args:
        problem: the surrogate of n samples that stand for all: drawn at random, class by class.
        optimizer: the setting; its epochs are those of N samples.
        num_steps: T.
        num_samples: N.
        key: of the order of the data; key 0 where none is given.
        record_every: steps between records.
        speed: of the fading of a sample's influence on itself, over what the spectrum says.
        progress: called as `progress(step, num_steps)`.

    Raises:
        ValueError: N below n, an argument out of range, an optimiser that the surrogate cannot
            carry, or features that are streamed from disk.

    Cost: that of `replay`, half as much again at each step, and about log₂(T/record_every) looks at
    the kernel: an eigen-decomposition of 2n numbers and as many products with Θ each.
    """
    check_num_steps(num_steps)
    count = problem.num_samples
    if num_samples < count:
        raise ValueError(
            f"num_samples: must be at least the {count} of the subset, got {num_samples}"
        )
    if problem.streamed:
        raise ValueError(
            "problem: its features are streamed from disk; take a subset whose features fit into "
            "memory"
        )
    if optimizer.weight_ema is not None:
        raise ValueError(
            "weight_ema: what samples do to an average of the weights is not followed; leave it "
            "out, or predict from all samples"
        )
    numbers = record_steps(num_steps, record_every)
    if optimizer.transformation is None:  # of few leaves its programs are small
        problem = problem.alike(is_sgd=False, num_steps=num_steps)
    steps = steps_of(problem, optimizer, num_steps)
    key = jax.random.key(0) if key is None else key
    indices = batch_indices(num_samples, optimizer, num_steps, key)
    epoch = num_steps + 1
    if indices is not None:
        epoch = num_samples // indices.shape[1]
        indices = indices % count
    directions = pulling_directions(problem.loss, problem.logits(problem.zero()), problem.targets)
    width = directions.shape[1]
    memory = jnp.zeros((count, BANDS, width), jnp.float32)
    share = 1 - count / num_samples
    looks = _Looks(problem, steps, directions, share, speed)
    carry = _Carry(steps.begin(problem), memory, memory, memory[:, 0], jnp.zeros(()))
    setting = looks.first(carry, indices, num_steps)
    found, leverage, due = [], [], 1
    for number, start in enumerate(numbers):
        if number >= due:
            before = setting.influence
            setting, due = looks.at(setting, carry, int(start)), 2 * number
            carry = _at_present_size(carry, before, setting.influence)
        leverage.append(looks.leverage(float(carry.clock)))
        found.append(jax.tree.map(np.asarray, _record(problem, setting, carry)))
        if start == num_steps:
            break
        stop = int(numbers[number + 1])
        taken = None if indices is None else indices[start:stop]
        at = jnp.arange(start, stop)
        carry = _advance(problem, setting, carry, taken, at, at % epoch == 0)
        progress(stop, num_steps)
    loss, error, batch, validation, wrong, spread = (
        np.stack(each) for each in zip(*found, strict=True)
    )
    return ScaledTrajectory(
        numbers,
        loss,
        error,
        num_samples=num_samples,
        batch_loss=batch,
        validation_loss=validation,
        validation_error=wrong,
        spread=spread,
        leverage=np.asarray(leverage),
        subset_size=count,
    )


class _Looks:
    """Looks at the kernel as training goes on."""

    def __init__(
        self,
        problem: Problem,
        steps: Steps,
        directions: Float[Array, "n k c"],
        share: float,
        speed: float,
    ):
        self.problem, self.steps, self.directions = problem, steps, directions
        self.share, self.speed = share, speed
        self._rates = self._ntk = None
        self._resolutions = self._leverage = np.zeros(1)

    def first(self, carry: _Carry, indices: Any, num_steps: int) -> _Setting:
        """Before training, with the optimiser as it is after a few steps."""
        blank = OwnInfluence(
            jnp.zeros((*carry.memory.shape, carry.memory.shape[-1])),
            jnp.ones(BANDS),
            jnp.ones(BANDS),
        )
        number = len(self.steps.rates)
        setting = _Setting(
            self.steps,
            self.directions,
            blank,
            jnp.zeros(number),
            *(jnp.asarray(each, jnp.float32) for each in (0.0, self.share, self.speed)),
        )
        if isinstance(self.steps, SgdSteps):
            return self.at(setting, carry, 0)
        length = min(_PILOT, num_steps)
        taken = None if indices is None else indices[:length]
        at = jnp.arange(length)
        pilot = _advance(self.problem, setting, carry, taken, at, at < 0)
        return self.at(setting, _at_start(carry, pilot), max(0, length - 1))

    def at(self, setting: _Setting, carry: _Carry, start: int) -> _Setting:
        """The setting after another look; `start` is the step of the optimiser's state."""
        point, rates = carry.inner[0], np.asarray(self.steps.rates, np.float64)
        if isinstance(self.steps, ChainSteps):
            scale, mean, lag = _answer(self.problem, self.steps, carry.inner)
            here = rates[min(start, len(rates) - 1)]
            gain = rates * (float(mean) / here) if here > 0 else np.full(len(rates), float(mean))
            kernel = self.problem.tangent(self.problem.point(point), scale).kernel
            ntk = _along(kernel, self.directions)
        else:
            lag = self.steps.momentum
            gain = rates / (1 - float(lag))
            if self._ntk is None:
                self._ntk = _along(
                    self.problem.tangent(self.problem.point(point)).kernel, self.directions
                )
            ntk = self._ntk
        logits = setting.at_size(self.problem, carry).logits(point)
        curvature = curvature_along(self.problem.loss, logits, self.directions)
        influence, self._resolutions, self._leverage = own_influence(
            ntk, curvature, self._rates, share=1 - self.share
        )
        self._rates = np.asarray(influence.rates, np.float64)
        return eqx.tree_at(
            lambda each: (each.influence, each.gain, each.lag),
            setting,
            (influence, jnp.asarray(gain, jnp.float32), jnp.asarray(lag, jnp.float32)),
        )

    def leverage(self, clock: float) -> float:
        """At the resolution that training has reached."""
        if clock <= 0:
            return 0.0
        reached = np.log(1 / clock)
        return float(np.interp(reached, np.log(self._resolutions[::-1]), self._leverage[::-1]))


def _at_start(carry: _Carry, pilot: _Carry) -> _Carry:
    """The state before training with what the optimiser keeps after some steps."""
    return eqx.tree_at(lambda each: each.inner, carry, (carry.inner[0], *pilot.inner[1:]))


def _at_present_size(carry: _Carry, before: OwnInfluence, now: OwnInfluence) -> _Carry:
    """What is remembered, in units of a kernel that has grown.

    A push goes by J as it was, and is read by J as it is: it counts the root of both kernels.
    """
    was, is_now = (jnp.einsum("nqaa->n", each.blocks) for each in (before, now))
    root = jnp.sqrt(jnp.where(is_now > 0, was / jnp.where(is_now > 0, is_now, 1.0), 1.0))
    root = root[:, None, None]
    return eqx.tree_at(
        lambda each: (each.memory, each.before), carry, (root * carry.memory, root * carry.before)
    )


@eqx.filter_jit
def _along(kernel: AbstractKernel, directions: Float[Array, "n k c"]) -> Float[Array, "n k n k"]:
    """Θ between directions of the samples."""
    count, width, outputs = directions.shape
    rows = directions.reshape(-1, outputs)

    def row(number):
        alone = jnp.zeros((count, outputs), rows.dtype).at[number // width].set(rows[number])
        return jnp.einsum("nc,nkc->nk", kernel.product(alone), directions)

    found = jax.lax.map(row, jnp.arange(count * width), batch_size=_ROWS)
    return found.reshape(count, width, count, width)


@eqx.filter_jit
def _answer(problem: Problem, steps: ChainSteps, inner: Any) -> tuple[Any, Array, Array]:
    """How far each entry moves in the end for a unit of gradient, over the mean; that mean; and the
    share that comes a step later.
    """
    first, second, third = steps.response(problem.gradient(inner[0]), inner)
    sums = [sum(leaf.sum() for leaf in jax.tree.leaves(each)) for each in (second, third)]
    lag = jnp.clip(jnp.where(sums[0] > 0, sums[1] / sums[0], 0.0), 0.0, 0.999)
    whole = jax.tree.map(
        lambda now, later: jnp.maximum(now + later / (1 - lag), 0.0), first, second
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(whole))
    mean = jnp.maximum(sum(leaf.sum() for leaf in jax.tree.leaves(whole)) / size, 1e-30)
    return jax.tree.map(lambda leaf: leaf / mean, whole), mean, lag


@eqx.filter_jit
def _advance(
    problem: Problem,
    setting: _Setting,
    carry: _Carry,
    indices: Int[Array, "t b"] | None,
    numbers: Int[Array, " t"],
    starts: Array,
) -> _Carry:
    """Some steps on."""
    rates = setting.influence.rates[:, None]

    def step(carry, now):
        batch, number, starts_epoch = now
        here = setting.at_size(problem, carry)
        logits = here.logits(carry.inner[0], batch)
        rows = slice(None) if batch is None else batch
        directions = setting.directions[rows]
        residuals = losses.mean_residuals(problem.loss, logits, problem.targets[rows])
        pushes = (1 - setting.lag) * jnp.einsum("nc,nkc->nk", residuals, directions)
        curved = curvature_along(problem.loss, logits, directions)
        mean = jnp.trace(curved, axis1=1, axis2=2).mean() / directions.shape[1]
        lagging = (setting.lag * carry.lagging).at[rows].add(pushes.astype(jnp.float32))
        passed = setting.speed * setting.gain[number] * mean
        faded = jnp.exp(-rates * passed)
        before = jnp.where(starts_epoch, carry.memory, carry.before)
        return _Carry(
            setting.steps.step(here, carry.inner, batch),
            carry.memory * faded + setting.gain[number] * lagging[:, None],
            before * faded,
            lagging,
            carry.clock + passed,
        ), None

    return jax.lax.scan(step, carry, (indices, numbers, starts), length=len(numbers))[0]


@eqx.filter_jit
def _record(problem: Problem, setting: _Setting, carry: _Carry) -> tuple[Array, ...]:
    """Loss and error of N samples, the losses of mini-batches and of samples not trained on, the
    error of these, and what the luck of the draw adds to a loss.
    """
    influence, share = setting.influence, setting.share
    unseen = problem.shifted(setting.in_logits(influence.of(carry.memory)))
    unseen = unseen.logits(carry.inner[0])
    outputs = {
        "all": setting.at_size(problem, carry).logits(carry.inner[0]),
        "coming": unseen - (1 - share) * setting.in_logits(influence.of(carry.before)),
        "unseen": unseen,
    }
    curved = curvature_along(problem.loss, outputs["all"], setting.directions)
    spread = 0.5 * jnp.einsum("nab,nba->n", curved, influence.spread(carry.memory)).mean()
    loss = {name: problem.metrics(each) for name, each in outputs.items()}
    lucky = share * spread
    return (
        _without_luck(problem.loss, loss["all"][0], lucky),
        loss["all"][1],
        _without_luck(problem.loss, loss["coming"][0], lucky),
        _without_luck(problem.loss, loss["unseen"][0], lucky),
        loss["unseen"][1],
        spread,
    )


def _without_luck(loss: LossName, value: Array, lucky: Array) -> Array:
    """A mean loss without what a scatter of the outputs adds to it, which is known to second order.

    Of a square that is all there is. Cross-entropy grows less than its square, so there it is taken
    as a factor, which leaves something of any loss.
    """
    if loss == "mse":
        return jnp.maximum(value - lucky, 0.0)
    return value * jnp.exp(-lucky / jnp.maximum(value, 1e-12))
