"""What the ways to an inner product cost, in flops, so that each layer can take the cheapest.

A byte moved counts as `FLOPS_PER_BYTE` flops, the balance of a machine whose products run at their
peak while large arrays stream from memory: about 280 GFLOP/s and 12 GB/s on two CPU cores, about
the same ratio on a GPU in float32. Only orders of magnitude matter: the ways differ by factors of
ten to a thousand.
"""

FLOPS_PER_BYTE = 24.0
_ITEM = 4.0  # bytes


def formed_gradient(
    num_samples: int, num_outputs: int, num_positions: int, num_rows: int, num_columns: int
) -> float:
    """Flops a sample to form a kernel's gradients (K, O) from P positions and multiply them with
    those of all samples, once each pair.

    2·C·P·K·O to form them, written and read once; N/2 pairs of 2·C²·K·O.
    """
    size = num_rows * num_columns
    form = (
        2.0 * num_outputs * num_positions * size + 2 * _ITEM * FLOPS_PER_BYTE * num_outputs * size
    )
    return form + num_samples * num_outputs**2 * size


def gram_block(
    num_samples: int, num_outputs: int, num_positions: int, num_rows: int, num_columns: int
) -> float:
    """Flops a sample to take the same inner products without gradients: Σ_pq (A_i A_jᵀ)_pq (δ_ia
    δ_jbᵀ)_pq.

    N/2 pairs of 2·P²·(K + C²·O + C²), and the P²·C² numbers of a pair written and read.
    """
    pair = 2.0 * num_positions**2 * (num_rows + num_outputs**2 * (num_columns + 1))
    return num_samples / 2 * (pair + 2 * _ITEM * FLOPS_PER_BYTE * num_positions**2 * num_outputs**2)
