"""Θ over the devices of a mesh: each sample's features (or rows of Θ) on one device, products as
collectives.

See `ntk_tt.runtime.sharding` for what lies where. States, residuals and logits are on every device.
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntk_tt.kernels.operators import AbstractKernel, Indices
from ntk_tt.runtime.sharding import SAMPLES, on_each_device, samples_per_device


class _ShardedKernel(AbstractKernel):
    """What both forms share: which samples a device has."""

    num_samples: eqx.AbstractVar[int]
    mesh: eqx.AbstractVar[Mesh]

    def _padded(self, residuals: Float[Array, "n c"]) -> Float[Array, "padded c"]:
        return jnp.pad(
            residuals,
            (
                (
                    0,
                    samples_per_device(self.num_samples, self.mesh) * self.mesh.size
                    - self.num_samples,
                ),
                (0, 0),
            ),
        )

    def _gathered(self, function: Callable, *arguments, sharded: tuple[bool, ...]) -> Array:
        return on_each_device(function, self.mesh, sharded=sharded, collect="gather")(*arguments)[
            : self.num_samples
        ]

    def _summed(self, function: Callable, *arguments, sharded: tuple[bool, ...]) -> Array:
        return on_each_device(function, self.mesh, sharded=sharded, collect="sum")(*arguments)


def _own(indices: Indices, per_device: int) -> tuple[Indices, Array]:
    """Positions of samples among this device's, and whether they are its own."""
    local = indices - jax.lax.axis_index(SAMPLES) * per_device
    return jnp.clip(local, 0, per_device - 1), jnp.logical_and(local >= 0, local < per_device)


class ShardedPrimalKernel(_ShardedKernel):
    """`PrimalKernel` with the features of each device's samples on that device; the state is
    replicated.

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
        return self._summed(
            lambda features, residuals: jnp.tensordot(residuals, features, 2),
            self.features,
            self._padded(residuals),
            sharded=(True, True),
        )

    def pull_rows(self, residuals, indices):
        def local(features, residuals, indices):
            rows, own = _own(indices, len(features))
            return jnp.tensordot(jnp.where(own[:, None], residuals, 0), features[rows], 2)

        return self._summed(local, self.features, residuals, indices, sharded=(True, False, False))

    def diagonal_blocks(self):
        return self._gathered(
            lambda features: jnp.einsum("iad,ibd->iab", features, features),
            self.features,
            sharded=(True,),
        )


class ShardedDualKernel(_ShardedKernel):
    """`DualKernel` with each device's rows of Θ on that device; the state, one number a logit, is
    replicated.

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
        return self._gathered(
            lambda ntk, residuals: jnp.tensordot(ntk, residuals, 2),
            self.ntk,
            residuals,
            sharded=(True, False),
        )

    def pull_rows(self, residuals, indices):
        return self._gathered(
            lambda ntk, residuals, indices: jnp.tensordot(ntk[:, :, indices], residuals, 2),
            self.ntk,
            residuals,
            indices,
            sharded=(True, False, False),
        )

    def diagonal_blocks(self):
        def local(ntk):
            rows = jnp.minimum(
                jax.lax.axis_index(SAMPLES) * len(ntk) + jnp.arange(len(ntk)), self.num_samples - 1
            )
            return ntk[jnp.arange(len(ntk)), :, rows]

        return self._gathered(local, self.ntk, sharded=(True,))


def sharded_kernel(
    features: Float[Array, "padded c d"], num_samples: int, mesh: Mesh, *, dual: bool
) -> AbstractKernel:
    """The kernel of features that lie over the mesh; `dual` forms each device's rows of Θ where
    they will stay.
    """
    if not dual:
        return ShardedPrimalKernel(features=features, num_samples=num_samples, mesh=mesh)
    return ShardedDualKernel(
        ntk=_sharded_ntk(mesh, num_samples, features), num_samples=num_samples, mesh=mesh
    )


@partial(jax.jit, static_argnums=(0, 1))
def _sharded_ntk(
    mesh: Mesh, num_samples: int, features: Float[Array, "padded c d"]
) -> Float[Array, "padded c n c"]:
    """Each device multiplies its features with its neighbours' as they pass around the ring: one
    more block in memory.
    """
    per_device, count = samples_per_device(num_samples, mesh), mesh.size

    def local(own):
        device, passing, num_outputs = jax.lax.axis_index(SAMPLES), own, own.shape[1]
        rows = jnp.zeros((per_device, num_outputs, per_device * count, num_outputs), own.dtype)
        for turn in range(count):
            block = jnp.einsum("iad,jbd->iajb", own, passing, precision=jax.lax.Precision.HIGHEST)
            rows = jax.lax.dynamic_update_slice_in_dim(
                rows, block, ((device + turn) % count) * per_device, axis=2
            )
            if turn < count - 1:
                passing = jax.lax.ppermute(
                    passing, SAMPLES, [((source + 1) % count, source) for source in range(count)]
                )
        return rows[:, :, :num_samples]

    return on_each_device(local, mesh, sharded=(True,))(features)
