"""Networks as version 0.1 took them: `(apply, params)` where a `Model` stands now."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import equinox as eqx
from flax import nnx

from ntk_tt.models.adapters import from_function
from ntk_tt.models.model import Apply, Model

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def takes_former_network(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`(apply, params)` still works for one release, and a DeprecationWarning says what to write.

    What is called raises a ValueError for a module, or anything else that is no `Model`.
    """
    names = list(inspect.signature(function).parameters)
    at = names.index("model")

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        given: dict[str, Any] = dict(kwargs)
        if "apply" in given:
            network, params, rest = given.pop("apply"), given.pop("params", None), args
        elif len(args) > at and not isinstance(args[at], Model):
            network, rest = args[at], args[:at] + args[at + 2 :]
            params = args[at + 1] if len(args) > at + 1 else given.pop("params", None)
        else:
            return function(*args, **kwargs)
        if not callable(network) or isinstance(network, nnx.Module | eqx.Module):
            raise ValueError(
                f"model: must be a Model, got something of type {type(network).__name__}; make one "
                "with ntk_tt.from_nnx, from_linen, from_equinox or from_function"
            )
        warnings.warn(
            f"{function.__name__}(apply, params, …) is now {function.__name__}(model, …), with "
            "model = ntk_tt.from_function(apply, params)",
            DeprecationWarning,
            stacklevel=2,
        )
        untyped: Callable[..., _Result] = function
        model = from_function(cast(Apply, network), params)
        return untyped(*rest[:at], model, *rest[at:], **given)

    return called
