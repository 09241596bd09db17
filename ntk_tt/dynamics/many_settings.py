"""Replay of many settings at once: one program, and one look at the samples, for all of a kind."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.dynamics.optimizer_replay import record, run_records
from ntk_tt.dynamics.replay_streamed import train
from ntk_tt.dynamics.steps import Steps, stacked_steps
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps, check_sgd
from ntk_tt.runtime.memory import available_bytes, even_size
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.problem import Problem

_MOST = 128  # settings at once: with more their states leave the caches, and nothing is gained
_COPIES = 5  # of what a step carries: before and after, gradient, updates, and one in between


def replay_many(
    problem: Problem,
    optimizers: Sequence[OptimizerConfig],
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
    save_logits: bool = False,
    memory: int | None = None,
    progress: Progress = silent,
) -> tuple[Trajectory, ...]:
    """The curves of many settings, each that of `replay` with the same key, to rounding.

    Settings that differ in numbers alone (rates and their schedules, momentum, betas, decay) run
    together in one compiled program, in which the products with each setting's state are one
    product of matrices. Other optimisers, batch sizes, or chains of your own have programs of their
    own. Settings of one batch size see the samples in the same order, so that they differ in what
    they are and not in chance. One that diverges leaves the others alone.

    Args:
        problem: the surrogate and its data.
        optimizers: the settings.
        num_steps: T.
        key: of the order of the data; key 0 where none is given.
        record_every: steps between records; the last step is always recorded. With mini-batches a
            record costs as much as N/B steps.
        save_logits: keep f at each record, (S, N, C) a setting.
        memory: bytes that the settings that run together may take; None takes what is free.
        progress: called as `progress(done, total)` after each block of settings.

    Returns:
        A curve for each setting, in their order; without the states that `replay` keeps.

    Raises:
        ValueError: an argument out of range, no settings, or one that `replay` refuses.

    Cost: a fifth to an eighth of a replay for each setting of 64 (docs/costs.md). Streamed features
    are read once a step for all settings of one batch size.
    """
    check_num_steps(num_steps)
    record_steps(num_steps, record_every)
    if not optimizers:
        raise ValueError("optimizers: there are none; give at least one setting")
    key = jax.random.key(0) if key is None else key
    groups: dict[Hashable, list[int]] = {}
    for index, optimizer in enumerate(optimizers):
        groups.setdefault(kind_of(problem, optimizer), []).append(index)
    found: dict[int, Trajectory] = {}
    for members in groups.values():
        settings = [optimizers[index] for index in members]
        indices = batch_indices(problem.num_samples, settings[0], num_steps, key)
        size = settings_at_once(
            problem,
            len(settings),
            num_steps,
            record_every,
            save_logits=save_logits,
            memory=memory,
        )
        curves = _of_group(problem, settings, num_steps, indices, record_every, save_logits, size)
        for block in curves:
            found |= dict(zip(members[: len(block)], block, strict=True))
            members = members[len(block) :]
            progress(len(found), len(optimizers))
    return tuple(found[index] for index in range(len(optimizers)))


def kind_of(problem: Problem, optimizer: OptimizerConfig) -> Hashable:
    """What settings must have in common to run together."""
    size = optimizer.checked_batch_size(problem.num_samples)
    batches = None if optimizer.is_full_batch(problem.num_samples) else (size, optimizer.sampling)
    if problem.takes_any_optimizer:
        return batches, optimizer.kind_and_numbers()[0]
    check_sgd(optimizer, "replay")
    # the loop over streamed features has both momenta in one step
    return batches, None if problem.streamed else optimizer.nesterov


def settings_at_once(
    problem: Problem,
    num_settings: int,
    num_steps: int,
    record_every: int,
    *,
    states: int = 0,
    save_logits: bool = False,
    memory: int | None = None,
) -> int:
    """Settings that run together, where so many states of each are kept beside what a step
    needs.
    """
    usable = available_bytes() if memory is None else memory
    state = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(problem.zero)))
    saved = problem.targets.size * (-(-num_steps // record_every) + 1) if save_logits else 0
    moments = 2  # at most, in what optax keeps
    numbers = (1 + moments) * (_COPIES + states) * state + problem.numbers_a_pass
    numbers += num_steps + saved
    fitting = max(1, usable // (numbers * jnp.dtype(problem.dtype).itemsize))
    return even_size(num_settings, fitting if problem.streamed else min(fitting, _MOST))


def _of_group(
    problem: Problem,
    settings: Sequence[OptimizerConfig],
    num_steps: int,
    indices: Int[Array, "t b"] | None,
    record_every: int,
    save_logits: bool,
    size: int,
) -> Iterator[tuple[Trajectory, ...]]:
    """The curves of settings that run together, block by block."""
    blocks = [settings[start : start + size] for start in range(0, len(settings), size)]
    if problem.streamed:
        for block in blocks:
            yield train(
                problem.frozen("replay"),
                block,
                num_steps,
                indices,
                record_every=record_every,
                save_logits=save_logits,
            )
        return
    first = settings[0]
    if first.transformation is None:
        looks = num_steps * (1.0 if indices is None else indices.shape[1] / problem.num_samples)
        problem = problem.alike(is_sgd=first.name == "sgd", num_steps=int(len(settings) * looks))
    numbers = record_steps(num_steps, record_every)
    for block in blocks:
        # filled up with its last, so that all blocks are one program
        filled = [*block, *[block[-1]] * (size - len(block))]
        steps = stacked_steps(problem, filled, num_steps)
        records = _replayed(problem, steps, num_steps, record_every, save_logits, indices)
        loss, error, saved, _ = jax.tree.map(np.asarray, records)
        yield tuple(
            Trajectory(numbers, loss[row], error[row], None if saved is None else saved[row])
            for row in range(len(block))
        )


@eqx.filter_jit
def _replayed(
    problem: Problem,
    steps: Steps,
    num_steps: int,
    record_every: int,
    save_logits: bool,
    indices: Int[Array, "t b"] | None,
) -> tuple[Float[Array, "s r"], Float[Array, "s r"], Array | None, None]:
    """The records of each setting of stacked steps."""
    whole, rest = divmod(num_steps, record_every)
    cut = whole * record_every

    def of_one(steps: Steps) -> Any:
        carry, parts = steps.begin(problem), []
        for length, chunk, part in ((whole, record_every, slice(cut)), (1, rest, slice(cut, None))):
            if length and chunk:
                taken = None
                if indices is not None:
                    taken = indices[part].reshape(length, chunk, indices.shape[1])
                records, carry = run_records(
                    problem, steps, length, chunk, save_logits, taken, carry
                )
                parts.append(records)
        last = record(problem, save_logits, steps.read(carry))
        parts.append(jax.tree.map(lambda leaf: leaf[None], last))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    return jax.vmap(of_one)(steps)
