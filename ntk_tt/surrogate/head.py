"""Past the frozen kernel: a backbone that is linear (or quadratic along its path) under a head that
is real.

The network is f = Wᵀ φ + b, φ the pooled features. Its tangent at w₀ freezes W in the backbone's
gradients, so a kernel that grows because the head grows is not seen. Here the head stays what it is
and only the backbone is expanded,

    φ(w₀ + u) = φ₀ + U p(u),    p(u) = Ψ u + s B u − ½ s² B u₁,    s = ⟨u, u₁⟩/‖u₁‖²,

with U (F, r) orthonormal directions that the head occupies and will occupy, and Ψ = Uᵀ J_φ their
projected Jacobian. B is the change of that Jacobian between w₀ and the weights w₀ + u₁ that the
linear backbone is predicted to reach: p is the quadratic model that has the right Jacobian at both,
second-order terms along the one direction training moves in.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt import losses
from ntk_tt.features.compute import (
    MAX_FEATURE_BYTES,
    FeaturePlan,
    Precision,
    compute_features,
    plan_features,
)
from ntk_tt.features.directions import head_directions
from ntk_tt.features.projections import AbstractProjection, default_num_projections, sketch_note
from ntk_tt.jacobian.bfloat16 import in_bfloat16
from ntk_tt.jacobian.network import (
    blocks,
    check_features,
    check_logits,
    check_network,
    in_blocks,
    logits_and_tangent,
    logits_of,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.kernels.operators import AbstractKernel, Indices, contrast_basis, of_rows, sum_of_rows
from ntk_tt.losses import LossName
from ntk_tt.models.heads import part, replaced
from ntk_tt.models.model import Model
from ntk_tt.runtime.memory import affordable_projections, available_bytes, refuse
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.sharpness import largest_curvature

# the second expansion point is where the predicted loss has fallen to this share of its start
ANCHOR_FALL = 0.25
# D' of `auto` over N·(C−1): the dynamics pass over the features at each full-batch step, and more
# tells times little better (experiments/curvature.py)
ROWS_PER_PROJECTION = 2
_MIN_PROJECTIONS = (
    4096  # fewer cost more: the sketch of a narrow convolution then keeps more of its columns apart
)
_FLOW_RATE = 1.0  # of 1/λ, without momentum: near to gradient flow, and stable until λ has doubled
# most steps of the path to the second point, and between two looks at its loss
_FLOW_STEPS, _FLOW_CHUNK = (
    600,
    5,
)
_HALVINGS = 4  # of the way to the second point, at most
_BLOCK = 20  # samples in a forward or backward pass


class HeadState(eqx.Module):
    """Where training is: the backbone's displacement u = R·`backbone` + `decay`·w₀, and the head
    itself.

    Attributes:
        backbone: (D',) in projected coordinates.
        decay: multiple of the backbone's w₀.
        kernel, bias: W (F, C) and b (C,), whole, not displacements; `bias` is None for a head
            without.
    """

    backbone: Float[Array, " d"]
    decay: Float[Array, ""]
    kernel: Float[Array, "f c"]
    bias: Float[Array, " c"] | None


class Curvature(eqx.Module):
    """B = V·`change`, the change of Ψ between w₀ and w₀ + u₁, along the k directions V (r, k) that
    the head has there; `along` is B u₁.
    """

    change: Float[Array, "n k d"]
    along: Float[Array, "n k"]
    basis: Float[Array, "r k"]
    displacement: Float[Array, " d"]

    def share(self, displacement: Float[Array, " d"]) -> Float[Array, ""]:
        """s, held to 0 … 2: further out a quadratic model means nothing."""
        return jnp.clip(
            displacement @ self.displacement / (self.displacement @ self.displacement), 0, 2
        )

    def move(
        self, displacement: Float[Array, " d"], indices: Indices | None
    ) -> Float[Array, "b r"]:
        """s B u − ½ s² B u₁."""
        change, along = (
            each if indices is None else each[indices] for each in (self.change, self.along)
        )
        share = self.share(displacement)
        return (share * (change @ displacement) - 0.5 * share**2 * along) @ self.basis.T

    def bent(self, displacement: Float[Array, " d"]) -> Float[Array, "n k"]:
        """∂(s B u − ½ s² B u₁)/∂s."""
        return self.change @ displacement - self.share(displacement) * self.along


class HeadProblem(eqx.Module):
    """The training problem with a real head; prices every optimiser setting as `LinearizedProblem`
    does.

    Attributes:
        features: φ₀ (N, F).
        directions: U (F, r), orthonormal.
        jacobian: Ψ (N, r, D').
        decay_features: Uᵀ J_φ w₀ (N, r), along which weight decay pulls.
        kernel, bias: the head W₀, b₀ (None without).
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

    features: Float[Array, "n f"]
    directions: Float[Array, "f r"]
    jacobian: Float[Array, "n r d"]
    decay_features: Float[Array, "n r"]
    kernel: Float[Array, "f c"]
    bias: Float[Array, " c"] | None
    targets: Float[Array, "n c"]
    curvature: Curvature | None = None
    dropped: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    growth: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    projection: AbstractProjection | None = None
    loss: LossName = eqx.field(static=True, default="ce")
    note: str = eqx.field(static=True, default="")

    @property
    def num_samples(self) -> int:
        return len(self.targets)

    @property
    def initial_logits(self) -> Float[Array, "n c"]:
        return self.logits(self.zero())

    def zero(self) -> HeadState:
        """The state before training."""
        dtype = self.jacobian.dtype
        return HeadState(
            jnp.zeros(self.jacobian.shape[-1], dtype), jnp.zeros((), dtype), self.kernel, self.bias
        )

    def logits(
        self,
        state: HeadState,
        indices: Indices | None = None,
        *,
        push: Float[Array, "b r"] | float = 0.0,
    ) -> Float[Array, "b c"]:
        """f = Wᵀ φ + b of all samples, or of some; `push` is added to p(u)."""
        features = self.features if indices is None else self.features[indices]
        logits = features @ state.kernel + (self.moved(state, indices) + push) @ (
            self.directions.T @ state.kernel
        )
        return logits if state.bias is None else logits + state.bias

    def moved(self, state: HeadState, indices: Indices | None = None) -> Float[Array, "b r"]:
        """p(u): how far the features have moved along U."""
        jacobian, decay = (
            (each if indices is None else each[indices])
            for each in (self.jacobian, self.decay_features)
        )
        moved = jacobian @ state.backbone + state.decay * decay
        return (
            moved
            if self.curvature is None
            else moved + self.curvature.move(state.backbone, indices)
        )

    def gradient(self, state: HeadState, weight_decay, indices: Indices | None = None) -> HeadState:
        """∂L/∂state of the mean loss of all samples, or of a batch, and λ·(the weights)."""

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
        weights = HeadState(state.backbone, state.decay + 1, state.kernel, state.bias)
        # J_φ w₀ is a vector of its own, not a coordinate that gradients move along: only decay
        # moves `decay`.
        pulled = eqx.tree_at(lambda pulled: pulled.decay, pulled, jnp.zeros_like(pulled.decay))
        return jax.tree.map(
            lambda gradient, weight: gradient + weight_decay * weight, pulled, weights
        )

    def metrics(
        self, state: HeadState
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "n c"]]:
        """Mean loss, error rate and logits."""
        logits = self.logits(state)
        return (
            losses.mean_loss(self.loss, logits, self.targets),
            losses.error_rate(logits, self.targets),
            logits,
        )

    def tangent(self, state: HeadState) -> LinearizedProblem:
        """The frozen kernel as it is at a state, for what is known of linear problems: curvature,
        stability.
        """
        logits, read = self.logits(state), self.directions.T @ state.kernel
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
        head = self.features + self.moved(state) @ self.directions.T
        if state.bias is not None:
            head = jnp.concatenate([head, jnp.ones_like(head[:, :1])], 1)
        return LinearizedProblem(
            _TangentKernel(jacobians, bend, slope, head),
            logits,
            jnp.zeros_like(logits),
            self.targets,
            self.loss,
        )


class _TangentKernel(AbstractKernel):
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

    def _of(self, indices: Indices) -> "_TangentKernel":
        return _TangentKernel(
            tuple((jacobian[indices], read) for jacobian, read in self.jacobians),
            self.bend[indices],
            self.slope,
            self.head[indices],
        )


@dataclasses.dataclass(frozen=True)
class Parts:
    """A network as backbone and head.

    Attributes:
        features: `(backbone, inputs) -> φ (N, F)`.
        backbone: trainable parameters without the head.
        kernel, bias: of the head.
    """

    features: Callable[[PyTree, Array], Array]
    backbone: PyTree
    kernel: Float[Array, "f c"]
    bias: Float[Array, " c"] | None


def split_head(model: Model) -> Parts:
    """The network as backbone and head.

    Raises:
        ValueError: a network that does not say where its head is, whose head does not train, whose
            backbone does not, or whose logits are not its head times its features.
    """
    remedy = "take method='replay', the frozen kernel, which needs no head"
    if not model.head or model.apply_features is None:
        raise ValueError(
            f"model: {model.name} has no trainable linear head with features before it "
            f"(Model.head, Model.apply_features); {remedy}"
        )
    head, features = part(model.params, model.head), model.features
    if (
        not isinstance(head, dict)
        or "kernel" not in head
        or set(head) - {"kernel", "bias"}
        or head["kernel"].ndim != 2
    ):
        raise ValueError(
            f"model: the head {model.head!r} of {model.name} is no linear layer with a kernel (F, "
            f"C) and perhaps a bias; {remedy}"
        )
    backbone = replaced(model.params, model.head, None)
    if not jax.tree.leaves(backbone):
        raise ValueError(
            "model: only the head trains, so the network is linear in what trains; take "
            "method='replay', which is exact there"
        )
    return Parts(
        lambda params, inputs: features(replaced(params, model.head, head), inputs),
        backbone,
        head["kernel"],
        head.get("bias"),
    )


def linearize_head(
    model: Model,
    inputs: Float[Array | np.ndarray, "n ..."],
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    *,
    curvature: bool = True,
    fall: float = ANCHOR_FALL,
    loss: LossName = "ce",
    num_directions: int | str = "auto",
    num_projections: int | str = "auto",
    key: Key[Array, ""] | None = None,
    precision: Precision = "float32",
    memory: int | None = None,
    progress: Progress = silent,
) -> HeadProblem:
    """The feature passes of the head-aware prediction; the result prices every optimiser setting
    (`ntk_tt.predict`).

    Args:
        model: with a linear head that trains (`Model.head`) and `features` before it.
        inputs: (N, ...), as the network takes them.
        labels: (N,) classes, or (N, C) real targets for `mse`.
        curvature: expand the backbone to second order along its path, at the price of a second pass
            along C−1 directions (C for `mse`).
        fall: the second expansion point is where the predicted loss has fallen to this share of its
            start.
        loss: `ce` or `mse`.
        num_directions: r, outputs of the first pass; `auto` takes as many as leave out at most 0.3
            of the norm of the path that the head takes on fixed features (`HeadProblem.dropped`
            says how much), but no more than 3·(C−1). All F, and `exact` projections, leave nothing
            out.
        num_projections: D'; `auto` takes 2·N·(C−1), or what the memory holds; `exact` projects
            nothing.
        key, precision: see `jacobian_features`.
        memory: bytes that the features of both passes may take, besides one block; None takes half
            of what is free. With `auto`, D' is at most what it allows, and `HeadProblem.note` says
            what that means.
        progress: called after each block.

    Raises:
        ValueError: as `split_head` and `jacobian_features`.

    Cost: one forward and r backward passes through activations a sample; with curvature as much
    again for C−1 directions, and two passes of real training's kind. Memory N·(r + C−1)·D'.
    """
    losses.check_loss(loss)
    if not 0 < fall < 1:
        raise ValueError(f"fall: must lie strictly between 0 and 1, got {fall}")
    if len(inputs) != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {len(inputs)} inputs; give one each")
    num_outputs = check_network(model.apply, model.params, inputs)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")
    parts = split_head(model)
    # the dynamics run in one type, whatever those of backbone and head
    dtype = working_type(model.params)
    parts = dataclasses.replace(
        parts,
        kernel=parts.kernel.astype(dtype),
        bias=None if parts.bias is None else parts.bias.astype(dtype),
    )
    features, along_weights = (
        each.astype(dtype)
        for each in logits_and_tangent(
            parts.features, parts.backbone, inputs, parts.backbone, block_size=_BLOCK
        )
    )
    check_logits(features)
    check_pass(
        in_bfloat16(parts.features) if precision == "bfloat16" else parts.features,
        parts.backbone,
        inputs,
        outputs=features,
    )
    targets = losses.encode_targets(labels, num_outputs, features.dtype, loss=loss)
    few = jax.jit(logits_of, static_argnums=0)(
        model.apply, model.params, jnp.asarray(inputs[:2])
    ).astype(dtype)
    if not np.allclose(
        few,
        features[:2] @ parts.kernel + (0 if parts.bias is None else parts.bias),
        rtol=1e-2,
        atol=1e-2 * (1 + float(jnp.abs(few).max())),
    ):
        raise ValueError(
            f"model: the logits of {model.name} are not its head times its features; take "
            "method='replay', the frozen kernel"
        )
    basis = (
        contrast_basis(num_outputs, features.dtype)
        if loss == "ce"
        else jnp.eye(num_outputs, dtype=features.dtype)
    )
    directions, dropped = head_directions(
        features, parts.kernel, parts.bias, targets, basis, loss=loss, num_directions=num_directions
    )
    passes = directions.shape[1] + (basis.shape[1] if curvature else 0)
    usable, num_params = (
        available_bytes() if memory is None else memory,
        sum(leaf.size for leaf in jax.tree.leaves(parts.backbone)),
    )
    wanted, num_rows, itemsize = 0, len(inputs) * passes, working_type(parts.backbone).itemsize
    if num_projections == "auto":
        wanted = min(
            max(_MIN_PROJECTIONS, ROWS_PER_PROJECTION * len(inputs) * basis.shape[1]), num_params
        )
        num_projections = (
            affordable_projections(num_rows, wanted, itemsize, usable, most=MAX_FEATURE_BYTES)
            if memory is None
            else min(
                wanted,
                default_num_projections(num_rows, num_params, itemsize=itemsize, max_bytes=memory),
            )
        )
    held = (
        num_rows
        * itemsize
        * (num_params if isinstance(num_projections, str) else min(num_projections, num_params))
    )
    if held > usable:
        refuse(
            f"features of {len(inputs)} samples × {passes} directions × D' = "
            f"{held // (num_rows * itemsize)}",
            held,
            usable,
            f"what would fit: num_projections = {max(1, usable // (num_rows * itemsize))}, "
            f"{'curvature=False, ' if curvature else ''}or fewer samples",
        )
    options: dict[str, Any] = {"key": key, "precision": precision, "memory": held}
    plan = plan_features(
        along(parts.features, directions),
        parts.backbone,
        inputs,
        num_projections=num_projections,
        **options,
    )
    total = len(inputs) * (2 if curvature else 1)
    jacobian = compute_features(
        plan, parts.backbone, inputs, progress=lambda done, _: progress(done, total)
    ).astype(dtype)
    check_features(jacobian)
    problem = HeadProblem(
        features,
        directions,
        jacobian,
        along_weights @ directions,
        parts.kernel,
        parts.bias,
        targets,
        dropped=dropped,
        projection=plan.projection,
        loss=loss,
        note=sketch_note(jacobian, len(inputs), wanted),
    )
    if not curvature:
        return problem
    return with_curvature(
        problem,
        parts,
        inputs,
        basis,
        plan,
        options,
        fall=fall,
        progress=lambda done, _: progress(len(inputs) + done, total),
    )


def head_of(model: Model, backbone: PyTree, state: HeadState) -> PyTree:
    """Parameters of the model with this backbone and the head of a state."""
    like = part(model.params, model.head)
    head = {"kernel": state.kernel} | ({} if state.bias is None else {"bias": state.bias})
    return replaced(
        backbone, model.head, {name: leaf.astype(like[name].dtype) for name, leaf in head.items()}
    )


def velocity_of(problem: HeadProblem, model: Model, velocity: PyTree) -> HeadState:
    """An optimiser's momentum, a tree like `model.params`, as the velocity that `replay_head`
    begins with.
    """
    assert problem.projection is not None
    velocity = jax.tree.map(lambda leaf: leaf.astype(problem.jacobian.dtype), velocity)
    head = part(velocity, model.head)
    backbone = problem.projection(
        jax.tree.map(lambda leaf: leaf[None], replaced(velocity, model.head, None))
    )[0]
    return HeadState(backbone, jnp.zeros((), backbone.dtype), head["kernel"], head.get("bias"))


def with_curvature(
    problem: HeadProblem,
    parts: Parts,
    inputs,
    basis: Float[Array, "c k"],
    plan: FeaturePlan,
    options: dict[str, Any],
    *,
    fall: float = ANCHOR_FALL,
    progress: Progress = silent,
) -> HeadProblem:
    """The problem with the second-order terms of `Curvature`, by a feature pass where the predicted
    loss has fallen to a share of its start.

    Where the network has no finite features so far out, as after an unstable start, the second
    point is taken nearer.
    """
    state, pushed = path_to(problem, fall)
    displacement = state.backbone
    moved = moved_weights(parts, problem.directions, inputs, pushed)
    for _ in range(_HALVINGS):
        if all(
            bool(jnp.isfinite(features).all())
            for features in in_blocks(parts.features, moved, inputs, block_size=_BLOCK)
        ):
            break
        displacement, pushed = displacement / 2, pushed / 2
        moved = moved_weights(parts, problem.directions, inputs, pushed)
    inner, _ = jnp.linalg.qr(problem.directions.T @ state.kernel @ basis)
    second = plan_features(
        along(parts.features, problem.directions @ inner),
        parts.backbone,
        inputs,
        num_projections=plan.num_projections,
        **options,
    )
    change, growth = _change(
        compute_features(second, moved, inputs, progress=progress).astype(problem.jacobian.dtype),
        problem.jacobian,
        inner,
    )
    if not np.isfinite(growth) or not bool(jnp.any(displacement)):
        raise ValueError(
            "model: the network gives NaN at the weights that its linear model reaches; take "
            "curvature=False (method 'head')"
        )
    return dataclasses.replace(
        problem,
        curvature=Curvature(change, change @ displacement, inner, displacement),
        growth=growth,
    )


def _change(
    after: Float[Array, "n k d"], jacobian: Float[Array, "n r d"], inner: Float[Array, "r k"]
) -> tuple[Float[Array, "n k d"], float]:
    """after − VᵀΨ, in the place of `after`, and its norm over that of VᵀΨ."""
    squares = np.zeros(2)
    for block in blocks(len(after), _BLOCK):
        after, *of_block = _less(after, jacobian, inner, block.start, block.stop - block.start)
        squares += np.asarray(of_block, np.float64)
    return after, float(np.sqrt(squares[0] / squares[1])) if squares[1] else np.nan


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def _less(after, jacobian, inner, start, size: int):
    before = jnp.einsum("rk,nrd->nkd", inner, jax.lax.dynamic_slice_in_dim(jacobian, start, size))
    change = jax.lax.dynamic_slice_in_dim(after, start, size) - before
    return (
        jax.lax.dynamic_update_slice_in_dim(after, change.astype(after.dtype), start, 0),
        jnp.vdot(change, change),
        jnp.vdot(before, before),
    )


def path_to(problem: HeadProblem, fall: float) -> tuple[HeadState, Float[Array, "n r"]]:
    """Full-batch training of the problem until its loss has fallen to a share of its start: the
    state, and the sum of what was pushed back.

    The latter are the cotangents c (N, r) with u = Σᵢ J_φ,iᵀ U cᵢ. The path is that of slow steps:
    which way training goes hardly depends on the setting, so one serves all.
    """
    curvature, _ = largest_curvature(problem.tangent(problem.zero()), problem.initial_logits)
    rate = jnp.asarray(_FLOW_RATE / max(curvature, 1e-12))
    carry = problem.zero(), jnp.zeros_like(problem.decay_features)
    start = float(problem.metrics(carry[0])[0])
    for _ in range(_FLOW_STEPS // _FLOW_CHUNK):
        following, loss = _flow(problem, carry, rate)
        if not np.isfinite(float(loss)) or float(loss) > 2 * start:
            rate = rate / 4  # the kernel has outgrown it
            continue
        carry = following
        if float(loss) < fall * start:
            break
    return carry


@eqx.filter_jit
def _flow(problem: HeadProblem, carry, rate):
    def step(carry, _):
        state, pushed = carry
        logits, pullback = jax.vjp(
            lambda state, push: problem.logits(state, push=push), state, jnp.zeros_like(pushed)
        )
        gradient, push = pullback(losses.mean_residuals(problem.loss, logits, problem.targets))
        gradient = eqx.tree_at(
            lambda gradient: gradient.decay, gradient, jnp.zeros_like(gradient.decay)
        )
        return jax.tree.map(
            lambda at, slope: (at - rate * slope).astype(at.dtype),
            (state, pushed),
            (gradient, push),
        ), None

    carry, _ = jax.lax.scan(step, carry, length=_FLOW_CHUNK)
    return carry, problem.metrics(carry[0])[0]


def along(
    features: Callable[[PyTree, Array], Array], directions: Float[Array, "f r"]
) -> Callable[[PyTree, Array], Array]:
    """The features' coordinates along some directions, as a network with r outputs."""
    return lambda params, inputs: logits_of(features, params, inputs) @ directions


def moved_weights(parts: Parts, directions, inputs, pushed: Float[Array, "n r"]) -> PyTree:
    """w₀ + Σᵢ J_φ,iᵀ U cᵢ: one backward pass over the data."""
    coordinates = along(parts.features, directions)

    def pull(backbone, x, cotangents):
        moved, pullback = jax.vjp(lambda backbone: coordinates(backbone, x), backbone)
        return pullback(cotangents.astype(moved.dtype))[0]

    # sums of half precision would lose the small ones
    start = jax.tree.map(lambda leaf: leaf.astype(working_type(leaf)), parts.backbone)
    moved = functools.reduce(
        partial(jax.tree.map, jnp.add),
        in_blocks(pull, parts.backbone, inputs, pushed, block_size=_BLOCK),
        start,
    )
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), moved, parts.backbone)
