"""A Flax Linen module and its variables as a `Model`."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np
from jaxtyping import PyTree

from ntk_tt.models.adapters import Description, described, has_method, step_key, what_it_is
from ntk_tt.models.model import BatchStatistics, Model
from ntk_tt.models.switches import (
    Call,
    depends_on,
    evaluated,
    read_call,
    training_mode,
)


def from_linen(
    module: Any, variables: Mapping[str, PyTree], **description: Unpack[Description]
) -> Model:
    """A Flax Linen module and its variables as a `Model`: what `module.init` gave, or a checkpoint.

    The collection `params` trains. The others (`batch_stats`) are frozen in `apply` and updated by
    `batch_statistics.apply_train`. An argument of the call that switches training (`train`,
    `deterministic`, …, see `ntk_tt.models.switches`) is given its value for evaluation or training;
    a field of the module is left as it is. A method `features`, where there is one, becomes
    `Model.features`. Dropout acts in `apply_train` alone, with a new mask each call.

    Args:
        module: `module.apply(variables, images) -> logits`; images are (N, H, W, 3).
        variables: with the collection `params`.
        description: as in `from_function`.

    Raises:
        ValueError: not a module, no `params`, or a call that needs what is not offered. `apply`
            raises one where the network trains all the same: where it changes its statistics, or
            its logits depend on a random key.
    """
    params, collections = _parted(module, variables)
    module = module.clone()  # a copy of its own, bound to nothing
    name = type(module).__name__
    network = _LinenNetwork(
        module, read_call(module.__call__, 1, name, fields=module), tuple(collections)
    )
    has_features = has_method(module, "features")
    features_call = (
        read_call(module.features, 1, name, fields=module) if has_features else network.call
    )
    state = (
        {"collections": collections, "step": np.zeros((), np.int32)}
        if jax.tree.leaves(collections)
        else None
    )
    return described(
        params,
        lambda params, images: network.evaluate(network.call, None, params, collections, images),
        None
        if state is None
        else BatchStatistics(
            state,
            network.train,
            lambda params, state, images: network.evaluate(
                network.call, None, params, state["collections"], images
            ),
        ),
        (
            lambda params, images: network.evaluate(
                features_call, "features", params, collections, images
            )
        )
        if has_features
        else None,
        name,
        description,
    )


def _parted(module: Any, variables: Mapping[str, PyTree]) -> tuple[PyTree, dict[str, PyTree]]:
    """(what trains, the other collections) of a module that is one."""
    from flax import core, linen

    if not isinstance(module, linen.Module):
        raise ValueError(
            f"module: must be a flax.linen.Module, got {what_it_is(module)}; for flax.nnx take "
            "from_nnx, for Equinox from_equinox"
        )
    collections = (
        core.unfreeze(variables) if isinstance(variables, core.FrozenDict) else dict(variables)
    )
    if not jax.tree.leaves(collections.get("params")):
        raise ValueError(
            "variables: there are no 'params' among "
            f"{', '.join(map(repr, collections)) or 'nothing'}; give what module.init(key, images) "
            "returns, or a checkpoint of it"
        )
    return collections.pop("params"), collections


class _LinenNetwork(NamedTuple):
    """A module, what its call takes beside images, and the collections that training changes."""

    module: Any
    call: Call
    mutable: tuple[str, ...]

    def evaluate(self, call: Call, method: str | None, params, collections, images):
        """The result of a method in evaluation."""
        from flax import errors

        def run(arguments, named, **more: Any):
            try:
                return self.module.apply(
                    {"params": params, **collections},
                    images,
                    *arguments,
                    method=method,
                    **named,
                    **more,
                )
            except errors.ModifyScopeVariableError as error:
                raise training_mode("module", _first_line(error)) from error

        def with_streams(arguments, named):
            try:
                return run(arguments, named)
            # it draws random numbers; which is no harm where nothing comes of them
            except errors.InvalidRngError:
                key = jax.random.key(0)
                if depends_on(lambda key: run(arguments, named, rngs={"params": key}), key):
                    raise training_mode("module", "its logits depend on random numbers") from None
                return run(arguments, named, rngs={"params": key})

        return evaluated(call, with_streams, jax.random.key(0), "module")

    def train(self, params, state, images):
        """(logits, new state) in training, with new keys in each step."""
        key, call = step_key(state), self.call
        arguments, named = call.arguments(training=True, **({call.key: key} if call.key else {}))
        logits, new = self.module.apply(
            {"params": params, **state["collections"]},
            images,
            *arguments,
            mutable=list(self.mutable),
            rngs={"params": key, "dropout": key},
            **named,
        )
        return logits, {"collections": new, "step": state["step"] + 1}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
