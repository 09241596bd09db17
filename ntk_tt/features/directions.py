"""Output directions in which samples are looked at: a few that all share, and one of each sample's
own that stands for the rest.

What the training of one sample does to another is an inner product of their derivatives in the same
direction. So the few directions in which a head reads most are the same for all samples, and what
happens in them is exact. In all others it counts only on average: one more direction, drawn at
random for each sample among those that the head reads and scaled so that the square of what the
logits are moved by is right on average, stands for all of them.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_tt import losses
from ntk_tt.losses import LossName

_STEPS = 400  # of the head alone, at half its stable rate
_LOOKS = 8  # at it, where the loss has fallen by equal factors
_FALL = 0.1  # of the loss, to which the looks go

# directions that `auto` takes; more where an optimiser divides by the size of its gradients, which
# makes much of what is weak: half as many as there are outputs, to so many
_SHARED: dict[LossName, int] = {"ce": 3, "mse": 5}
_SPARES, _MOST_SHARED = 1, 10
_RANK = 1e-6  # of the largest squared length: less is no direction


class HeadPath(NamedTuple):
    """Heads along their own training on fixed embeddings; for a network without a head, the
    identity.
    """

    weight: Float[Array, "q f c"]
    bias: Float[Array, "q c"]

    def slowed(self, share: float) -> "HeadPath":
        """The same path, of which the head goes a share only: what is under it trains too, so that
        the loss falls as far with a head that has turned less.
        """
        return HeadPath(*(each[:1] + share * (each - each[:1]) for each in self))


@dataclasses.dataclass(frozen=True)
class Shared:
    """The directions that all samples share.

    Attributes:
        rows: (r, F), orthonormal.
        left_out: share of the norm of ∂ℓ/∂outputs, along the path of the head, that lies outside
            of them.
    """

    rows: Float[Array, "r f"]
    left_out: float


def usual_directions(num_outputs: int, loss: LossName, *, preconditioned: bool) -> tuple[int, int]:
    """How many directions `auto` takes that all samples share, and of each sample's own.

    SGD needs few: what lies outside of them counts on average. The squared error needs more, since
    it pulls at all outputs of all samples. Adam and its kin scale each entry's gradient to the same
    size, so that what is left out slows them down.
    """
    # residuals of softmax add up to zero: what is pulled has no more dimensions than they
    pulled, shared = num_outputs - (loss == "ce"), _SHARED[loss]
    if preconditioned:
        shared = min(max(shared, (pulled + 2) // 2), _MOST_SHARED)
    # no more than there are, and half as many again where a head turns as it trains
    return min(shared, -(-3 * pulled // 2)), _SPARES


def shared_directions(
    loss: LossName,
    outputs: Float[Array, "n f"],
    targets: Float[Array, "n c"],
    path: HeadPath,
    count: int,
) -> Shared:
    """The directions that the head reads most on its path; of logits, those that are pulled most
    on their own way down.

    Args:
        outputs: embeddings, or logits where there is no head.
        count: r, no more than F.
    """
    rows, left_out = _shared(loss, outputs.astype(targets.dtype), targets, path, count)
    return Shared(rows, float(left_out))


@partial(jax.jit, static_argnums=(0, 4))
def _shared(loss, outputs, targets, path: HeadPath, count: int):
    pulls = _pulls(loss, outputs, targets, path)
    spanned = pulls.reshape(-1, pulls.shape[-1]).T
    if path.weight.size:
        read = _centred(path.weight) if loss == "ce" else path.weight
        lengths = jnp.linalg.norm(read, axis=(1, 2), keepdims=True)
        spanned = jnp.concatenate(list(read / jnp.where(lengths > 0, lengths, 1.0)), axis=1)
    rows = jnp.linalg.svd(spanned, full_matrices=spanned.shape[0] > spanned.shape[1])[0].T[:count]
    seen = jnp.square(pulls @ rows.T).sum() / jnp.maximum(jnp.square(pulls).sum(), 1e-30)
    return rows, jnp.sqrt(jnp.maximum(0.0, 1 - seen))


def directions_of(
    loss: LossName,
    shared: Float[Array, "r f"],
    path: HeadPath,
    num_samples: int,
    key: Key[Array, ""],
    *,
    spares: int = _SPARES,
) -> Float[Array, "n k f"]:
    """U of all samples: the shared rows, and at right angles to them the spare ones.

    A spare direction is r/√(‖Wᵀr‖√m), of m spare ones, with r = W ξ outside of the shared, W a head
    on the path and ξ Gaussian: ξᵀWᵀ(what φ moves by) has the mean square of how far the logits move
    outside.
    """
    return _directions_of(loss, shared, path, num_samples, spares, key)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _directions_of(loss, shared, path: HeadPath, num_samples: int, spares: int, key):
    whole = jnp.broadcast_to(shared, (num_samples, *shared.shape))
    if not spares:
        return whole

    def of_sample(number):
        keys = jax.random.split(jax.random.fold_in(key, number), spares)
        return jax.vmap(lambda own: _spare(loss, shared, path, own, spares))(keys)

    return jnp.concatenate([whole, jax.vmap(of_sample)(jnp.arange(num_samples))], axis=1)


def _spare(loss, shared, path: HeadPath, key, spares: int) -> Float[Array, " f"]:
    which, normal = jax.random.split(key)
    has_head = path.weight.size > 0
    num_classes = path.weight.shape[2] if has_head else shared.shape[1]
    luck = jax.random.normal(normal, (num_classes,), shared.dtype)
    if loss == "ce":  # logits may all move alike
        luck = _centred(luck)
    weight = jnp.eye(num_classes, dtype=shared.dtype)
    if has_head:
        weight = path.weight[jax.random.randint(which, (), 0, len(path.weight))]
    whole = weight @ luck
    outside = whole - shared.T @ (shared @ whole)
    read = weight.T @ outside
    if loss == "ce":
        read = _centred(read)
    is_some = jnp.square(outside).sum() > _RANK * jnp.square(whole).sum()
    length = jnp.sqrt(jnp.where(is_some, jnp.linalg.norm(read) * spares**0.5, 1.0))
    return jnp.where(is_some, outside / length, 0.0)


def _centred(values: Float[Array, "... c"]) -> Float[Array, "... c"]:
    return values - values.mean(-1, keepdims=True)


def _pulls(
    loss: LossName,
    outputs: Float[Array, "n f"],
    targets: Float[Array, "n c"],
    path: HeadPath,
) -> Float[Array, "q n f"]:
    """∂ℓ/∂outputs along the path of the head; without one, along the logits' own way down."""
    if not path.weight.size:
        return _descent(loss, outputs, targets)
    logits = jnp.einsum("nf,qfc->qnc", outputs, path.weight) + path.bias[:, None]
    residuals = jax.vmap(lambda logits: losses.residuals(loss, logits, targets))(logits)
    return jnp.einsum("qnc,qfc->qnf", residuals, path.weight)


def _descent(
    loss: LossName, logits: Float[Array, "n c"], targets: Float[Array, "n c"]
) -> Float[Array, "q n c"]:
    """Residuals of samples whose logits go down their own gradients."""

    def step(logits, _):
        residual = losses.residuals(loss, logits, targets)
        return logits - 0.5 * residual, residual

    found = jax.lax.scan(step, logits, length=2**_LOOKS)[1]
    return found[jnp.asarray([0, *(2**power for power in range(1, _LOOKS))])]


def head_path(
    embeddings: Float[Array, "n f"],
    weight: Float[Array, "f c"],
    bias: Float[Array, " c"] | None,
    targets: Float[Array, "n c"],
    loss: LossName,
) -> HeadPath:
    """Gradient descent of the head alone, at the steps where its loss has fallen by equal
    factors.
    """
    weights, curve = _head_path(embeddings, weight, bias, targets, loss)
    curve = np.asarray(curve)
    lowest = max(curve.min(), _FALL * curve[0])
    levels = (
        np.geomspace(curve[0], lowest, _LOOKS)
        if lowest > 0
        else np.linspace(curve[0], lowest, _LOOKS)
    )
    looks = jnp.asarray([int(np.argmax(curve <= level * (1 + 1e-6))) for level in levels])
    width = embeddings.shape[1]
    zeros = jnp.zeros((_LOOKS, weight.shape[1]), weights.dtype)
    return HeadPath(weights[looks, :width], zeros if bias is None else weights[looks, width])


@partial(jax.jit, static_argnums=4)
def _head_path(embeddings, weight, bias, targets, loss):
    rows = (
        embeddings
        if bias is None
        else jnp.concatenate([embeddings, jnp.ones_like(embeddings[:, :1])], 1)
    )
    rate = len(rows) / (losses.largest_curvature_per_output(loss) * jnp.linalg.norm(rows, 2) ** 2)
    start = (weight if bias is None else jnp.concatenate([weight, bias[None]])).astype(
        jnp.result_type(weight, rows)
    )

    def step(weights, _):
        logits = rows @ weights
        return weights - rate * rows.T @ losses.mean_residuals(loss, logits, targets), (
            weights,
            losses.mean_loss(loss, logits, targets),
        )

    return jax.lax.scan(step, start, length=_STEPS)[1]
