"""Θ of the head-aware model at one state of its training."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.kernels.operators import AbstractKernel, Indices, of_rows


class TangentKernel(AbstractKernel):
    """Θ of a surrogate at a state; a state of the kernel is a displacement of the sampled entries
    and of the head, over the roots of their scales.

    Attributes:
        jacobians: (N, k, D') each; that of the k directions is their sum, each times its share.
            What has a row for each sample may be filled up with zeros, as over the
            devices of a mesh.
        read: (N, k, C), what the outputs read of the directions.
        bend, slope: (N, C) and (D',), a Jacobian of rank one for each sample.
        head: (N, F) or (N, F + 1), what each output's column of the head (with its bias) is
            multiplied by; None without a head.
        root: (D',) and of_head: a number or (F + 1, C), roots of what each entry stands for times
            what the optimiser multiplies its gradient by.
    """

    jacobians: tuple[Float[Array, "p k d"], ...]
    shares: tuple[Float[Array, ""], ...]
    read: Float[Array, "p k c"]
    bend: Float[Array, "n c"]
    slope: Float[Array, " d"]
    head: Float[Array, "p f"] | None
    root: Float[Array, " d"]
    of_head: Array

    @property
    def space(self) -> str:
        return "primal"

    @property
    def jacobian(self) -> Float[Array, "p k d"]:
        """Of the k directions."""
        first, *others = (
            share * jacobian for share, jacobian in zip(self.shares, self.jacobians, strict=True)
        )
        return sum(others, first)

    def in_one(self) -> "TangentKernel":
        """With the sum of the Jacobians in their place."""
        one = jnp.ones((), self.read.dtype)
        return dataclasses.replace(self, jacobians=(self.jacobian,), shares=(one,))

    def zero(self) -> Any:
        width = 0 if self.head is None else self.head.shape[1]
        return jnp.zeros_like(self.slope), jnp.zeros((width, self.bend.shape[1]), self.slope.dtype)

    def push(self, state: Any) -> Float[Array, "n c"]:
        backbone, head = self.root * state[0], self.of_head * state[1]
        along: Any = 0.0
        for share, jacobian in zip(self.shares, self.jacobians, strict=True):
            along = along + share * (jacobian @ backbone)
        count = len(self.bend)
        pushed = self.bend * (self.slope @ backbone)
        pushed = pushed + jnp.einsum("nk,nkc->nc", along, self.read)[:count]
        return pushed if self.head is None else pushed + (self.head @ head)[:count]

    def push_rows(self, state: Any, indices: Indices) -> Float[Array, "b c"]:
        return self._of(indices).push(state)

    def pull(self, residuals: Float[Array, "n c"]) -> Any:
        backbone = jnp.vdot(self.bend, residuals) * self.slope
        residuals = jnp.pad(residuals, ((0, len(self.read) - len(residuals)), (0, 0)))
        along = jnp.einsum("nc,nkc->nk", residuals, self.read)
        for share, jacobian in zip(self.shares, self.jacobians, strict=True):
            backbone = backbone + share * jnp.tensordot(along, jacobian, 2)
        head = self.zero()[1] if self.head is None else self.head.T @ residuals
        return self.root * backbone, self.of_head * head

    def pull_rows(self, residuals: Float[Array, "b c"], indices: Indices) -> Any:
        return self._of(indices).pull(residuals)

    def diagonal_blocks(self) -> Float[Array, "n c c"]:
        def of_samples(rows):
            here = self._of(rows)
            slopes = jnp.broadcast_to(here.slope, (len(rows), 1, len(here.slope)))
            rooted = self.root * jnp.concatenate([here.jacobian, slopes], 1)
            read = jnp.concatenate([here.read, here.bend[:, None]], 1)
            inner = jnp.einsum("njd,nkd->njk", rooted, rooted)
            blocks = jnp.einsum("nja,njk,nkb->nab", read, inner, read)
            if here.head is None:
                return blocks
            num_outputs = here.bend.shape[1]
            own = jnp.broadcast_to(_own(here.head, self.of_head), (len(here.head), num_outputs))
            return blocks + own[:, :, None] * jnp.eye(num_outputs)

        return of_rows(of_samples, jnp.arange(len(self.bend)), *self.jacobians)

    def sample_squares(self, residuals: Float[Array, "n c"]) -> Float[Array, " n"]:
        # one sum over the rows of a sample instead of the products of all with all
        count = len(residuals)
        gradients = jnp.einsum("nc,nc->n", residuals, self.bend)[:, None] * self.slope
        along = jnp.einsum("nc,nkc->nk", residuals, self.read[:count])
        for share, jacobian in zip(self.shares, self.jacobians, strict=True):
            gradients = gradients + share * (along[:, :, None] * jacobian[:count]).sum(1)
        squares = jnp.square(self.root * gradients).sum(1)
        if self.head is None:
            return squares
        return squares + (_own(self.head[:count], self.of_head) * jnp.square(residuals)).sum(1)

    def _of(self, indices: Indices) -> "TangentKernel":
        return TangentKernel(
            tuple(jacobian[indices] for jacobian in self.jacobians),
            self.shares,
            self.read[indices],
            self.bend[indices],
            self.slope,
            None if self.head is None else self.head[indices],
            self.root,
            self.of_head,
        )


def _own(head: Float[Array, "n f"], of_head: Array) -> Float[Array, "n _"]:
    """‖head_n‖² of each output, in its own scale; one column where that is the same for all.

    Not by a product with a number that is broadcast to a matrix: inside a fused sum XLA (of JAX
    0.10.2 and 0.12.0, on CPUs) returns memory that nothing was written to for such a product. A
    scale is such a matrix where it is made in the same program, as that of clipped SGD is, so it
    is given a column that differs.
    """
    if of_head.ndim == 0:
        return (jnp.square(head).sum(1) * jnp.square(of_head))[:, None]
    scale = jnp.pad(jnp.square(of_head), ((0, 0), (0, 1)))
    return (jnp.square(head) @ scale)[:, :-1]
