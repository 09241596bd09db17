"""The linearised training problem: f(u) = f₀ + J u, and the displacements u that SGD can reach."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.kernels.operators import AbstractKernel, Indices
from ntk_tt.losses import LossName

Moving = TypeVar("Moving")  # what an optimiser moves: any tree of arrays


class LinearizedProblem(eqx.Module):
    """Everything the dynamics need; one of these prices every learning rate, momentum, batch size
    and schedule.

    Attributes:
        kernel: Θ, in one of its two forms.
        initial_logits: f₀ (N, C).
        weight_logits: J w₀ (N, C), along which weight decay pulls.
        targets: (N, C), one-hot rows for classification.
        loss: `ce` or `mse`.
        num_projections: D' of the random projection that Θ comes from; None where it is exact, or
            not known.
        num_params: D, which bounds the rank of Θ; None where it is not known.
        note: for the reader, what had to give way to memory and what that means; empty where
            nothing had to.
    """

    kernel: AbstractKernel
    initial_logits: Float[Array, "n c"]
    weight_logits: Float[Array, "n c"]
    targets: Float[Array, "n c"]
    loss: LossName = eqx.field(static=True, default="ce")
    note: str = eqx.field(static=True, default="")
    num_projections: int | None = eqx.field(static=True, default=None)
    num_params: int | None = eqx.field(static=True, default=None)

    @property
    def rank(self) -> int:
        """The most eigenvalues of Θ that are not zero, as the loss sees it."""
        rows = self.num_samples * (self.initial_logits.shape[1] - (self.loss == "ce"))
        return rows if self.num_params is None else min(rows, self.num_params)

    @property
    def num_samples(self) -> int:
        return self.initial_logits.shape[0]

    def metrics(self, logits: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and error rate."""
        return losses.mean_loss(self.loss, logits, self.targets), losses.error_rate(
            logits, self.targets
        )


class State(eqx.Module):
    """A displacement u = (what `kernel_state` stands for) + `decay`·w₀ of the weights from w₀."""

    kernel_state: Any
    decay: Any


def zero_state(problem: LinearizedProblem) -> State:
    return State(problem.kernel.zero(), jnp.zeros((), problem.initial_logits.dtype))


def logits(problem: LinearizedProblem, state: State) -> Float[Array, "n c"]:
    """f₀ + J u for all samples."""
    return (
        problem.initial_logits
        + problem.kernel.push(state.kernel_state)
        + state.decay * problem.weight_logits
    )


def logits_rows(problem: LinearizedProblem, state: State, indices: Indices) -> Float[Array, "b c"]:
    """f₀ + J u for some samples."""
    change = problem.kernel.push_rows(state.kernel_state, indices)
    return problem.initial_logits[indices] + change + state.decay * problem.weight_logits[indices]


def sgd_step(
    state: Moving, velocity: Moving, gradient: Moving, rate, momentum, nesterov
) -> tuple[Moving, Moving]:
    """a ← m a + d, then u ← u − η a (Nesterov: u ← u − η (d + m a)): the state and the velocity
    afterwards, in their own types.
    """
    velocity = jax.tree.map(lambda v, d: (momentum * v + d).astype(v.dtype), velocity, gradient)
    update = jax.tree.map(lambda v, d: jnp.where(nesterov, momentum * v + d, v), velocity, gradient)
    return jax.tree.map(lambda z, d: (z - rate * d).astype(z.dtype), state, update), velocity


def decayed(pulled: Any, state: State, weight_decay) -> State:
    """The whole gradient, Jᵀ ∂L/∂f + λ (u + w₀), from its first term."""
    return State(pulled + weight_decay * state.kernel_state, weight_decay * (state.decay + 1))


def check_in_memory(problem: LinearizedProblem, method: str) -> None:
    """Raises ValueError where a method that runs inside `jit` is given streamed features."""
    if problem.kernel.streamed:
        raise ValueError(
            f"method: {method!r} runs inside jit and needs the features in memory, but these are "
            "streamed from disk; "
            "use 'replay', or features that fit into memory (a smaller num_projections)"
        )
