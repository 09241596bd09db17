"""A small network in a basis of what SGD can reach."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.surrogate.bend import Bend

_SLOW = 20  # times as slow, for its flops, as a product of the replay is the factorisation
InReach = tuple[Float[Array, "n k r"], Bend | None, Float[Array, " r"]]


def in_reach(
    jacobian: Float[Array, "n k d"],
    bend: Bend | None,
    weights: Float[Array, " d"],
    start: Float[Array, " d"],
    num_steps: int,
) -> InReach | None:
    """Ψ, the second-order terms and the entries at w₀ of a small network whose entries are
    coordinates in an orthonormal basis; None where that does not pay.

    SGD moves in the span of the gradients, of w₀ (by weight decay) and of the way to the second
    point. With the sum over the sample as the inner product it is SGD in any orthonormal basis of
    this span, with momentum, and with the norm that clipping goes by. Each coordinate stands for
    itself, so all weights are 1.

    Args:
        weights: what each sampled entry stands for.
        start: the sampled entries of w₀.
        num_steps: full batches, of all settings together, that are to pay for the basis.

    Cost: 2·D'·r² flops twice, r the dimension of the span.
    """
    size, shape = jacobian.shape[2], jacobian.shape[:2]
    held = [jacobian] if bend is None else [jacobian, bend.change, bend.metric]
    num_rows = sum(each.size // max(1, size) for each in held)
    reach = num_rows + 1
    saved, paid = num_steps * num_rows * (size - reach), _SLOW * size * reach**2
    if reach >= size or saved < paid:
        return None
    root = np.sqrt(np.asarray(weights, np.float64))
    rows = [np.asarray(each, np.float64).reshape(-1, size) for each in (*held, start)]
    basis, upper = np.linalg.qr((np.concatenate(rows) * root).T)
    found = jnp.asarray(upper.T, jacobian.dtype)
    count = shape[0] * shape[1]
    moved = found[:count].reshape(*shape, reach)
    if bend is None:
        return moved, None, found[-1]
    there = (np.asarray(bend.displacement, np.float64) / root) @ basis
    bent = Bend(
        found[count : 2 * count].reshape(*shape, reach),
        bend.along,
        jnp.asarray(there, found.dtype),
        found[2 * count],
    )
    return moved, bent, found[-1]
