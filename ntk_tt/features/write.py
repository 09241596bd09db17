"""Features on their way to disk, block by block; an interrupted pass goes on where it was."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.features.manifest import describe
from ntk_tt.features.plan import FeaturePlan, plan_features, run_block
from ntk_tt.features.store import FeatureStore, folder_of
from ntk_tt.jacobian.network import Apply, check_features
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.runtime.input_trees import Inputs, placed, take
from ntk_tt.runtime.progress import Progress, silent


@takes_former_keywords
def write_features(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    store: str | Path | None = None,
    *,
    options: FeatureOptions = DEFAULT_OPTIONS,
    key: Key[Array, ""] | None = None,
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
        options=options,
        key=key,
        stored=True,
    )
    manifest = feature_manifest(plan, apply, params, inputs, options=options, key=key)
    opened = FeatureStore.open(
        folder_of(manifest, None if store is None else Path(store)), manifest
    )
    missing = opened.missing()
    if missing:
        check_pass(options.rounded(apply), params, inputs, path=options.path)
    total = -(-plan.num_samples // plan.block_size)
    for done, index in enumerate(missing, total - len(missing) + 1):
        rows = opened.samples(index)
        # the last block is moved back to full size
        start = min(rows.start, plan.num_samples - plan.block_size)
        block = run_block(plan, params, placed(take(inputs, slice(start, start + plan.block_size))))
        check_features(block, first=start)
        opened.write(index, np.asarray(block[rows.start - start :]))
        progress(done, total)
    return opened


def feature_manifest(
    plan: FeaturePlan,
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    *,
    options: FeatureOptions,
    key: Key[Array, ""] | None,
) -> dict[str, Any]:
    """All that the features of a plan depend on, as `features.manifest.describe` gives it."""
    return describe(
        apply,
        params,
        inputs,
        num_projections=plan.num_projections,
        projection=options.projection,
        key=jax.random.key(0) if key is None else key,
        block_size=plan.block_size,
        dtype=plan.dtype,
        settings=plan.settings,
    )
