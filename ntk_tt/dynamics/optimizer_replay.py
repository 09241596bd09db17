"""Replay: the surrogate trained by the very optimiser that the user will run, step for step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.batches import batch_indices, checked_batches
from ntk_tt.dynamics.replay_streamed import train
from ntk_tt.dynamics.steps import Steps, steps_of
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.problem import Problem

PATH_SPANS = 6  # spans between the states that a replay keeps
_WAY_STATES = 24


def replay(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    batches: Int[Array | np.ndarray, "t b"] | None = None,
    optimizer_state: Any = None,
    steps_before: int = 0,
    record_every: int = 1,
    save_logits: bool = False,
    num_spans: int | None = None,
    beside: Problem | None = None,
    progress: Progress = silent,
) -> Trajectory:
    """The curve of a problem under u ← u − η_t a, a ← m a + Jᵀ g_batch/B + λ (u + w₀), and
    Nesterov's variant.

    Exact for momentum, Nesterov, any schedule, weight decay and mini-batches: there is no
    small-step, diagonal-noise or effective-learning-rate approximation, so what differs from real
    training is what the surrogate leaves out of the network (and the order of the data). Of a
    linear problem, f = f₀ + J u, the displacement u lives in the kernel's state plus one multiple
    of w₀, so a step costs two products with the batch's rows of Θ (or Φ); of one with a real head
    J changes on the way.

    Args:
        problem: the surrogate and its data.
        optimizer: the setting to price.
        num_steps: T.
        key: of the order of the data; key 0 where none is given. Unused for the full batch.
        batches: the samples of each step, (T, B), instead of a random order.
        optimizer_state: at the start: of a small network what its optax chain keeps
            (`SmallNetwork.of_optimizer`), of a frozen kernel the momentum, like the problem's
            state; None is a fresh optimiser.
        steps_before: optimiser steps that led to that state; the schedule goes on from there.
        record_every: steps between records; the last step is always recorded.
        save_logits: keep f at each record, (S, N, C).
        num_spans: about how many spans of whole records lie between the `states` that are kept;
            None keeps none, or 6 spans where the kernel changes on the way.
        beside: the same network on samples that are not trained on, whose loss and error are
            recorded too; of a network whose states are its parameters.
        progress: called as `progress(step, num_steps)` after each span.

    Raises:
        ValueError: an argument out of range, another optimiser than SGD, or a batch larger than the
            data; with streamed features, a velocity or states to keep.

    Cost: T·2·B·C·(N·C or D') flops, and a full product at each record in the primal space; with a
    real head a step reads the batch's rows of Ψ (and of the second pass) twice, 4·B·(r + C−1)·D'
    flops, and a record all rows once. Streamed features are read once at each full-batch step,
    which gives the record too; else the batch's rows at each step, and all at each record.
    """
    check_num_steps(num_steps)
    numbers = record_steps(num_steps, record_every)
    steps = steps_of(problem, optimizer, steps_before + num_steps)
    indices = (
        batch_indices(
            problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key
        )
        if batches is None
        else checked_batches(batches, num_steps, problem.num_samples)
    )
    if problem.streamed:
        if optimizer_state is not None or num_spans is not None:
            raise ValueError(
                "optimizer_state, num_spans: need the features in memory, but these are streamed "
                "from disk; leave both out, or take a smaller num_projections"
            )
        return train(
            problem.frozen("replay"),
            (optimizer,),
            num_steps,
            indices,
            record_every=record_every,
            save_logits=save_logits,
            progress=progress,
        )[0]
    keeps_states = problem.follows_kernel or num_spans is not None
    carry = steps.begin(problem, optimizer_state, steps_before)
    parts, carries = [], [carry]
    for span, chunk in spans_of(
        num_steps, record_every, num_spans or (PATH_SPANS if keeps_states else 1)
    ):
        taken = None if indices is None else indices[span].reshape(-1, chunk, indices.shape[1])
        length = (span.stop - span.start) // chunk
        records, carry = _run(problem, steps, length, chunk, save_logits, taken, carry, beside)
        # as arrays of numpy they are there, and not only asked for
        parts.append(jax.tree.map(np.asarray, records))
        carries.append(carry)
        progress(span.stop, num_steps)
    last = record(problem, save_logits, steps.read(carry), beside)
    parts.append(jax.tree.map(lambda leaf: leaf[None], last))
    loss, error, saved, validation = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts
    )
    states = tuple(carries) if keeps_states else None
    return Trajectory(numbers, loss, error, saved, states, *(validation or ()))


def own_way(
    optimizer: OptimizerConfig, num_steps: int, *, key: Key[Array, ""] | None = None
) -> Callable[[Problem], Iterator[Any]] | None:
    """The way of an optimiser as `ntk_tt.surrogate.expand` takes it: the states of a problem that
    it trains, `num_steps`/24 steps apart. None for SGD, whose way is that of gradient descent.
    """
    if optimizer.is_sgd:
        return None

    def way(problem: Problem) -> Iterator[Any]:
        steps = steps_of(problem, optimizer, num_steps)
        order = jax.random.key(0) if key is None else key
        indices = batch_indices(problem.num_samples, optimizer, num_steps, order)
        carry = steps.begin(problem)
        chunk = -(-num_steps // _WAY_STATES)
        for start in range(0, num_steps, chunk):
            length = min(chunk, num_steps - start)
            batches = None if indices is None else indices[start : start + length][None]
            _, carry = _run(problem, steps, 1, length, False, batches, carry)
            yield carry[0]

    return way


def states_along(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    num_spans: int = PATH_SPANS,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[Any, ...]:
    """The states that a replay with few records keeps, those before and after training among
    them.
    """
    found = replay(
        problem,
        optimizer,
        num_steps,
        key=key,
        record_every=-(-num_steps // num_spans),
        num_spans=num_spans,
    )
    return found.states or ()


def spans_of(num_steps: int, record_every: int, num_spans: int) -> list[tuple[slice, int]]:
    """Steps that run in one compiled scan, and how many of them lie between records.

    All records but the last lie a whole number of `record_every` steps apart; what remains is a
    span of its own.
    """
    whole = (num_steps // record_every) * record_every
    length = record_every * -(-num_steps // (record_every * num_spans))
    spans = [
        (slice(start, min(start + length, whole)), record_every)
        for start in range(0, whole, length)
    ]
    if whole < num_steps:
        spans.append((slice(whole, num_steps), num_steps - whole))
    return spans


def run_records(
    problem: Problem,
    steps: Steps,
    length: int,
    chunk: int,
    save_logits: bool,
    indices: Int[Array, "s t b"] | None,
    carry: Any,
    beside: Problem | None = None,
):
    """Records before every `chunk` steps, and what is carried after all of them."""

    def step(carry, batch):
        return steps.step(problem, carry, batch), None

    def chunk_of_steps(carry, batches):
        before = record(problem, save_logits, steps.read(carry), beside)
        return jax.lax.scan(step, carry, batches, length=chunk)[0], before

    carry, records = jax.lax.scan(chunk_of_steps, carry, indices, length=length)
    return records, carry


_run = eqx.filter_jit(run_records)


@partial(jax.jit, static_argnums=1)
def record(
    problem: Problem, save_logits: bool, state: Any, beside: Problem | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Array | None, tuple[Array, Array] | None]:
    """Loss and error of all samples, their logits where these are kept, and loss and error of
    samples that are not trained on.
    """
    logits = problem.logits(state)
    validation = None if beside is None else beside.metrics(beside.logits(state))
    return *problem.metrics(logits), logits if save_logits else None, validation
