"""Output directions of each sample's own: the few in which its loss pulls while training goes on.

A sample's outputs are pulled along ∂ℓ/∂(outputs), one direction at a time. Along the whole of
training these span little more than two or three dimensions, however many classes there are.
What the training of other samples does to the outputs outside of these counts only on average: one
more direction, drawn at random among those that a head reads and scaled so that the square of what
the logits are moved by is right on average, stands for all of them.
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
_LOOKS = 8  # at its residuals, where the loss has fallen by equal factors
_FALL = 0.1  # of the loss, to which the looks go

PULLING, SPARES = 2, 1  # directions that `auto` takes: that pull, and that stand for the rest
_RANK = 1e-6  # of the largest squared length: less is no direction


class HeadPath(NamedTuple):
    """Heads along their own training on fixed embeddings; for a network without a head, the
    identity.
    """

    weight: Float[Array, "q f c"]
    bias: Float[Array, "q c"]


@dataclasses.dataclass(frozen=True)
class OwnDirections:
    """The rule that gives a sample its directions; hashable, so that a program is compiled once.

    Attributes:
        loss: that pulls.
        count: of the directions that pull; None looks at every output.
        spares: how many more stand for the rest.
        has_head: whether the outputs are embeddings, which a head reads, or logits.
    """

    loss: LossName
    count: int | None
    has_head: bool
    spares: int = 0

    def number(self, width: int) -> int:
        """k, of outputs of this width."""
        return width if self.count is None else self.count + self.spares

    def __call__(
        self,
        outputs: Float[Array, " f"],
        target: Float[Array, " c"],
        key: Key[Array, ""],
        path: HeadPath,
    ) -> Float[Array, "k f"]:
        """U (k, F): orthonormal rows, and those that stand for the rest at right angles."""
        if self.count is None:
            return jnp.eye(len(outputs), dtype=target.dtype)
        pulls = self.pulls(outputs, target, path)
        values, vectors = jnp.linalg.eigh(pulls @ pulls.T)  # rising
        values, vectors = values[::-1][: self.count], vectors[:, ::-1][:, : self.count]
        known = values > _RANK * values[0]
        lengths = jnp.sqrt(jnp.where(known, values, 1.0))
        found = jnp.where(known[:, None], (vectors / lengths).T @ pulls, 0.0)
        # squares lose half of the digits of short ones: a step of Newton's to orthonormal rows
        found = 1.5 * found - 0.5 * (found @ found.T) @ found
        for own in jax.random.split(key, self.spares) if self.spares else ():
            found = jnp.concatenate([found, self._spare(found, target, own, path)[None]])
        return found

    def _spare(self, found: Float[Array, "k f"], target, key, path: HeadPath) -> Float[Array, " f"]:
        """r/√(‖Wᵀr‖√m), of m spare ones, with r = W ξ at right angles to the others, W a head on
        the way and ξ Gaussian: ξᵀWᵀ(what φ moves by) has the mean square of how far the logits move
        outside.
        """
        which, normal = jax.random.split(key)
        luck = jax.random.normal(normal, target.shape, target.dtype)
        if self.loss == "ce":  # logits may all move alike
            luck = luck - luck.mean()
        weight = None
        if self.has_head:
            weight = path.weight[jax.random.randint(which, (), 0, len(path.weight))]
        whole = luck if weight is None else weight @ luck
        lengths = jnp.square(found).sum(1)
        shares = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1.0), 0.0)
        outside = whole - found.T @ (shares * (found @ whole))
        read = outside if weight is None else weight.T @ outside
        if self.loss == "ce":
            read = read - read.mean()
        is_some = jnp.square(outside).sum() > _RANK * jnp.square(whole).sum()
        length = jnp.sqrt(jnp.where(is_some, jnp.linalg.norm(read) * self.spares**0.5, 1.0))
        return jnp.where(is_some, outside / length, 0.0)

    def pulls(
        self, outputs: Float[Array, " f"], target: Float[Array, " c"], path: HeadPath
    ) -> Float[Array, "q f"]:
        """∂ℓ/∂outputs along the path of the head; without one, along the logits' own way down."""
        outputs = outputs.astype(target.dtype)
        if self.has_head:
            logits = jnp.einsum("f,qfc->qc", outputs, path.weight) + path.bias
            residuals = losses.residuals(self.loss, logits, jnp.broadcast_to(target, logits.shape))
            pulls = jnp.einsum("qc,qfc->qf", residuals, path.weight)
        else:
            pulls = _descent(self.loss, outputs, target)
        return pulls


def _descent(
    loss: LossName, logits: Float[Array, " c"], target: Float[Array, " c"]
) -> Float[Array, "q c"]:
    """Residuals of one sample whose logits go down their own gradient."""

    def step(logits, _):
        residual = losses.residuals(loss, logits[None], target[None])[0]
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


def left_out(
    loss: LossName,
    has_head: bool,
    outputs: Float[Array, "n f"],
    targets: Float[Array, "n c"],
    path: HeadPath,
) -> Float[np.ndarray, " q"]:
    """The share of the norm of the pulls that 1, 2, … directions of each sample's own leave out."""
    rule = OwnDirections(loss, 1, has_head)
    return np.asarray(_left_out(rule, outputs, targets, path))


@partial(jax.jit, static_argnums=0)
def _left_out(rule, outputs, targets, path):
    pulls = jax.vmap(lambda output, target: rule.pulls(output, target, path))(outputs, targets)
    values = jnp.maximum(jnp.linalg.eigvalsh(pulls @ pulls.transpose(0, 2, 1))[:, ::-1], 0).sum(0)
    return jnp.sqrt(jnp.maximum(0, 1 - jnp.cumsum(values) / jnp.maximum(values.sum(), 1e-30)))
