"""The last thing that a function does to its parameters: a matrix of them times what the input
made, and perhaps a vector of them added.

The function's jaxpr is read backwards from its result, through what only moves numbers, casts them
or adds a parameter, to a product with a parameter. Calls (`jit`, `remat`) are opened on the way.
Anything else on the way, as a softmax or a factor, ends the search: there is no such product.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.jacobian import jaxpr as jaxprs

_COUNT = itertools.count()  # of steps: each comes after those whose results it takes


@dataclasses.dataclass(frozen=True)
class _Argument:
    position: int


@dataclasses.dataclass(eq=False, frozen=True)
class _Step:
    """An equation and its operands: `_Argument`s, `_Result`s, and arrays that are known."""

    equation: Any
    operands: list
    number: int


class _Result(NamedTuple):
    step: _Step
    position: int


class LastProduct(NamedTuple):
    """result = (operand · weight) + bias, up to how the numbers are arranged.

    Attributes:
        weight, bias: positions of the arguments that these are; no bias is None.
        operand: what is multiplied, see `operand_of`.
        axis: of the operand, along which the product sums.
    """

    weight: int
    bias: int | None
    operand: Any
    axis: int


def last_product(closed: Any, num_params: int) -> LastProduct | None:
    """Of a closed jaxpr with one result; the first `num_params` of its arguments are parameters.

    Whether the operand depends on the weight, and how the result is arranged, is not looked at.
    """
    arguments = [_Argument(position) for position in range(len(closed.jaxpr.invars))]
    value, *rest = _graph(closed.jaxpr, closed.consts, arguments)
    bias = None
    while not rest:
        value = _opened(value)
        if not isinstance(value, _Result):
            return None
        equation, operands = value.step.equation, value.step.operands
        if _only_moves(equation):
            value = operands[0]
        elif jaxprs.is_sum(equation):
            sides = [_parameter(operand, num_params) for operand in operands]
            if bias is not None or (sides[0] is None) == (sides[1] is None):
                return None
            value, bias = (operands[1], sides[0]) if sides[1] is None else (operands[0], sides[1])
        else:
            return _product(equation, operands, bias, num_params)
    return None


def _product(equation, operands: list, bias: int | None, num_params: int) -> LastProduct | None:
    axes = jaxprs.matrix_product(equation)
    if axes is None or any(axes[1]) or len(axes[0][0]) != 1:
        return None
    for mine, other in ((0, 1), (1, 0)):
        weight = _parameter(operands[mine], num_params, may_repeat=False)
        if weight is not None:
            return LastProduct(weight, bias, operands[other], axes[0][other][0])
    return None


def operand_of(product: LastProduct, arguments: list, num_samples: int) -> Float[Array, "n f"]:
    """What the weight is multiplied with, from the arguments of the jaxpr.

    Raises:
        ValueError: it is not one row a sample.
    """
    value = jnp.moveaxis(jnp.asarray(_value(product.operand, arguments)), product.axis, -1)
    if value.size != num_samples * value.shape[-1]:
        raise ValueError(
            f"apply: before its last product there are arrays of shape {value.shape} for "
            f"{num_samples} samples, not one row each"
        )
    return value.reshape(num_samples, -1)


def _graph(jaxpr, consts, arguments: list) -> list:
    """The results of a jaxpr, as `_Result`s of its equations."""

    def run(equation, operands: list) -> list:
        step = _Step(equation, operands, next(_COUNT))
        return [_Result(step, position) for position in range(len(equation.outvars))]

    return jaxprs.evaluate(jaxpr, consts, arguments, run)


def _opened(value: Any) -> Any:
    """A result of a call, as the result of what it calls."""
    while isinstance(value, _Result):
        body = jaxprs.called(value.step.equation)
        if body is None:
            break
        value = _graph(*body, value.step.operands)[value.position]
    return value


def _only_moves(equation: Any) -> bool:
    return jaxprs.rearranges(equation) and jaxprs.keeps_inner_products(equation)


def _parameter(value: Any, num_params: int, *, may_repeat: bool = True) -> int | None:
    """Which parameter a value is, moved, cast or (`may_repeat`) repeated; None where it is none."""
    while isinstance(value := _opened(value), _Result):
        equation = value.step.equation
        if not (jaxprs.rearranges(equation) if may_repeat else _only_moves(equation)):
            return None
        value = value.step.operands[0]
    is_one = isinstance(value, _Argument) and value.position < num_params
    return value.position if is_one else None


def _value(wanted: Any, arguments: list) -> Any:
    """Of an `_Argument`, a `_Result`, or an array; each step that it needs is run once."""
    needed: dict[_Step, None] = {}
    waiting = [wanted]
    while waiting:
        each = waiting.pop()
        if isinstance(each, _Result) and each.step not in needed:
            needed[each.step] = None
            waiting.extend(each.step.operands)
    results: dict[_Step, list] = {}

    def read(value):
        if isinstance(value, _Argument):
            return arguments[value.position]
        return results[value.step][value.position] if isinstance(value, _Result) else value

    for step in sorted(needed, key=lambda step: step.number):
        results[step] = jaxprs.bind(step.equation, [read(each) for each in step.operands])
    return read(wanted)
