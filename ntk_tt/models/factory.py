"""The network that a function in a file of the user's makes."""

import dataclasses
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
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
from ntk_tt.runtime.files import is_plain_file


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
    path, function, name = _read_factory(reference)
    offered = {
        "num_classes": num_classes,
        "image_size": image_size,
        "key": jax.random.key(0) if key is None else key,
    }
    parameters = _parameters(function)
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    required = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.name not in offered
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if required:
        raise ValueError(
            f"model: {name!r} in {str(path)!r} needs {required[0]!r}, which is not offered; take "
            "only num_classes, image_size and key, or give it a default"
        )
    try:
        made = function(
            **{
                option: value
                for option, value in offered.items()
                if everything or any(option == parameter.name for parameter in parameters)
            }
        )
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: {name!r} failed {_where(error, path)}; correct it") from error
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
            f"{image_size}, {image_size}, 3): it failed {_where(error, path)}; correct it"
        ) from error
    if shape != (2, num_classes):
        raise ValueError(
            f"model: the network of {reference!r} maps 2 images to {shape}, where logits of "
            f"{num_classes} classes, (2, {num_classes}), are needed; use num_classes in {name!r}"
        )
    return model


def _read_factory(reference: str) -> tuple[Path, Callable, str]:
    """The file, the function in it, and its name."""
    file, _, name = reference.rpartition(":")
    if not file or not name or not file.endswith(".py"):
        raise ValueError(f"model: cannot read {reference!r}; give path/to/file.py:function")
    path = Path(file)
    if not is_plain_file(path):
        raise ValueError(f"model: there is no file {file!r}; give path/to/file.py:function")
    namespace = vars(_import(path))
    if name not in namespace:
        functions = [
            other
            for other, value in namespace.items()
            if inspect.isfunction(value)
            and value.__module__ == namespace["__name__"]
            and not other.startswith("_")
        ]
        raise ValueError(
            f"model: {file} has no {name!r}; it has the functions "
            f"{', '.join(functions) or '(none)'}"
        )
    if not callable(namespace[name]):
        raise ValueError(
            f"model: {name!r} in {file} is {what_it_is(namespace[name])}; give a function that "
            "makes "
            "the network"
        )
    return path, namespace[name], name


def _parameters(function: Callable) -> list[inspect.Parameter]:
    # NNX classes hide the signature of their `__init__` behind a metaclass
    if inspect.isclass(function):
        return list(inspect.signature(function.__init__).parameters.values())[1:]
    return list(inspect.signature(function).parameters.values())


def _import(path: Path) -> ModuleType:
    """The file as a module of its own; its folder is searched for what it imports."""
    spec = importlib.util.spec_from_file_location(f"ntk_tt_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"model: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ValueError(
            f"model: {str(path)!r} cannot be imported: it failed {_where(error, path)}; correct it"
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


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


def _where(error: BaseException, path: Path) -> str:
    """`with TypeError: … (line 3)`: the last line of the user's file on the way to the error."""
    line = (
        error.lineno
        if isinstance(error, SyntaxError)
        else next(
            (
                frame.lineno
                for frame in reversed(traceback.extract_tb(error.__traceback__))
                if Path(frame.filename).resolve() == path.resolve()
            ),
            None,
        )
    )
    message = next(iter(str(error).splitlines()), "")
    return (
        f"with {type(error).__name__}"
        + (f": {message}" if message else "")
        + (f" (line {line})" if line else "")
    )
