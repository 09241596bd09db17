"""All that the package takes from JAX beyond its documented interface, in one place.

The jaxpr of a function is public (`jax.make_jaxpr`, `jax.extend.core`); what its equations look
like inside is not promised to stay. This file alone looks inside: which primitives are calls, which
only move numbers, what a convolution's and a product's parameters are called, and how a primitive
is bound again. `tests/test_jaxpr.py` holds each of these facts, and runs with every supported JAX
version (`make test-jax`).
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core as jex_core
from jax.interpreters import partial_eval

NEWEST_TESTED = (0, 12)  # of JAX

# Equations that only rearrange one operand: a parameter passes through them unchanged in meaning.
_MOVING = frozenset({"copy", "copy_p", "expand_dims", "reshape", "rev", "squeeze", "transpose"})
_RESHAPING = frozenset({"copy", "copy_p", "reshape"})
_REPEATING_OR_ROUNDING = frozenset({"broadcast_in_dim", "convert_element_type"})
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
_REMATERIALISED = frozenset({"checkpoint", "remat", "remat2"})
_SUMS = frozenset({"add", "add_any"})


def warn_if_untested(version: str) -> None:
    """Say so where JAX is newer than any that the tests ran with."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        warnings.warn(
            f"ntk_tt: JAX {version} is newer than {newest}, the newest it was tested with; if "
            f"something fails, install 'jax=={newest}.*'",
            stacklevel=3,
        )


class Convolution(NamedTuple):
    """Parameters of a convolution, axes as indices: (batch or output, feature or input,
    *spatial).
    """

    input_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_groups: int
    batch_groups: int


def bind(equation: Any, values: list, *, result_dtype: Any = None) -> list:
    """The results of the equation's primitive on other operands; of a product, in another dtype."""
    changed = {} if result_dtype is None else {"preferred_element_type": result_dtype}
    parameters, subfunctions = equation.primitive.get_bind_params(equation.params | changed), ()
    # before JAX 0.10 the sub-functions came apart from the other parameters
    if isinstance(parameters, tuple):
        subfunctions, parameters = parameters
    results = equation.primitive.bind(*subfunctions, *values, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


def evaluate(jaxpr: Any, consts: list, arguments: list, run: Callable[[Any, list], list]) -> list:
    """The results of a jaxpr, each equation evaluated by `run(equation, operands)`."""
    environment: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True)
    )

    def read(atom):
        return atom.val if isinstance(atom, jex_core.Literal) else environment[atom]

    for equation in jaxpr.eqns:
        for variable, value in zip(
            equation.outvars, run(equation, [read(atom) for atom in equation.invars]), strict=True
        ):
            environment[variable] = value
    return [read(atom) for atom in jaxpr.outvars]


def inner_jaxpr(equation: Any) -> Any | None:
    """The closed jaxpr of an equation that does nothing but call it, else None."""
    return equation.params.get("jaxpr") if equation.primitive.name in _INLINED else None


def called(equation: Any) -> tuple[Any, list] | None:
    """The jaxpr and the constants of a call that has the values and derivatives of its body, those
    of `jax.checkpoint` among them; None of any other equation, as of one with derivatives of its
    own.
    """
    if equation.primitive.name not in _INLINED | _REMATERIALISED:
        return None
    body = equation.params["jaxpr"]
    # that of `checkpoint` is not closed before JAX 0.12, and has no constants
    return getattr(body, "jaxpr", body), list(getattr(body, "consts", ()))


def is_sum(equation: Any) -> bool:
    """Whether the equation adds its two operands, of one shape."""
    return equation.primitive.name in _SUMS


def rearranges(equation: Any) -> bool:
    """Whether the equation only moves, repeats or rounds its one operand, for its gradients too.

    A cast to whole numbers has no gradient, and that of a cast to complex numbers takes the real
    part: neither is one.
    """
    return (
        len(equation.invars) == len(equation.outvars) == 1
        and (equation.primitive.name in _MOVING | _REPEATING_OR_ROUNDING or _is_whole(equation))
        and all(
            jnp.issubdtype(atom.aval.dtype, jnp.floating)
            for atom in (*equation.invars, *equation.outvars)
        )
    )


def _is_whole(equation: Any) -> bool:
    """Whether it cuts nothing off: before JAX 0.10 `x[0]` of one row cuts out all rows first."""
    return (
        equation.primitive.name == "slice"
        and equation.invars[0].aval.shape == equation.outvars[0].aval.shape
    )


def keeps_inner_products(equation: Any) -> bool:
    """Whether such an equation moves each number to one place, so that inner products of gradients
    stay what they are.
    """
    return equation.invars[0].aval.size == equation.outvars[0].aval.size


def keeps_matrix(equation: Any) -> bool:
    """Whether the operand, seen as a matrix of its last axis and all others, stays the same
    matrix.
    """
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    last = before.ndim > 0 and after.ndim > 0 and before.shape[-1] == after.shape[-1]
    return (equation.primitive.name == "convert_element_type" or _is_whole(equation)) or (
        last and equation.primitive.name in _RESHAPING and equation.params.get("dimensions") is None
    )


def convolution(equation: Any) -> Convolution | None:
    """What a convolution is made of; None where the equation is none."""
    if equation.primitive.name != "conv_general_dilated":
        return None
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    return Convolution(
        tuple(numbers.lhs_spec),
        tuple(numbers.rhs_spec),
        tuple(numbers.out_spec),
        tuple(parameters["window_strides"]),
        tuple(parameters["padding"]),
        tuple(parameters["lhs_dilation"]),
        tuple(parameters["rhs_dilation"]),
        parameters["feature_group_count"],
        parameters["batch_group_count"],
    )


def is_product(equation: Any) -> bool:
    """Whether the equation is a matrix product or a convolution."""
    return equation.primitive.name in ("dot_general", "conv_general_dilated")


def matrix_product(
    equation: Any,
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """((contracted axes), (batch axes)), each of the two operands, of a `dot_general`; None where
    the equation is none.
    """
    return (
        equation.params["dimension_numbers"] if equation.primitive.name == "dot_general" else None
    )


class RowLookup(NamedTuple):
    """A gather that reads whole rows of a matrix, one after the other.

    Attributes:
        drops_others: rows that are not there are read as a constant; else as the nearest one.
    """

    drops_others: bool


def row_lookup(equation: Any) -> RowLookup | None:
    """What a gather of rows of a matrix does; None of any other equation."""
    if equation.primitive.name != "gather":
        return None
    numbers, (table, index) = equation.params["dimension_numbers"], equation.invars
    mode = str(equation.params["mode"]).rpartition(".")[2]
    reads_rows = (
        len(table.aval.shape) == 2
        and index.aval.shape[-1:] == (1,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and not getattr(numbers, "operand_batching_dims", ())
        and tuple(numbers.offset_dims) == (index.aval.ndim - 1,)
        and tuple(equation.params["slice_sizes"]) == (1, table.aval.shape[1])
    )
    if not reads_rows or mode not in ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"):
        return None
    return RowLookup(mode == "FILL_OR_DROP")


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of an operand or result of an equation."""
    return tuple(atom.aval.shape)


def trace(function: Any, *arguments: Any) -> Any:
    """The closed jaxpr of a function of trees of arrays, flattened."""
    return jax.make_jaxpr(function)(*arguments)


def result_shapes(closed: Any) -> list[tuple[int, ...]]:
    """The shapes of all results of a closed jaxpr."""
    return [tuple(aval.shape) for aval in closed.out_avals]


def text(closed: Any) -> str:
    """A closed jaxpr as text, the same in every process."""
    # older JAX prints memory addresses, which mean nothing
    return re.sub(r"0x[0-9a-fA-F]+", "", str(closed))


def constants(value: Any) -> Iterator[Any]:
    """All arrays closed over inside a closed jaxpr, in its own order; its text names only their
    shapes.

    From JAX 0.12 on a closed jaxpr is a jaxpr itself (and its own `.jaxpr`); before, it is a pair
    of one and its constants. Either may also hold an array as a literal.
    """
    if isinstance(value, jex_core.ClosedJaxpr | jex_core.Jaxpr):
        yield from getattr(value, "consts", ())
        for equation in value.eqns:
            yield from (
                atom.val
                for atom in equation.invars
                if isinstance(atom, jex_core.Literal) and getattr(atom.val, "ndim", 0)
            )
            yield from constants(tuple(equation.params[name] for name in sorted(equation.params)))
    elif isinstance(value, Mapping):
        yield from constants(tuple(value[key] for key in sorted(value, key=str)))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from constants(item)


def coarsest_rounding(closed: Any) -> float:
    """The largest relative rounding of any type that a closed jaxpr computes in, inner jaxprs
    included.
    """
    atoms = [
        *closed.jaxpr.invars,
        *(atom for equation in _equations(closed) for atom in equation.outvars),
    ]
    types = {atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")}
    return max(
        (float(jnp.finfo(dtype).eps) for dtype in types if jnp.issubdtype(dtype, jnp.inexact)),
        default=0.0,
    )


def _equations(value: Any) -> Iterator[Any]:
    if isinstance(value, jex_core.ClosedJaxpr | jex_core.Jaxpr):
        for equation in value.eqns:
            yield equation
            yield from _equations(tuple(equation.params.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _equations(item)


def is_traced(value: Any) -> bool:
    """Whether a value is not known yet, because JAX is tracing the function that it is in."""
    return isinstance(value, Tracer)


def arguments_used(closed: Any) -> list[bool]:
    """Of each argument of a closed jaxpr, whether a result depends on it."""
    jaxpr = closed.jaxpr
    return list(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1])


def returned_unchanged(closed: Any, positions: list[int]) -> list[bool]:
    """Of each result of a closed jaxpr, whether it is nothing but the argument at its position."""
    jaxpr = closed.jaxpr
    return [
        result is jaxpr.invars[position]
        for result, position in zip(jaxpr.outvars, positions, strict=True)
    ]
