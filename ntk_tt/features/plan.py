"""A feature pass before it runs: how many projections, how many samples at a time, and the memory
that takes.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.dimension import default_num_projections
from ntk_tt.features.feature_options import JacobianPath, Precision, ProjectionName, check_path
from ntk_tt.features.one_block import projected_jacobian
from ntk_tt.features.projection_by_name import make_projection
from ntk_tt.features.projections import AbstractProjection
from ntk_tt.jacobian.bfloat16 import in_bfloat16
from ntk_tt.jacobian.layers import Product
from ntk_tt.jacobian.network import Apply, check_network, working_type
from ntk_tt.jacobian.structured import layers
from ntk_tt.runtime import sharding
from ntk_tt.runtime.memory import affordable_projections, available_bytes, compiled_bytes, refuse

# Of activations and signals a device holds at a time, by default. On a CPU the temporaries of a
# block stay near the 32 MiB up to which glibc keeps freed memory: above, every block pays for its
# page faults, a fifth of the pass. An accelerator is fastest while it is full.
_CPU_KEPT_BYTES = 32 << 20
CPU_BLOCK_BYTES, DEVICE_BLOCK_BYTES = 28 << 20, 1 << 30
# up to which D' is taken as large as the spectrum wants it, where no memory is given
MAX_FEATURE_BYTES = 4 << 30
_CPU_MAX_BLOCK, _DEVICE_MAX_BLOCK = 16, 32  # samples: more do not run faster
_SKETCHES = 8  # of D' numbers an output and sample, that the compiled pass holds at a time


@dataclasses.dataclass(frozen=True)
class FeaturePlan:
    """A feature pass before it runs: what it will compute, and the memory that takes.

    Attributes:
        num_samples, num_outputs, num_projections: N, C, D' of the result.
        wanted_projections: the D' that `auto` takes where memory does not matter; the number given
            where it is one.
        dtype: of the result.
        projection: R.
        settings: all else that decides the bits: `path`, `precision`.
        block_size: samples at a time, on each device.
        block_bytes: of memory for one block, from the compiled program.
        feature_bytes: of the result.
        mesh: devices the samples are spread over, or None.
        compute: compiled; `(params, inputs of a block) -> (block_size · devices, C, D')`. None
            where only planned.
    """

    num_samples: int
    num_outputs: int
    num_projections: int
    wanted_projections: int
    dtype: Any
    projection: AbstractProjection
    settings: dict[str, str]
    block_size: int
    block_bytes: int
    feature_bytes: int
    mesh: Mesh | None
    compute: Callable[[PyTree, Array], Float[Array, "block c d"]] | None


def plan_features(
    apply: Apply,
    params: PyTree,
    inputs: Float[Array | np.ndarray, "n ..."],
    *,
    num_projections: int | str = "auto",
    projection: ProjectionName = "fold",
    key: Key[Array, ""] | None = None,
    path: JacobianPath = "structured",
    precision: Precision = "float32",
    block_size: int | None = None,
    memory: int | None = None,
    mesh: Mesh | None = None,
    stored: bool = False,
    compiled: bool = True,
) -> FeaturePlan:
    """Everything about a feature pass but its run; arguments as `jacobian_features`.

    The first guess of the block size comes from the shapes of activations and signals. The compiled
    program then says what it really needs (`jax.stages.Compiled.memory_analysis`, which differs by
    versions of XLA), and the block shrinks until that fits; on a CPU once more where the guess was
    too large for what the allocator keeps.

    Args:
        stored: the features go to disk, so only a block counts.
        compiled: whether to compile; without it the plan serves to find features that are there
            already.
    """
    check_path(path)
    if precision not in get_args(Precision):
        raise ValueError(f"precision: unknown {precision!r}; give 'float32' or 'bfloat16'")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size: must be at least 1, got {block_size}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory: must be at least one byte, got {memory}")
    num_outputs = check_network(apply, params, inputs)
    devices = 1 if mesh is None else sharding.check_mesh(mesh)
    num_samples, num_params = len(inputs), sum(leaf.size for leaf in jax.tree.leaves(params))
    dtype = working_type(params)
    free = available_bytes()
    budget, wanted_projections = free if memory is None else memory, 0
    if num_projections == "exact":
        num_projections = num_params
    elif num_projections == "auto":
        wanted_projections = default_num_projections(
            num_samples * num_outputs, num_params, max_bytes=sys.maxsize
        )
        if memory is None and not stored:
            num_projections = affordable_projections(
                -(-num_samples // devices) * num_outputs,
                wanted_projections,
                dtype.itemsize,
                budget,
                most=MAX_FEATURE_BYTES,
            )
        else:
            limit = MAX_FEATURE_BYTES if stored or memory is None else memory
            num_projections = default_num_projections(
                num_samples * num_outputs,
                num_params,
                itemsize=dtype.itemsize,
                max_bytes=limit * devices,
            )
    elif isinstance(num_projections, str):
        raise ValueError(
            f"num_projections: give 'auto', 'exact' or a number, got {num_projections!r}"
        )
    projector = make_projection(
        projection, num_params, num_projections, jax.random.key(0) if key is None else key
    )
    row_bytes = num_outputs * projector.num_projections * dtype.itemsize
    on_device = -(-num_samples // devices)
    feature_bytes = num_samples * row_bytes
    if not stored and on_device * row_bytes > budget:
        refuse(
            f"features of {num_samples} samples × {num_outputs} outputs × D' = "
            f"{projector.num_projections}",
            on_device * row_bytes,
            budget,
            "what would fit: num_projections = "
            f"{max(1, budget // (on_device * num_outputs * dtype.itemsize))}, a store on disk "
            "(write_features), or more devices",
        )

    network = in_bfloat16(apply) if precision == "bfloat16" else apply
    one_sample = jax.ShapeDtypeStruct((1, *np.shape(inputs)[1:]), jnp.asarray(inputs[:1]).dtype)
    size = min(
        block_size
        or _block_samples(network, path, projector, params, one_sample, num_outputs, free),
        on_device,
    )
    for_blocks = free if stored else max(free // 8, free - on_device * row_bytes)
    compute, block_bytes = None, 0
    wanted = (
        min(for_blocks, _CPU_KEPT_BYTES)
        if jax.default_backend() == "cpu" and size > 2
        else for_blocks
    )
    while compiled:
        compute = _compiled(
            network,
            path,
            projector,
            mesh,
            dtype,
            params,
            jax.ShapeDtypeStruct((size * devices, *one_sample.shape[1:]), one_sample.dtype),
        )
        block_bytes = compiled_bytes(compute)
        if block_bytes <= wanted or block_size is not None:
            break
        if size == 1:
            refuse(
                "the activations and features of one sample",
                block_bytes,
                for_blocks,
                "take a smaller num_projections, smaller inputs (--image-size), or fewer outputs",
            )
        size, wanted = max(1, min(size - 1, size * wanted // block_bytes)), for_blocks
    return FeaturePlan(
        num_samples,
        num_outputs,
        projector.num_projections,
        wanted_projections or projector.num_projections,
        dtype,
        projector,
        {"path": path, "precision": precision},
        size,
        block_bytes,
        feature_bytes,
        mesh,
        compute,
    )


def run_block(plan: FeaturePlan, params: PyTree, block: Array) -> Float[Array, "block c d"]:
    if plan.compute is None:
        raise ValueError(
            "plan: was made with compiled=False, so it can only be looked at; make it with "
            "compiled=True"
        )
    return plan.compute(params, block)


def _block_samples(
    apply: Apply,
    path: JacobianPath,
    projection: AbstractProjection,
    params: PyTree,
    one_sample,
    num_outputs: int,
    free: int,
) -> int:
    """How many samples' activations, signals, sketches and (where they are formed) gradients fit
    into a block, beside a copy of the largest kernel.
    """
    limit, most = (
        (CPU_BLOCK_BYTES, _CPU_MAX_BLOCK)
        if jax.default_backend() == "cpu"
        else (DEVICE_BLOCK_BYTES, _DEVICE_MAX_BLOCK)
    )
    limit, sizes = (
        min(limit, free // 2),
        [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)],
    )
    if path == "plain" or not isinstance(projection, CountSketch):
        size = limit // max(1, 2 * sum(sizes) * num_outputs)
    else:

        def held(params, inputs):
            return [
                (layer.activations, layer.signals) if isinstance(layer, Product) else layer.value
                for layer in layers(apply, params, inputs)
            ]

        needed = sum(
            shape.size * shape.dtype.itemsize
            for shape in jax.tree.leaves(jax.eval_shape(held, params, one_sample))
        )
        sketches = (
            _SKETCHES * projection.num_projections * num_outputs * working_type(params).itemsize
        )
        # one sample at a time is slow: two, where their activations and signals fit
        size = max((limit - max(sizes)) // (needed + sketches), min(2, limit // max(1, needed)))
    return max(1, min(most, size))


def _compiled(
    apply: Apply,
    path: JacobianPath,
    projection: AbstractProjection,
    mesh: Mesh | None,
    dtype,
    params: PyTree,
    block,
) -> Any:
    def compute(params, inputs):
        return projected_jacobian(apply, path, projection, params, inputs).astype(dtype)

    if mesh is None:
        return jax.jit(compute).lower(params, block).compile()
    return sharding.compiled(compute, mesh, params, block)
