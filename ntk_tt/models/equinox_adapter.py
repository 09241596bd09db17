"""An Equinox module as a `Model`."""

from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ntk_tt.models.adapters import Description, described, has_method, step_key, what_it_is
from ntk_tt.models.model import BatchStatistics, Model
from ntk_tt.models.switches import (
    Call,
    check_unchanged,
    evaluated,
    evaluation_value,
    read_call,
)


def from_equinox(
    module: eqx.Module,
    state: eqx.nn.State | None = None,
    *,
    channels_first: bool = True,
    **description: Unpack[Description],
) -> Model:
    """An Equinox module as a `Model`; its inexact arrays train.

    By Equinox's convention the module takes one sample, `module(image) -> logits (C,)`, or with a
    state `module(image, state) -> (logits, state)`, and is mapped over the batch, whose axis is
    named `batch` (`BatchNorm(axis_name="batch")`). `apply` runs it in inference mode with the state
    as given, `batch_statistics.apply_train` in training mode: attributes and arguments of the call
    that switch between them (`inference`, `train`, …, see `ntk_tt.models.switches`) are given their
    values, and a key where the call needs one. A method `features`, where there is one, becomes
    `Model.features`.

    Args:
        module: the network.
        state: of `eqx.nn.make_with_state`, where it has one.
        channels_first: whether the module takes images as (3, H, W), as Equinox's convolutions do,
            or as (H, W, 3).
        description: as in `from_function`.

    Raises:
        ValueError: not a module, no inexact arrays in it, a module that keeps a state without it,
            or a call that needs what is not offered. `apply` raises one where the network trains
            all the same: where its state or its logits depend on the images' statistics or a random
            key.
    """
    params, static = _parted(module, state)
    given = 1 if state is None else 2
    has_features = has_method(module, "features")
    whole: Any = module  # callable, as was seen
    network = _EquinoxNetwork(
        _switched(static, training=False),
        _switched(static, training=True),
        read_call(whole.__call__, given, "module"),
        channels_first,
    )
    features_call = read_call(whole.features, given, "module") if has_features else network.call
    return described(
        params,
        lambda params, images: network.evaluate(network.call, "__call__", params, state, images),
        None
        if state is None
        else BatchStatistics(
            {"state": state, "step": np.zeros((), np.int32)},
            network.train,
            lambda params, state, images: network.evaluate(
                network.call, "__call__", params, state["state"], images
            ),
        ),
        (lambda params, images: network.evaluate(features_call, "features", params, state, images))
        if has_features
        else None,
        type(module).__name__,
        description,
    )


def _parted(module: Any, state: eqx.nn.State | None) -> tuple[Any, Any]:
    """(what trains, the rest) of a module that is one, and has its state."""
    if not isinstance(module, eqx.Module) or not callable(module):
        raise ValueError(f"module: must be a callable equinox.Module, got {what_it_is(module)}")
    params, static = eqx.partition(module, eqx.is_inexact_array)
    name = type(module).__name__
    if not jax.tree.leaves(params):
        raise ValueError(
            f"module: {name} has no floating-point arrays, so there is nothing to train"
        )

    def keeps_state(leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.StateIndex)

    if state is None and any(map(keeps_state, jax.tree.leaves(module, is_leaf=keeps_state))):
        raise ValueError(
            f"module: {name} keeps a state, as batch norm does; make it with module, state = "
            f"eqx.nn.make_with_state({name})(…), and give both, (module, state)"
        )
    return params, static


class _EquinoxNetwork(NamedTuple):
    """A module over a batch.

    Attributes:
        inference, training: the module without what trains, its switches set for either.
        call: what the module takes beside a sample and its state.
        channels_first: as of `from_equinox`.
    """

    inference: Any
    training: Any
    call: Call
    channels_first: bool

    def evaluate(self, call: Call, method: str, params, state, images):
        """The result of a method in evaluation."""
        function = getattr(eqx.combine(params, self.inference), method)

        def run(arguments, named):
            logits, new = self._batched(function, images, state, arguments, named)
            if state is not None:
                check_unchanged(
                    _arrays(state),
                    _arrays(new),
                    lambda old: _arrays(
                        self._batched(function, images, _with_arrays(state, old), arguments, named)[
                            1
                        ]
                    ),
                    "module",
                )
            return logits

        return evaluated(call, run, jax.random.key(0), "module")

    def train(self, params, state, images):
        """(logits, new state) in training, with new keys in each step."""
        key = self.call.key
        arguments, named = self.call.arguments(training=True, **({key: None} if key else {}))
        logits, new = self._batched(
            eqx.combine(params, self.training),
            images,
            state["state"],
            arguments,
            named,
            step_key(state) if key else None,
        )
        return logits, {"state": new, "step": state["step"] + 1}

    def _batched(self, function, images, state, arguments, named, key=None):
        """(logits, new state) of a batch; the state is the same for all samples, and with `key`
        each has a key of its own.

        `vmap` takes the state apart and builds it anew, so Equinox's guard against using one twice
        does not strike.
        """
        call = self.call
        first = self.channels_first and images.ndim > 2
        samples = jnp.moveaxis(images, -1, 1) if first else images
        more = () if state is None else (state,)
        keys = {} if key is None else {call.key: jax.random.split(key, len(samples))}
        result = jax.vmap(
            lambda sample, keys, *more: function(
                sample,
                *more,
                *[
                    keys.get(each, value)
                    for each, value in zip(call.by_position, arguments, strict=False)
                ],
                **named
                | {each: value for each, value in keys.items() if each not in call.by_position},
            ),
            in_axes=(0, 0, *[None] * len(more)),
            out_axes=(0, None) if more else 0,
            axis_name="batch",
        )(samples, keys, *more)
        return result if more else (result, None)


def _switched(static: Any, *, training: bool) -> Any:
    """The module with every attribute that switches training at its value, at all depths."""

    def value(path, leaf):
        evaluating = (
            evaluation_value(path[-1].name, attribute=True)
            if isinstance(leaf, bool) and path and isinstance(path[-1], jax.tree_util.GetAttrKey)
            else None
        )
        return leaf if evaluating is None else evaluating != training

    return jax.tree_util.tree_map_with_path(
        value, eqx.nn.inference_mode(static, value=not training)
    )


def _arrays(state: Any) -> dict[str, Any]:
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _with_arrays(state: Any, arrays: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(state), list(arrays.values()))
