"""A real run: its steps, and what is seen on the way."""

import dataclasses
import itertools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ntk_tt.data.augmentation import Augmentation
from ntk_tt.data.order import batches_in_order
from ntk_tt.models.former_network import takes_former_network
from ntk_tt.models.model import BatchStatistics, Model
from ntk_tt.models.switches import check_trains
from ntk_tt.optax_chain import Transformation
from ntk_tt.optimizer import OptimizerConfig, as_setting, check_num_steps
from ntk_tt.runtime.input_trees import CutInputs, Inputs, num_samples, take
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.targets import (
    Labels,
    chance_loss,
    check_outputs,
    check_smoothing,
    encode_targets,
)
from ntk_tt.training.programs import (
    Evaluation,
    Network,
    Point,
    Programs,
    Seen,
    compile_evaluation,
    compile_programs,
)

# samples; on a CPU a third faster per sample than 256 (python -m benchmarks.cost)
_CPU_BLOCK, _DEVICE_BLOCK = (
    32,
    256,
)
_LOOK = 1 << 31  # from which on draws of augmentation are those of looks, below those of steps
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
        validation_loss, validation_error: (S,) of samples that are not trained on; None without.
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
    validation_loss: np.ndarray | None = None
    validation_error: np.ndarray | None = None


@takes_former_network
def finetune(
    model: Model,
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
    train_statistics: bool = False,
    augment: Augmentation | None = None,
    validation: tuple[Inputs, Labels] | None = None,
    block_size: int | None = None,
    progress: Progress = silent,
) -> TrainingRun:
    """Train for `num_steps` and record loss and error on the whole training set.

    Args:
        model: the network, from where its training starts; one of a function is
            `ntk_tt.from_function(apply, params)`.
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
        train_statistics: let batch norm take the statistics of each batch, and train its running
            ones (`Model.batch_statistics`, where there are any); else they stay as they are. A full
            batch is then normalised as a whole, so it must fit into memory.
        augment: change images before each look at them, the recorded ones too: the loss is that of
            augmented images, as a log of training shows it.
        validation: inputs and labels that are not trained on; their loss and error are recorded
            too, with their labels as they are.
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
    if augment is not None:
        augment.check(inputs)
    batch_size = optimizer.checked_batch_size(count)
    full_batch = optimizer.is_full_batch(count)
    samples = CutInputs(inputs)
    targets = _targets(model, samples, labels, loss, label_smoothing)
    statistics = _statistics(model, samples) if train_statistics else None
    network = Network(model.apply, statistics, loss, augment, seed)
    chain = optimizer.chain(num_steps)
    params = jax.tree.map(jnp.array, model.params)
    point = Point(params, network.initial_state, _initial_state(chain, params))
    programs = compile_programs(network, chain, samples, targets, point, batch_size, block_size)
    # a full batch tells its own loss
    is_free = full_batch and statistics is None and optimizer.weight_ema is None
    beside = None
    if validation is not None:
        others = CutInputs(validation[0])
        unseen = _targets(model, others, validation[1], loss, 0.0)
        plain = dataclasses.replace(network, augmentation=None)
        beside = compile_evaluation(plain, others, unseen, point, block_size)
    course = _Course(programs, num_steps, record_every, is_free, beside)
    batches = batches_in_order(count, batch_size, full_batch, optimizer.sampling, seed)
    for index, rows in enumerate(itertools.islice(batches, num_steps)):
        if not course.looks(index, point):
            break
        point = course.steps_on(index, point, rows)
        if course.diverged_at is not None:
            break
        progress(index + 1, num_steps)
    else:
        course.looks(num_steps, point)
    least = chance_loss(np.asarray(targets), loss)
    return course.run(point, least, _velocity(optimizer, point.opt_state))


def _targets(
    model: Model, samples: CutInputs, labels: Labels, loss: str, label_smoothing: int | float
) -> Array:
    """(N, C), in float32 at least."""
    output = jax.eval_shape(model.apply, model.params, take(samples.longest, slice(1)))
    check_outputs(loss, output.size)
    dtype = jnp.promote_types(output.dtype, jnp.float32)
    targets = encode_targets(labels, output.size, dtype, loss=loss)
    check_smoothing(label_smoothing, loss)
    return optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets


def _statistics(model: Model, samples: CutInputs) -> BatchStatistics | None:
    """Those to train, after a look at whether training changes them."""
    found = model.batch_statistics
    if found is not None:
        check_trains(found.apply_train, model.params, found.state, take(samples.longest, slice(2)))
    return found


class _Course:
    """What is recorded of a run while it goes on.

    Attributes:
        diverged_at: the first step with a loss that is not finite.
    """

    def __init__(
        self,
        programs: Programs,
        num_steps: int,
        record_every: int,
        is_free: bool,
        beside: Evaluation | None = None,
    ):
        self._programs, self._is_free, self._beside = programs, is_free, beside
        self._last, self._unseen = num_steps, {}
        self._due = np.unique(np.append(np.arange(0, num_steps, record_every), num_steps))
        self._records: dict[int, tuple[float, float]] = {}
        self._constant: dict[int, bool] = {}
        self._highest = self._evaluation_seconds = 0.0
        self._step_seconds: list[float] = []
        self.diverged_at: int | None = None

    def looks(self, index: int, point: Point) -> bool:
        """Evaluates where a record is due; whether the loss there, if so, is finite."""
        if index not in self._due:
            return True
        clock = time.perf_counter()
        if self._beside is not None:
            self._unseen[index] = self._beside(point)[:2]
        if self._is_free and index < self._last:
            self._evaluation_seconds += time.perf_counter() - clock
            return True
        self._record(index, self._programs.evaluate(point, _LOOK + index))
        self._evaluation_seconds += time.perf_counter() - clock
        if not np.isfinite(self._records[index][0]):
            self.diverged_at = index
        return self.diverged_at is None

    def steps_on(self, index: int, point: Point, rows: np.ndarray) -> Point:
        clock = time.perf_counter()
        after, seen = self._programs.step(point, rows, index)
        self._step_seconds.append(time.perf_counter() - clock)
        if not np.isfinite(seen.loss):
            self.diverged_at = index
            return after
        self._highest = max(self._highest, seen.loss)
        if self._is_free and index in self._due:
            self._record(index, seen)
        return after

    def _record(self, index: int, seen: Seen) -> None:
        self._records[index] = seen.loss, seen.error
        self._constant[index] = _is_constant(seen.ranges)

    def run(self, point: Point, least: float, velocity: PyTree | None) -> TrainingRun:
        """
        Args:
            least: the loss of constant outputs.
        """
        if self.diverged_at is not None:
            # its loss says nothing, and its outputs count as some class
            self._records.pop(self.diverged_at, None)
            self._unseen.pop(self.diverged_at, None)
        curve = self._curve(self._records)
        unseen = () if self._beside is None else self._curve(self._unseen).T
        spiked = bool(self._highest > _SPIKE * max(curve[0, 0], least))
        is_asked = self.diverged_at is None and len(self._programs.targets) > 1
        return TrainingRun(
            self._due,
            curve[:, 0],
            curve[:, 1],
            point.params,
            sum(self._step_seconds),
            self._evaluation_seconds,
            self._programs.seconds,
            self.diverged_at,
            velocity,
            _collapsed_at(self._constant, spiked) if is_asked else None,
            point.opt_state,
            float(np.median(self._step_seconds)) if self._step_seconds else 0.0,
            *unseen,
        )

    def _curve(self, records: dict[int, tuple[float, float]]) -> np.ndarray:
        return np.asarray([records.get(int(index), (np.nan, np.nan)) for index in self._due])


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


def _velocity(optimizer: OptimizerConfig, opt_state: PyTree) -> PyTree | None:
    if optimizer.transformation is not None or optimizer.name != "sgd":
        return None
    return optax.tree_utils.tree_get(opt_state, "trace")


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
