"""Replay of the optimiser with a real head and an expanded backbone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ntk_tt.dynamics.batches import batch_indices, checked_batches
from ntk_tt.dynamics.optimizer_replay import hyper
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.surrogate.linear import sgd_step
from ntk_tt.surrogate.real_head import HeadProblem, HeadState

PATH_SPANS = 6  # spans between the states that a replay keeps


def replay_head(
    problem: HeadProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    batches: Int[Array | np.ndarray, "t b"] | None = None,
    velocity: HeadState | None = None,
    record_every: int = 1,
    save_logits: bool = False,
    num_spans: int = PATH_SPANS,
) -> Trajectory:
    """The curve of the model of `HeadProblem` under the very optimiser: as `replay`, with head and
    backbone multiplying.

    Args: as `replay`, and
        velocity: the optimiser's momentum at the start; None is a fresh optimiser.
        num_spans: about how many spans of whole records lie between the `states` that are kept.

    Raises:
        ValueError: an argument out of range, or a batch larger than the data.

    Cost: a step reads the batch's rows of Ψ (and of the second pass) twice, 4·B·(r + C−1)·D' flops;
    a record all rows once.
    """
    check_num_steps(num_steps)
    steps = record_steps(num_steps, record_every)
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.jacobian.dtype)
    indices = (
        batch_indices(
            problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key
        )
        if batches is None
        else checked_batches(batches, num_steps, problem.num_samples)
    )
    # arrays, or each momentum would compile anew
    settings = jax.tree.map(jnp.asarray, hyper(optimizer))
    state = problem.zero()
    carry = state, jax.tree.map(jnp.zeros_like, state) if velocity is None else velocity
    whole = (num_steps // record_every) * record_every
    length = record_every * -(-num_steps // (record_every * num_spans))
    spans = [
        (slice(start, min(start + length, whole)), record_every)
        for start in range(0, whole, length)
    ]
    if whole < num_steps:
        spans.append((slice(whole, num_steps), num_steps - whole))
    parts, states = [], [state]
    for span, chunk in spans:
        records, carry = _run(
            problem,
            optimizer.nesterov,
            chunk,
            save_logits,
            settings,
            carry,
            rates[span],
            None if indices is None else indices[span],
        )
        parts.append(records)
        states.append(carry[0])
    parts.append(jax.tree.map(lambda leaf: leaf[None], _record(problem, save_logits, carry[0])))
    loss, error, saved = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts
    )
    return Trajectory(steps, loss, error, saved, tuple(states))


def states_along(
    problem: HeadProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    num_spans: int = PATH_SPANS,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[HeadState, ...]:
    """The states that a replay with few records keeps."""
    found = replay_head(
        problem,
        optimizer,
        num_steps,
        key=key,
        record_every=-(-num_steps // num_spans),
        num_spans=num_spans,
    ).states
    assert found is not None
    return found


@eqx.filter_jit
def _run(
    problem: HeadProblem,
    nesterov: bool,
    chunk: int,
    save_logits: bool,
    hyper,
    carry,
    rates,
    indices,
):
    momentum, weight_decay = hyper

    def step(carry, now):
        (state, velocity), (rate, batch) = carry, now
        return sgd_step(
            state, velocity, problem.gradient(state, weight_decay, batch), rate, momentum, nesterov
        ), None

    def chunk_of_steps(carry, now):
        return jax.lax.scan(step, carry, now)[0], _record(problem, save_logits, carry[0])

    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), (rates, indices))
    carry, records = jax.lax.scan(chunk_of_steps, carry, grouped)
    return records, carry


@eqx.filter_jit
def _record(problem: HeadProblem, save_logits: bool, state: HeadState):
    """(loss, error, logits or None) at a state."""
    loss, error, logits = problem.metrics(state)
    return loss, error, logits if save_logits else None
