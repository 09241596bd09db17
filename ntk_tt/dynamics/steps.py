"""One optimiser step on a surrogate, for every optimiser that the surrogate can carry."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntk_tt.dynamics.sgd import sgd_step
from ntk_tt.optax_chain import ChainKind, chain_of, weights_read
from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.surrogate.problem import Problem

_COPIES, _PROBE_STEPS = 4, 3


class SgdSteps(eqx.Module):
    """SGD on a frozen kernel, whose state is no parameters but all that their displacement can be.

    A carry is (state, velocity, steps taken).
    """

    rates: Float[Array, " t"]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    nesterov: bool = eqx.field(static=True)

    def begin(self, problem: Problem, velocity: Any = None, taken: int = 0) -> Any:
        state = problem.zero()
        return (
            state,
            jax.tree.map(jnp.zeros_like, state) if velocity is None else velocity,
            jnp.asarray(taken, jnp.int32),
        )

    def step(self, problem: Problem, carry: Any, batch: Any) -> Any:
        state, velocity, count = carry
        slope = problem.gradient(state, self.weight_decay, batch)
        rate = self.rates[count]
        return (*sgd_step(state, velocity, slope, rate, self.momentum, self.nesterov), count + 1)

    def read(self, carry: Any) -> Any:
        """The state at which loss and error are looked at."""
        return carry[0]


class ChainSteps(eqx.Module):
    """Any optax chain on the parameters of a small network.

    A carry is (parameters, the optimiser's state, steps taken).
    """

    kind: ChainKind = eqx.field(static=True)
    numbers: dict[str, Float[Array, ""]]
    rates: Float[Array, " t"]

    def chain(self) -> optax.GradientTransformationExtraArgs:
        return chain_of(self.kind, self.numbers, self.rates)

    def begin(self, problem: Problem, opt_state: Any = None, taken: int = 0) -> Any:
        state = problem.zero()
        chain = self.chain()
        return (
            state,
            chain.init(state) if opt_state is None else opt_state,
            jnp.asarray(taken, jnp.int32),
        )

    def step(self, problem: Problem, carry: Any, batch: Any) -> Any:
        state, opt_state, count = carry
        slope = problem.gradient(state, 0.0, batch)
        updates, opt_state = self.chain().update(slope, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, count + 1

    def read(self, carry: Any) -> Any:
        """The state at which loss and error are looked at."""
        return weights_read(carry[1], carry[0])

    def response(self, slope: PyTree, carry: Any) -> tuple[PyTree, PyTree, PyTree]:
        """How the updates of this step and the next two answer to this step's gradient, entry by
        entry, as positive numbers where they go against it.

        By the derivative along random signs, whose own products are all that is left of an
        optimiser that treats each entry alone. Where there is none, as of a sign, what the update
        is over what the gradient is.
        """
        state, opt_state, _ = carry
        leaves, tree = jax.tree.flatten(slope)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        signs = jax.tree.unflatten(
            tree,
            [
                jax.random.rademacher(key, leaf.shape, leaf.dtype)
                for key, leaf in zip(keys, leaves, strict=True)
            ],
        )

        def three(first):
            found, now = [], opt_state
            for gradient in (first, slope, slope):
                updates, now = self.chain().update(gradient, now, state)
                found.append(updates)
            return tuple(found)

        updates, moved = jax.jvp(three, (slope,), (signs,))
        own = [jax.tree.map(lambda u, s: jnp.nan_to_num(-u * s), each, signs) for each in moved]

        def first(derivative, update, gradient):
            is_some = jnp.abs(gradient) > jnp.finfo(gradient.dtype).tiny
            ratio = jnp.where(is_some, -update / jnp.where(is_some, gradient, 1), 0)
            return jnp.maximum(jnp.where(derivative == 0, ratio, derivative), 0)

        return jax.tree.map(first, own[0], updates[0], slope), own[1], own[2]


Steps = SgdSteps | ChainSteps


def steps_of(problem: Problem, optimizer: OptimizerConfig, num_steps: int) -> Steps:
    """How an optimiser trains a problem.

    Raises:
        ValueError: an optimiser that the problem cannot carry: other than SGD on a frozen kernel,
            one that mixes entries on a small network.
    """
    steps = _steps(problem, optimizer, num_steps)
    if optimizer.transformation is not None and isinstance(steps, ChainSteps):
        check_carried(steps, problem.zero())
    return steps


def stacked_steps(problem: Problem, optimizers: Sequence[OptimizerConfig], num_steps: int) -> Steps:
    """How optimisers of one kind train a problem, with an axis of them in front of all numbers.

    Raises:
        ValueError: see `steps_of`.
    """
    first = steps_of(problem, optimizers[0], num_steps)
    each = [first, *(_steps(problem, optimizer, num_steps) for optimizer in optimizers[1:])]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *each)


def _steps(problem: Problem, optimizer: OptimizerConfig, num_steps: int) -> Steps:
    rates = jnp.asarray(optimizer.learning_rates(num_steps), problem.dtype)
    if not problem.takes_any_optimizer:
        check_sgd(optimizer, "replay")
        momentum, decay = (
            jnp.asarray(number, problem.dtype)
            for number in (optimizer.momentum, optimizer.weight_decay)
        )
        return SgdSteps(rates, momentum, decay, optimizer.nesterov)
    kind, numbers = optimizer.kind_and_numbers()
    return ChainSteps(
        kind, {name: jnp.asarray(number, problem.dtype) for name, number in numbers.items()}, rates
    )


def check_carried(steps: ChainSteps, params: PyTree) -> None:
    """Raises ValueError for an optimiser that a sample of the entries cannot carry.

    A parameter of entries that come in fours is trained beside a sample of every fourth: an
    optimiser that treats each entry alone, or goes by norms of whole gradients, moves both alike.
    """
    rng = np.random.default_rng(0)
    chain = steps.chain()
    some = _Pair.like(params, rng)
    gradients = [_Pair.like(params, rng).params for _ in range(_PROBE_STEPS)]

    @jax.jit
    def trained(pair, gradients):  # one program: step by step each operation would be its own
        moved = []
        for index, params in enumerate(pair):
            state = chain.init(params)
            for each in gradients:
                updates, state = chain.update(each[index], state, params)
                params = optax.apply_updates(params, updates)
            moved.append(params)
        return moved

    sampled, whole = map(named_leaves, trained(some.params, gradients))
    for name, leaf in sampled.items():
        mine = np.asarray(leaf, np.float64).reshape(-1)[:-1]
        theirs = np.asarray(whole[name], np.float64).reshape(-1)[::_COPIES]
        start = np.asarray(named_leaves(some.params[0])[name], np.float64).reshape(-1)[:-1]
        if not np.allclose(mine - start, theirs - start, rtol=1e-2, atol=1e-6):
            raise ValueError(
                f"optimizer: the chain mixes the entries of {name!r} (it takes norms of single "
                "parameters, or products of them), so a sample of the parameters does not train "
                "as all do; take an optimiser that treats each entry alone, such as adamw, or "
                "real training"
            )


class _Pair(eqx.Module):
    """The same numbers as a sample with what stands for the rest, and whole."""

    params: tuple[PyTree, PyTree]

    @classmethod
    def like(cls, params: PyTree, rng: np.random.Generator) -> "_Pair":
        """Of each parameter a few entries, in as many axes as it has."""
        sampled, whole = [], []
        leaves, tree = jax.tree.flatten(params)
        for leaf in leaves:
            values = rng.normal(size=6) + 0.1
            rest = np.sqrt((_COPIES - 1) * np.square(values).sum())
            ones = (1,) * max(0, leaf.ndim - 2)
            last = (2, 3 * _COPIES) if leaf.ndim > 1 else (6 * _COPIES,)
            sampled.append(
                jnp.asarray(np.append(values, rest), leaf.dtype).reshape(
                    (1,) * max(0, leaf.ndim - 1) + (-1,)
                )
            )
            whole.append(jnp.asarray(np.repeat(values, _COPIES), leaf.dtype).reshape(ones + last))
        return cls((jax.tree.unflatten(tree, sampled), jax.tree.unflatten(tree, whole)))
