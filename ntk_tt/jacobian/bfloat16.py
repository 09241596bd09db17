"""Products and convolutions in bfloat16, everything else and all sums in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.taps import Apply
from ntk_tt.runtime.input_trees import Inputs


def in_bfloat16(apply: Apply) -> Apply:
    """The network with the operands and results of its matrix products and convolutions rounded to
    bfloat16.

    What tensor cores do: 8 bits of mantissa in the operands, sums in float32. Normalisation,
    activation functions, parameters and logits stay as they are. Products inside `scan`, `remat`,
    `cond` or `while` are not changed.
    """

    def rounded(params: PyTree, inputs: Inputs) -> Float[Array, "n c"]:
        flat, tree = jax.tree.flatten((params, inputs))
        closed = jaxprs.trace(lambda *leaves: apply(*jax.tree.unflatten(tree, leaves)), *flat)
        (logits,) = _evaluate(closed.jaxpr, closed.consts, flat)
        return logits

    return rounded


def _evaluate(jaxpr, consts: list, arguments: list) -> list:
    def run(equation, values: list) -> list:
        inner = jaxprs.inner_jaxpr(equation)
        if inner is not None:
            return _evaluate(inner.jaxpr, inner.consts, values)
        if jaxprs.is_product(equation) and all(value.dtype == jnp.float32 for value in values):
            results = jaxprs.bind(
                equation,
                [value.astype(jnp.bfloat16) for value in values],
                result_dtype=jnp.dtype(jnp.bfloat16),
            )
            return [result.astype(jnp.float32) for result in results]
        return jaxprs.bind(equation, values)

    return jaxprs.evaluate(jaxpr, consts, arguments, run)


def relative_error(features: Float[Array, "n c d"], reference: Float[Array, "n c d"]) -> float:
    """‖ΦΦᵀ − Φ'Φ'ᵀ‖_F / ‖Φ'Φ'ᵀ‖_F of a few samples' features computed twice."""
    one, two = (
        each.reshape(-1, each.shape[-1]).astype(jnp.float32) for each in (features, reference)
    )
    exact = two @ two.T
    return float(jnp.linalg.norm(one @ one.T - exact) / jnp.linalg.norm(exact))
