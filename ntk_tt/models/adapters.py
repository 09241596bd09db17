"""A pure function as a `Model`, and what all adapters share.

`ntk_tt.from_nnx`, `from_linen` and `from_equinox` are the same for modules. Each takes the network
and describes it; nothing else in the package knows where a network came from.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ntk_tt.models.model import Apply, BatchStatistics, Model
from ntk_tt.models.switches import (
    evaluated,
    read_call,
    takes_key_second,
)
from ntk_tt.runtime.parameter_names import named_leaves


class Description(TypedDict, total=False):
    """The fields of `Model` that a network does not say of itself; each has the default it has
    there.
    """

    name: str
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: str


def from_function(
    apply: Apply,
    params: PyTree,
    *,
    features: Apply | None = None,
    **description: Unpack[Description],
) -> Model:
    """A pure function and its parameters as a `Model`.

    Args:
        apply: `(params, images) -> logits (N, C)`, each sample on its own; images are (N, H, W, 3).
            Switches of training among its arguments are given their value for evaluation, and a key
            where it needs one, also between the two, as Haiku's functions take it.
        params: any tree of floating-point arrays; all of them train.
        features: `(params, images) -> activations before the head`, where there are any.
        description: name, num_classes, image_size, mean, std, head: see `Model`.

    Raises:
        ValueError: a leaf of `params` that is not a floating-point array (named), or none at all;
            an argument that is not offered. `apply` raises one where the logits depend on a key.
    """
    if not callable(apply):
        raise ValueError(
            f"apply: must be a function (params, images) -> logits, got {type(apply).__name__}"
        )
    name = getattr(apply, "__name__", "model")
    leaves = named_leaves(params)
    for name, leaf in leaves.items():
        if not eqx.is_inexact_array_like(leaf):
            raise ValueError(
                f"params: {name!r} is {what_it_is(leaf)}, which cannot be trained; keep only "
                "floating-point arrays in params and close over the rest"
            )
    if not leaves:
        raise ValueError("params: the tree has no arrays, so there is nothing to train")
    return described(
        jax.tree.map(jnp.asarray, params),
        _evaluating(apply, name),
        None,
        None if features is None else _evaluating(features, name),
        name,
        description,
    )


def _evaluating(function: Callable[..., Array], name: str) -> Apply:
    """The function of parameters and images alone, in evaluation."""
    key_between = takes_key_second(function)
    call = read_call(function, 2, name, key_at=1 if key_between else None)
    if not (call.switches or call.key):
        return function

    def evaluate(params, images):
        def run(arguments, named):
            between = [named.pop(call.key)] if key_between else []
            return function(params, *between, images, *arguments, **named)

        return evaluated(call, run, jax.random.key(0), name)

    return evaluate


def described(
    params: PyTree,
    apply,
    statistics: BatchStatistics | None,
    features,
    name: str,
    description: Description,
) -> Model:
    unknown = set(description) - set(Description.__annotations__)
    if unknown:
        raise ValueError(
            f"description: unknown {sorted(unknown)[0]!r}; known: "
            f"{', '.join(Description.__annotations__)}"
        )
    return Model(
        params=params,
        apply=apply,
        batch_statistics=statistics,
        apply_features=features,
        **{"name": name, **description},
    )


def step_key(state: dict) -> Array:
    """A key for each training step, from the count of them in the state."""
    return jax.random.fold_in(jax.random.key(0), state["step"])


def has_method(module: Any, name: str) -> bool:
    """Whether the class defines it: an attribute may have the same name, as the width of a layer
    often has.
    """
    return inspect.isfunction(getattr(type(module), name, None))


def what_it_is(value: Any) -> str:
    return (
        f"an array of {value.dtype}"
        if isinstance(value, jax.Array | np.ndarray)
        else f"something of type {type(value).__name__}"
    )
