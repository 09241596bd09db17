"""The linearised training problem: f(u) = f₀ + J u, and the displacements u that SGD can reach."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.kernels.operators import AbstractKernel, Indices
from ntk_tt.losses import LossName


class LinearizedProblem(eqx.Module):
    """The problem that is linear in all weights: a frozen kernel. A point of it is its logits.

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
        rows = self.num_samples * (self.targets.shape[1] - (self.loss == "ce"))
        return rows if self.num_params is None else min(rows, self.num_params)

    @property
    def num_samples(self) -> int:
        return len(self.targets)

    @property
    def dtype(self) -> Any:
        return self.initial_logits.dtype

    @property
    def space(self) -> str:
        return self.kernel.space

    @property
    def follows_kernel(self) -> bool:
        return False

    @property
    def streamed(self) -> bool:
        return self.kernel.streamed

    @property
    def takes_any_optimizer(self) -> bool:
        return False

    @property
    def has_one_sharpness(self) -> bool:
        return self.loss == "mse"

    @property
    def numbers_a_pass(self) -> int:
        return 4 * self.targets.size

    def alike(self, *, is_sgd: bool, num_steps: int) -> "LinearizedProblem":
        return self

    def zero(self) -> "State":
        return State(self.kernel.zero(), jnp.zeros((), self.dtype))

    def logits(self, state: "State", indices: Indices | None = None) -> Float[Array, "b c"]:
        """f₀ + J u."""
        if indices is None:
            change = self.kernel.push(state.kernel_state)
            return self.initial_logits + change + state.decay * self.weight_logits
        change = self.kernel.push_rows(state.kernel_state, indices)
        return self.initial_logits[indices] + change + state.decay * self.weight_logits[indices]

    def gradient(
        self, state: "State", weight_decay: Any = 0.0, indices: Indices | None = None
    ) -> "State":
        if indices is None:
            mean = losses.mean_residuals(self.loss, self.logits(state), self.targets)
            pulled = self.kernel.pull(mean)
        else:
            mean = losses.mean_residuals(
                self.loss, self.logits(state, indices), self.targets[indices]
            )
            pulled = self.kernel.pull_rows(mean, indices)
        return decayed(pulled, state, weight_decay)

    def metrics(self, logits: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and error rate."""
        return losses.mean_loss(self.loss, logits, self.targets), losses.error_rate(
            logits, self.targets
        )

    def point(self, state: "State") -> Float[Array, "n c"]:
        return self.logits(state)

    def tangent(
        self, point: Float[Array | np.ndarray, "n c"], scale: None = None
    ) -> "LinearizedProblem":
        return dataclasses.replace(self, initial_logits=jnp.asarray(point))

    def shifted(self, by: Float[Array, "n c"]) -> "LinearizedProblem":
        return dataclasses.replace(self, initial_logits=self.initial_logits + by)

    def of_samples(self, indices: Indices) -> "LinearizedProblem":
        return dataclasses.replace(
            self,
            kernel=self.kernel.of_samples(indices),
            initial_logits=self.initial_logits[indices],
            weight_logits=self.weight_logits[indices],
            targets=self.targets[indices],
        )

    def frozen(self, method: str) -> "LinearizedProblem":
        return self

    def facts(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "linear_head": None,
            "num_directions": None,
            "directions_dropped": None,
            "kernel_growth": None,
        }


class State(eqx.Module):
    """A displacement u = (what `kernel_state` stands for) + `decay`·w₀ of the weights from w₀."""

    kernel_state: Any
    decay: Any


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
