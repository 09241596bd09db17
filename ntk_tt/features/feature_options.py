"""How features are computed: the settings that a user chooses."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from ntk_tt.jacobian.bfloat16 import in_bfloat16

JacobianPath = Literal["structured", "plain"]
Precision = Literal["float32", "bfloat16"]
ProjectionName = Literal["fold", "achlioptas", "gaussian"]


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """How features Φ = J R are computed; the defaults are what most want.

    Attributes:
        num_projections: D', the number of columns of Φ; `auto` takes 16·N·C, or 2,048 entries
            for `expand`, or what the memory holds; `exact` projects nothing. From D' ≥ D on,
            the number of parameters, the result is exact.
        projection: R: `fold`, a CountSketch by signs and folds, `achlioptas` or `gaussian` (see
            `ntk_tt.features.projections`).
        precision: `bfloat16` rounds the operands of products and convolutions, see
            `ntk_tt.jacobian.bfloat16`; sums stay float32.
        memory: bytes that the features may take on each device, besides one block; None takes what
            is free. With `auto`, D' is at most what it allows.
        path: `structured` (activations and back-propagated signals, see `ntk_tt.jacobian.taps`) or
            `plain` (`vmap(jacrev)`); the same numbers to rounding.
        block_size: samples at a time on each device; None plans it.

    Raises:
        ValueError: one that is out of range.
    """

    num_projections: int | str = "auto"
    projection: ProjectionName = "fold"
    precision: Precision = "float32"
    memory: int | None = None
    path: JacobianPath = "structured"
    block_size: int | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.projection not in get_args(ProjectionName):
            raise ValueError(
                f"projection: unknown {self.projection!r}; known: "
                f"{', '.join(get_args(ProjectionName))}"
            )
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision: unknown {self.precision!r}; give 'float32' or 'bfloat16'")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size: must be at least 1, got {self.block_size}")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"memory: must be at least one byte, got {self.memory}")
        if isinstance(self.num_projections, str):
            if self.num_projections not in ("auto", "exact"):
                raise ValueError(
                    "num_projections: give 'auto', 'exact' or a number, got "
                    f"{self.num_projections!r}"
                )
        elif self.num_projections < 1:
            raise ValueError(f"num_projections: must be at least 1, got {self.num_projections}")

    def rounded(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """The network in the precision of these options."""
        return in_bfloat16(apply) if self.precision == "bfloat16" else apply


def check_path(path: str) -> None:
    if path not in get_args(JacobianPath):
        raise ValueError(f"path: unknown {path!r}; give 'structured' or 'plain'")


DEFAULT_OPTIONS = FeatureOptions()

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def takes_former_keywords(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Version 0.1 took the fields of `FeatureOptions` one by one: they still work for one release,
    and a DeprecationWarning says what to write.
    """
    fields = {field.name for field in dataclasses.fields(FeatureOptions)}

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        given: dict[str, Any] = {name: kwargs[name] for name in kwargs if name in fields}
        if not given:
            return function(*args, **kwargs)
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        warnings.warn(
            f"{function.__name__}({said}) is now {function.__name__}("
            f"options=FeatureOptions({said}))",
            DeprecationWarning,
            stacklevel=2,
        )
        rest: Any = {name: value for name, value in kwargs.items() if name not in fields}
        options: Any = kwargs.get("options", DEFAULT_OPTIONS)
        rest["options"] = dataclasses.replace(options, **given)
        untyped: Callable[..., _Result] = function
        return untyped(*args, **rest)

    return called
