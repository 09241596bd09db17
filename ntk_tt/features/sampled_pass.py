"""The pass over the data behind a surrogate: along a few directions, the derivatives of each
sample's outputs in a sample of the parameters.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ntk_tt.jacobian.layers import Formed, Layer
from ntk_tt.jacobian.network import Apply, blocks
from ntk_tt.jacobian.structured import looked_at
from ntk_tt.runtime import sharding
from ntk_tt.runtime.input_trees import Inputs, block_of, num_samples, on_host
from ntk_tt.runtime.memory import available_bytes
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.progress import Progress, silent

Entries = dict[str, Int[Array, " _"]]

# A gradient that is formed costs so much less for each of its entries than one dot product that it
# pays where at least this share of the entries is wanted.
_FORMED = 1 / 16
_CPU_BLOCK_BYTES, _DEVICE_BLOCK_BYTES = 28 << 20, 1 << 30
_CPU_MAX_BLOCK, _DEVICE_MAX_BLOCK = 16, 64


class Looked(NamedTuple):
    """What a pass found of each sample.

    Attributes:
        outputs: (N, F), embeddings or logits.
        directions: U (N, k, F), as they were given.
        jacobian: Ψ (N, k, D'), of U times the outputs, in the sampled entries.
    """

    outputs: Float[Array, "n f"]
    directions: Float[Array, "n k f"]
    jacobian: Float[Array, "n k d"]


def sampled_pass(
    apply: Apply,
    params: PyTree,
    entries: Entries,
    inputs: Inputs,
    directions: Float[Array | np.ndarray, "n k f"],
    *,
    block_size: int | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Looked:
    """Ψ of all samples, block by block through one compiled program.

    Args:
        apply: `(params, inputs) -> outputs (N, F)`.
        params: the weights at which the network is expanded.
        entries: of each parameter the flat indices that are sampled; parameters that are left out
            have none.
        directions: U, of each sample; their type is that of what is found.
        block_size: samples at a time on each device; None plans it.
        mesh: of `ntk_tt.runtime.sharding.sample_mesh`; what is found then lies over its devices,
            filled up with zeros to as many samples on each.

    Cost: one forward and k backward passes through activations a sample, and a dot product over
    positions for each entry and direction. The program is compiled once for all calls with the same
    `apply` and shapes.
    """
    count, devices = num_samples(inputs), 1 if mesh is None else mesh.size
    on_device = -(-count // devices)
    size = min(block_size or _block_samples(apply, params, inputs, directions), on_device)
    inputs, directions = on_host(inputs), np.asarray(directions)
    if mesh is not None:
        place = functools.partial(sharding.replicate, mesh=mesh)
        params, entries = jax.tree.map(place, (params, entries))
    found: Any = None
    for block in blocks(on_device, size):
        start = min(block.start, on_device - size)
        rows = np.arange(start, start + size)
        if mesh is not None:
            rows = sharding.device_rows(count, mesh, start, size)
        given = block_of(inputs, rows), directions[rows]
        if mesh is None:
            looked = _look(apply, params, entries, *given)
        else:
            is_own = sharding.is_own(count, mesh, start, size)
            spread = jax.tree.map(functools.partial(sharding.shard, mesh=mesh), (*given, is_own))
            looked = _look_on(apply, mesh, params, entries, *spread)
        if found is None:
            found = jax.tree.map(lambda leaf: _zeros(leaf, on_device * devices, mesh), looked)
        found = (
            _write(found, looked, start) if mesh is None else _write_on(mesh, found, looked, start)
        )
        progress(min(block.stop * devices, count), count)
    return found


def _zeros(like: Array, num_rows: int, mesh: Mesh | None) -> Array:
    shape = (num_rows, *like.shape[1:])
    return jnp.zeros(shape, like.dtype) if mesh is None else sharding.zeros(shape, like.dtype, mesh)


def _written(found, block, start):
    return jax.tree.map(
        lambda into, leaf: jax.lax.dynamic_update_slice_in_dim(into, leaf, start, 0), found, block
    )


_write = jax.jit(_written, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _write_on(mesh, found, block, start):
    return sharding.on_each_device(_written, mesh, sharded=(True, True, False))(found, block, start)


@functools.partial(jax.jit, static_argnums=0)
def _look(apply, params, entries, inputs, directions):
    outputs, _, layers = looked_at(apply, params, inputs, _as_given, directions)
    dtype = directions.dtype
    columns = _columns(params, entries, layers, dtype)
    rows = directions.shape[:2]
    parts = [
        columns[name] if name in columns else jnp.zeros((*rows, index.size), dtype)
        for name, index in entries.items()
    ]
    jacobian = jnp.concatenate([jnp.zeros((*rows, 0), dtype), *parts], axis=2)
    return Looked(outputs.astype(dtype), directions, jacobian)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look_on(apply, mesh, params, entries, inputs, directions, is_own):
    """`_look` on each device, of its own samples; of what fills them up there is nothing."""

    def local(params, entries, inputs, directions, is_own):
        looked = _look(apply, params, entries, inputs, directions)
        return jax.tree.map(
            lambda leaf: jnp.where(is_own.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), looked
        )

    spread = (False, False, True, True, True)
    return sharding.on_each_device(local, mesh, sharded=spread)(
        params, entries, inputs, directions, is_own
    )


def _as_given(_, directions):
    return directions, ()


def _columns(
    params: PyTree, entries: Entries, layers: list[Layer], dtype: Any
) -> dict[str, Float[Array, "n k m"]]:
    """The sampled entries of each parameter's gradients."""
    leaves = named_leaves(params)
    names, values = list(leaves), list(leaves.values())
    columns: dict[str, Array] = {}
    for layer in layers:
        name = names[layer.source.leaf]
        if name not in entries or not entries[name].size:
            continue
        index, leaf = entries[name], leaves[name]
        few = index.size < _FORMED * leaf.size
        if not isinstance(layer, Formed) and layer.is_leaf_matrix and few:
            width = layer.signals.shape[-1]
            found = layer.entries(index // width, index % width)
        else:
            gradient = layer.gradient(values)
            found = jnp.take(gradient.reshape(*gradient.shape[:2], leaf.size), index, axis=2)
        found = found.astype(dtype)
        columns[name] = columns[name] + found if name in columns else found
    return columns


def _usual(inputs: Inputs) -> Inputs:
    """A sample of usual length, of texts in the order of their length the middle one."""
    middle = num_samples(inputs) // 2
    return block_of(inputs, slice(middle, middle + 1))


def _block_samples(apply, params, inputs, directions) -> int:
    """How many samples' activations and signals fit into a block."""
    on_cpu = jax.default_backend() == "cpu"
    limit, most = (
        (_CPU_BLOCK_BYTES, _CPU_MAX_BLOCK) if on_cpu else (_DEVICE_BLOCK_BYTES, _DEVICE_MAX_BLOCK)
    )

    def held(params, inputs, directions):
        layers = looked_at(apply, params, inputs, _as_given, directions)[2]
        return [layer.held for layer in layers]

    one = _usual(inputs), np.asarray(directions)[:1]
    shapes = jax.tree.leaves(jax.eval_shape(held, params, *one))
    needed = sum(shape.size * shape.dtype.itemsize for shape in shapes)
    return max(1, min(most, min(limit, available_bytes() // 2) // max(1, needed)))
