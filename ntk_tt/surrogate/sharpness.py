"""Learning rates: the effective one under momentum, and the largest that is stable."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.kernels.operators import Respond
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.safe_rates import BISECTIONS, moments_shrink

# Lanczos vectors between restarts: enough for one eigenvalue that stands out, and a good start
# needs no more
_BASIS = 6


def effective_learning_rate(learning_rate, momentum: float):
    """η̃ = η/(1−m): the rate at which SGD with momentum moves once its velocity has settled
    (appendix E).
    """
    return learning_rate / (1 - momentum)


def largest_curvature(
    problem: LinearizedProblem,
    logits: Float[Array, "n c"],
    start: Float[Array, "n c"] | None = None,
    tolerance: float = 1e-4,
    mixed: float = 0.1,
) -> tuple[float, Float[Array, "n c"]]:
    """λ_max of the Gauss–Newton Hessian of the mean loss, (1/N) Jᵀ H J at these logits, and its
    direction.

    H is the Hessian of the loss in the logits. By Lanczos (ARPACK) on A Aᵀ = H, Aᵀ Θ A / N: a few
    dozen products with Θ, never forming more than the kernel already holds.

    Args:
        start: where the iteration begins, such as the direction at a state near by; random without.
        tolerance: of λ, relative.
        mixed: how much of a random vector is added to `start`, which alone, were it an eigenvector,
            would be taken for that of the largest.

    Returns:
        λ [1/step per unit learning rate], infinity where products overflow, and the eigenvector z
        (N, C) of Aᵀ Θ A / N, of unit length.
    """
    if problem.kernel.streamed:
        host = np.asarray(logits)
        curvature, state = _largest_of_sweeps(
            problem, lambda samples, changes: _curvature(problem.loss, host[samples], changes)
        )
        direction = losses.curvature_sqrt_transpose(
            problem.loss, logits, problem.kernel.push(state)
        )
        return curvature, direction / jnp.maximum(
            jnp.linalg.norm(direction), jnp.finfo(direction.dtype).tiny
        )
    return _largest(
        lambda vector: curvature_product(problem, logits, vector),
        problem.initial_logits,
        start,
        tolerance,
        mixed,
    )


def largest_curvature_bound(problem: LinearizedProblem) -> float:
    """λ_max(Θ)/N times the largest curvature the loss can have (½ for `ce`, 1 for `mse`): bounds λ
    at all logits.
    """
    if problem.kernel.streamed:
        eigenvalue, _ = _largest_of_sweeps(problem, lambda _, changes: changes)
    else:
        eigenvalue, _ = _largest(
            lambda vector: _kernel_product(problem, vector), problem.initial_logits
        )
    return losses.largest_curvature_per_output(problem.loss) * eigenvalue


def batch_curvature_variance(
    problem: LinearizedProblem,
    logits: Float[Array, "n c"],
    curvature: float,
    direction: Float[Array, "n c"],
) -> float:
    """wᵀ(E[Hᵢ²] − H²)w along the top eigenvector w of H: how much single samples' Hessians Hᵢ = Jᵢᵀ
    Sᵢ Jᵢ scatter.

    A batch of B has this divided by B. It is what makes SGD unstable at learning rates that
    gradient descent stands (Wu et al. 2018; Ma & Ying 2021).
    """
    if curvature <= 0:
        return 0.0
    scatter = curvature_scatter if problem.kernel.streamed else jax.jit(curvature_scatter)
    return float(scatter(problem, logits, direction, curvature))


def largest_safe_learning_rate(
    curvature: float,
    variance: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> float:
    """The largest η at which SGD contracts E[x²] on a quadratic whose curvature at each step has
    this mean and variance.

    Without variance this is 2(1+m)/λ for the heavy ball and 2(1+m)/((1+2m)λ) for Nesterov; with it,
    m = 0, it is 2λ/(λ² + variance). In general the rate is bisected at which the second moments
    cease to shrink.

    Args:
        curvature: λ, mean curvature in the sharpest direction.
        variance: of the curvature of a batch; 0 for the full batch.

    Returns:
        The bound [per step]; infinity for zero curvature.
    """
    mean = curvature + weight_decay
    if mean <= 0:
        return np.inf
    if not (np.isfinite(mean) and np.isfinite(mean**2 + variance)):
        return 0.0
    unstable = 4 * (1 + momentum)  # twice the bound without noise, in units of 1/mean
    stable, noise = 0.0, variance / mean**2
    for _ in range(BISECTIONS):
        middle = (stable + unstable) / 2
        if moments_shrink(middle, noise, momentum, nesterov):
            stable = middle
        else:
            unstable = middle
    return stable / mean


def _largest_of_sweeps(
    problem: LinearizedProblem, respond: Respond
) -> tuple[float, Float[Array, " d"]]:
    """λ_max of (1/N) Jᵀ W J, W given by `respond`, and its direction: among the states, where a
    product is one pass over the disk, not two.
    """
    return _largest(
        lambda state: problem.kernel.sweep(state[None], respond)[0] / problem.num_samples,
        problem.kernel.zero(),
    )


def _largest(
    product,
    like: Float[Array, "..."],
    start: Float[Array, "..."] | None = None,
    tolerance: float = 1e-4,
    mixed: float = 0.1,
) -> tuple[float, Float[Array, "..."]]:
    import scipy.sparse.linalg

    size = like.size
    if size == 1:
        return float(product(jnp.ones_like(like)).reshape(())), jnp.ones_like(like)

    def matvec(vector):
        result = np.asarray(
            product(jnp.asarray(vector.reshape(like.shape), like.dtype)), np.float64
        ).reshape(-1)
        if not np.isfinite(result).all():
            raise FloatingPointError
        return result

    linear: Any = scipy.sparse.linalg.LinearOperator
    operator = linear((size, size), matvec, dtype=np.float64)
    begin = np.random.default_rng(0).standard_normal(size)
    if start is not None:
        begin = (
            np.asarray(start, np.float64).reshape(-1) + mixed * _norm(start) / _norm(begin) * begin
        )
    begin = begin / _norm(begin)
    try:
        value, vector, is_found = _first_steps(matvec, begin, tolerance)
        if not is_found:
            options: Any = {"k": 1, "which": "LA", "tol": tolerance, "ncv": min(size, _BASIS)}
            values, vectors = scipy.sparse.linalg.eigsh(operator, v0=vector, **options)
            value, vector = float(values[0]), vectors[:, 0]
    except FloatingPointError:  # past what the type can hold, as after a run that is thrown far out
        return np.inf, jnp.asarray(begin.reshape(like.shape), like.dtype)
    return max(value, 0.0), jnp.asarray(vector.reshape(like.shape), like.dtype)


def _norm(vector: Any) -> float:
    """Not by BLAS, whose threads cost more than that where others compute too."""
    return float(np.sqrt(np.square(np.asarray(vector, np.float64)).sum()))


def _first_steps(
    matvec: Callable[[np.ndarray], np.ndarray], begin: np.ndarray, tolerance: float
) -> tuple[float, np.ndarray, bool]:
    """The largest eigenvalue and its vector after a few steps of Lanczos' iteration, and whether
    they are as good as ARPACK would have them: ‖A v − λ v‖ ≤ tolerance·λ. From a good start two or
    three products are enough; ARPACK looks after six.
    """
    basis, inner = begin[None], np.zeros((_BASIS, _BASIS))
    value, mixed = 0.0, np.ones(1)
    for count in range(1, _BASIS + 1):
        result = matvec(basis[-1])
        for _ in range(2):  # twice is enough to stay orthogonal
            # not by BLAS either, as `_norm`
            along = np.einsum("jn,n->j", basis, result)
            result = result - np.einsum("j,jn->n", along, basis)
            inner[:count, count - 1] += along
        values, vectors = np.linalg.eigh(inner[:count, :count], UPLO="U")
        value, mixed = float(values[-1]), vectors[:, -1]
        rest = _norm(result)
        if rest * abs(mixed[-1]) <= tolerance * abs(value):  # of a zero operator there is no rest
            return value, np.einsum("j,jn->n", mixed, basis), True
        basis = np.concatenate([basis, result[None] / rest])
    return value, np.einsum("j,jn->n", mixed, basis[:-1]), False


@functools.partial(jax.jit, static_argnums=0)
def _curvature(loss, logits, changes):
    """H v of some samples for each state's v."""
    return jax.vmap(
        lambda vector: losses.curvature_sqrt_product(
            loss, logits, losses.curvature_sqrt_transpose(loss, logits, vector)
        )
    )(changes)


@jax.jit
def _kernel_product(problem, vector):
    return problem.kernel.product(vector) / problem.num_samples


@jax.jit
def curvature_product(
    problem: LinearizedProblem, logits: Float[Array, "n c"], vector: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    """Aᵀ Θ A v / N, whose largest eigenvalue is that of the Gauss–Newton Hessian."""
    inner = problem.kernel.product(losses.curvature_sqrt_product(problem.loss, logits, vector))
    return losses.curvature_sqrt_transpose(problem.loss, logits, inner) / problem.num_samples


def curvature_scatter(
    problem: LinearizedProblem,
    logits: Float[Array, "n c"],
    direction: Float[Array, "n c"],
    curvature: Any,
) -> Float[Array, ""]:
    """`batch_curvature_variance` inside `jit` and `vmap`, for a positive curvature."""
    pulled = pulled_along(problem, logits, direction, curvature)
    return jnp.maximum(problem.kernel.sample_squares(pulled).mean() - curvature**2, 0.0)


def pulled_along(
    problem: LinearizedProblem,
    logits: Float[Array, "n c"],
    direction: Float[Array, "n c"],
    curvature: Any,
) -> Float[Array, "n c"]:
    """H J w (N, C), with w the top eigenvector of Jᵀ H J / N, of unit length.

    w is Jᵀ A z / √(Nλ) with z the eigenvector of Aᵀ Θ A / N, so that H J w = √(Nλ) A z, and it
    takes no product with Θ.
    """
    weighted = losses.curvature_sqrt_product(problem.loss, logits, direction)
    return jnp.sqrt(problem.num_samples * curvature) * weighted
