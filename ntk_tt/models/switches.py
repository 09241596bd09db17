"""How a network is put into evaluation: the one place that knows what arguments and attributes are
called that switch training.

Libraries and people call the switch `train`, `deterministic`, `is_training`, `inference`, …, ask
for a key although nothing is random in evaluation, or take no switch at all. Here a call's
signature is read, its arguments are filled in, and what then still trains is found: a network whose
logits depend on a random key, or that changes its statistics, is no function of its parameters, and
is refused.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp

from ntk_tt.jacobian.jaxpr import arguments_used, returned_unchanged
from ntk_tt.runtime.parameter_names import named_leaves

# The telling words of a switch's name, and its value in evaluation; words that tell nothing are
# left out before.
_SWITCHES: Mapping[tuple[str, ...], bool] = {
    **dict.fromkeys(
        [
            ("train",),
            ("training",),
            ("dropout",),
            ("stochastic",),
            ("update", "stats"),
            ("update", "batch", "stats"),
            ("update", "running", "stats"),
            ("update", "statistics"),
            ("update", "running", "average"),
            ("update", "running", "averages"),
            ("update",),
            ("batch", "stats"),
            ("batch", "statistics"),
            ("batch", "norm", "train"),
            ("batch", "norm", "training"),
            ("dropout", "active"),
            ("mc", "dropout"),
            ("non", "deterministic"),
        ],
        False,
    ),
    **dict.fromkeys(
        [
            ("deterministic",),
            ("inference",),
            ("infer",),
            ("eval",),
            ("evaluate",),
            ("evaluating",),
            ("evaluation",),
            ("test",),
            ("testing",),
            ("running", "average"),
            ("running", "averages"),
            ("running", "avg"),
            ("running", "stats"),
            ("running", "statistics"),
            ("ra",),
            ("global", "stats"),
            ("global", "statistics"),
            ("deterministic", "dropout"),
            ("dropout", "deterministic"),
            ("disable", "dropout"),
            ("no", "dropout"),
        ],
        True,
    ),
}
_ATTRIBUTES = frozenset(
    {("train",), ("training",), ("deterministic",), ("inference",), ("running", "average")}
)
_FILLERS = frozenset(
    {
        "is",
        "in",
        "do",
        "use",
        "mode",
        "flag",
        "phase",
        "enable",
        "enabled",
        "apply",
        "with",
        "bn",
        "batchnorm",
    }
)
_MODES = ("mode", "phase", "stage")
_TRAINING_WORDS = ("train", "training", "fit")
_EVALUATION_WORDS = (
    "eval",
    "evaluation",
    "evaluate",
    "inference",
    "infer",
    "test",
    "testing",
    "predict",
    "val",
    "valid",
    "validation",
)
_KEYS = frozenset(
    {
        "key",
        "rng",
        "rngs",
        "prng",
        "prng_key",
        "prngkey",
        "rng_key",
        "random_key",
        "dropout_key",
        "dropout_rng",
        "rng_dropout",
        "key_array",
        "random_state",
    }
)
_TRAINS = "the network runs in training mode"
_GIVE_SWITCH = (
    "give its call train, training, is_training, is_train, deterministic, use_running_average "
    "or inference"
)
_GIVE = f"{_GIVE_SWITCH}, or make it with training=False"


def evaluation_value(name: str, *, attribute: bool = False) -> bool | None:
    """What a switch of this name is in evaluation; None where the name is no switch's.

    Args:
        attribute: of a module, not an argument of a call: `dropout` or `test` may there say what
            the network is.
    """
    words = tuple(
        word
        for word in map(str.lower, re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name))
        if word not in _FILLERS
    )
    return _SWITCHES.get(words) if not attribute or words in _ATTRIBUTES else None


def training_mode(name: str, why: str) -> ValueError:
    """The error for a network that trains where it should not."""
    return ValueError(f"{name}: {_TRAINS}: {_GIVE} ({why})")


def is_training_mode(error: Exception) -> bool:
    """Whether it is that error."""
    return isinstance(error, ValueError) and _TRAINS in str(error)


class Call(NamedTuple):
    """What a network's call takes beside its inputs.

    Attributes:
        switches: (name, value in evaluation, value in training) of each.
        key: name of the argument that takes a random key; empty where there is none.
        key_required: whether it has no default.
        by_position: names of arguments that cannot be given by name, in order.
    """

    switches: tuple[tuple[str, Any, Any], ...] = ()
    key: str = ""
    key_required: bool = False
    by_position: tuple[str, ...] = ()

    def arguments(self, *, training: bool, **keys: Any) -> tuple[list[Any], dict[str, Any]]:
        """Those by position and those by name; `keys` are left out where it is empty."""
        values = {
            name: train if training else evaluate for name, evaluate, train in self.switches
        } | keys
        positional = [values.pop(name) for name in self.by_position if name in values]
        return positional, values


def takes_key_second(function: Callable) -> bool:
    """Whether a function takes (params, key, images), as Haiku's do."""
    parameters = _parameters(function)
    return (
        len(parameters) > 2
        and parameters[1].name.lower() in _KEYS
        and parameters[1].kind is not inspect.Parameter.KEYWORD_ONLY
        and (
            parameters[2].kind is inspect.Parameter.VAR_POSITIONAL
            or parameters[2].default is inspect.Parameter.empty
        )
    )


def _parameters(function: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a function that is not written in Python
        return []


def read_call(
    function: Callable, given: int, name: str, *, fields: Any = None, key_at: int | None = None
) -> Call:
    """What a function takes beside its first `given` arguments.

    Args:
        name: of the network, for messages.
        fields: an object; a switch that defaults to None is left alone where the object has a value
            under its name, as in Flax's `merge_param`.
        key_at: position of a key among the first arguments, beside which `given` are given.

    Raises:
        ValueError: it needs an argument that is neither a switch nor a key.
    """
    parameters = _parameters(function)
    switches, key, by_position = [], None, []
    if key_at is not None:
        key = parameters.pop(key_at)
    for position, parameter in enumerate(parameters):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or (
            position < given and parameter.kind is not parameter.KEYWORD_ONLY
        ):
            continue
        value = _switch(parameter)
        if value is not None:
            if not (
                parameter.default is None and getattr(fields, parameter.name, None) is not None
            ):
                switches.append((parameter.name, *value))
        elif parameter.name.lower() in _KEYS and key is None:
            key = parameter
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"{name}: its call needs {parameter.name!r}, which is not offered; it gets images, "
                f"switches such as train, and a key: give {parameter.name!r} a default"
            )
        else:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            by_position.append(parameter.name)
    return Call(
        tuple(switches),
        key.name if key is not None else "",
        key is not None and key.default is key.empty,
        tuple(by_position),
    )


def _switch(parameter: inspect.Parameter) -> tuple[Any, Any] | None:
    """Its values in evaluation and training; None where it is no switch."""
    default = None if parameter.default is parameter.empty else parameter.default
    literals = (
        [each for each in get_args(parameter.annotation) if isinstance(each, str)]
        if get_origin(parameter.annotation) is Literal
        else []
    )
    if parameter.name.lower() in _MODES and (literals or isinstance(default, str)):
        return (
            next(
                (each for each in [*literals, default] if str(each).lower() in _EVALUATION_WORDS),
                "eval",
            ),
            next(
                (each for each in [*literals, default] if str(each).lower() in _TRAINING_WORDS),
                "train",
            ),
        )
    value = evaluation_value(parameter.name)
    annotation = getattr(parameter.annotation, "__name__", str(parameter.annotation))
    if (
        value is None
        or not (default is None or str(default) in ("True", "False", "0", "1"))
        or re.search(r"\b(float|str)\b", annotation)
    ):
        return None
    return value, not value


def evaluated(
    call: Call, run: Callable[[list[Any], dict[str, Any]], Any], key: Any, name: str
) -> Any:
    """The result of `run(arguments, named)` in evaluation, a key given only where the call wants
    one.

    Raises:
        ValueError: the result depends on the key.
    """

    def with_keys(**keys: Any) -> Any:
        return run(*call.arguments(training=False, **keys))

    if not call.key:
        return with_keys()
    attempts: Sequence[dict[str, Any]] = (
        [{call.key: key}, {call.key: None}] if call.key_required else [{}, {call.key: key}]
    )
    failure: Exception | None = None
    for keys in attempts:
        try:
            if keys.get(call.key) is not None and depends_on(
                lambda key: with_keys(**{call.key: key}), key
            ):
                raise training_mode(name, f"its logits depend on {call.key!r}")
            return with_keys(**keys)
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def depends_on(function: Callable[[Any], Any], argument: Any) -> bool:
    """Whether any result of a function depends on any array of its argument."""
    leaves, structure = jax.tree.flatten(argument)
    return any(
        arguments_used(
            jax.make_jaxpr(
                lambda *leaves: jax.tree.leaves(function(jax.tree.unflatten(structure, leaves)))
            )(*leaves)
        )
    )


def check_unchanged(before: Any, after: Any, function: Callable[[Any], Any], name: str) -> None:
    """Refuses a network that changes its statistics in evaluation.

    Args:
        before, after: trees; what is only in one of them is passed over.
        function: gives `after` from `before`. Called only where an array is not the same object.

    Raises:
        ValueError: an array has changed; it is named.
    """
    old, new = named_leaves(before), named_leaves(after)
    if all(new.get(each, leaf) is leaf for each, leaf in old.items()):
        return
    leaves, structure = jax.tree.flatten(before)
    names = [each for each in old if each in new]

    def again(*leaves: Any) -> list[Any]:
        changed = named_leaves(function(jax.tree.unflatten(structure, leaves)))
        return [changed[each] for each in names]

    positions = [list(old).index(each) for each in names]
    for each, same in zip(
        names, returned_unchanged(jax.make_jaxpr(again)(*leaves), positions), strict=True
    ):
        if not same:
            raise training_mode(name, f"it changes {each!r}")


def check_trains(train: Callable[[Any, Any, Any], tuple[Any, Any]], params, state, inputs) -> None:
    """Refuses a network whose statistics stay as they are in training: its switch is not known, as
    where a call takes `**kwargs`, or it was made for evaluation.

    Args:
        train: `(params, state, inputs) -> (logits, new state)`, as `BatchStatistics.apply_train`.
        inputs: some samples.

    Raises:
        ValueError: none of the state's floating-point arrays changes.
    """
    leaves, structure = jax.tree.flatten(state)
    old = named_leaves(state)
    names = [each for each, leaf in old.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def again(*leaves: Any) -> list[Any]:
        new = named_leaves(train(params, jax.tree.unflatten(structure, leaves), inputs)[1])
        return [new[each] for each in names if each in new]

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in map(jnp.asarray, leaves)]
    positions = [list(old).index(each) for each in names]
    if names and all(returned_unchanged(jax.make_jaxpr(again)(*shapes), positions)):
        raise ValueError(
            f"statistics: training leaves {names[0]!r} and all other statistics as they are: "
            f"{_GIVE_SWITCH} as an argument of its own (**kwargs does not tell), or train with "
            "frozen statistics (--batch-norm frozen)"
        )
