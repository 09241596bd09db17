"""D', how many projections: what is enough, what memory pays for, and what too few of them mean."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ROWS_PER_PROJECTION = 16  # D' ≥ 16·N·C keeps the lower half of the spectrum within a few per cent
_NOTE_ROWS = 256  # from which the error of a small D' is read


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
            (`ntk_tt.kernels.streaming`).
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
