"""Features Φ = J R: the projected Jacobian of all outputs for all samples, in compiled blocks whose
memory is planned.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.features.projections import (
    AbstractProjection,
    AbstractSketch,
    ProjectionName,
    SignFold,
    default_num_projections,
    make_projection,
)
from ntk_tt.features.store import FeatureStore, describe, folder_of
from ntk_tt.jacobian.bfloat16 import in_bfloat16
from ntk_tt.jacobian.layers import Layer, Product
from ntk_tt.jacobian.network import (
    Apply,
    blocks,
    check_features,
    check_network,
    jacobian_block,
    logits_of,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.jacobian.structured import layers, structured_jacobian
from ntk_tt.runtime import sharding
from ntk_tt.runtime.memory import affordable_projections, available_bytes, compiled_bytes, refuse
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.progress import Progress, silent

JacobianPath = Literal["structured", "plain"]
Precision = Literal["float32", "bfloat16"]

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


def jacobian_features(
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
    progress: Progress = silent,
) -> Float[Array, "n c d"]:
    """Φ (N, C, D') with E[ΦΦᵀ] = Θ, or the Jacobian itself.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own (batch norm frozen).
        params: w₀, a tree of arrays.
        inputs: (N, ...).
        num_projections: D'; `auto` takes 16·N·C (see `default_num_projections`), `exact` no
            projection. From D' ≥ D on, the result is exact.
        projection: `fold`, `achlioptas` or `gaussian` (see `ntk_tt.projection`).
        key: of the projection; key 0 where none is given. The same key gives the same R for the
            same network.
        path: `structured` (activations and back-propagated signals, see `ntk_tt.taps`) or `plain`
            (`vmap(jacrev)`); the same numbers to rounding.
        precision: `bfloat16` rounds the operands of products and convolutions, see
            `ntk_tt.bfloat16`; sums stay float32.
        block_size: samples at a time on each device; None plans it.
        memory: bytes that the features may take on each device, besides one block; None takes what
            is free. With `auto`, D' is at most what it allows.
        mesh: of `ntk_tt.runtime.sharding.sample_mesh`; the result is then (padded N, C, D') over
            its devices.
        progress: called as `progress(done, total)` after each block.

    Returns:
        (N, C, D') in the dtype of the parameters, float32 at least.

    Raises:
        ValueError: an argument out of range, NaN in inputs or weights, or more memory than there is
            (with what would fit).

    Cost: one forward pass and C backward passes through activations a sample, and for each layer
    2·C·(parameters × positions) flops for its gradients, formed or folded unformed
    (`ntk_tt.features.projections.SignFold`). Memory N·C·D' for the result and one block: linear in
    N.
    """
    plan = plan_features(
        apply,
        params,
        inputs,
        num_projections=num_projections,
        projection=projection,
        key=key,
        path=path,
        precision=precision,
        block_size=block_size,
        memory=memory,
        mesh=mesh,
    )
    check_pass(in_bfloat16(apply) if precision == "bfloat16" else apply, params, inputs, path=path)
    features = compute_features(plan, params, inputs, progress=progress)
    check_features(features)
    return features


def write_features(
    apply: Apply,
    params: PyTree,
    inputs: Float[Array | np.ndarray, "n ..."],
    store: str | Path | None = None,
    *,
    num_projections: int | str = "auto",
    projection: ProjectionName = "fold",
    key: Key[Array, ""] | None = None,
    path: JacobianPath = "structured",
    precision: Precision = "float32",
    block_size: int | None = None,
    memory: int | None = None,
    progress: Progress = silent,
) -> FeatureStore:
    """Φ block by block to disk, never more than one block in memory; goes on where an earlier call
    was stopped.

    Args: as `jacobian_features`, and
        store: folder in which the feature set gets a folder of its own, named by what it depends on
            (see `ntk_tt.features.store`); None takes `ntk_tt.features.store.default_folder()`.

    Raises:
        ValueError: as `jacobian_features`.
        OSError: the disk is full or not writable; what was written stays.
    """
    plan = plan_features(
        apply,
        params,
        inputs,
        num_projections=num_projections,
        projection=projection,
        key=key,
        path=path,
        precision=precision,
        block_size=block_size,
        memory=memory,
        stored=True,
    )
    manifest = feature_manifest(plan, apply, params, inputs, projection=projection, key=key)
    opened = FeatureStore.open(
        folder_of(manifest, None if store is None else Path(store)), manifest
    )
    missing = opened.missing()
    if missing:
        check_pass(
            in_bfloat16(apply) if precision == "bfloat16" else apply, params, inputs, path=path
        )
    total = -(-plan.num_samples // plan.block_size)
    for done, index in enumerate(missing, total - len(missing) + 1):
        rows = opened.samples(index)
        # the last block is moved back to full size
        start = min(rows.start, plan.num_samples - plan.block_size)
        block = _run(plan, params, jnp.asarray(inputs[start : start + plan.block_size]))
        check_features(block, first=start)
        opened.write(index, np.asarray(block[rows.start - start :]))
        progress(done, total)
    return opened


def feature_manifest(
    plan: FeaturePlan,
    apply: Apply,
    params: PyTree,
    inputs: Float[Array | np.ndarray, "n ..."],
    *,
    projection: ProjectionName,
    key: Key[Array, ""] | None,
) -> dict[str, Any]:
    """All that the features of a plan depend on, as `ntk_tt.features.store.describe` gives it."""
    return describe(
        apply,
        params,
        inputs,
        num_projections=plan.num_projections,
        projection=projection,
        key=jax.random.key(0) if key is None else key,
        block_size=plan.block_size,
        dtype=plan.dtype,
        settings=plan.settings,
    )


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


def compute_features(
    plan: FeaturePlan,
    params: PyTree,
    inputs: Float[Array | np.ndarray, "n ..."],
    *,
    progress: Progress = silent,
) -> Float[Array, "n c d"]:
    """The features of a plan, in memory; over its devices, padded, where it has a mesh."""
    devices = 1 if plan.mesh is None else plan.mesh.size
    on_device = -(-plan.num_samples // devices)
    shape = (on_device * devices, plan.num_outputs, plan.num_projections)
    features = (
        jnp.zeros(shape, plan.dtype)
        if plan.mesh is None
        else sharding.zeros(shape, plan.dtype, plan.mesh)
    )
    write = _writer(plan.mesh)
    for start, block in _block_inputs(plan, inputs, on_device):
        features = write(features, _run(plan, params, block), jnp.asarray(start))
        progress(min(start + plan.block_size, on_device) * devices, on_device * devices)
    return features


def _run(plan: FeaturePlan, params: PyTree, block: Array) -> Float[Array, "block c d"]:
    if plan.compute is None:
        raise ValueError(
            "plan: was made with compiled=False, so it can only be looked at; make it with "
            "compiled=True"
        )
    return plan.compute(params, block)


def in_contrasts(apply: Apply, basis: Float[Array, "c k"]) -> Apply:
    """The network with the C−1 contrasts of its logits as outputs, all that softmax cross-entropy
    sees; see `ContrastKernel`.
    """

    def contrasts(params, inputs):
        logits = logits_of(apply, params, inputs)
        return logits @ basis.astype(logits.dtype)

    return contrasts


def check_path(path: str) -> None:
    if path not in get_args(JacobianPath):
        raise ValueError(f"path: unknown {path!r}; give 'structured' or 'plain'")


def projected_jacobian(
    apply: Apply,
    path: JacobianPath,
    projection: AbstractProjection,
    params: PyTree,
    inputs: Float[Array, "n ..."],
) -> Float[Array, "n c d"]:
    """Φ of one block. On the structured path a layer's gradients are formed, or folded without
    being formed, whichever moves less.
    """
    if path == "structured" and isinstance(projection, AbstractSketch):
        return _sketch(projection, params, layers(apply, params, inputs))
    jacobian = (
        structured_jacobian(apply, params, inputs)
        if path == "structured"
        else jacobian_block(apply, params, inputs)
    )
    num_samples, num_outputs = jax.tree.leaves(jacobian)[0].shape[:2]
    return projection(jax.tree.map(_flat_rows, jacobian)).reshape(num_samples, num_outputs, -1)


def _sketch(
    projection: AbstractSketch, params: PyTree, found: list[Layer]
) -> Float[Array, "n c d"]:
    names, leaves = list(named_leaves(params)), jax.tree.leaves(params)
    num_samples, num_outputs = found[0].rows
    total = projection.start(
        num_samples * num_outputs, jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    )
    for layer in found:
        name, shape = names[layer.source.leaf], leaves[layer.source.leaf].shape
        if 0 in shape:
            continue
        if (
            isinstance(layer, Product)
            and isinstance(projection, SignFold)
            and layer.is_leaf_matrix
            and projection.folds_products(shape)
        ):
            total = projection.add_product(total, name, shape, layer.activations, layer.signals)
        else:
            total = projection.add(total, name, _flat_rows(layer.gradient(leaves)))
    return projection.finish(total).reshape(num_samples, num_outputs, -1)


def _flat_rows(gradient: Float[Array, "n c ..."]) -> Float[Array, "rows ..."]:
    # no -1: a parameter may have no numbers
    return gradient.reshape(gradient.shape[0] * gradient.shape[1], *gradient.shape[2:])


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
    if path == "plain" or not isinstance(projection, SignFold):
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


def _block_inputs(plan: FeaturePlan, inputs, on_device: int) -> Iterator[tuple[int, Array]]:
    """(first sample on each device, the block's inputs); the last block is moved back to full size,
    so all compile once.
    """
    for block in blocks(on_device, plan.block_size):
        start = min(block.start, on_device - plan.block_size)
        if plan.mesh is None:
            yield start, jnp.asarray(inputs[start : start + plan.block_size])
        else:
            yield (
                start,
                sharding.shard(
                    np.asarray(inputs)[
                        sharding.device_rows(plan.num_samples, plan.mesh, start, plan.block_size)
                    ],
                    plan.mesh,
                ),
            )


def _writer(mesh: Mesh | None) -> Callable[[Array, Array, Array], Array]:
    """(features, block, first sample) -> features with the block, in place."""
    update = partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.jit(
        update
        if mesh is None
        else sharding.on_each_device(update, mesh, sharded=(True, True, False)),
        donate_argnums=0,
    )
