"""The largest curvature inside `jit` and `vmap`, so that many settings are looked at together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.sharpness import pulled_along
from ntk_tt.surrogate.tangent_kernel import TangentKernel

_MOST = 40  # products, for one look


def largest_eigenvalue(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    tolerance: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """λ_max of a symmetric operator without negative eigenvalues, and its eigenvector.

    By locally optimal conjugate gradients (Knyazev 2001): the best vector of the span of this one,
    its residual and the last step, with one product for each. A good start needs two or three.

    Args:
        product: with the operator.
        start: not zero; where the iteration begins.
        tolerance: of the residual ‖A x − λ x‖, over λ. The error of λ is of second order in it.

    Returns:
        λ, not finite where a product is not, and x of unit length.
    """

    def go_on(state: Any) -> Array:
        count, value, residual = state[0], state[1], state[2]
        return (count < _MOST) & (residual > tolerance * value)

    def step(state: Any) -> Any:
        count, value, _, at, image, last, last_image = state
        away, _ = _unit(image - value * at)
        away, _ = _unit(away - (away @ at) * at)
        away_image = product(away)
        # the last step, without what lies along the other two
        along_at, along_away = last @ at, last @ away
        left = last - along_at * at - along_away * away
        size = jnp.linalg.norm(left)
        is_some = size > 1e-3
        scale = jnp.where(is_some, 1 / jnp.where(is_some, size, 1), 0)
        left = scale * left
        left_image = scale * (last_image - along_at * image - along_away * away_image)
        basis = jnp.stack([at, away, left])
        images = jnp.stack([image, away_image, left_image])
        inner = basis @ images.T
        values, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
        best = vectors[:, -1]
        moved, length = _unit(best[1:] @ basis[1:])
        new, total = _unit(best @ basis)
        new_image = (best @ images) / total
        value = values[-1]
        residual = jnp.linalg.norm(new_image - value * new)
        return (
            count + 1, value, residual, new, new_image, moved, (best[1:] @ images[1:]) / length,
        )  # fmt: skip

    at, _ = _unit(start)
    image = product(at)
    value = at @ image
    none = jnp.zeros_like(at)
    begin = (0, value, jnp.linalg.norm(image - value * at), at, image, none, none)
    _, value, _, at, *_ = jax.lax.while_loop(go_on, step, begin)
    return value, at


def _unit(vector: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    size = jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(vector.dtype).tiny)
    return vector / size, size


def grams_of(kernel: TangentKernel) -> Float[Array, "n j j"]:
    """Of each sample, the products of all rows of its Jacobians with each other.

    With a scale that all settings share they are the same for all, and `sample_squares_by` takes
    them instead of the rows: the squares of 8·8 numbers a sample instead of 8·D'.
    """
    count, root = len(kernel.bend), kernel.root
    parts = [jacobian[:count] * root for jacobian in kernel.jacobians]
    rows = [[jnp.einsum("njd,nkd->njk", one, other) for other in parts] for one in parts]
    return jnp.concatenate([jnp.concatenate(each, 2) for each in rows], 1)


def scatter_by(
    grams: Float[Array, "n j j"],
    problem: LinearizedProblem,
    direction: Float[Array, "n c"],
    curvature: Float[Array, ""],
) -> Float[Array, ""]:
    """`curvature_scatter` of a tangent at its own logits, by the Grams of its samples."""
    pulled = pulled_along(problem, problem.initial_logits, direction, curvature)
    kernel: Any = problem.kernel
    squares = _sample_squares(grams, kernel, pulled)
    return jnp.maximum(squares.mean() - curvature**2, 0.0)


def _sample_squares(
    grams: Float[Array, "n j j"], kernel: TangentKernel, residuals: Float[Array, "n c"]
) -> Float[Array, " n"]:
    """‖Jᵢᵀ gᵢ‖² = aᵀ G a + 2 b a·(J s) + b² ‖s‖², s the slope that all samples share."""
    count = len(residuals)
    along = jnp.einsum("nc,nkc->nk", residuals, kernel.read[:count])
    reads = [share * along for share in kernel.shares]
    shared = jnp.square(kernel.root) * kernel.slope
    slopes = [jacobian[:count] @ shared for jacobian in kernel.jacobians]
    own, crossed = jnp.concatenate(reads, 1), jnp.concatenate(slopes, 1)
    bent = jnp.einsum("nc,nc->n", residuals, kernel.bend)
    squares = jnp.einsum("nj,njk,nk->n", own, grams, own)
    squares += 2 * bent * (own * crossed).sum(1) + jnp.square(bent) * (shared @ kernel.slope)
    if kernel.head is None:
        return squares
    head = jnp.square(kernel.head[:count]).sum(1) * jnp.square(kernel.of_head)
    return squares + head * jnp.square(residuals).sum(1)
