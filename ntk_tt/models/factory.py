"""The network that a function in a file of the user's makes."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Unpack, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from ntk_tt.models.adapters import Description, from_function, what_it_is
from ntk_tt.models.equinox_adapter import from_equinox
from ntk_tt.models.linen_adapter import from_linen
from ntk_tt.models.model import Apply, Model, from_nnx
from ntk_tt.models.switches import (
    is_training_mode,
)
from ntk_tt.runtime.user_file import place_of, read_function


def load_factory(
    reference: str, *, num_classes: int, image_size: int, key: Key[Array, ""] | None = None
) -> Model:
    """The network that a function in a file of the user's makes, for `--model
    path/to/file.py:factory`.

    The file is imported, and so run, as any program of yours; take no file from somebody whom you
    would not let run one.

    Args:
        reference: `FILE.py:FUNCTION`. The function is called with those of `num_classes`,
            `image_size` and `key` that it takes, and returns a `Model`, an `nnx.Module`, an
            `eqx.Module` or `(module, state)`, a Linen `(module, variables)`, or `(apply, params)`;
            all but a `Model` get ImageNet's normalisation, which `Model.note` says, and the
            function's name.
        num_classes: C, which its logits must have.
        image_size: side of the images it will see [pixels].
        key: for whatever it initialises; key 0 where none is given.

    Raises:
        ValueError: no such file or function, a failure in either (the line is named), another
            return type, or logits that are not (N, C).
    """
    found = read_function(reference, flag="model", makes="the network")
    path, name = found.path, found.name
    made = found.call(
        num_classes=num_classes,
        image_size=image_size,
        key=jax.random.key(0) if key is None else key,
    )
    model = _as_model(made, reference, name=name, num_classes=num_classes, image_size=image_size)
    if not isinstance(made, Model):
        model = dataclasses.replace(
            model,
            note=f"images are normalised by ImageNet's mean and standard deviation, since {name!r} "
            "does not say otherwise; return ntk_tt.from_nnx(…, mean=…, std=…) or its like",
        )
    try:
        shape = jax.eval_shape(
            model.apply,
            model.params,
            jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32),
        ).shape
    except Exception as error:
        if is_training_mode(error):
            raise ValueError(f"model: of {reference!r}: {error}") from error
        raise ValueError(
            f"model: the network of {reference!r} does not run on images of shape (N, "
            f"{image_size}, {image_size}, 3): it failed {place_of(error, path)}; correct it"
        ) from error
    if shape != (2, num_classes):
        raise ValueError(
            f"model: the network of {reference!r} maps 2 images to {shape}, where logits of "
            f"{num_classes} classes, (2, {num_classes}), are needed; use num_classes in {name!r}"
        )
    return model


def _as_model(made: Any, reference: str, **description: Unpack[Description]) -> Model:
    linen = sys.modules.get("flax.linen")  # a Linen module exists only where this was imported
    linen_module: Any = linen.Module if linen else ()
    match made:
        case Model():
            return made
        case nnx.Module():
            return from_nnx(made, **description)
        case (eqx.Module() as module, eqx.nn.State() as state):
            return from_equinox(module, state, **description)
        case eqx.Module():
            return from_equinox(made, **description)
        case (module, Mapping() as variables) if isinstance(module, linen_module):
            return from_linen(module, variables, **description)
        case (apply, params) if callable(apply) and not isinstance(apply, linen_module):
            return from_function(cast(Apply, apply), params, **description)
    given = (
        f"({', '.join(what_it_is(each) for each in made)})"
        if isinstance(made, tuple)
        else what_it_is(made)
    )
    remedy = (
        "return (module, variables), with its weights"
        if isinstance(made, linen_module)
        else "return a Model, an nnx or Equinox module, a Linen (module, variables), or (apply, "
        "params)"
    )
    raise ValueError(f"model: {reference!r} returned {given}; {remedy}")
