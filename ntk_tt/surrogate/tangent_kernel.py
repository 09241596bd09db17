"""Θ of the head-aware model at one state of its training."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.kernels.operators import AbstractKernel, Indices, of_rows


class TangentKernel(AbstractKernel):
    """Θ of the head-aware model at a state; a state of the kernel is a displacement of the
    backbone's coordinates and of the head.

    Attributes:
        jacobians: pairs of a Jacobian (N, k, D') and what the outputs read of its k directions (k,
            C).
        bend, slope: (N, C) and (D',), a Jacobian of rank one for each sample.
        head: (N, F) or (N, F + 1), what each output's column of the head (with its bias) is
            multiplied by.
    """

    jacobians: tuple[tuple[Float[Array, "n _ d"], Float[Array, "_ c"]], ...]
    bend: Float[Array, "n c"]
    slope: Float[Array, " d"]
    head: Float[Array, "n f"]

    @property
    def space(self) -> str:
        return "primal"

    def zero(self) -> Any:
        return jnp.zeros_like(self.slope), jnp.zeros(
            (self.head.shape[1], self.bend.shape[1]), self.head.dtype
        )

    def push(self, state: Any) -> Float[Array, "n c"]:
        backbone, head = state
        return (
            sum((jacobian @ backbone) @ read for jacobian, read in self.jacobians)
            + self.bend * (self.slope @ backbone)
            + self.head @ head
        )

    def push_rows(self, state: Any, indices: Indices) -> Float[Array, "b c"]:
        return self._of(indices).push(state)

    def pull(self, residuals: Float[Array, "n c"]) -> Any:
        backbone = sum(
            jnp.tensordot(residuals @ read.T, jacobian, 2) for jacobian, read in self.jacobians
        )
        return backbone + jnp.vdot(self.bend, residuals) * self.slope, self.head.T @ residuals

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Any:
        return self._of(indices).pull(residuals)

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        def of_samples(rows):
            here = self._of(rows)
            backbone = (
                sum(jnp.einsum("kc,nkd->ncd", read, jacobian) for jacobian, read in here.jacobians)
                + here.bend[..., None] * here.slope
            )
            return jnp.einsum("nad,nbd->nab", backbone, backbone) + jnp.square(here.head).sum(-1)[
                :, None, None
            ] * jnp.eye(here.bend.shape[1])

        formed = jax.ShapeDtypeStruct((*self.bend.shape, len(self.slope)), self.slope.dtype)
        return of_rows(
            of_samples,
            jnp.arange(len(self.bend)),
            formed,
            *(jacobian for jacobian, _ in self.jacobians),
        )

    def _of(self, indices: Indices) -> "TangentKernel":
        return TangentKernel(
            tuple((jacobian[indices], read) for jacobian, read in self.jacobians),
            self.bend[indices],
            self.slope,
            self.head[indices],
        )
