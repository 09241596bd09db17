"""Replay of the optimiser with a real head and an expanded backbone (`ntk_tt.head`)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ntk_tt.dynamics.replay import batch_indices, checked_batches, hyper
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.head import HeadProblem, HeadState
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.problem import sgd_step


def replay_head(problem: HeadProblem, optimizer: OptimizerConfig, num_steps: int, *, key: Key[Array, ""] | None = None,
                batches: Int[Array | np.ndarray, "t b"] | None = None, velocity: HeadState | None = None, record_every: int = 1,
                save_logits: bool = False) -> Trajectory:
    """The curve of the model of `HeadProblem` under the very optimiser: as `replay`, with head and backbone multiplying.

    Args: as `replay`, and
        velocity: the optimiser's momentum at the start; None is a fresh optimiser.

    Raises:
        ValueError: an argument out of range, or a batch larger than the data.

    Cost: a step reads the batch's rows of Ψ (and of the second pass) twice, 4·B·(r + C−1)·D' flops; a record all rows once.
    """
    check_num_steps(num_steps)
    steps = record_steps(num_steps, record_every)
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.jacobian.dtype)
    indices = (batch_indices(problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key) if batches is None
               else checked_batches(batches, num_steps, problem.num_samples))
    settings = jax.tree.map(jnp.asarray, hyper(optimizer))  # arrays, or each momentum would compile anew
    state = problem.zero()
    carry = state, jax.tree.map(jnp.zeros_like, state) if velocity is None else velocity
    whole = (num_steps // record_every) * record_every
    parts = []
    for span, chunk in ((slice(0, whole), record_every), (slice(whole, num_steps), num_steps - whole)):
        if span.start < span.stop:
            records, carry = _run(problem, optimizer.nesterov, chunk, save_logits, settings, carry, rates[span], None if indices is None else indices[span])
            parts.append(records)
    parts.append(jax.tree.map(lambda leaf: leaf[None], _record(problem, save_logits, carry[0])))
    loss, error, saved = jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)
    return Trajectory(steps, loss, error, saved)


def states_along(problem: HeadProblem, optimizer: OptimizerConfig, num_steps: int, count: int, *, key: Key[Array, ""] | None = None) -> list[HeadState]:
    """About `count` states between step 0 and T, both among them."""
    indices = batch_indices(problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key)
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.jacobian.dtype)
    settings = jax.tree.map(jnp.asarray, hyper(optimizer))
    state = problem.zero()
    carry, states, chunk = (state, jax.tree.map(jnp.zeros_like, state)), [state], -(-num_steps // count)
    for start in range(0, num_steps, chunk):
        span = slice(start, min(start + chunk, num_steps))
        _, carry = _run(problem, optimizer.nesterov, span.stop - start, False, settings, carry, rates[span], None if indices is None else indices[span])
        states.append(carry[0])
    return states


@eqx.filter_jit
def _run(problem: HeadProblem, nesterov: bool, chunk: int, save_logits: bool, hyper, carry, rates, indices):
    momentum, weight_decay = hyper

    def step(carry, now):
        (state, velocity), (rate, batch) = carry, now
        return sgd_step(state, velocity, problem.gradient(state, weight_decay, batch), rate, momentum, nesterov), None

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
