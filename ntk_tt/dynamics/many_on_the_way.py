"""Many settings replayed together, with the states that they pass on their way."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.dynamics.many_settings import kind_of, settings_at_once
from ntk_tt.dynamics.optimizer_replay import PATH_SPANS, record, spans_of
from ntk_tt.dynamics.steps import Steps, stacked_steps
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.surrogate.problem import Problem

# Steps of one call, after which Python may be interrupted: at first, and as many seconds as others
_FIRST, _SECONDS = 16, 0.7


class Block(NamedTuple):
    """Settings that ran together, one form with its numbers stacked.

    Attributes:
        members: (s,) their places among all settings.
        trajectories: of each member. Where a whole block has left the finite numbers it is not
            followed further, and its later records are NaN.
        problem: in the coordinates of `states`.
        steps: how the settings train it, stacked; perhaps filled up with copies of the last.
        states: by step, what the steps carry there, stacked alike; only before the block was left.
    """

    members: tuple[int, ...]
    trajectories: tuple[Trajectory, ...]
    problem: Problem
    steps: Steps
    states: dict[int, Any]


def replay_blocks(
    problem: Problem,
    optimizers: Sequence[OptimizerConfig],
    num_steps: int,
    *,
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
    keep: Sequence[int] = (),
    memory: int | None = None,
) -> Iterator[Block]:
    """`replay_many`, block by block, and the states at some steps.

    Settings of one kind are put in order of their rate, so that those that diverge do so together.

    Args:
        problem: the surrogate and its data, in memory.
        optimizers: the settings.
        num_steps: T.
        key: of the order of the data; key 0 where none is given.
        record_every: steps between records.
        keep: the steps whose states are kept, from 0 to T.
        memory: bytes that a block may take; None takes what is free.

    Raises:
        ValueError: see `replay_many`.

    Cost: that of `replay_many`.
    """
    check_num_steps(num_steps)
    record_steps(num_steps, record_every)
    key = jax.random.key(0) if key is None else key
    groups: dict[Any, list[int]] = {}
    for index, optimizer in enumerate(optimizers):
        groups.setdefault(kind_of(problem, optimizer), []).append(index)
    for members in groups.values():
        members = sorted(members, key=lambda index: _pace(optimizers[index], num_steps))
        first = optimizers[members[0]]
        indices = batch_indices(problem.num_samples, first, num_steps, key)
        size = settings_at_once(
            problem,
            len(members),
            num_steps,
            record_every,
            states=len(set(keep)),
            memory=memory,
        )
        small = problem
        if first.transformation is None:
            looks = num_steps * (1.0 if indices is None else indices.shape[1] / problem.num_samples)
            small = problem.alike(is_sgd=first.name == "sgd", num_steps=int(len(members) * looks))
        for start in range(0, len(members), size):
            block = members[start : start + size]
            yield _replayed(small, optimizers, block, size, num_steps, indices, record_every, keep)


def path_steps(num_steps: int, record_every: int) -> list[int]:
    """The steps whose states a replay keeps (`Trajectory.states`): 0, T and a handful between."""
    return [0, *(span.stop for span, _ in spans_of(num_steps, record_every, PATH_SPANS))]


def _pace(optimizer: OptimizerConfig, num_steps: int) -> float:
    return float(optimizer.learning_rates(num_steps).max()) / (1 - optimizer.momentum)


def _replayed(
    problem: Problem,
    optimizers: Sequence[OptimizerConfig],
    members: Sequence[int],
    size: int,
    num_steps: int,
    indices: Int[Array, "t b"] | None,
    record_every: int,
    keep: Sequence[int],
) -> Block:
    filled = [*members, *[members[-1]] * (size - len(members))]
    steps = stacked_steps(problem, [optimizers[index] for index in filled], num_steps)
    numbers = record_steps(num_steps, record_every)
    carry, records = _begin(problem, steps, len(numbers))
    states, kept = {}, set(keep)
    if 0 in kept:
        states[0] = carry
    ends, taken, longest = sorted({*(step for step in kept if step > 0), num_steps}), 0, _FIRST
    is_left = False
    while ends and not is_left:
        stop, begun = min(ends[0], taken + longest), time.monotonic()
        carry, records, is_finite = _steps_between(
            problem,
            steps,
            carry,
            records,
            indices,
            np.int32(taken),
            np.int32(stop),
            record_every,
        )
        is_left = not bool(np.asarray(is_finite).any())
        is_slow = time.monotonic() - begun > _SECONDS
        longest, taken = max(1, longest // 2) if is_slow else 2 * longest, stop
        if stop == ends[0]:
            ends = ends[1:]
            if stop in kept and not is_left:
                states[stop] = carry
    if not is_left:
        records = _last_record(problem, steps, carry, records)
    losses, errors = (np.asarray(each, np.float64) for each in records)
    return Block(
        tuple(members),
        tuple(Trajectory(numbers, losses[row], errors[row]) for row in range(len(members))),
        problem,
        steps,
        states,
    )


@eqx.filter_jit
def _begin(problem: Problem, steps: Steps, num_records: int) -> Any:
    carry = jax.vmap(lambda steps: steps.begin(problem))(steps)
    empty = jnp.full((len(steps.rates), num_records), jnp.nan, problem.dtype)
    return carry, (empty, empty)


@eqx.filter_jit
def _steps_between(problem, steps, carry, records, indices, start, stop, record_every: int):
    """The carries after some steps, and the records on the way: one program for any of these."""

    def of_one(steps: Steps, carry: Any, records: Any):
        def step(number, carried):
            carry, records = carried

            def recorded():
                return _put(records, record(problem, False, steps.read(carry)), row)

            row = number // record_every
            if record_every == 1:
                records = recorded()
            else:
                records = jax.lax.cond(number % record_every == 0, recorded, lambda: records)
            batch = None if indices is None else indices[number]
            return steps.step(problem, carry, batch), records

        return jax.lax.fori_loop(start, stop, step, (carry, records))

    carry, records = jax.vmap(of_one)(steps, carry, records)
    return carry, records, _is_finite(carry[0])


@eqx.filter_jit
def _last_record(problem: Problem, steps: Steps, carry: Any, records: Any) -> Any:
    def of_one(steps: Steps, carry: Any, records: Any):
        return _put(records, record(problem, False, steps.read(carry)), records[0].shape[0] - 1)

    return jax.vmap(of_one)(steps, carry, records)


def _put(records: Any, found: Any, row: Any) -> Any:
    return tuple(
        each.at[row].set(value.astype(each.dtype))
        for each, value in zip(records, found[:2], strict=True)
    )


def _is_finite(state: Any) -> Array:
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(state)]
    return jnp.stack([jnp.isfinite(leaf).all(1) for leaf in leaves]).all(0)
