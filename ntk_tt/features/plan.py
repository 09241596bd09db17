"""A feature pass before it runs: how many projections, how many samples at a time, and the memory
that takes.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.dimension import default_num_projections
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, JacobianPath
from ntk_tt.features.one_block import projected_jacobian
from ntk_tt.features.projection_by_name import make_projection
from ntk_tt.features.projections import AbstractProjection
from ntk_tt.jacobian.layers import Lookup, Product
from ntk_tt.jacobian.network import Apply, check_network, working_type
from ntk_tt.jacobian.structured import layers
from ntk_tt.runtime import sharding
from ntk_tt.runtime.input_trees import Inputs, num_samples, shapes
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
    compute: Callable[[PyTree, Inputs], Float[Array, "block c d"]] | None


def plan_features(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    *,
    options: FeatureOptions = DEFAULT_OPTIONS,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    stored: bool = False,
    compiled: bool = True,
) -> FeaturePlan:
    """Everything about a feature pass but its run; arguments as `jacobian_features`.

    Args:
        stored: the features go to disk, so only a block counts.
        compiled: whether to compile; without it the plan serves to find features that are there
            already.
    """
    num_outputs = check_network(apply, params, inputs)
    devices = 1 if mesh is None else sharding.check_mesh(mesh)
    count, num_params = num_samples(inputs), sum(leaf.size for leaf in jax.tree.leaves(params))
    dtype, free = working_type(params), available_bytes()
    budget, on_device = (
        free if options.memory is None else options.memory,
        -(-count // devices),
    )
    num_projections, wanted = _dimension(
        options, (count, on_device, devices), num_outputs, num_params, dtype, budget, stored
    )
    projection = make_projection(
        options.projection, num_params, num_projections, jax.random.key(0) if key is None else key
    )
    row_bytes = num_outputs * projection.num_projections * dtype.itemsize
    if not stored and on_device * row_bytes > budget:
        refuse(
            f"features of {count} samples × {num_outputs} outputs × D' = "
            f"{projection.num_projections}",
            on_device * row_bytes,
            budget,
            "what would fit: num_projections = "
            f"{max(1, budget // (on_device * num_outputs * dtype.itemsize))}, a store on disk "
            "(write_features), or more devices",
        )
    network = options.rounded(apply)
    one_sample = shapes(inputs, 1)
    size = min(
        options.block_size
        or _block_samples(network, options.path, projection, params, one_sample, num_outputs, free),
        on_device,
    )

    def compile_for(size: int) -> Any:
        block = shapes(inputs, size * devices)
        return _compiled(network, options.path, projection, mesh, dtype, params, block)

    compute, block_bytes = None, 0
    if compiled:
        for_blocks = free if stored else max(free // 8, free - on_device * row_bytes)
        compute, size, block_bytes = _fitting(
            compile_for, size, for_blocks, shrinks=options.block_size is None
        )
    return FeaturePlan(
        count,
        num_outputs,
        projection.num_projections,
        wanted or projection.num_projections,
        dtype,
        projection,
        {"path": options.path, "precision": options.precision},
        size,
        block_bytes,
        count * row_bytes,
        mesh,
        compute,
    )


def _dimension(
    options: FeatureOptions,
    samples: tuple[int, int, int],
    num_outputs: int,
    num_params: int,
    dtype: Any,
    budget: int,
    stored: bool,
) -> tuple[int, int]:
    """D', and what `auto` would take where memory does not matter (0 where it is not `auto`)."""
    if not isinstance(options.num_projections, str):
        return options.num_projections, 0
    if options.num_projections == "exact":
        return num_params, 0
    num_samples, on_device, devices = samples
    num_rows = num_samples * num_outputs
    wanted = default_num_projections(num_rows, num_params, max_bytes=sys.maxsize)
    if options.memory is None and not stored:
        return affordable_projections(
            on_device * num_outputs, wanted, dtype.itemsize, budget, most=MAX_FEATURE_BYTES
        ), wanted
    limit = MAX_FEATURE_BYTES if stored or options.memory is None else options.memory
    return default_num_projections(
        num_rows, num_params, itemsize=dtype.itemsize, max_bytes=limit * devices
    ), wanted


def _fitting(
    compile_for: Callable[[int], Any], size: int, for_blocks: int, *, shrinks: bool
) -> tuple[Any, int, int]:
    """The compiled pass over one block, its samples and its bytes of memory.

    The first guess of the block size comes from the shapes of activations and signals. The compiled
    program then says what it really needs (`jax.stages.Compiled.memory_analysis`, which differs by
    versions of XLA), and the block shrinks until that fits; on a CPU once more where the guess was
    too large for what the allocator keeps.
    """
    wanted = (
        min(for_blocks, _CPU_KEPT_BYTES)
        if jax.default_backend() == "cpu" and size > 2
        else for_blocks
    )
    while True:
        compute = compile_for(size)
        block_bytes = compiled_bytes(compute)
        if block_bytes <= wanted or not shrinks:
            return compute, size, block_bytes
        if size == 1:
            refuse(
                "the activations and features of one sample",
                block_bytes,
                for_blocks,
                "take a smaller num_projections, smaller inputs (--image-size), or fewer outputs",
            )
        size, wanted = max(1, min(size - 1, size * wanted // block_bytes)), for_blocks


def run_block(plan: FeaturePlan, params: PyTree, block: Inputs) -> Float[Array, "block c d"]:
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
            found = (
                layer.as_product() if isinstance(layer, Lookup) else layer
                for layer in layers(apply, params, inputs)
            )
            return [
                (layer.activations, layer.signals) if isinstance(layer, Product) else layer.held
                for layer in found
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
