"""The CountSketch by signs and folds: the cheapest projection, and the default."""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntk_tt.features.projections import AbstractSketch, path_key
from ntk_tt.jacobian.jaxpr import is_traced

# random numbers of a parameter that may become constants of the compiled program
_CONSTANT = 1 << 16
# rounds added up in one loop over their sum (XLA:CPU reduces a strided axis ten times slower), and
# outputs with a product each
_UNROLLED = 16


class _Fold(NamedTuple):
    """How a parameter is folded: as a matrix (K, O), whose row k is added into row k mod M of a
    matrix (M, O).

    Attributes:
        num_rows, num_columns: K and O, all axes but the last, and the last.
        period: M, with M·O ≤ D'.
        factors: q, consecutive periods with column signs of their own.
        rounds: of q periods, that cover K; all have the same column signs.
    """

    num_rows: int
    num_columns: int
    period: int
    factors: int
    rounds: int

    def moves_less_unformed(self, num_positions: int) -> bool:
        """Whether Aᵀ δ T_j is summed over j within the product: (P·q + M)·O numbers a row and not
        as many as the gradient, see docs/features.md.
        """
        return self.factors > 1 and num_positions * self.factors + self.period <= self.num_rows


class CountSketch(AbstractSketch):
    """Random signs, then fold: a CountSketch without a scatter, that also folds a gradient never
    formed.

    A parameter is a matrix G (K, O) of its last axis and all others. Row k is added into row k mod
    M of a folded matrix (M, O), M·O ≤ D', with the signs s_k·t_{j, o}, j = ⌊k/M⌋ mod q; the folded
    matrix is added to the D' coordinates from a random offset on, around the end. Numbers that are
    added up have independent signs, so the estimate is unbiased.

    The signs are products of one by row and one by (factor, column), so for G = Aᵀ δ the folded
    matrix is itself a sum of q Kronecker-structured products, Σ_j (S_j A)ᵀ (δ T_j), and G is never
    written. Kernels of dense layers, whose gradients may have rank one, have as many factors as
    periods: the error is then that of a projection with independent entries. Kernels of
    convolutions (more than two axes) have as many as 512 rows need, which is as good for their sums
    over many positions (experiments/studies/sketch_error.py) and takes K/(q·M) times fewer flops.

    Attributes:
        kernel_rows: of a convolution, the least q·⌊D'/O⌋; more than its K keep all periods apart.
    """

    key: Key[Array, ""]
    num_projections: int = eqx.field(static=True)
    kernel_rows: int = eqx.field(static=True, default=512)

    def start(self, num_rows, dtype):
        # the second half takes what runs over the end
        return jnp.zeros((num_rows, 2 * self.num_projections), dtype)

    def add(self, total, name, gradient):
        fold = self.fold(gradient.shape[1:])
        row_signs, column_signs, offset = self._random(name, fold, total.dtype)
        rows = _whole_rounds(
            gradient.reshape(len(gradient), fold.num_rows, fold.num_columns), fold, 1
        )
        rows = rows.reshape(len(rows), fold.rounds, fold.factors, fold.period, fold.num_columns)
        folded = (rows * row_signs[..., None] * column_signs[:, None, :]).sum((1, 2))
        return _add_from(total, folded.reshape(len(total), -1), offset)

    def add_product(
        self,
        total: Array,
        name: str,
        shape: tuple[int, ...],
        activations: Float[Array, "n p k"],
        signals: Float[Array, "n c p o"],
    ) -> Array:
        """`add` for the gradients Σ_p activationsᵀ signals of a parameter of this shape; forms them
        only where that moves less.
        """
        fold = self.fold(shape)
        num_samples, num_outputs, num_positions = signals.shape[:3]
        row_signs, column_signs, offset = self._random(name, fold, total.dtype)
        rows, of_rows = _whole_rounds(activations, fold, 2), row_signs.astype(activations.dtype)
        if fold.moves_less_unformed(num_positions):
            rows = _signed_sum(rows, of_rows.reshape(fold.rounds, -1)).reshape(
                num_samples, 1, num_positions, fold.factors, fold.period
            )
            rows = jnp.broadcast_to(rows, (num_samples, num_outputs, *rows.shape[2:]))
            # or XLA:CPU multiplies while it copies, element by element
            signed = jax.lax.optimization_barrier(
                signals[:, :, :, None, :] * column_signs.astype(signals.dtype)
            )
            folded = _product("ncpjm,ncpjo->ncmo", rows, signed, total.dtype)
            return _add_from(total, folded.reshape(len(total), -1), offset)
        signs = column_signs.T[:, :, None]
        if fold.rounds == 1:
            signs = signs * row_signs[0]
        else:  # the rounds share their column signs: A is folded over them before the product
            rows = _signed_sum(rows, of_rows.reshape(fold.rounds, -1))
        formed = _product_of_each_output(rows, signals, total.dtype)
        formed = formed.reshape(
            num_samples, num_outputs, fold.num_columns, fold.factors, fold.period
        )
        return _add_from(
            total, (formed * signs).sum(3).swapaxes(2, 3).reshape(len(total), -1), offset
        )

    def takes_products(self, shape: tuple[int, ...]) -> bool:
        """Whether a parameter of this shape is folded as the matrix of its last axis and all
        others, so that `add_product` can.
        """
        return len(shape) > 1 and self.fold(shape).num_columns == shape[-1]

    def finish(self, total):
        return total[:, : self.num_projections] + total[:, self.num_projections :]

    def fold(self, shape: tuple[int, ...]) -> _Fold:
        """How a parameter of this shape is folded."""
        size = math.prod(shape)
        columns = shape[-1] if len(shape) > 1 and shape[-1] <= self.num_projections else 1
        num_rows, longest = size // columns, self.num_projections // columns
        periods = -(-num_rows // longest)
        factors = (
            min(periods, -(-self.kernel_rows // longest))
            if len(shape) > 2 and columns > 1
            else periods
        )
        rounds = -(-periods // factors)
        return _Fold(num_rows, columns, -(-num_rows // (rounds * factors)), factors, rounds)

    def _random(self, name: str, fold: _Fold, dtype) -> tuple[Array, Array, Array]:
        """Signs of the rows (rounds, q, M) and of the columns (q, O), and the offset: from one
        draw.

        Where the key is known they are drawn once, while the program is traced, and not again for
        each block.
        """
        num_signs = fold.rounds * fold.factors * fold.period
        length = num_signs + fold.factors * fold.num_columns + 1
        drawn = 1 << (length - 1).bit_length()  # a power of two: few programs to compile
        if length > _CONSTANT or is_traced(self.key):
            bits: Any = jax.random.bits(path_key(self.key, name), (drawn,), jnp.uint32)
        else:
            with jax.ensure_compile_time_eval():
                bits = np.asarray(_bits(path_key(self.key, name), drawn))
        signs = 1 - 2 * (bits[: length - 1] >> 31).astype(dtype)
        rows, columns = (
            signs[:num_signs].reshape(fold.rounds, fold.factors, fold.period),
            signs[num_signs:].reshape(fold.factors, -1),
        )
        return (
            jnp.asarray(rows),
            jnp.asarray(columns),
            jnp.asarray(bits[length - 1] % self.num_projections, jnp.int32),
        )


@functools.partial(jax.jit, static_argnums=1)
def _bits(key: Key[Array, ""], length: int) -> Array:
    return jax.random.bits(key, (length,), jnp.uint32)


def _signed_sum(
    rows: Float[Array, "n p k"], signs: Float[Array, "rounds length"]
) -> Float[Array, "n p length"]:
    """Σ over rounds of signs · rows."""
    rounds, length = signs.shape
    if rounds > _UNROLLED:
        return (rows.reshape(*rows.shape[:2], rounds, length) * signs).sum(2)
    return functools.reduce(
        jnp.add,
        (
            rows[:, :, index * length : (index + 1) * length] * signs[index]
            for index in range(rounds)
        ),
    )


def _product(equation: str, rows: Array, signals: Array, dtype: Any) -> Array:
    # XLA:CPU has no bfloat16 product of this form with a float32 sum; the numbers are the same
    if jax.default_backend() == "cpu":
        rows, signals = rows.astype(dtype), signals.astype(dtype)
    return jnp.einsum(
        equation, rows, signals, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


def _product_of_each_output(
    rows: Float[Array, "n p k"], signals: Float[Array, "n c p o"], dtype: Any
) -> Float[Array, "n c o k"]:
    """δᵀ A. On a CPU one product for each of a few outputs: in one for all, XLA transposes A and δ
    element by element.
    """
    if jax.default_backend() != "cpu" or signals.shape[1] > _UNROLLED:
        return _product("npk,ncpo->ncok", rows, signals, dtype)
    return jnp.stack(
        [
            _product("npo,npk->nok", signals[:, output], rows, dtype)
            for output in range(signals.shape[1])
        ],
        1,
    )


def _whole_rounds(rows: Array, fold: _Fold, axis: int) -> Array:
    """Zero rows up to whole rounds."""
    missing = fold.rounds * fold.factors * fold.period - fold.num_rows
    return (
        jnp.pad(rows, [(0, missing if index == axis else 0) for index in range(rows.ndim)])
        if missing
        else rows
    )


def _add_from(
    total: Float[Array, "rows twice_d"], folded: Float[Array, "rows length"], offset: Array
) -> Array:
    offset = jax.lax.optimization_barrier(
        offset
        # where it is a constant XLA:CPU does not see that the update can be in place, and writes
        # all of the total
    )
    so_far = jax.lax.dynamic_slice_in_dim(total, offset, folded.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(
        total, so_far + folded.astype(total.dtype), offset, axis=1
    )
