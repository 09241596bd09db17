"""Past the frozen kernel: a backbone that is linear (or quadratic along its path) under a head that
is real.

The network is f = Wᵀ φ + b, φ the embeddings, its pooled activations. Its tangent at w₀ freezes W
in the backbone's gradients, so a kernel that grows because the head grows is not seen. Here the
head stays what it is and only the backbone is expanded,

    φ(w₀ + u) = φ₀ + U p(u),    p(u) = Ψ u + s B u − ½ s² B u₁,    s = ⟨u, u₁⟩/‖u₁‖²,

with U (F, r) orthonormal directions that the head occupies and will occupy, and Ψ = Uᵀ J_φ their
projected Jacobian. B is the change of that Jacobian between w₀ and the weights w₀ + u₁ that the
linear backbone is predicted to reach: p is the quadratic model that has the right Jacobian at both,
second-order terms along the one direction training moves in.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.features.projections import AbstractProjection
from ntk_tt.kernels.operators import Indices, sum_of_rows
from ntk_tt.losses import LossName
from ntk_tt.surrogate.curvature import Curvature
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.tangent_kernel import TangentKernel


class HeadState(eqx.Module):
    """Where training is: the backbone's displacement u = R·`backbone` + `decay`·w₀, and the head
    itself.

    Attributes:
        backbone: (D',) in projected coordinates.
        decay: multiple of the backbone's w₀.
        weight, bias: W (F, C) and b (C,), whole, not displacements; `bias` is None for a head
            without.
    """

    backbone: Float[Array, " d"]
    decay: Float[Array, ""]
    weight: Float[Array, "f c"]
    bias: Float[Array, " c"] | None


class HeadProblem(eqx.Module):
    """The problem with a real head on an expanded backbone. Its kernel grows with the head, so a
    point of it is a whole state.

    Attributes:
        embeddings: φ₀ (N, F), the pooled activations.
        directions: U (F, r), orthonormal.
        jacobian: Ψ (N, r, D').
        decay_embeddings: Uᵀ J_φ w₀ (N, r), along which weight decay pulls.
        weight, bias: the head W₀, b₀ (None without).
        targets: (N, C).
        curvature: None for a linear backbone.
        dropped: share of the head's expected path outside of U, the error estimate that chose r.
        growth: ‖B‖/‖VᵀΨ‖, how much the Jacobian changes to the second point; 0 without curvature.
        projection: R of the backbone, for directions in weight space such as the optimiser's
            momentum.
        loss: `ce` or `mse`.
        note: for the reader, what had to give way to memory and what that means; empty where
            nothing had to.
    """

    embeddings: Float[Array, "n f"]
    directions: Float[Array, "f r"]
    jacobian: Float[Array, "n r d"]
    decay_embeddings: Float[Array, "n r"]
    weight: Float[Array, "f c"]
    bias: Float[Array, " c"] | None
    targets: Float[Array, "n c"]
    curvature: Curvature | None = None
    dropped: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    growth: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    projection: AbstractProjection | None = None
    loss: LossName = eqx.field(static=True, default="ce")
    note: str = eqx.field(static=True, default="")

    @property
    def initial_logits(self) -> Float[Array, "n c"]:
        return self.logits(self.zero())

    @property
    def num_samples(self) -> int:
        return len(self.targets)

    @property
    def rank(self) -> int:
        """The most eigenvalues of Θ that are not zero, as the loss sees it."""
        return self.num_samples * (self.targets.shape[1] - (self.loss == "ce"))

    @property
    def num_projections(self) -> int | None:
        if self.projection is None or self.projection.is_exact:
            return None
        return self.jacobian.shape[-1]

    @property
    def dtype(self) -> Any:
        return self.jacobian.dtype

    @property
    def space(self) -> str:
        return "primal"

    @property
    def follows_kernel(self) -> bool:
        return True

    @property
    def streamed(self) -> bool:
        return False

    @property
    def has_one_sharpness(self) -> bool:
        return False

    def zero(self) -> HeadState:
        dtype = self.jacobian.dtype
        return HeadState(
            jnp.zeros(self.jacobian.shape[-1], dtype), jnp.zeros((), dtype), self.weight, self.bias
        )

    def logits(
        self,
        state: HeadState,
        indices: Indices | None = None,
        *,
        push: Float[Array, "b r"] | float = 0.0,
    ) -> Float[Array, "b c"]:
        """f = Wᵀ φ + b of all samples, or of some; `push` is added to p(u)."""
        embeddings = self.embeddings if indices is None else self.embeddings[indices]
        logits = embeddings @ state.weight + (self.moved(state, indices) + push) @ (
            self.directions.T @ state.weight
        )
        return logits if state.bias is None else logits + state.bias

    def moved(self, state: HeadState, indices: Indices | None = None) -> Float[Array, "b r"]:
        """p(u): how far the features have moved along U."""
        jacobian, decay = (
            (each if indices is None else each[indices])
            for each in (self.jacobian, self.decay_embeddings)
        )
        moved = jacobian @ state.backbone + state.decay * decay
        return (
            moved
            if self.curvature is None
            else moved + self.curvature.move(state.backbone, indices)
        )

    def gradient(self, state: HeadState, weight_decay, indices: Indices | None = None) -> HeadState:
        def of_samples(rows, counted):
            logits, pullback = jax.vjp(lambda state: self.logits(state, rows), state)
            targets = self.targets if rows is None else self.targets[rows]
            return pullback(
                counted
                * losses.mean_residuals(
                    self.loss,
                    logits,
                    targets,
                    self.num_samples if indices is None else len(indices),
                )
            )[0]

        if indices is None:
            pulled = of_samples(None, 1)
        else:
            held = (
                (self.jacobian,)
                if self.curvature is None
                else (self.jacobian, self.curvature.change)
            )
            pulled = sum_of_rows(
                of_samples, indices, jnp.ones((len(indices), 1), self.targets.dtype), *held
            )
        weights = HeadState(state.backbone, state.decay + 1, state.weight, state.bias)
        # J_φ w₀ is a vector of its own, not a coordinate that gradients move along: only decay
        # moves `decay`.
        pulled = eqx.tree_at(lambda pulled: pulled.decay, pulled, jnp.zeros_like(pulled.decay))
        return jax.tree.map(
            lambda gradient, weight: gradient + weight_decay * weight, pulled, weights
        )

    def metrics(self, logits: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and error rate."""
        return losses.mean_loss(self.loss, logits, self.targets), losses.error_rate(
            logits, self.targets
        )

    def point(self, state: HeadState) -> HeadState:
        return state

    def frozen(self, method: str) -> LinearizedProblem:
        raise ValueError(
            f"method: a problem with a real head can only be replayed, got {method!r}; "
            f"linearize() makes the one that {method!r} takes"
        )

    def facts(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "num_directions": self.directions.shape[1],
            "directions_dropped": float(self.dropped),
            "kernel_growth": float(self.growth),
        }

    def tangent(self, point: HeadState) -> LinearizedProblem:
        state = point
        logits, read = self.logits(state), self.directions.T @ state.weight
        jacobians, bend, slope = (
            ((self.jacobian, read),),
            jnp.zeros_like(logits),
            jnp.zeros_like(state.backbone),
        )
        if self.curvature is not None:
            read = self.curvature.basis.T @ read
            share, slope = jax.value_and_grad(self.curvature.share)(state.backbone)
            jacobians, bend = (
                (*jacobians, (self.curvature.change, share * read)),
                self.curvature.bent(state.backbone) @ read,
            )
        head = self.embeddings + self.moved(state) @ self.directions.T
        if state.bias is not None:
            head = jnp.concatenate([head, jnp.ones_like(head[:, :1])], 1)
        return LinearizedProblem(
            TangentKernel(jacobians, bend, slope, head),
            logits,
            jnp.zeros_like(logits),
            self.targets,
            self.loss,
        )
