"""Where passes over the data are kept, and what they depend on."""

import os
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from ntk_tt.features import store as stores
from ntk_tt.features.contrasts import Outputs, stored_outputs
from ntk_tt.features.directions import usual_directions
from ntk_tt.features.kept_pass import KeptPass, describe_pass, fingerprint
from ntk_tt.features.plan import plan_features
from ntk_tt.features.store import FeatureStore
from ntk_tt.features.write import feature_manifest, write_features
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.runtime.progress import Progress

_DESCENT = "gradient descent"  # the way of SGD, whatever its numbers


def kept_pass(
    what: Finetuning,
    optimizer: OptimizerConfig | None = None,
    num_steps: int | None = None,
    *,
    writes: bool = False,
) -> KeptPass | None:
    """Where the passes of this network on these data are kept: in the folder that `what` names, or
    the user's cache folder. None where there is no such folder to read from, or several devices
    share the samples.

    Args:
        optimizer, num_steps: on whose way the second point lies; without them it is that of SGD.
        writes: whether what is missing is to be written.

    Raises:
        OSError: the folder cannot be made.

    Cost: one pass over the bytes of weights and inputs, and a trace of the network.
    """
    if jax.device_count() > 1:
        return None
    try:
        root = what.store or stores.default_folder()
    except ValueError:  # no home folder
        if writes:
            raise
        return None
    if not writes and not os.path.isdir(root):
        return None
    model, options = what.model, what.options
    is_descent = optimizer is None or num_steps is None or optimizer.is_sgd
    first = describe_pass(
        model.apply,
        model.params,
        what.looked_at[0],
        key=what.key,
        settings={
            "targets": fingerprint(what.looked_at[1]),
            "loss": what.loss,
            "head": model.head,
            "projections": options.num_projections,
            "precision": options.precision,
            "block_size": options.block_size,
            "directions": usual_directions(
                what.num_outputs, what.loss, preconditioned=not is_descent
            ),
        },
    )
    way = _DESCENT
    if optimizer is not None and num_steps is not None:
        way = _way(optimizer, num_steps, what.orders)
    second = None if way is None else {**first, "settings": {**first["settings"], "way": way}}
    kept = KeptPass(root, first, second, writes)
    if writes:
        kept.make()
    return kept


def _way(optimizer: OptimizerConfig, num_steps: int, orders: Key[Array, ""]) -> Any:
    """What an optimiser's way depends on, as JSON values; None where that cannot be told: a chain
    of the user's own is a function.
    """
    if optimizer.is_sgd:
        return _DESCENT
    if optimizer.transformation is not None:
        return None
    kind, numbers = optimizer.kind_and_numbers()
    return {
        "name": kind.name,
        "nesterov": kind.nesterov,
        **{name: float(value) for name, value in numbers.items()},
        "rates": fingerprint(optimizer.learning_rates(num_steps)),
        "batch_size": optimizer.batch_size,
        "sampling": optimizer.sampling,
        "steps": num_steps,
        "orders": np.asarray(jax.random.key_data(orders)).tolist(),
    }


def find_features(what: Finetuning, outputs: Outputs) -> FeatureStore | None:
    """Features that an earlier `ntk-tt features` wrote for exactly this, or None."""
    try:
        root = what.store or stores.default_folder()
    except ValueError:  # no home folder
        return None
    if not os.path.isdir(root):
        return None
    apply, params = (
        stored_outputs(what.model.apply, what.num_outputs, outputs),
        what.model.params,
    )
    plan = plan_features(
        apply,
        params,
        what.trained_on[0],
        options=what.options,
        key=what.key,
        stored=True,
        compiled=False,
    )
    manifest = feature_manifest(
        plan, apply, params, what.trained_on[0], options=what.options, key=what.key
    )
    return stores.find(manifest, root)


def build_features(what: Finetuning, outputs: Outputs, progress: Progress) -> FeatureStore:
    """Computes the features to disk; goes on where an earlier call was stopped."""
    apply = stored_outputs(what.model.apply, what.num_outputs, outputs)
    return write_features(
        apply,
        what.model.params,
        what.trained_on[0],
        what.store,
        options=what.options,
        key=what.key,
        progress=progress,
    )
