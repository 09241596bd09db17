"""TODO."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt import losses
from ntk_tt.dynamics.batches import batch_indices, checked_batches
from ntk_tt.dynamics.replay_streamed import train
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.surrogate.linear import (
    LinearizedProblem,
    State,
    decayed,
    logits,
    logits_rows,
    sgd_step,
    zero_state,
)


def replay(
    problem: LinearizedProblem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    batches: Int[Array | np.ndarray, "t b"] | None = None,
    record_every: int = 1,
    save_logits: bool = False,
) -> Trajectory:
    """The curve of f = f₀ + J u under u ← u − η_t a, a ← m a + Jᵀ g_batch/B + λ (u + w₀), and
    Nesterov's variant.

    Exact for momentum, Nesterov, any schedule, weight decay and mini-batches: there is no
    small-step, diagonal-noise or effective-learning-rate approximation, so what differs from real
    training is linearisation (and the order of the data). u lives in the kernel's state plus one
    multiple of w₀, so a step costs two products with the batch's rows of Θ (or Φ).

    Args:
        problem: the linearised network and its data.
        optimizer: the setting to price.
        num_steps: T.
        key: of the order of the data; key 0 where none is given. Unused for the full batch.
        batches: the samples of each step, (T, B), instead of a random order.
        record_every: steps between records; the last step is always recorded.
        save_logits: keep f at each record, (S, N, C).

    Raises:
        ValueError: an argument out of range, or a batch larger than the data.

    Cost: T·2·B·C·(N·C or D') flops, and a full product at each record in the primal space. Streamed
    features are read once at each full-batch step, which gives the record too; else the batch's
    rows at each step, and all at each record.
    """
    check_num_steps(num_steps)
    steps = record_steps(num_steps, record_every)
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.initial_logits.dtype)
    if batches is None:
        indices = batch_indices(
            problem.num_samples, optimizer, num_steps, jax.random.key(0) if key is None else key
        )
    else:
        indices = checked_batches(batches, num_steps, problem.num_samples)

    if problem.kernel.streamed:
        return train(
            problem,
            (optimizer,),
            num_steps,
            indices,
            record_every=record_every,
            save_logits=save_logits,
        )[0]
    state, velocity = zero_state(problem), zero_state(problem)
    # All records but the last lie a whole number of `record_every` steps apart: one compiled scan,
    # then the remainder.
    whole = (num_steps // record_every) * record_every
    head = None if indices is None else indices[:whole]
    records, state, velocity = _run(
        problem,
        optimizer.nesterov,
        record_every,
        save_logits,
        hyper(optimizer),
        rates[:whole],
        head,
        state,
        velocity,
    )
    parts = [records]
    if whole < num_steps:
        tail = None if indices is None else indices[whole:]
        records, state, velocity = _run(
            problem,
            optimizer.nesterov,
            num_steps - whole,
            save_logits,
            hyper(optimizer),
            rates[whole:],
            tail,
            state,
            velocity,
        )
        parts.append(records)
    parts.append(jax.tree.map(lambda leaf: leaf[None], _record(problem, save_logits, state)))
    loss, error, saved = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts
    )
    return Trajectory(steps, loss, error, saved)


def hyper(optimizer: OptimizerConfig) -> tuple[float, float]:
    return float(optimizer.momentum), float(optimizer.weight_decay)


def gradient(
    problem: LinearizedProblem, state: State, weight_decay, batch: Int[Array, " b"] | None = None
) -> State:
    """∂L/∂u of the mean loss of all samples, or of a batch, and λ·(the weights)."""
    if batch is None:
        mean = losses.mean_residuals(problem.loss, logits(problem, state), problem.targets)
        pulled = problem.kernel.pull(mean)
    else:
        mean = losses.mean_residuals(
            problem.loss, logits_rows(problem, state, batch), problem.targets[batch]
        )
        pulled = problem.kernel.pull_rows(mean, batch)
    return decayed(pulled, state, weight_decay)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _run(problem, nesterov, chunk, save_logits, hyper, rates, indices, state, velocity):
    """Records before every `chunk` steps, and the state after all of them."""
    momentum, weight_decay = hyper

    def step(carry, now):
        state, velocity = carry
        rate, batch = now
        return sgd_step(
            state, velocity, gradient(problem, state, weight_decay, batch), rate, momentum, nesterov
        ), None

    def chunk_of_steps(carry, now):
        record = _record(problem, save_logits, carry[0])
        return jax.lax.scan(step, carry, now)[0], record

    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), (rates, indices))
    (state, velocity), records = jax.lax.scan(chunk_of_steps, (state, velocity), grouped)
    return records, state, velocity


@partial(jax.jit, static_argnums=1)
def _record(
    problem: LinearizedProblem, save_logits: bool, state: State
) -> tuple[Float[Array, ""], Float[Array, ""], Array | None]:
    f = logits(problem, state)
    return *problem.metrics(f), f if save_logits else None
