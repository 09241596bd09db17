"""Matrices that are a product of two parameters, as adapters of low rank are: frozen + scale·(A B).

Where such a matrix meets activations x, x (frozen + scale·A B) is x frozen + (scale·x A) B: the
same numbers, to rounding, from products in which A and B meet activations themselves. So the
gradient of the whole matrix is never formed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntk_tt.jacobian import jaxpr as jaxprs

_EXACT = jax.lax.Precision.HIGHEST


class LowRank(NamedTuple):
    """frozen + scale · left right, not multiplied yet.

    Attributes:
        equation: of the jaxpr that would multiply them.
        left, right: parameters, (K, r) and (r, O), as the recorder has them.
        scale: a number.
        frozen: (K, O), of no parameter; None is zero.
    """

    equation: Any
    left: Any
    right: Any
    scale: Any = 1.0
    frozen: Array | None = None


def low_rank(equation: Any, operands: list) -> LowRank | None:
    """The product of two parameters that an equation is, if it is one of low rank."""
    axes = jaxprs.matrix_product(equation)
    shapes = [jaxprs.shape_of(atom) for atom in equation.invars]
    if axes is None or tuple(map(tuple, axes[0])) != ((1,), (0,)) or any(axes[1]):
        return None
    if [len(shape) for shape in shapes] != [2, 2]:
        return None
    rank, most = shapes[0][1], min(shapes[0][0], shapes[1][1])
    return LowRank(equation, *operands) if 2 * rank <= most else None


def scaled_or_moved(equation: Any, operands: list) -> LowRank | None:
    """What an equation makes of such a matrix, where that is one too: times a number, or plus a
    matrix of no parameter.
    """
    if len(operands) != 2 or sum(isinstance(each, LowRank) for each in operands) != 1:
        return None
    first = isinstance(operands[0], LowRank)
    matrix, other = operands if first else operands[::-1]
    if equation.primitive.name == "mul" and jnp.ndim(other) == 0:
        frozen = None if matrix.frozen is None else matrix.frozen * other
        return matrix._replace(scale=matrix.scale * other, frozen=frozen)
    same = jnp.shape(other) == jaxprs.shape_of(equation.outvars[0])
    if jaxprs.is_sum(equation) and same:
        frozen = other if matrix.frozen is None else matrix.frozen + other
        return matrix._replace(frozen=frozen)
    return None


def applied(equation: Any, operands: list) -> tuple[Any, list] | None:
    """The closed jaxpr, and its arguments, of activations times such a matrix, A first; None where
    the equation is anything else.
    """
    axes = jaxprs.matrix_product(equation)
    if axes is None or any(axes[1]) or not isinstance(operands[1], LowRank):
        return None
    activations, matrix = operands
    if isinstance(activations, LowRank) or not hasattr(activations, "ndim"):
        return None
    if tuple(map(tuple, axes[0])) != ((activations.ndim - 1,), (0,)):
        return None

    def product(x, scale, frozen, left, right):
        y = jnp.matmul(jnp.matmul(x, left, precision=_EXACT) * scale, right, precision=_EXACT)
        if frozen is None:
            return y
        return y + jaxprs.bind(equation, [x, frozen])[0]

    shapes = [jaxprs.shape_of(atom) for atom in matrix.equation.invars]
    dtype = equation.invars[1].aval.dtype
    left, right = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    scale = jnp.asarray(matrix.scale, dtype)
    given = [activations, scale] if matrix.frozen is None else [activations, scale, matrix.frozen]
    known = [jax.ShapeDtypeStruct(jnp.shape(each), each.dtype) for each in given]
    closed = jaxprs.trace(
        (lambda x, scale, left, right: product(x, scale, None, left, right))
        if matrix.frozen is None
        else product,
        *known,
        left,
        right,
    )
    return closed, [*given, matrix.left, matrix.right]
