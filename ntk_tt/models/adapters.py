"""Networks of any library as a `Model`: Flax Linen, Equinox, plain functions, and factories in the
user's own files.

`ntk_tt.from_nnx` is the same for Flax NNX. Each takes the network and describes it; nothing else in
the package knows where a network came from.
"""

import dataclasses
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict, Unpack, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, PyTree

from ntk_tt.models.model import Apply, BatchStatistics, Model, from_nnx
from ntk_tt.models.switches import (
    check_unchanged,
    depends_on,
    evaluated,
    evaluation_value,
    is_training_mode,
    read_call,
    takes_key_second,
    training_mode,
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
                f"params: {name!r} is {_what(leaf)}, which cannot be trained; keep only "
                "floating-point arrays in params and close over the rest"
            )
    if not leaves:
        raise ValueError("params: the tree has no arrays, so there is nothing to train")
    return _model(
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
    from flax import core, errors, linen

    if not isinstance(module, linen.Module):
        raise ValueError(
            f"module: must be a flax.linen.Module, got {_what(module)}; for flax.nnx take "
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
    params = collections.pop("params")
    module = module.clone()  # a copy of its own, bound to nothing
    name = type(module).__name__
    call = read_call(module.__call__, 1, name, fields=module)
    has_features = _has_method(module, "features")
    features_call = read_call(module.features, 1, name, fields=module) if has_features else call

    def evaluate(call, method, params, collections, images):
        def run(arguments, named, **more: Any):
            try:
                return module.apply(
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

    def train(params, state, images):
        key = _step_key(state)
        arguments, named = call.arguments(training=True, **({call.key: key} if call.key else {}))
        logits, new = module.apply(
            {"params": params, **state["collections"]},
            images,
            *arguments,
            mutable=list(collections),
            rngs={"params": key, "dropout": key},
            **named,
        )
        return logits, {"collections": new, "step": state["step"] + 1}

    state = (
        {"collections": collections, "step": np.zeros((), np.int32)}
        if jax.tree.leaves(collections)
        else None
    )
    return _model(
        params,
        lambda params, images: evaluate(call, None, params, collections, images),
        None
        if state is None
        else BatchStatistics(
            state,
            train,
            lambda params, state, images: evaluate(
                call, None, params, state["collections"], images
            ),
        ),
        (lambda params, images: evaluate(features_call, "features", params, collections, images))
        if has_features
        else None,
        name,
        description,
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
    if not isinstance(module, eqx.Module) or not callable(module):
        raise ValueError(f"module: must be a callable equinox.Module, got {_what(module)}")
    params, static = eqx.partition(module, eqx.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"module: {type(module).__name__} has no floating-point arrays, so there is nothing to "
            "train"
        )
    name = type(module).__name__
    if state is None and any(
        isinstance(leaf, eqx.nn.StateIndex)
        for leaf in jax.tree.leaves(
            module, is_leaf=lambda leaf: isinstance(leaf, eqx.nn.StateIndex)
        )
    ):
        raise ValueError(
            f"module: {name} keeps a state, as batch norm does; make it with module, state = "
            f"eqx.nn.make_with_state({name})(…), and give both, (module, state)"
        )
    inference, training = _switched(static, training=False), _switched(static, training=True)
    given = 1 if state is None else 2
    call = read_call(module.__call__, given, "module")
    has_features = _has_method(module, "features")
    features_call = read_call(module.features, given, "module") if has_features else call  # pyright: ignore[reportAttributeAccessIssue]

    def batched(function, images, state, arguments, named, key=None):
        """(logits, new state) of a batch; the state is the same for all samples, and with `key`
        each has a key of its own.

        `vmap` takes the state apart and builds it anew, so Equinox's guard against using one twice
        does not strike.
        """
        samples = jnp.moveaxis(images, -1, 1) if channels_first and images.ndim > 2 else images
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

    def evaluate(call, method, params, state, images):
        function = getattr(eqx.combine(params, inference), method)

        def run(arguments, named):
            logits, new = batched(function, images, state, arguments, named)
            if state is not None:
                check_unchanged(
                    _arrays(state),
                    _arrays(new),
                    lambda old: _arrays(
                        batched(function, images, _with_arrays(state, old), arguments, named)[1]
                    ),
                    "module",
                )
            return logits

        return evaluated(call, run, jax.random.key(0), "module")

    def train(params, state, images):
        arguments, named = call.arguments(training=True, **({call.key: None} if call.key else {}))
        logits, new = batched(
            eqx.combine(params, training),
            images,
            state["state"],
            arguments,
            named,
            _step_key(state) if call.key else None,
        )
        return logits, {"state": new, "step": state["step"] + 1}

    return _model(
        params,
        lambda params, images: evaluate(call, "__call__", params, state, images),
        None
        if state is None
        else BatchStatistics(
            {"state": state, "step": np.zeros((), np.int32)},
            train,
            lambda params, state, images: evaluate(
                call, "__call__", params, state["state"], images
            ),
        ),
        (lambda params, images: evaluate(features_call, "features", params, state, images))
        if has_features
        else None,
        name,
        description,
    )


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
    if not path.is_file():
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
            f"model: {name!r} in {file} is {_what(namespace[name])}; give a function that makes "
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
        f"({', '.join(_what(each) for each in made)})" if isinstance(made, tuple) else _what(made)
    )
    remedy = (
        "return (module, variables), with its weights"
        if isinstance(made, linen_module)
        else "return a Model, an nnx or Equinox module, a Linen (module, variables), or (apply, "
        "params)"
    )
    raise ValueError(f"model: {reference!r} returned {given}; {remedy}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


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


def _model(
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


def _step_key(state: dict) -> Array:
    """A key for each training step, from the count of them in the state."""
    return jax.random.fold_in(jax.random.key(0), state["step"])


def _has_method(module: Any, name: str) -> bool:
    """Whether the class defines it: an attribute may have the same name, as the width of a layer
    often has.
    """
    return inspect.isfunction(getattr(type(module), name, None))


def _what(value: Any) -> str:
    return (
        f"an array of {value.dtype}"
        if isinstance(value, jax.Array | np.ndarray)
        else f"something of type {type(value).__name__}"
    )
