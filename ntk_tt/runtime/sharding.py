"""Samples over the devices of a mesh: what lies where, and how a function runs on each device's
part.

Device k of the mesh's `samples` axis holds samples k·n … (k+1)·n − 1, n = ⌈N / devices⌉; what is
past N is padding that no product sees. Everything else (the state, residuals, logits) is replicated
and small. Several processes take part through `jax.distributed.initialize`: each runs the same
program, gives the same inputs and gets the same numbers.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

SAMPLES = "samples"
_SHARDED, _REPLICATED = PartitionSpec(SAMPLES), PartitionSpec()


def sample_mesh(devices: list | None = None) -> Mesh:
    """A mesh of one axis, `samples`, over these devices; over all devices of all processes where
    none are given.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (SAMPLES,), axis_types=(AxisType.Auto,), devices=devices)


def check_mesh(mesh: Mesh) -> int:
    """The number of devices.

    Raises:
        ValueError: the mesh has other axes than `samples`.
    """
    if mesh.axis_names != (SAMPLES,):
        raise ValueError(
            f"mesh: must have the one axis {SAMPLES!r}, got {mesh.axis_names}; make it with "
            "ntk_tt.runtime.sharding.sample_mesh()"
        )
    return mesh.size


def samples_per_device(num_samples: int, mesh: Mesh) -> int:
    """n = ⌈N / devices⌉."""
    return -(-num_samples // check_mesh(mesh))


def shard(array: Any, mesh: Mesh) -> Array:
    """A global array with its first axis, a multiple of the devices, over the mesh; every process
    gives the whole.
    """
    return _placed(array, NamedSharding(mesh, _SHARDED))


def replicate(array: Any, mesh: Mesh) -> Array:
    """A global array that every device holds; every process gives the same."""
    return _placed(array, NamedSharding(mesh, _REPLICATED))


def _placed(array: Any, sharding: NamedSharding) -> Array:
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Array:
    """Zeros with the first axis over the mesh, made where they will stay."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=NamedSharding(mesh, _SHARDED))()


def compiled(function: Callable, mesh: Mesh, params: Any, block: PyTree) -> Callable:
    """`function(params, block)` compiled for every device's part of the block; `params` may be
    given as they are.
    """
    everywhere, spread = NamedSharding(mesh, _REPLICATED), NamedSharding(mesh, _SHARDED)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), params
    )
    part = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), block
    )
    return _Replicating(
        jax.jit(on_each_device(function, mesh, sharded=(False, True)))
        .lower(shapes, part)
        .compile(),
        mesh,
    )


class _Replicating:
    """A compiled function whose first argument is brought to every device, once."""

    def __init__(self, function: Any, mesh: Mesh):
        self.function, self.mesh = function, mesh
        self.memory_analysis = function.memory_analysis
        self._given, self._placed = None, None

    def __call__(self, params: Any, block: PyTree) -> Array:
        if self._given is not params:
            self._given, self._placed = (
                params,
                jax.tree.map(lambda leaf: replicate(leaf, self.mesh), params),
            )
        return self.function(self._placed, block)


def device_rows(num_samples: int, mesh: Mesh, start: int, size: int) -> np.ndarray:
    """The samples that make up one block: `size` of each device's, from its `start` on; padding
    repeats the last sample.
    """
    per_device = samples_per_device(num_samples, mesh)
    rows = np.arange(mesh.size)[:, None] * per_device + start + np.arange(size)
    return np.minimum(rows, num_samples - 1).reshape(-1)


def is_own(num_samples: int, mesh: Mesh, start: int, size: int) -> np.ndarray:
    """Which of `device_rows` are samples, and no padding."""
    per_device = samples_per_device(num_samples, mesh)
    rows = np.arange(mesh.size)[:, None] * per_device + start + np.arange(size)
    return (rows < num_samples).reshape(-1)


def whole(array: Any) -> np.ndarray:
    """The numbers of an array, wherever they lie, in every process."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def constrained(array: Array, mesh: Mesh | None) -> Array:
    """Inside `jit`: the same array, on every device of the mesh whole."""
    if mesh is None:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, _REPLICATED))


def on_each_device(
    function: Callable,
    mesh: Mesh,
    *,
    sharded: tuple[bool, ...],
    collect: Literal["gather", "sum"] | None = None,
) -> Callable:
    """`function` of each device's part of the sharded arguments and the whole of the others.

    Args:
        collect: None leaves each device's result where it is; `gather` and `sum` bring all to every
            device.
    """

    def local(*arguments):
        result = function(*arguments)
        match collect:
            case "gather":
                return jax.lax.all_gather(result, SAMPLES, tiled=True)
            case "sum":
                return jax.lax.psum(result, SAMPLES)
        return result

    specs = tuple(_SHARDED if each else _REPLICATED for each in sharded)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=specs,
        out_specs=_SHARDED if collect is None else _REPLICATED,
        check_vma=False,
    )
