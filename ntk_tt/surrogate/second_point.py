"""The second expansion point of the backbone: where training is predicted to lead, and the Jacobian
there.
"""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_tt import losses
from ntk_tt.features.compute import compute_features
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.plan import plan_features
from ntk_tt.jacobian.network import blocks, in_blocks
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.curvature import Curvature
from ntk_tt.surrogate.head_parts import BLOCK, Parts, along, moved_weights
from ntk_tt.surrogate.real_head import HeadProblem, HeadState
from ntk_tt.surrogate.sharpness import largest_curvature

# the second expansion point is where the predicted loss has fallen to this share of its start
ANCHOR_FALL = 0.25
_FLOW_RATE = 1.0  # of 1/λ, without momentum: near to gradient flow, and stable until λ has doubled
# most steps of the path to the second point, and between two looks at its loss
_FLOW_STEPS, _FLOW_CHUNK = (
    600,
    5,
)
_HALVINGS = 4  # of the way to the second point, at most


def with_curvature(
    problem: HeadProblem,
    parts: Parts,
    inputs,
    basis: Float[Array, "c k"],
    options: FeatureOptions,
    *,
    key: Key[Array, ""] | None = None,
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
            bool(jnp.isfinite(embeddings).all())
            for embeddings in in_blocks(parts.embed, moved, inputs, block_size=BLOCK)
        ):
            break
        displacement, pushed = displacement / 2, pushed / 2
        moved = moved_weights(parts, problem.directions, inputs, pushed)
    inner, _ = jnp.linalg.qr(problem.directions.T @ state.weight @ basis)
    second = plan_features(
        along(parts.embed, problem.directions @ inner),
        parts.backbone,
        inputs,
        options=options,
        key=key,
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
    for block in blocks(len(after), BLOCK):
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
    carry = problem.zero(), jnp.zeros_like(problem.decay_embeddings)
    start = float(problem.metrics(problem.logits(carry[0]))[0])
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
    return carry, problem.metrics(problem.logits(carry[0]))[0]
