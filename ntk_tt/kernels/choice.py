"""In which form a kernel is kept: features or Θ, in memory, over a mesh or streamed from disk."""

from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntk_tt.features.store import FeatureStore
from ntk_tt.kernels.empirical import ntk_tensor_from_features
from ntk_tt.kernels.operators import AbstractKernel, DualKernel, PrimalKernel
from ntk_tt.kernels.sharded import sharded_kernel
from ntk_tt.kernels.streaming import StreamedKernel, in_memory
from ntk_tt.runtime.memory import format_bytes, refuse

Space = Literal["auto", "primal", "dual"]


def kernel_from_store(
    store: FeatureStore,
    expected: tuple[int, int],
    space: Space,
    budget: int,
    usable: int,
    dtype: Any,
) -> AbstractKernel:
    if tuple(store.shape[:2]) != expected:
        raise ValueError(
            f"features: the store holds (samples, outputs) = {tuple(store.shape[:2])}, but the "
            f"task has {expected}; build it from the same data and outputs"
        )
    if int(np.prod(store.shape)) * dtype.itemsize > budget:
        if space == "dual":
            raise ValueError(
                "space: 'dual' needs the features in memory, and they are too large for it; use "
                "'primal', which streams them"
            )
        return StreamedKernel(store, memory_bytes=budget)
    missing = store.missing()
    if missing:
        raise ValueError(
            f"features: {len(missing)} blocks are missing or damaged, the first is block "
            f"{missing[0]}; run write_features again, it computes only those"
        )
    return kernel_from(in_memory(store).astype(dtype), expected[0], space, None, usable)


def kernel_from(
    features: Float[Array, "padded c d"],
    num_samples: int,
    space: Space,
    mesh: Mesh | None,
    usable: int,
) -> AbstractKernel:
    """The kernel of these features; `usable` bytes are for them and Θ, which is formed beside
    them.
    """
    num_rows, num_projections = num_samples * features.shape[1], features.shape[2]
    devices = 1 if mesh is None else mesh.size
    needed, held = num_rows**2 * features.dtype.itemsize // devices, features.nbytes // devices
    if space == "dual" and needed + held > usable:
        refuse(
            f"Θ of {num_rows} rows ({format_bytes(needed)}) and the features it is made of",
            needed + held,
            usable,
            "use space='primal', which does not form it",
        )
    dual = space == "dual" or (
        space == "auto" and num_projections > num_rows and needed + held <= usable
    )
    if mesh is not None:
        return sharded_kernel(features, num_samples, mesh, dual=dual)
    if not dual:
        return PrimalKernel(features)
    return DualKernel(ntk_tensor_from_features(features))
