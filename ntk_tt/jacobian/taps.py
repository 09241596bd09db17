"""Where parameters meet activations: the operands and back-propagated signals of every such place,
for any JAX function.

The network is traced once to a jaxpr. Every equation that takes a parameter (or a reshaped,
transposed, broadcast or cast one) gets a zero perturbation added to its result, a *tap*. One
forward pass keeps the taps' other operands, and one pullback for each output, mapped together,
gives the signals δ = ∂f/∂tap: backward passes through activations only, no weight gradient is
formed. The gradient of a parameter is the sum over its taps of the equation's own transpose applied
to δ (`ntk_tt.jacobian.layers`).

That is the chain rule and nothing else, so shared parameters, complex numbers, `custom_jvp`,
`scan`, `remat` (taps of a whole equation) and primitives unknown to this package come out right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.low_rank import LowRank, applied, low_rank, scaled_or_moved
from ntk_tt.runtime.input_trees import Inputs, as_batch, take

Apply = Callable[[PyTree, Any], Float[Array, "n c"]]
# (outputs (C,), what is given of this sample) -> (directions (k, C), anything else)
Directions = Callable[[Array, PyTree], tuple[Float[Array, "k c"], Any]]


class Source(NamedTuple):
    """Which parameter leaf an operand is, and how it was rearranged.

    Attributes:
        leaf: its index in the flattened parameters.
        rearrange: from the leaf to the operand.
        keeps_inner_products: whether gradients of the operand have the inner products of gradients
            of the leaf.
        is_same_matrix: whether operand and leaf are the same matrix of the last axis and all
            others.
    """

    leaf: int
    rearrange: Callable[[Array], Array]
    keeps_inner_products: bool = True
    is_same_matrix: bool = True


def leaf_itself(index: int) -> Source:
    """The operand that is a leaf as it is."""
    return Source(index, lambda leaf: leaf)


class Tap(NamedTuple):
    """One meeting of parameters with activations, for a block of n samples.

    Attributes:
        equation: of the jaxpr of one sample, or None where a parameter is itself an output.
        sources: for each operand the parameter it is, or None.
        operands: the values of the others (n, ...), None for parameters.
        signals: ∂f/∂result (n, C, ...), one for each result that has gradients.
    """

    equation: Any
    sources: tuple[Source | None, ...]
    operands: tuple[Any, ...]
    signals: list[Inexact[Array, "n c ..."]]


def has_gradients(value: Any) -> bool:
    """Whether numbers of this type have gradients: real or complex ones."""
    return jnp.issubdtype(value.dtype, jnp.inexact)


def backpropagate(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    directions: Directions | None = None,
    given: PyTree = (),
) -> tuple[Float[Array, "n c"], Any, list[Tap]]:
    """The outputs of a block of samples, each computed alone, what `directions` says beside, and
    the taps.

    Args:
        apply, params, inputs: the network and a block of samples.
        directions: of one sample, from its outputs and its part of `given`: the k directions in
            which its outputs are looked at, and anything else. None looks at each of the C outputs.
        given: arrays with a leading axis n.

    Costs one forward pass and k (or C) backward passes through activations; holds the block's
    activations and signals.
    """
    leaves, tree = jax.tree.flatten(params)
    closed = jaxprs.trace(
        lambda leaves, x: apply(jax.tree.unflatten(tree, leaves), as_batch(x)).reshape(-1),
        leaves,
        take(inputs, 0),
    )
    shapes = _result_shapes(closed, leaves, take(inputs, 0))
    recorded: list[Tap] = []

    def one_sample(x, given):
        def perturbed(perturbations):
            recorder = _Recorder(leaves, perturbations)
            logits = recorder.run(closed, x)
            recorded[:] = recorder.taps
            return logits, [tap.operands for tap in recorder.taps]

        zeros = [[jnp.zeros(shape.shape, shape.dtype) for shape in tap] for tap in shapes]
        logits, pullback, operands = jax.vjp(perturbed, zeros, has_aux=True)
        looked, beside = (
            (jnp.eye(logits.size, dtype=logits.dtype), ())
            if directions is None
            else directions(logits, given)
        )
        (signals,) = jax.vmap(pullback)(looked.astype(logits.dtype))
        return logits, beside, operands, signals

    outputs, beside, operands, signals = jax.vmap(one_sample)(inputs, given)
    return (
        outputs,
        beside,
        [
            tap._replace(operands=values, signals=signal)
            for tap, values, signal in zip(recorded, operands, signals, strict=True)
        ],
    )


def _result_shapes(closed, leaves, x) -> list[list[jax.ShapeDtypeStruct]]:
    """The shapes of each tap's results that have gradients, found by running the recorder
    abstractly without perturbations.
    """
    found = []

    def run(leaves, x):
        recorder = _Recorder(leaves, None)
        logits = recorder.run(closed, x)
        found.extend(
            [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in tap.signals]
            for tap in recorder.taps
        )
        return logits

    jax.eval_shape(run, leaves, x)
    return found


class _Recorder:
    """Evaluates a jaxpr of one sample; adds the perturbations to the taps' results and keeps the
    taps.

    Until the signals are known a tap holds its own results in their place.
    """

    def __init__(self, leaves: list[Array], perturbations: list[list[Array]] | None):
        self.leaves, self.perturbations = leaves, perturbations
        self.taps: list[Tap] = []

    def run(self, closed, x: PyTree) -> Array:
        arguments = [leaf_itself(index) for index in range(len(self.leaves))]
        (logits,) = self._evaluate(closed.jaxpr, closed.consts, [*arguments, *jax.tree.leaves(x)])
        logits = self._multiplied(logits)
        return self._tap(None, [logits])[0] if isinstance(logits, Source) else logits

    def _evaluate(self, jaxpr, consts, arguments: list) -> list:
        """Values are arrays, or `Source`s for what is still nothing but a parameter."""

        def run(equation, operands: list) -> list:
            if any(isinstance(operand, LowRank) for operand in operands):
                return self._with_low_rank(equation, operands)
            source = next((operand for operand in operands if isinstance(operand, Source)), None)
            inner = jaxprs.inner_jaxpr(equation)
            if source is None:
                return jaxprs.bind(equation, operands)
            if jaxprs.rearranges(equation):
                return [_rearranged(equation, source)]
            if all(isinstance(operand, Source) for operand in operands):
                matrix = low_rank(equation, operands)
                if matrix is not None:
                    return [matrix]
            return (
                self._tap(equation, operands)
                if inner is None
                else self._evaluate(inner.jaxpr, inner.consts, operands)
            )

        return jaxprs.evaluate(jaxpr, consts, arguments, run)

    def _with_low_rank(self, equation, operands: list) -> list:
        """An equation that takes a `LowRank`, which is multiplied where that cannot be avoided."""
        inner = jaxprs.inner_jaxpr(equation)
        if inner is not None:
            return self._evaluate(inner.jaxpr, inner.consts, operands)
        if not any(isinstance(operand, Source) for operand in operands):
            changed = scaled_or_moved(equation, operands)
            if changed is not None:
                return [changed]
            product = applied(equation, operands)
            if product is not None:
                return self._evaluate(product[0].jaxpr, product[0].consts, product[1])
        operands = [self._multiplied(operand) for operand in operands]
        if any(isinstance(operand, Source) for operand in operands):
            return self._tap(equation, operands)
        return jaxprs.bind(equation, operands)

    def _multiplied(self, operand: Any) -> Any:
        if not isinstance(operand, LowRank):
            return operand
        (product,) = self._tap(operand.equation, [operand.left, operand.right])
        product = product * jnp.asarray(operand.scale, product.dtype)
        return product if operand.frozen is None else product + operand.frozen

    def _tap(self, equation, operands: list) -> list[Array]:
        sources = tuple(operand if isinstance(operand, Source) else None for operand in operands)
        values = [
            source.rearrange(self.leaves[source.leaf]) if source else operand
            for source, operand in zip(sources, operands, strict=True)
        ]
        results = values if equation is None else jaxprs.bind(equation, values)
        if any(map(has_gradients, results)):
            if self.perturbations is not None:
                perturbation = iter(self.perturbations[len(self.taps)])
                results = [
                    result + next(perturbation) if has_gradients(result) else result
                    for result in results
                ]
            rest = tuple(
                None if source else value for source, value in zip(sources, values, strict=True)
            )
            self.taps.append(
                Tap(
                    equation, sources, rest, [result for result in results if has_gradients(result)]
                )
            )
        return results


def _rearranged(equation, source: Source) -> Source:
    return Source(
        source.leaf,
        lambda leaf: jaxprs.bind(equation, [source.rearrange(leaf)])[0],
        source.keeps_inner_products and jaxprs.keeps_inner_products(equation),
        source.is_same_matrix and jaxprs.keeps_matrix(equation),
    )
