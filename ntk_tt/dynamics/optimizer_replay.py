"""Replay: the surrogate trained by the very optimiser that the user will run, step for step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.batches import batch_indices, checked_batches
from ntk_tt.dynamics.replay_streamed import train
from ntk_tt.dynamics.sgd import sgd_step
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps, check_sgd
from ntk_tt.surrogate.problem import Problem

PATH_SPANS = 6  # spans between the states that a replay keeps


def replay(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    batches: Int[Array | np.ndarray, "t b"] | None = None,
    velocity: Any = None,
    record_every: int = 1,
    save_logits: bool = False,
    num_spans: int | None = None,
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
        velocity: the optimiser's momentum at the start, a tree like the problem's state; None is a
            fresh optimiser.
        record_every: steps between records; the last step is always recorded.
        save_logits: keep f at each record, (S, N, C).
        num_spans: about how many spans of whole records lie between the `states` that are kept;
            None keeps none, or 6 spans where the kernel changes on the way.

    Raises:
        ValueError: an argument out of range, another optimiser than SGD, or a batch larger than the
            data; with streamed features, a velocity or states to keep.

    Cost: T·2·B·C·(N·C or D') flops, and a full product at each record in the primal space; with a
    real head a step reads the batch's rows of Ψ (and of the second pass) twice, 4·B·(r + C−1)·D'
    flops, and a record all rows once. Streamed features are read once at each full-batch step,
    which gives the record too; else the batch's rows at each step, and all at each record.
    """
    check_num_steps(num_steps)
    check_sgd(optimizer, "head" if problem.follows_kernel else "replay")
    steps = record_steps(num_steps, record_every)
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.dtype)
    indices = (
        batch_indices(
            problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key
        )
        if batches is None
        else checked_batches(batches, num_steps, problem.num_samples)
    )
    if problem.streamed:
        if velocity is not None or num_spans is not None:
            raise ValueError(
                "velocity, num_spans: need the features in memory, but these are streamed from "
                "disk; leave both out, or take a smaller num_projections"
            )
        return train(
            problem.frozen("replay"),
            (optimizer,),
            num_steps,
            indices,
            record_every=record_every,
            save_logits=save_logits,
        )[0]
    keeps_states = problem.follows_kernel or num_spans is not None
    state = problem.zero()
    velocity = jax.tree.map(jnp.zeros_like, state) if velocity is None else velocity
    parts, states = [], [state]
    for span, chunk in _spans(
        num_steps, record_every, num_spans or (PATH_SPANS if keeps_states else 1)
    ):
        records, state, velocity = _run(
            problem,
            optimizer.nesterov,
            chunk,
            save_logits,
            hyper(optimizer),
            rates[span],
            None if indices is None else indices[span],
            state,
            velocity,
        )
        parts.append(records)
        states.append(state)
    parts.append(jax.tree.map(lambda leaf: leaf[None], _record(problem, save_logits, state)))
    loss, error, saved = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts
    )
    return Trajectory(steps, loss, error, saved, tuple(states) if keeps_states else None)


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


def hyper(optimizer: OptimizerConfig) -> tuple[float, float]:
    return float(optimizer.momentum), float(optimizer.weight_decay)


def _spans(num_steps: int, record_every: int, num_spans: int) -> list[tuple[slice, int]]:
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


@partial(jax.jit, static_argnums=(1, 2, 3))
def _run(problem, nesterov, chunk, save_logits, hyper, rates, indices, state, velocity):
    """Records before every `chunk` steps, and the state after all of them."""
    momentum, weight_decay = hyper

    def step(carry, now):
        state, velocity = carry
        rate, batch = now
        return sgd_step(
            state, velocity, problem.gradient(state, weight_decay, batch), rate, momentum, nesterov
        ), None

    def chunk_of_steps(carry, now):
        record = _record(problem, save_logits, carry[0])
        return jax.lax.scan(step, carry, now)[0], record

    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), (rates, indices))
    (state, velocity), records = jax.lax.scan(chunk_of_steps, (state, velocity), grouped)
    return records, state, velocity


@partial(jax.jit, static_argnums=1)
def _record(
    problem: Problem, save_logits: bool, state: Any
) -> tuple[Float[Array, ""], Float[Array, ""], Array | None]:
    logits = problem.logits(state)
    return *problem.metrics(logits), logits if save_logits else None
