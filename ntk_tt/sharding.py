"""Samples over the devices of a mesh: where each sample's features live, and products with Θ as collectives.

Device k of the mesh's `samples` axis holds samples k·n … (k+1)·n − 1, n = ⌈N / devices⌉; what is past N is padding that
no product sees. Everything else (the state, residuals, logits) is replicated and small. Several processes take part
through `jax.distributed.initialize`: each runs the same program, gives the same inputs and gets the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ntk_tt.kernel import AbstractKernel, Indices

SAMPLES = "samples"
_SHARDED, _REPLICATED = PartitionSpec(SAMPLES), PartitionSpec()


def sample_mesh(devices: list | None = None) -> Mesh:
    """A mesh of one axis, `samples`, over these devices; over all devices of all processes where none are given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (SAMPLES,), axis_types=(AxisType.Auto,), devices=devices)


def check_mesh(mesh: Mesh) -> int:
    """The number of devices.

    Raises:
        ValueError: the mesh has other axes than `samples`.
    """
    if mesh.axis_names != (SAMPLES,):
        raise ValueError(f"mesh: must have the one axis {SAMPLES!r}, got {mesh.axis_names}; make it with ntk_tt.sharding.sample_mesh()")
    return mesh.size


def samples_per_device(num_samples: int, mesh: Mesh) -> int:
    """n = ⌈N / devices⌉."""
    return -(-num_samples // check_mesh(mesh))


def shard(array: Any, mesh: Mesh) -> Array:
    """A global array with its first axis, a multiple of the devices, over the mesh; every process gives the whole."""
    return _placed(array, NamedSharding(mesh, _SHARDED))


def replicate(array: Any, mesh: Mesh) -> Array:
    """A global array that every device holds; every process gives the same."""
    return _placed(array, NamedSharding(mesh, _REPLICATED))


def _placed(array: Any, sharding: NamedSharding) -> Array:
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def device_rows(num_samples: int, mesh: Mesh, start: int, size: int) -> np.ndarray:
    """The samples that make up one block: `size` of each device's, from its `start` on; padding repeats the last sample."""
    per_device = samples_per_device(num_samples, mesh)
    rows = np.arange(mesh.size)[:, None] * per_device + start + np.arange(size)
    return np.minimum(rows, num_samples - 1).reshape(-1)


def on_each_device(function: Callable, mesh: Mesh, *, sharded: tuple[bool, ...], gathered: bool = False) -> Callable:
    """`function` of each device's part of the sharded arguments; its result over the mesh, or gathered on every device."""

    def local(*arguments):
        result = function(*arguments)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, SAMPLES, tiled=True), result) if gathered else result

    specs = tuple(_SHARDED if each else _REPLICATED for each in sharded)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=_REPLICATED if gathered else _SHARDED, check_vma=False)


class _ShardedKernel(AbstractKernel):
    """What both forms share: which samples a device has."""

    num_samples: eqx.AbstractVar[int]
    mesh: eqx.AbstractVar[Mesh]

    def _padded(self, residuals: Float[Array, "n c"]) -> Float[Array, "padded c"]:
        return jnp.pad(residuals, ((0, samples_per_device(self.num_samples, self.mesh) * self.mesh.size - self.num_samples), (0, 0)))

    def _gathered(self, function: Callable, *arguments, sharded: tuple[bool, ...]) -> Array:
        return on_each_device(function, self.mesh, sharded=sharded, gathered=True)(*arguments)[: self.num_samples]

    def _summed(self, function: Callable, *arguments, sharded: tuple[bool, ...]) -> Array:
        specs = tuple(_SHARDED if each else _REPLICATED for each in sharded)
        summed = jax.shard_map(lambda *parts: jax.lax.psum(function(*parts), SAMPLES), mesh=self.mesh, in_specs=specs, out_specs=_REPLICATED, check_vma=False)
        return summed(*arguments)


def _own(indices: Indices, per_device: int) -> tuple[Indices, Array]:
    """Positions of samples among this device's, and whether they are its own."""
    local = indices - jax.lax.axis_index(SAMPLES) * per_device
    return jnp.clip(local, 0, per_device - 1), (local >= 0) & (local < per_device)


class ShardedPrimalKernel(_ShardedKernel):
    """`PrimalKernel` with the features of each device's samples on that device; the state is replicated.

    A push gathers N·C numbers, a pull sums D' numbers over the devices.
    """

    features: Float[Array, "padded c d"]
    num_samples: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    @property
    def space(self) -> str:
        return "primal"

    def zero(self):
        return jnp.zeros(self.features.shape[-1], self.features.dtype)

    def push(self, state):
        return self._gathered(jnp.matmul, self.features, state, sharded=(True, False))

    def push_rows(self, state, indices):
        def local(features, state, indices):
            rows, own = _own(indices, len(features))
            return jnp.where(own[:, None], features[rows] @ state, 0)

        return self._summed(local, self.features, state, indices, sharded=(True, False, False))

    def pull(self, residuals):
        return self._summed(lambda features, residuals: jnp.tensordot(residuals, features, 2), self.features, self._padded(residuals), sharded=(True, True))

    def pull_rows(self, residuals, indices):
        def local(features, residuals, indices):
            rows, own = _own(indices, len(features))
            return jnp.tensordot(jnp.where(own[:, None], residuals, 0), features[rows], 2)

        return self._summed(local, self.features, residuals, indices, sharded=(True, False, False))

    def diagonal_blocks(self):
        return self._gathered(lambda features: jnp.einsum("iad,ibd->iab", features, features), self.features, sharded=(True,))


class ShardedDualKernel(_ShardedKernel):
    """`DualKernel` with each device's rows of Θ on that device; the state, one number a logit, is replicated.

    A pull gathers N·C numbers; pushes need none.
    """

    ntk: Float[Array, "padded c n c"]
    num_samples: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    @property
    def space(self) -> str:
        return "dual"

    def zero(self):
        return jnp.zeros(self.ntk.shape[2:], self.ntk.dtype)

    def push(self, state):
        return state

    def push_rows(self, state, indices):
        return state[indices]

    def pull(self, residuals):
        return self._gathered(lambda ntk, residuals: jnp.tensordot(ntk, residuals, 2), self.ntk, residuals, sharded=(True, False))

    def pull_rows(self, residuals, indices):
        return self._gathered(lambda ntk, residuals, indices: jnp.tensordot(ntk[:, :, indices], residuals, 2), self.ntk, residuals, indices, sharded=(True, False, False))

    def diagonal_blocks(self):
        def local(ntk):
            rows = jnp.minimum(jax.lax.axis_index(SAMPLES) * len(ntk) + jnp.arange(len(ntk)), self.num_samples - 1)
            return ntk[jnp.arange(len(ntk)), :, rows]

        return self._gathered(local, self.ntk, sharded=(True,))


def sharded_kernel(features: Float[Array, "padded c d"], num_samples: int, mesh: Mesh, *, dual: bool) -> AbstractKernel:
    """The kernel of features that lie over the mesh; `dual` forms each device's rows of Θ where they will stay."""
    if not dual:
        return ShardedPrimalKernel(features, num_samples, mesh)
    return ShardedDualKernel(_sharded_ntk(mesh, num_samples, features), num_samples, mesh)


@partial(jax.jit, static_argnums=(0, 1))
def _sharded_ntk(mesh: Mesh, num_samples: int, features: Float[Array, "padded c d"]) -> Float[Array, "padded c n c"]:
    """Each device multiplies its features with its neighbours' as they pass around the ring: one more block in memory."""
    per_device, count = samples_per_device(num_samples, mesh), mesh.size

    def local(own):
        device, passing, num_outputs = jax.lax.axis_index(SAMPLES), own, own.shape[1]
        rows = jnp.zeros((per_device, num_outputs, per_device * count, num_outputs), own.dtype)
        for turn in range(count):
            block = jnp.einsum("iad,jbd->iajb", own, passing, precision=jax.lax.Precision.HIGHEST)
            rows = jax.lax.dynamic_update_slice_in_dim(rows, block, ((device + turn) % count) * per_device, axis=2)
            if turn < count - 1:
                passing = jax.lax.ppermute(passing, SAMPLES, [((source + 1) % count, source) for source in range(count)])
        return rows[:, :, :num_samples]

    return on_each_device(local, mesh, sharded=(True,))(features)
