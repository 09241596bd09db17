"""The order in which real training sees the samples."""

from collections.abc import Iterator

import numpy as np


def batches_in_order(
    num_samples: int, batch_size: int, full_batch: bool, sampling: str, seed: int
) -> Iterator[np.ndarray]:
    """Indices of the samples of each batch, in the order in which `finetune` takes them."""
    rng = np.random.default_rng(seed)
    while True:
        if full_batch:
            yield np.arange(num_samples)
        elif sampling == "replacement":
            yield rng.integers(0, num_samples, batch_size)
        else:
            order = rng.permutation(num_samples)
            for start in range(0, num_samples - batch_size + 1, batch_size):
                yield order[start : start + batch_size]
