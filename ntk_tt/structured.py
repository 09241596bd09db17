"""The Jacobian of all outputs from activations and back-propagated signals, for any JAX function.

Reverse mode, cut at the places where parameters meet activations. The network is traced once to a jaxpr; every equation
that takes a parameter (or a reshaped, transposed, broadcast or cast one) gets a zero perturbation added to its result, a
*tap*. One forward pass keeps the taps' operands, and one pullback for each output, mapped together, gives the signals
δ = ∂f/∂tap without forming any weight gradient. The gradient of a parameter is then the sum over its taps of the
equation's own transpose applied to δ:

- convolutions: patches of the activation times δ, one matrix product a sample for all outputs, where `vmap(jacrev)`
  lowers to one grouped convolution a sample and output;
- everything else (dense layers, biases, scales, embeddings, a whole `scan` or `remat` that holds parameters): `jax.vjp`
  of that equation alone.

That is the chain rule and nothing else, so shared parameters, `custom_jvp`, `scan` and primitives unknown to this file
come out right; only the speed differs.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jaxtyping import Array, Float, PyTree

Apply = Callable[[PyTree, Array], Float[Array, "n c"]]

# Equations that only rearrange one operand: a parameter passes through them unchanged in meaning.
_REARRANGING = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "reshape", "rev", "squeeze", "transpose"})
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})


class _Parameter(NamedTuple):
    """Where a value comes from: a parameter leaf, and how it was rearranged."""

    leaf: int
    rearrange: Callable[[Array], Array]


class _Tap(NamedTuple):
    """One meeting of parameters with activations.

    Attributes:
        equation: of the jaxpr, or None where a parameter is itself an output.
        sources: for each operand the parameter it is, or None.
        operands: the values of the others, None for parameters.
    """

    equation: Any
    sources: tuple[_Parameter | None, ...]
    operands: tuple[Any, ...]


def structured_jacobian(apply: Apply, params: PyTree, inputs: Float[Array, "n ..."]) -> PyTree[Float[Array, "n c ..."]]:
    """J of a block of samples: a tree like `params`, leaves (n, C, *shape). Equals `jacobian_block`, faster.

    One forward pass and C backward passes through activations only, then 2·C·(parameters × positions) flops a sample
    for the gradients. Memory: the activations and signals of the block, and the gradients themselves.
    """
    leaves, tree = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda leaves, x: apply(jax.tree.unflatten(tree, leaves), x[None])[0])(leaves, inputs[0])
    shapes = _tap_shapes(closed, leaves, inputs[0])

    def one_sample(x):
        def perturbed(perturbations):
            recorder = _Recorder(leaves, perturbations)
            logits = recorder.run(closed, x)
            operands = [tap.operands for tap in recorder.taps]
            taps[:] = recorder.taps
            return logits, operands

        taps: list[_Tap] = []
        zeros = [jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shape) for shape in shapes]
        logits, pullback, operands = jax.vjp(perturbed, zeros, has_aux=True)
        (signals,) = jax.vmap(pullback)(jnp.eye(logits.size, dtype=logits.dtype))
        gradients = [jnp.zeros((logits.size, *leaf.shape), leaf.dtype) for leaf in leaves]
        untouched = set(range(len(leaves)))
        for tap, values, signal in zip(taps, operands, signals, strict=True):
            for leaf, gradient in _transpose(tap._replace(operands=values), signal, leaves):
                gradients[leaf] = gradient if leaf in untouched else gradients[leaf] + gradient
                untouched.discard(leaf)
        return gradients

    return jax.tree.unflatten(tree, jax.vmap(one_sample)(inputs))


def _tap_shapes(closed, leaves, x) -> list[list[jax.ShapeDtypeStruct]]:
    """The shapes of each tap's results, found by running the recorder abstractly without perturbations."""
    found = []

    def run(leaves, x):
        recorder = _Recorder(leaves, None)
        logits = recorder.run(closed, x)
        found.extend([jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in tap] for tap in recorder.results)
        return logits

    jax.eval_shape(run, leaves, x)
    return found


class _Recorder:
    """Evaluates a jaxpr; adds the perturbations to the taps' results and keeps the taps."""

    def __init__(self, leaves: list[Array], perturbations: list[list[Array]] | None):
        self.leaves, self.perturbations = leaves, perturbations
        self.taps: list[_Tap] = []
        self.results: list[list[Array]] = []

    def run(self, closed, x: Array) -> Array:
        arguments = [_Parameter(index, lambda leaf: leaf) for index in range(len(self.leaves))]
        (logits,) = self._evaluate(closed.jaxpr, closed.consts, [*arguments, x])
        return self._tap(None, [logits])[0] if isinstance(logits, _Parameter) else logits

    def _evaluate(self, jaxpr, consts, arguments: list) -> list:
        """Values are arrays, or `_Parameter`s for what is still nothing but a parameter."""
        environment: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom):
            return atom.val if isinstance(atom, jex_core.Literal) else environment[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            parameters = [operand for operand in operands if isinstance(operand, _Parameter)]
            name = equation.primitive.name
            if not parameters:
                results = _as_list(_bind(equation, operands), equation)
            elif name in _REARRANGING and len(operands) == 1:
                results = [_rearranged(equation, parameters[0])]
            elif name in _INLINED and "jaxpr" in equation.params:
                inner = equation.params["jaxpr"]
                results = self._evaluate(inner.jaxpr, inner.consts, operands)
            else:
                results = self._tap(equation, operands)
            for variable, value in zip(equation.outvars, results, strict=True):
                environment[variable] = value
        return [read(atom) for atom in jaxpr.outvars]

    def _tap(self, equation, operands: list) -> list[Array]:
        sources = tuple(operand if isinstance(operand, _Parameter) else None for operand in operands)
        values = [source.rearrange(self.leaves[source.leaf]) if source else operand for source, operand in zip(sources, operands, strict=True)]
        results = _as_list(_bind(equation, values), equation)
        floating = [jnp.issubdtype(result.dtype, jnp.floating) for result in results]
        if any(floating):
            self.results.append([result for result, is_floating in zip(results, floating, strict=True) if is_floating])
            if self.perturbations is not None:
                perturbation = iter(self.perturbations[len(self.taps)])
                results = [result + next(perturbation) if is_floating else result for result, is_floating in zip(results, floating, strict=True)]
            self.taps.append(_Tap(equation, sources, tuple(None if source else value for source, value in zip(sources, values, strict=True))))
        return results


def _bind(equation, values: list) -> Any:
    """The equation's primitive on these values; without an equation, the value itself."""
    if equation is None:
        return values
    parameters, subfunctions = equation.primitive.get_bind_params(equation.params), ()
    if isinstance(parameters, tuple):  # before JAX 0.10 the sub-functions came apart from the other parameters
        subfunctions, parameters = parameters
    return equation.primitive.bind(*subfunctions, *values, **parameters)


def _as_list(results, equation) -> list:
    return list(results) if equation is None or equation.primitive.multiple_results else [results]


def _rearranged(equation, parameter: _Parameter) -> _Parameter:
    return _Parameter(parameter.leaf, lambda leaf: _bind(equation, [parameter.rearrange(leaf)]))


def _transpose(tap: _Tap, signals: list[Float[Array, "c ..."]], leaves: list[Array]) -> list[tuple[int, Float[Array, "c ..."]]]:
    """(leaf, gradient (C, *leaf.shape)) of each parameter at this tap."""
    if tap.equation is not None and _is_plain_convolution(tap):
        source = tap.sources[1]
        assert source is not None
        kernel_gradient = _convolution_transpose(tap.equation, tap.operands[0], signals[0])
        _, pullback = jax.vjp(source.rearrange, leaves[source.leaf])
        return [(source.leaf, jax.vmap(lambda signal: pullback(signal)[0])(kernel_gradient))]

    present = [source for source in tap.sources if source is not None]

    def local(values):
        given = iter(values)
        filled = [operand if source is None else source.rearrange(next(given)) for source, operand in zip(tap.sources, tap.operands, strict=True)]
        results = _as_list(_bind(tap.equation, filled), tap.equation)
        return [result for result in results if jnp.issubdtype(result.dtype, jnp.floating)]

    _, pullback = jax.vjp(local, [leaves[source.leaf] for source in present])
    (gradients,) = jax.vmap(pullback)(signals)
    return list(zip([source.leaf for source in present], gradients, strict=True))


def _is_plain_convolution(tap: _Tap) -> bool:
    """A convolution whose kernel alone is a parameter, without input dilation: what patches can do."""
    parameters = tap.equation.params
    return (
        tap.equation.primitive.name == "conv_general_dilated" and tap.sources[0] is None and tap.sources[1] is not None
        and parameters["batch_group_count"] == 1 and all(dilation == 1 for dilation in parameters["lhs_dilation"]))


def _convolution_transpose(equation, activation: Array, signal: Float[Array, "c ..."]) -> Float[Array, "c ..."]:
    """∂/∂kernel of a convolution for C signals at once: Σ_positions patch ⊗ signal as one matrix product a group.

    Patches are strided slices of the padded activation, one for each kernel position.
    """
    parameters = equation.params
    lhs, rhs, out = parameters["dimension_numbers"]
    groups, strides, dilations = parameters["feature_group_count"], parameters["window_strides"], parameters["rhs_dilation"]
    channels_last = jnp.moveaxis(activation, (lhs[0], *lhs[2:], lhs[1]), range(activation.ndim))
    signal = jnp.moveaxis(signal, [1 + axis for axis in (out[0], *out[2:], out[1])], range(1, signal.ndim))
    kernel_shape = equation.invars[1].aval.shape
    window, positions = [kernel_shape[axis] for axis in rhs[2:]], signal.shape[2:-1]
    padded = jax.lax.pad(channels_last, jnp.zeros((), channels_last.dtype), [(0, 0, 0), *((low, high, 0) for low, high in parameters["padding"]), (0, 0, 0)])

    patches = []
    for offset in itertools.product(*map(range, window)):
        start = [0, *(index * dilation for index, dilation in zip(offset, dilations, strict=True)), 0]
        stop = [first + (count - 1) * stride + 1 for first, count, stride in zip(start[1:-1], positions, strides, strict=True)]
        patches.append(jax.lax.slice(padded, start, [padded.shape[0], *stop, padded.shape[-1]], [1, *strides, 1]))
    patch = jnp.stack(patches, axis=-2)  # (batch, *positions, window, channels)
    patch = patch.reshape(-1, len(patches), groups, patch.shape[-1] // groups)
    signal = signal.reshape(signal.shape[0], -1, groups, signal.shape[-1] // groups)
    # (C, *window, in / groups, out): the layout of HWIO kernels, so that those need no further copy.
    gradient = jnp.einsum("pwgi,cpgo->cwigo", patch, signal, precision=jax.lax.Precision.HIGHEST)
    gradient = gradient.reshape(signal.shape[0], *window, patch.shape[-1], -1)
    return jnp.moveaxis(gradient, range(1, gradient.ndim), [1 + axis for axis in (*rhs[2:], rhs[1], rhs[0])])
