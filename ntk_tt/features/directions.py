"""The few directions along which a head reads embeddings, now and while it trains."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.losses import LossName

# of the head's path, the share of its norm that `auto` directions may leave out; 0.1 is dearer, and
# better for slow runs (experiments/studies/curvature.py)
DROPPED = 0.3


def head_directions(
    embeddings: Float[Array, "n f"],
    weight: Float[Array, "f c"],
    bias: Float[Array, " c"] | None,
    targets: Float[Array, "n c"],
    basis: Float[Array, "c k"],
    *,
    loss: LossName,
    num_directions: int | str = "auto",
) -> tuple[Float[Array, "f r"], float]:
    """U, the leading directions of the head along its own training on fixed embeddings, and the
    share of its norm they leave out.

    Raises:
        ValueError: a number of directions that is neither `auto` nor 1 … F.
    """
    width = embeddings.shape[1]
    if num_directions != "auto" and not (
        isinstance(num_directions, int) and 1 <= num_directions <= width
    ):
        raise ValueError(
            f"num_directions: give 'auto' or a number from 1 to the {width} features, got "
            f"{num_directions!r}"
        )
    path, curve = _head_path(embeddings, weight, bias, targets, loss)
    curve = np.asarray(curve)
    levels = (
        np.geomspace(curve[0], max(curve.min(), 0.1 * curve[0]), 8)
        if curve.min() > 0
        else np.linspace(curve[0], curve.min(), 8)
    )
    looks = sorted({int(np.argmax(curve <= level)) for level in levels})
    matrices = [path[look] @ basis for look in looks]
    spanned = jnp.concatenate(
        [matrix / jnp.maximum(jnp.linalg.norm(matrix), 1e-12) for matrix in matrices], axis=1
    )
    left, values, _ = jnp.linalg.svd(spanned, full_matrices=num_directions == width)
    energy = np.cumsum(np.square(np.asarray(values, np.float64)))
    left_out = np.sqrt(np.maximum(0.0, 1 - energy / energy[-1]))
    if num_directions == "auto":
        most = min(3 * basis.shape[1], len(left_out))
        num_directions = min(most, int(np.argmax(left_out <= DROPPED)) + 1)
    count = int(num_directions)
    return left[:, : min(count, left.shape[1])], float(left_out[count - 1]) if count <= len(
        left_out
    ) else 0.0


@partial(jax.jit, static_argnums=4)
def _head_path(embeddings, weight, bias, targets, loss):
    """W along 400 steps of gradient descent of the head alone at half its stable rate, and the
    loss.
    """
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
            weights[: embeddings.shape[1]],
            losses.mean_loss(loss, logits, targets),
        )

    return jax.lax.scan(step, start, length=400)[1]
