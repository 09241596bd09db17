"""Features Φ = J R in memory, block by block: the projected Jacobian of all samples."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.features.plan import FeaturePlan, plan_features, run_block
from ntk_tt.jacobian.network import Apply, blocks, check_features
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.runtime import sharding
from ntk_tt.runtime.input_trees import Inputs, on_host, placed, take
from ntk_tt.runtime.progress import Progress, silent


@takes_former_keywords
def jacobian_features(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    *,
    options: FeatureOptions = DEFAULT_OPTIONS,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Float[Array, "n c d"]:
    """Φ (N, C, D') with E[ΦΦᵀ] = Θ, or the Jacobian itself.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`, each sample on its own (batch norm frozen).
        params: w₀, a tree of arrays.
        inputs: (N, ...).
        options: D', the projection, precision, memory and blocks; see `FeatureOptions`.
        key: of the projection; key 0 where none is given. The same key gives the same R for the
            same network.
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
    (`CountSketch`). Memory N·C·D' for the result and one block: linear in
    N.
    """
    plan = plan_features(
        apply,
        params,
        inputs,
        options=options,
        key=key,
        mesh=mesh,
    )
    check_pass(options.rounded(apply), params, inputs, path=options.path)
    features = compute_features(plan, params, inputs, progress=progress)
    check_features(features)
    return features


def compute_features(
    plan: FeaturePlan,
    params: PyTree,
    inputs: Inputs,
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
        features = write(features, run_block(plan, params, block), jnp.asarray(start))
        progress(min(start + plan.block_size, on_device) * devices, on_device * devices)
    return features


def _block_inputs(plan: FeaturePlan, inputs, on_device: int) -> Iterator[tuple[int, Inputs]]:
    """(first sample on each device, the block's inputs); the last block is moved back to full size,
    so all compile once.
    """
    for block in blocks(on_device, plan.block_size):
        start = min(block.start, on_device - plan.block_size)
        if plan.mesh is None:
            yield start, placed(take(inputs, slice(start, start + plan.block_size)))
        else:
            yield (
                start,
                jax.tree.map(
                    partial(sharding.shard, mesh=plan.mesh),
                    take(
                        on_host(inputs),
                        sharding.device_rows(plan.num_samples, plan.mesh, start, plan.block_size),
                    ),
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
