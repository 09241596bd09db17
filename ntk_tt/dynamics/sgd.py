"""One step of SGD with momentum on whatever is trained: a tree of arrays."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Moving = TypeVar("Moving")  # what an optimiser moves: any tree of arrays


def sgd_step(
    state: Moving, velocity: Moving, gradient: Moving, rate, momentum, nesterov
) -> tuple[Moving, Moving]:
    """a ← m a + d, then u ← u − η a (Nesterov: u ← u − η (d + m a)): the state and the velocity
    afterwards, in their own types.
    """
    velocity = jax.tree.map(lambda v, d: (momentum * v + d).astype(v.dtype), velocity, gradient)
    update = jax.tree.map(lambda v, d: jnp.where(nesterov, momentum * v + d, v), velocity, gradient)
    return jax.tree.map(lambda z, d: (z - rate * d).astype(z.dtype), state, update), velocity
