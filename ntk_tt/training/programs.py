"""The compiled parts of real training: a step, and the evaluation of the whole set."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ntk_tt.data.augmentation import Augmentation
from ntk_tt.models.model import Apply, BatchStatistics
from ntk_tt.optax_chain import weights_read
from ntk_tt.runtime.input_trees import CutInputs, Inputs, take
from ntk_tt.targets import wrong


@dataclasses.dataclass(frozen=True)
class Network:
    """Both batch-norm modes behind one signature; sums over weighted samples.

    Attributes:
        augmentation: what is done to images before each look; `draw` says which time that is.
        seed: of these draws.
    """

    apply: Apply
    statistics: BatchStatistics | None
    loss: str
    augmentation: Augmentation | None = None
    seed: int = 0

    @property
    def initial_state(self) -> PyTree:
        return () if self.statistics is None else self.statistics.state

    def gradient(self, params, state, inputs, targets, indices, weights, draw, total):
        """Adds a block's gradient to `total`; also the new state, and the block's share of loss and
        error.
        """
        x, y = self._looked_at(inputs, indices, draw), targets[indices]

        def objective(params):
            logits, new_state = (
                (self.apply(params, x), state)
                if self.statistics is None
                else self.statistics.apply_train(params, state, x)
            )
            # of one sample, or one output, some networks drop the axis
            logits = logits.astype(y.dtype).reshape(y.shape)
            return (weights * self.sample_losses(logits, y)).sum(), (
                new_state,
                (weights * wrong(logits, y)).sum(),
                _range(logits),
            )

        (value, (state, error, span)), gradient = jax.value_and_grad(objective, has_aux=True)(
            params
        )
        return jax.tree.map(jnp.add, total, gradient), state, value, error, span

    def evaluation(self, params, state, inputs, targets, indices, weights, draw):
        """A block's share of the loss and error of the whole set, and the range of its outputs."""
        x, y = self._looked_at(inputs, indices, draw), targets[indices]
        logits = (
            (
                self.apply(params, x)
                if self.statistics is None
                else self.statistics.apply_eval(params, state, x)
            )
            .astype(y.dtype)
            .reshape(y.shape)
        )
        return (
            (weights * self.sample_losses(logits, y)).sum(),
            (weights * wrong(logits, y)).sum(),
            _range(logits),
        )

    def _looked_at(self, inputs, indices, draw):
        found = take(inputs, indices)
        if self.augmentation is None:
            return found
        return self.augmentation.of(found, indices, draw, self.seed)

    def sample_losses(self, logits, targets) -> Array:
        if self.loss == "mse":
            return optax.l2_loss(logits, targets).sum(-1)
        return optax.softmax_cross_entropy(logits, targets)


class Point(NamedTuple):
    """Where training stands."""

    params: PyTree
    statistics: PyTree
    opt_state: PyTree


class Seen(NamedTuple):
    """Loss and error of some samples, and the ranges of the outputs of their blocks."""

    loss: float
    error: float
    ranges: list[Array]


class Evaluation(NamedTuple):
    """The compiled look at all samples of a set."""

    samples: CutInputs
    targets: Array
    program: dict[int, Any]
    block: int

    def __call__(self, point: Point, draw: int = 0) -> Seen:
        """At the weights that are read."""
        at = weights_read(point.opt_state, point.params)
        whole = self.samples.ordered(np.arange(len(self.targets)))
        parts = []
        for part in padded_blocks(whole, self.block):
            length = self.samples.length(part[0])
            inputs = self.samples.by_length[length]
            parts.append(
                self.program[length](
                    at, point.statistics, inputs, self.targets, *part, np.uint32(draw)
                )
            )
        return Seen(
            float(sum(part[0] for part in parts)),
            float(sum(part[1] for part in parts)),
            [part[2] for part in parts],
        )


class Programs(NamedTuple):
    """The compiled parts of training. The blocks of a batch are a Python loop around one compiled
    step: XLA runs convolutions inside a compiled loop many times slower on a CPU.
    """

    samples: CutInputs
    targets: Array
    zero: PyTree
    gradient: dict[int, Any]
    block: int
    evaluate: Evaluation
    update: Any
    move: Any
    seconds: float

    def step(self, point: Point, rows: np.ndarray, draw: int = 0) -> tuple[Point, Seen]:
        """One step on these samples; what is seen of them is before it."""
        params, statistics, opt_state = point
        total, value, error, ranges = self.zero, 0.0, 0.0, []
        for part in padded_blocks(self.samples.ordered(rows), self.block):
            length = self.samples.length(part[0])
            inputs = self.samples.by_length[length]
            total, statistics, more, mistakes, span = self.gradient[length](
                params, statistics, inputs, self.targets, *part, np.uint32(draw), total
            )
            value, error = value + more, error + mistakes
            ranges.append(span)
        updates, opt_state = self.update(total, opt_state, params)
        after = Point(self.move(params, updates), statistics, opt_state)
        return after, Seen(float(value), float(error), ranges)


def compile_programs(
    network: Network,
    chain: optax.GradientTransformationExtraArgs,
    samples: CutInputs,
    targets: Array,
    point: Point,
    batch_size: int,
    block_size: int,
) -> Programs:
    clock = time.perf_counter()
    params, state, opt_state = point
    # a batch that is normalised as a whole has no blocks
    least = batch_size if network.statistics is not None else 1
    gradient, block = samples.compiled(
        partial(_lower, network.gradient, params, state, targets),
        batch_size,
        max(least, block_size),
        least,
    )
    evaluate = compile_evaluation(network, samples, targets, point, block_size)
    zero = jax.tree.map(jnp.zeros_like, params)
    update = (
        jax.jit(lambda gradient, opt_state, params: chain.update(gradient, opt_state, params))
        .lower(zero, opt_state, params)
        .compile()
    )
    move = jax.jit(optax.apply_updates).lower(params, _updates(chain, opt_state, params)).compile()
    return Programs(
        samples,
        targets,
        zero,
        gradient,
        block,
        evaluate,
        update,
        move,
        time.perf_counter() - clock,
    )


def compile_evaluation(
    network: Network, samples: CutInputs, targets: Array, point: Point, block_size: int
) -> Evaluation:
    program, block = samples.compiled(
        partial(_lower, network.evaluation, point.params, point.statistics, targets),
        len(targets),
        block_size,
    )
    return Evaluation(samples, targets, program, block)


def _range(logits: Array) -> Array:
    """The least and the greatest of each output over the samples, (2, C)."""
    return jnp.stack([logits.min(0), logits.max(0)])


def _updates(
    chain: optax.GradientTransformationExtraArgs, opt_state: PyTree, params: PyTree
) -> PyTree:
    """Shapes of a chain's updates."""
    return jax.eval_shape(lambda *given: chain.update(*given)[0], params, opt_state, params)


def padded_blocks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, weights 1/B) in blocks of `size`, the last filled up with samples of weight 0."""
    weights = np.full(len(indices), 1 / len(indices))
    for start in range(0, len(indices), size):
        part, weight = indices[start : start + size], weights[start : start + size]
        yield np.resize(part, size), np.pad(weight, (0, size - len(part)))


def _lower(
    function: Callable, params: PyTree, state: PyTree, targets: Array, inputs: Inputs, block: int
) -> Any:
    """Compiled for blocks of this size; `gradient` also takes the running total, of the shape of
    the parameters.
    """
    part = next(padded_blocks(np.arange(block), block))
    total = (params,) if function.__name__ == "gradient" else ()
    given = (params, state, inputs, targets, *part, np.uint32(0), *total)
    return jax.jit(function).lower(*given).compile()
