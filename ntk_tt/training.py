"""Real fine-tuning with optax: the truth that predictions are compared with.

Shares no code with the prediction: of the package it imports only the description of the optimiser,
the model container and its switches, the reading of labels, the memory there is and the progress
bar. Its losses, batches and steps are optax's and its own.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ntk_tt.data.order import batches_in_order
from ntk_tt.models.model import Apply, BatchStatistics
from ntk_tt.models.switches import check_trains
from ntk_tt.optax_chain import Transformation, weights_read
from ntk_tt.optimizer import OptimizerConfig, as_setting, check_num_steps
from ntk_tt.runtime.input_trees import CutInputs, Inputs, num_samples, take
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.targets import (
    Labels,
    chance_loss,
    check_outputs,
    check_smoothing,
    encode_targets,
    wrong,
)

# samples; on a CPU a third faster per sample than 256 (python -m benchmarks.cost)
_CPU_BLOCK, _DEVICE_BLOCK = (
    32,
    256,
)
_CONSTANT = 1e-5  # spread of the outputs over the samples, of their size, that is rounding
_SPIKE = 1.5  # times the loss that a run began with, or that of constant outputs


class TrainingRun(eqx.Module):
    """What a training run gave.

    Attributes:
        steps: (S,) optimiser steps taken at each record, from 0 to T.
        loss, error: (S,) mean loss and error rate on the whole training set there; NaN after
            divergence.
        params: the trained parameters.
        seconds: of the T steps alone, without compilation and without the evaluations.
        evaluation_seconds, compile_seconds: those.
        velocity: SGD's momentum after the last step, a tree like `params`; None without momentum,
            and for other optimisers.
        diverged_at: the first step with a non-finite loss, where the run stopped; None if there was
            none.
        collapsed_at: the first record from which on the outputs are the same for all samples, to
            rounding, although they were not or the loss had spiked before: the network is dead (all
            its units off), its loss stays at that of chance or above and no gradient but that of
            the last bias is left. None for a run that is alive, however slow.
        opt_state: the whole state of `OptimizerConfig.chain` after the last step.
        step_seconds: of a step, the median.
    """

    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    params: PyTree
    seconds: float
    evaluation_seconds: float
    compile_seconds: float
    diverged_at: int | None = None
    velocity: PyTree | None = None
    collapsed_at: int | None = None
    opt_state: PyTree | None = None
    step_seconds: float = 0.0


def finetune(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    labels: Labels,
    optimizer: OptimizerConfig | Transformation,
    num_steps: int,
    *,
    batch_size: int | None = None,
    loss: str = "ce",
    label_smoothing: int | float = 0.0,
    seed: int = 0,
    record_every: int = 1,
    statistics: BatchStatistics | None = None,
    block_size: int | None = None,
    progress: Progress = silent,
) -> TrainingRun:
    """Train for `num_steps` and record loss and error on the whole training set.

    Args:
        apply: `(params, inputs) -> logits (N, C)`, batch norm frozen.
        params: where training starts.
        inputs: (N, ...).
        labels: (N,) class indices, or (N, C) real targets.
        optimizer: the setting, or any optax chain, such as `optax.adamw(1e-4)`. The chain is given
            the parameters themselves, so `masked` and `multi_transform` go by their names.
        num_steps: T, each with a batch of its own; `MultiSteps` moves only every k of them.
        batch_size: of an optax chain; None is the full batch. A setting has its own.
        loss: `ce`, or `mse` for ½‖f − y‖².
        label_smoothing: share of each label that is spread over all classes, of `ce`; the recorded
            loss is the one that is trained.
        seed: of the order of the data.
        record_every: steps between records; the last step is always recorded. With the full batch a
            record costs nothing.
        statistics: batch-norm statistics to train along with their functions
            (`Model.batch_statistics`); None keeps them frozen. A full batch is then normalised as a
            whole, so it must fit into memory.
        block_size: samples in memory at a time, fewer where these do not fit; larger batches
            accumulate their gradient in blocks, to rounding. None takes what is fastest: 32 on a
            CPU, whose caches hold no more, 256 elsewhere.
        progress: called as `progress(step, num_steps)`.

    Raises:
        ValueError: an argument or label out of range, a batch larger than the data, or statistics
            that training does not change.
    """
    check_num_steps(num_steps)
    if record_every < 1:
        raise ValueError(f"record_every: must be at least 1, got {record_every}")
    if block_size is None:
        block_size = _CPU_BLOCK if jax.default_backend() == "cpu" else _DEVICE_BLOCK
    if block_size < 1:
        raise ValueError(f"block_size: must be at least 1, got {block_size}")
    optimizer = as_setting(optimizer, batch_size)
    count = num_samples(inputs)
    if len(labels) != count:
        raise ValueError(f"labels: there are {len(labels)} for {count} inputs; give one each")
    batch_size = optimizer.checked_batch_size(count)
    full_batch = optimizer.is_full_batch(count)
    samples = CutInputs(inputs)
    output = jax.eval_shape(apply, params, take(samples.longest, slice(1)))
    num_outputs = output.size
    check_outputs(loss, num_outputs)
    targets = encode_targets(
        labels, num_outputs, jnp.promote_types(output.dtype, jnp.float32), loss=loss
    )
    check_smoothing(label_smoothing, loss)
    if label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    if statistics is not None:
        check_trains(
            statistics.apply_train, params, statistics.state, take(samples.longest, slice(2))
        )
    chain = optimizer.chain(num_steps)
    network = _Network(apply, statistics, loss)
    params, state = jax.tree.map(jnp.array, params), network.initial_state
    opt_state = _initial_state(chain, params)
    batches = batches_in_order(count, batch_size, full_batch, optimizer.sampling, seed)
    whole = samples.ordered(np.arange(count))
    # The blocks of a batch are a Python loop around one compiled step: XLA runs convolutions inside
    # a compiled loop many times slower on a CPU.
    clock = time.perf_counter()
    # a batch that is normalised as a whole has no blocks
    least = batch_size if statistics is not None else 1
    gradient, block = samples.compiled(
        partial(_lower, network.gradient, params, state, targets),
        batch_size,
        max(least, block_size),
        least,
    )
    evaluate, evaluation_block = samples.compiled(
        partial(_lower, network.evaluation, params, state, targets), count, block_size
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    update = (
        jax.jit(lambda gradient, opt_state, params: chain.update(gradient, opt_state, params))
        .lower(zero, opt_state, params)
        .compile()
    )
    move = jax.jit(optax.apply_updates).lower(params, _updates(chain, opt_state, params)).compile()
    compile_seconds = time.perf_counter() - clock

    # a full batch tells its own loss
    is_free = full_batch and statistics is None and optimizer.weight_ema is None
    records: dict[int, tuple[float, float]] = {}
    constant: dict[int, bool] = {}
    evaluation_seconds = highest = 0.0
    step_seconds: list[float] = []
    diverged_at = None
    for index in range(num_steps + 1):
        recorded = index % record_every == 0 or index == num_steps
        if recorded and (not is_free or index == num_steps):
            clock = time.perf_counter()
            at = weights_read(opt_state, params)
            parts = [
                evaluate[length](at, state, samples.by_length[length], targets, *part)
                for part in _padded_blocks(whole, evaluation_block)
                for length in [samples.length(part[0])]
            ]
            records[index] = (
                float(sum(part[0] for part in parts)),
                float(sum(part[1] for part in parts)),
            )
            constant[index] = _is_constant([part[2] for part in parts])
            evaluation_seconds += time.perf_counter() - clock
            if not np.isfinite(records[index][0]):
                diverged_at = index
                break
        if index == num_steps:
            break
        clock = time.perf_counter()
        total, value, error, ranges = zero, 0.0, 0.0, []
        for part in _padded_blocks(samples.ordered(next(batches)), block):
            length = samples.length(part[0])
            total, state, more, mistakes, span = gradient[length](
                params, state, samples.by_length[length], targets, *part, total
            )
            value, error = value + more, error + mistakes
            ranges.append(span)
        updates, opt_state = update(total, opt_state, params)
        params = move(params, updates)
        value, error = float(value), float(error)
        step_seconds.append(time.perf_counter() - clock)
        if not np.isfinite(value):
            diverged_at = index
            break
        highest = max(highest, value)
        if recorded and index not in records:
            records[index] = value, error
            constant[index] = _is_constant(ranges)
        progress(index + 1, num_steps)

    steps = np.unique(np.append(np.arange(0, num_steps, record_every), num_steps))
    if diverged_at is not None:
        records.pop(diverged_at, None)  # its loss says nothing, and its outputs count as some class
    curve = np.asarray([records.get(int(index), (np.nan, np.nan)) for index in steps])
    spiked = bool(highest > _SPIKE * max(curve[0, 0], chance_loss(np.asarray(targets), loss)))
    collapsed_at = _collapsed_at(constant, spiked) if diverged_at is None and count > 1 else None
    return TrainingRun(
        steps,
        curve[:, 0],
        curve[:, 1],
        params,
        sum(step_seconds),
        evaluation_seconds,
        compile_seconds,
        diverged_at,
        _velocity(optimizer, opt_state),
        collapsed_at,
        opt_state,
        float(np.median(step_seconds)) if step_seconds else 0.0,
    )


def _initial_state(chain: optax.GradientTransformationExtraArgs, params: PyTree) -> PyTree:
    """The chain's state before training, after a look at whether it takes these parameters.

    Raises:
        ValueError: it does not: a mask or a label that does not fit, or an update that needs more
            than the gradient.
    """
    try:
        opt_state = chain.init(params)
        jax.eval_shape(chain.update, params, opt_state, params)
    except Exception as error:
        raise ValueError(
            f"optimizer: it fails on these parameters ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); correct the optax chain"
        ) from error
    return opt_state


def _updates(
    chain: optax.GradientTransformationExtraArgs, opt_state: PyTree, params: PyTree
) -> PyTree:
    """Shapes of a chain's updates."""
    return jax.eval_shape(lambda *given: chain.update(*given)[0], params, opt_state, params)


def _velocity(optimizer: OptimizerConfig, opt_state: PyTree) -> PyTree | None:
    if optimizer.transformation is not None or optimizer.name != "sgd":
        return None
    return optax.tree_utils.tree_get(opt_state, "trace")


@dataclasses.dataclass(frozen=True)
class _Network:
    """Both batch-norm modes behind one signature; sums over weighted samples."""

    apply: Apply
    statistics: BatchStatistics | None
    loss: str

    @property
    def initial_state(self) -> PyTree:
        return () if self.statistics is None else self.statistics.state

    def gradient(self, params, state, inputs, targets, indices, weights, total):
        """Adds a block's gradient to `total`; also the new state, and the block's share of loss and
        error.
        """
        x, y = take(inputs, indices), targets[indices]

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

    def evaluation(self, params, state, inputs, targets, indices, weights):
        """A block's share of the loss and error of the whole set, and the range of its outputs."""
        x, y = take(inputs, indices), targets[indices]
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

    def sample_losses(self, logits, targets) -> Array:
        if self.loss == "mse":
            return optax.l2_loss(logits, targets).sum(-1)
        return optax.softmax_cross_entropy(logits, targets)


def _range(logits: Array) -> Array:
    """The least and the greatest of each output over the samples, (2, C)."""
    return jnp.stack([logits.min(0), logits.max(0)])


def _is_constant(ranges: list[Array]) -> bool:
    """Whether the outputs of all blocks are the same for all samples, to rounding."""
    low, high = np.asarray(ranges)[:, 0].min(0), np.asarray(ranges)[:, 1].max(0)
    return bool((high - low).max() <= _CONSTANT * max(1.0, np.abs([low, high]).max()))


def _collapsed_at(constant: dict[int, bool], spiked: bool) -> int | None:
    """The first record of the last stretch of constant outputs, if that goes on to the end and is
    not how the run began and stayed.
    """
    dead = None
    for index, is_constant in sorted(constant.items(), reverse=True):
        if not is_constant:
            return dead
        dead = index
    return min((index for index in constant if index > 0), default=None) if spiked else None


def _padded_blocks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
    part = next(_padded_blocks(np.arange(block), block))
    total = (params,) if function.__name__ == "gradient" else ()
    return jax.jit(function).lower(params, state, inputs, targets, *part, *total).compile()
