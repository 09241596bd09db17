"""Weights and images by formula, the same for PyTorch and for us, so that only outputs need to be
stored.

Used by `tools/parity.py`, which runs in an environment with PyTorch, and by
`tests/test_models_parity.py`: numpy only.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def uniform(name: str, size: int) -> np.ndarray:
    """Numbers in [0, 1) that look random and depend on nothing but the name and their index
    (splitmix64).
    """
    z = (
        np.arange(1, size + 1, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 16)
    ) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def parameter(name: str, shape: Sequence[int]) -> np.ndarray:
    """A parameter or statistic that keeps activations of order one: He's variance for kernels,
    scales and variances near one.
    """
    values = uniform(name, int(np.prod(shape, dtype=int)))
    if len(shape) > 1:
        values = (2 * values - 1) * (6 / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("bias", "running_mean")):
        values = 0.4 * (values - 0.5)
    else:
        values = 0.5 + values
    return values.reshape(shape).astype(np.float32)


def parameters(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A checkpoint in PyTorch's names and layouts."""
    return {name: parameter(name, shape) for name, shape in shapes.items()}


def images(side: int, count: int = 2) -> np.ndarray:
    """Images (count, side, side, 3), uint8."""
    return (
        (256 * uniform("images", count * side * side * 3))
        .astype(np.uint8)
        .reshape(count, side, side, 3)
    )
