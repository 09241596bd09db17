"""Random projections of gradients, R with E[R Rᵀ] = I, each a function of (key, parameter path,
index).

A projection is never stored: any process that knows the key and the parameter tree rebuilds its
part of R. All unbiased sketches have about the same error at equal D', so they differ in cost only:

| projection | flops per row of D numbers | random numbers per block | use |
|---|---|---|---|
| `SignFold`   | 2 D      | D     | the default: cheapest |
| `Achlioptas` | 2 D D'   | D D'  | the paper's {−1, 0, +1} |
| `Gaussian`   | 2 D D'   | D D'  | the reference |
| `Identity`   | 0        | 0     | exact: D' = D |
"""

import abc
import functools
import math
import zlib
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.jacobian.jaxpr import is_traced
from ntk_tt.runtime.parameter_names import named_leaves

ProjectionName = Literal["fold", "achlioptas", "gaussian"]

ROWS_PER_PROJECTION = 16  # D' ≥ 16·N·C keeps the lower half of the spectrum within a few per cent
_CHUNK = 4096  # rows of a dense R made at a time
# random numbers of a parameter that may become constants of the compiled program
_CONSTANT = 1 << 16
_NOTE_ROWS = 256  # from which the error of a small D' is read
# rounds added up in one loop over their sum (XLA:CPU reduces a strided axis ten times slower), and
# outputs with a product each
_UNROLLED = 16


class AbstractProjection(eqx.Module):
    """`projection(gradients)`: a tree like the parameters with a leading `rows` axis -> (rows,
    D').
    """

    num_projections: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        """The features of these gradients."""


class Identity(AbstractProjection):
    """No projection: all D coordinates, in tree order."""

    num_projections: int = eqx.field(static=True)

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        return jnp.concatenate([_rows(leaf) for leaf in jax.tree.leaves(gradients)], axis=1)


class AbstractSketch(AbstractProjection):
    """A projection whose result grows parameter by parameter: `finish(add(… add(start(rows), …)
    …))`.
    """

    @abc.abstractmethod
    def start(self, num_rows: int, dtype: Any) -> Array:
        """The total of no parameters."""

    @abc.abstractmethod
    def add(self, total: Array, name: str, gradient: Float[Array, "rows ..."]) -> Array:
        """The total with the gradient of the parameter of this name."""

    @abc.abstractmethod
    def finish(self, total: Array) -> Float[Array, "rows d"]:
        """The features of a total."""

    def __call__(self, gradients: PyTree[Float[Array, "rows ..."]]) -> Float[Array, "rows d"]:
        leaves = named_leaves(gradients)
        total = self.start(next(iter(leaves.values())).shape[0], jnp.result_type(*leaves.values()))
        for name, leaf in leaves.items():
            total = self.add(total, name, leaf) if leaf.size else total
        return self.finish(total)


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


class SignFold(AbstractSketch):
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
    over many positions (experiments/sketch_error.py) and takes K/(q·M) times fewer flops.

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

    def folds_products(self, shape: tuple[int, ...]) -> bool:
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


class _Dense(AbstractSketch):
    """x R / √D' with independent entries of unit variance, made `_CHUNK` rows at a time.

    Costs 2 D D' flops a row and D·D' random numbers a block: for comparison, not for large
    networks.
    """

    key: Key[Array, ""]
    num_projections: int = eqx.field(static=True)

    @abc.abstractmethod
    def _entries(
        self, key: Key[Array, ""], shape: tuple[int, int], dtype
    ) -> Float[Array, "chunk d"]:
        """Independent entries."""

    def start(self, num_rows, dtype):
        return jnp.zeros((num_rows, self.num_projections), dtype)

    def add(self, total, name, gradient):
        rows = _rows(gradient)
        chunk = min(_CHUNK, rows.shape[1])
        count = -(-rows.shape[1] // chunk)
        rows = jnp.pad(rows, ((0, 0), (0, count * chunk - rows.shape[1])))
        key = path_key(self.key, name)

        def add_chunk(index, total):
            part = jax.lax.dynamic_slice_in_dim(rows, index * chunk, chunk, axis=1)
            entries = self._entries(
                jax.random.fold_in(key, index), (chunk, self.num_projections), rows.dtype
            )
            return total + jnp.matmul(
                part,
                entries,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=total.dtype,
            )

        return jax.lax.fori_loop(0, count, add_chunk, total)

    def finish(self, total):
        return total / jnp.sqrt(float(self.num_projections)).astype(total.dtype)


class Gaussian(_Dense):
    """Standard normal entries."""

    def _entries(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)


class Achlioptas(_Dense):
    """Entries √3·{−1, 0, +1} with probabilities 1/6, 2/3, 1/6 (Achlioptas 2003; the paper's
    choice).
    """

    def _entries(self, key, shape, dtype):
        face = jax.random.randint(key, shape, 0, 6)
        return jnp.sqrt(3.0).astype(dtype) * ((face == 0).astype(dtype) - (face == 1).astype(dtype))


_PROJECTIONS = {"fold": SignFold, "gaussian": Gaussian, "achlioptas": Achlioptas}


def make_projection(
    name: ProjectionName, num_params: int, num_projections: int, key: Key[Array, ""]
) -> AbstractProjection:
    """The named projection onto `num_projections` dimensions; `Identity` where that is no fewer
    than the parameters.

    Raises:
        ValueError: unknown name or a dimension below 1.
    """
    if name not in _PROJECTIONS:
        raise ValueError(f"projection: unknown {name!r}; known: {', '.join(_PROJECTIONS)}")
    if num_projections < 1:
        raise ValueError(f"num_projections: must be at least 1, got {num_projections}")
    if num_projections >= num_params:
        return Identity(num_params)
    return _PROJECTIONS[name](key=key, num_projections=num_projections)


def default_num_projections(
    num_rows: int, num_params: int, *, itemsize: int = 4, max_bytes: int = 4 << 30
) -> int:
    """D' = 16·N·C, or fewer where the features would pass `max_bytes`, or D (exact) where that is
    less.

    Below rows/D' = 1/16 the small eigenvalues, which decide late convergence, are within a few per
    cent; above 1/4 they are visibly too small (docs/features.md has the table).
    """
    wanted = max(4096, ROWS_PER_PROJECTION * num_rows)
    affordable = max(1, max_bytes // (num_rows * itemsize))
    return min(wanted, affordable, num_params)


def choose_num_projections(
    num_samples: int, num_outputs: int, num_params: int, memory_bytes: int, *, itemsize: int = 4
) -> int:
    """The D' that a budget for the features pays for: `default_num_projections` with that limit,
    N·C·D'·`itemsize` bytes.

    Args:
        memory_bytes: in memory, or on the disk where the features are streamed
            (`ntk_tt.streaming`).
        itemsize: bytes of a number: 4, or 2 for half precision.

    Raises:
        ValueError: a budget that pays for less than one dimension.

    `projection_advice` says what a small D' costs.
    """
    num_rows = num_samples * num_outputs
    if memory_bytes < num_rows * itemsize:
        raise ValueError(
            f"memory_bytes: {memory_bytes} do not hold one number for each of {num_samples} "
            f"samples × {num_outputs} outputs; "
            f"give at least {num_rows * itemsize}, or fewer samples"
        )
    return default_num_projections(num_rows, num_params, itemsize=itemsize, max_bytes=memory_bytes)


def projection_advice(num_rows: int, num_projections: int, num_params: int) -> str | None:
    """A sentence on a D' too small for the spectrum, or None where it is not.

    Θ has at most min(N·C, D) nonzero eigenvalues. Where that rank is more than a quarter of D' the
    small ones come out visibly too small, and where it is more than D' the others are zero.

    Args:
        num_rows: N·C.
    """
    rank = min(num_rows, num_params)
    if num_projections >= num_params or 4 * rank <= num_projections:
        return None
    effect = (
        "the small eigenvalues come out too small (by 40 % at 1/2, by 70 % at 1) and late "
        "convergence is predicted too late"
    )
    if rank > num_projections:
        effect = (
            f"only {num_projections} of {rank} eigenvalues are seen, so the predicted loss "
            "can stop at a plateau that training passes; early times hold better than late "
            "ones"
        )
    better = min(4 * rank, num_params)
    return (
        f"num_projections: {num_projections} is few for a kernel of rank {rank} (rank/D' = "
        f"{rank / num_projections:.2g}, above 1/4): {effect}; "
        f"take {'the exact features, ' if better == num_params else ''}num_projections={better} if "
        f"{num_rows * better * 4 / 1e9:.3g} GB of features in single precision fit"
    )


def expected_relative_error(
    ntk: Float[Array, "rows rows"], num_projections: int
) -> Float[Array, ""]:
    """Expected ‖ΦΦᵀ − Θ‖_F / ‖Θ‖_F of an unbiased projection: √((tr²Θ + ‖Θ‖²_F)/D') / ‖Θ‖_F."""
    norm = jnp.linalg.norm(ntk)
    return jnp.sqrt((jnp.trace(ntk) ** 2 + norm**2) / num_projections) / norm


def sketch_error(features: Float[Array, "s c d"], num_samples: int) -> float:
    """`expected_relative_error` of all N samples, read from the features of a few of them, at least
    two.
    """
    few, _, num_projections = features.shape
    rows = features.reshape(-1, num_projections).astype(
        jnp.promote_types(features.dtype, jnp.float32)
    )
    blocks = (
        np.square(
            np.asarray(jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST), np.float64)
        )
        .reshape(few, features.shape[1], few, -1)
        .sum((1, 3))
    )
    own, others = np.trace(blocks) / few, (blocks.sum() - np.trace(blocks)) / (few * (few - 1))
    trace, squares = (
        num_samples * float(jnp.vdot(rows, rows)) / few,
        num_samples * own + num_samples * (num_samples - 1) * others,
    )
    if not squares > 0:
        return 0.0
    # The squared norm that was measured holds that of the error, (1 + error²)‖Θ‖².
    share = min(0.5, (trace**2 / squares + 1) / num_projections)
    return float(np.sqrt(share / (1 - share)))


def sketch_note(features: Float[Array, "n c d"], num_samples: int, wanted: int) -> str:
    """What a D' that had to give way to memory means for the kernel; empty where it is what was
    wanted.
    """
    num_projections = features.shape[2]
    if num_projections >= wanted:
        return ""
    few = np.unique(
        np.linspace(0, num_samples - 1, max(2, _NOTE_ROWS // features.shape[1])).astype(int)
    )
    error = (
        "the kernel's relative error is expected to be "
        f"{sketch_error(features[few], num_samples):.1%}"
        if len(few) > 1 and features.is_fully_addressable
        else "the kernel is less exact"
    )
    rank = num_samples * features.shape[1]
    late = (
        f", and with {rank} rows its small eigenvalues come out too small, late times too late"
        if 4 * rank > num_projections
        else ""
    )
    return (
        f"memory: D' = {num_projections} instead of {wanted}: {error}{late}; fewer images or "
        "classes, or more memory, make it smaller"
    )


def path_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of a parameter: the same in every process, whatever other parameters there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _rows(leaf: Float[Array, "rows ..."]) -> Float[Array, "rows size"]:
    # no -1: a parameter may have no numbers
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
