"""Random subsets of the subset, and what every way from n samples to N refuses."""

import numpy as np

from ntk_tt.kernels.spectrum import Spectrum, ntk_spectrum


def subset_spectra(
    matrix: np.ndarray, delta: np.ndarray, part: int, num_subsets: int, seed: int
) -> list[Spectrum]:
    num_samples, num_outputs = delta.shape
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(1 if part == 1 else num_subsets):
        chosen = np.sort(rng.permutation(num_samples)[: num_samples // part])
        rows = (chosen[:, None] * num_outputs + np.arange(num_outputs)).reshape(-1)
        found.append(ntk_spectrum(matrix[np.ix_(rows, rows)], delta[chosen]))
    return found


def check_something_to_learn(residuals: np.ndarray) -> None:
    if not np.any(residuals):
        raise ValueError(
            "residuals: all are zero, the network gives its targets exactly, so there is no curve "
            "to continue; give samples with something left to learn"
        )


def check_larger(subset: Spectrum, num_samples: int) -> None:
    if num_samples < subset.num_samples:
        raise ValueError(
            f"num_samples: must be at least the subset's {subset.num_samples}, got {num_samples}; "
            "to go down, take fewer samples"
        )
