"""Before each pass: is the network what the library takes, and is its Jacobian what JAX says?

One small compiled program looks at two samples. It holds what a pass makes of each sample alone
against the network's own outputs for a batch of both, and the gradients of the structured path
against `jax.vjp` of that batch, along random combinations of the outputs. So a network whose
samples see each other, one that draws random numbers, and a fault of the tracer are told before
anything is computed with them.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.layers import EXACT, Layer, Product
from ntk_tt.jacobian.network import Apply, logits_of
from ntk_tt.jacobian.structured import outputs_and_layers
from ntk_tt.runtime.input_trees import Inputs, as_batch, cut, num_samples, placed, take
from ntk_tt.runtime.parameter_names import named_leaves

_CANDIDATES = 16  # samples among which two different ones are looked for
# of the outputs, whose gradients are compared: two, so that outputs taken for one another are seen
_COMBINATIONS = 2
# random combinations of the rows of a gradient that is a matrix, which are compared in its place:
# the structured path's need not be formed, which is a third of what looking costs
_ROWS = 4
_LARGE = 1 << 10  # numbers in such a matrix; smaller ones cost nothing
# how much more rounding may change gradients than outputs: units at a kink, such as ReLU's, change
# sides
_STEEPNESS = 4
# a parameter's errors count against its own gradient and this share of that of all, or gradients
# that cancel would be false alarms
_NEGLIGIBLE = 0.01
_DEVICE_ROUNDING = 2.0**-10  # of an accelerator's products in single precision, by default
_ALONE = (
    "Each sample must be computed on its own; common reasons are batch norm by the batch's own "
    "statistics and dropout (switch them to evaluation mode), "
    "or a mean, maximum, sort or attention over the batch"
)


def check_pass(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    *,
    path: str = "structured",
    outputs: Float[Array, "n c"] | None = None,
) -> None:
    """Look at two samples before a pass over all.

    Args:
        apply, params, inputs: as `check_network` found them.
        path: of the Jacobian that will be computed.
        outputs: of all samples, where they have been computed already in larger batches: to be the
            same as well.

    Raises:
        ValueError: outputs that are not finite, differ from call to call, or depend on the other
            samples of the batch; or a parameter whose gradient is not that of `jax.vjp`, which is
            named.

    Cost: of two samples two forward and four backward passes, whatever the number of outputs, and
    the compilation of that.
    """
    samples, rows = _two_samples(inputs)
    rng = np.random.default_rng(0)
    compiled, rounding, num_outputs = _program(apply, path, params, samples)
    # numbers that half precision has too
    combine, weights = (
        np.round(32 * rng.normal(size=(number, _COMBINATIONS))).astype(np.float32) / 32
        for number in (num_outputs, 2)
    )
    weights[len(rows) :] = 0  # a made-up sample stands beside, its own numbers do not count
    alone, together, distances = (
        np.asarray(each, np.float64) for each in compiled(params, samples, combine, weights)
    )
    tolerance = math.sqrt(2 * rounding)  # of single precision 5e-4, of bfloat16 0.12
    batches = [("of two", together[: len(rows)])]
    if outputs is not None:
        batches.append(
            (f"of {len(outputs)}", np.asarray(outputs[np.asarray(rows)], np.float64) @ combine)
        )
    for size, other in batches:
        _check_outputs(apply, params, samples, alone[: len(rows)], other, size, tolerance)
    errors, norms = distances
    finite = np.isfinite(norms)
    whole = math.hypot(*norms[finite])
    names = list(named_leaves(params))
    for name, error, norm in zip(
        itertools.compress(names, finite), errors[finite], norms[finite], strict=True
    ):
        if not error <= _STEEPNESS * tolerance * (norm + _NEGLIGIBLE * whole):
            _refuse_gradient(
                apply,
                params,
                placed(samples),
                weights @ combine.T,
                name,
                float(error) / max(float(norm), 1e-30),
                _STEEPNESS * tolerance,
                path,
            )
    for name in itertools.compress(names, ~finite):
        raise ValueError(
            f"params: the gradients of {name!r} hold NaN or infinity at the first samples, though "
            "the outputs do not: the network is not differentiable there "
            "(a root or a norm of zeros), or its numbers are too large for their type"
        )


def _check_outputs(apply, params, samples, alone, other, size: str, tolerance: float) -> None:
    """Combinations of the outputs of samples on their own and in a batch."""
    if not np.isfinite(alone).all():
        raise ValueError(
            "logits: the network gives NaN or infinity for the first samples; check its weights "
            "and the preprocessing"
        )
    scale, difference = (float(np.abs(each).max(initial=0.0)) for each in (alone, other - alone))
    if difference <= tolerance * max(scale, float(np.abs(other).max(initial=0.0))):
        return
    one, two = (
        np.asarray(jax.jit(lambda params, x: logits_of(apply, params, x))(params, samples))
        for _ in range(2)
    )
    if not np.array_equal(one, two):
        raise ValueError(
            "apply: two calls with the same inputs give outputs that differ by up to "
            f"{np.abs(one - two).max():.2g}: it draws random numbers, such as dropout's, or "
            "keeps a state; switch it to evaluation mode, or give it a fixed key"
        )
    raise ValueError(
        f"apply: the output of a sample depends on the others in its batch: in a batch {size} it "
        f"differs from that of the sample alone by {difference:.2g} "
        f"({scale:.2g} being the largest). {_ALONE}"
    )


def _refuse_gradient(
    apply, params, samples, vector, name: str, relative: float, tolerance: float, path: str
) -> None:
    """Tells samples that see each other in their gradients alone from a fault of the structured
    path.
    """

    def each(params):
        return jax.vmap(lambda x: logits_of(apply, params, as_batch(x))[0])(samples)

    def batch(params):
        return logits_of(apply, params, samples)

    errors, norms = _distances(
        *(
            jax.jit(lambda params, of=of: _pulled(of, params, vector)[1])(params)
            for of in (each, batch)
        )
    )
    own = list(named_leaves(params)).index(name)
    if path == "plain" or not float(errors[own]) <= tolerance * float(norms[own]):
        raise ValueError(
            f"apply: the gradient of a sample depends on the others in its batch: that of {name!r} "
            f"for a batch of two differs by {relative:.2g} of its size from "
            f"those of the samples alone. {_ALONE}"
        )
    raise ValueError(
        f"params: the structured Jacobian of {name!r} differs from jax.vjp by {relative:.2g} of "
        "its size on the first samples (rounding would be below "
        f"{tolerance:.1g}); take path='plain', and report the network"
    )


def _two_samples(inputs) -> tuple[Inputs, list[int]]:
    """Two samples on the host, as different as a few of them are, and their numbers. Where all are
    the same a changed copy, without a number, is the second.
    """
    numbers = np.unique(np.linspace(0, num_samples(inputs) - 1, _CANDIDATES).astype(int))
    few = jax.tree.map(
        lambda leaf: _as_traced(
            leaf[numbers]
            if isinstance(leaf, np.ndarray)
            else np.stack([np.asarray(leaf[int(number)]) for number in numbers])
        ),
        inputs,
    )
    apart = sum(map(_distances_from_first, jax.tree.leaves(few)))
    second = int(np.argmax(apart))
    if np.max(apart) > 0:
        return take(cut(few), [0, second]), [0, int(numbers[second])]
    return cut(jax.tree.map(lambda leaf: np.stack([leaf[0], _changed(leaf[0])]), few)), [0]


def _as_traced(few: np.ndarray) -> np.ndarray:
    """In the type that JAX gives it: double precision is single where it is not switched on."""
    return few.astype(jax.dtypes.canonicalize_dtype(few.dtype), copy=False)


def _distances_from_first(few: np.ndarray) -> np.ndarray:
    return np.abs(few.reshape(len(few), -1) - few[0].reshape(-1).astype(np.float32)).sum(-1)


def _changed(sample: np.ndarray) -> np.ndarray:
    changed = np.flip(sample)
    if np.array_equal(changed, sample) and np.issubdtype(sample.dtype, np.floating):
        return sample + np.linspace(0.5, 1, sample.size).reshape(sample.shape).astype(sample.dtype)
    return changed


def _program(apply: Apply, path: str, params: PyTree, samples: Inputs) -> tuple[Any, float, int]:
    """Compiled, the coarsest rounding in it, and the number of outputs. Kept for a few networks:
    often another pass of the same follows.
    """
    leaves, tree = jax.tree.flatten((params, samples))
    key = apply, path, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    try:
        hash(apply)
    except TypeError:
        return _compiled.__wrapped__(*key)
    return _compiled(*key)


@functools.lru_cache(maxsize=8)
def _compiled(apply: Apply, path: str, tree, shapes) -> tuple[Any, float, int]:
    params, samples = jax.tree.unflatten(
        tree, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    )
    num_outputs = jax.eval_shape(functools.partial(logits_of, apply), params, samples).shape[1]
    given = (
        jax.ShapeDtypeStruct((number, _COMBINATIONS), jnp.float32) for number in (num_outputs, 2)
    )
    traced = jax.jit(functools.partial(_inspect, apply, path)).trace(params, samples, *given)
    rounding = jaxprs.coarsest_rounding(traced.jaxpr)
    return (
        traced.lower().compile(),
        rounding if jax.default_backend() == "cpu" else max(rounding, _DEVICE_ROUNDING),
        num_outputs,
    )


def _inspect(
    apply: Apply,
    path: str,
    params: PyTree,
    samples: Inputs,
    combine: Float[Array, "c k"],
    weights: Float[Array, "2 k"],
):
    """Combinations of the outputs of each sample alone and of both as a batch, in the other order;
    and, as two rows, for each parameter how far the gradients are apart and how large they are.
    """

    def combined(params, inputs):
        outputs = logits_of(apply, params, inputs)
        return outputs @ combine.astype(outputs.dtype)

    def batch(params):
        return logits_of(apply, params, take(samples, slice(None, None, -1)))[::-1]

    outputs, reference = _pulled(batch, params, weights @ combine.T)
    if path == "structured":
        alone, found = outputs_and_layers(combined, params, samples)
        gradients, reference = _contracted(found, weights, params, reference)
    else:
        alone, gradients = _pulled(
            lambda params: jax.vmap(lambda x: combined(params, as_batch(x))[0])(samples),
            params,
            weights,
        )
    return (
        alone,
        outputs @ combine.astype(outputs.dtype),
        jnp.stack([jnp.stack(each) for each in _distances(gradients, reference)]),
    )


def _pulled(
    function, params: PyTree, vector: Float[Array | np.ndarray, "n k"]
) -> tuple[Array, PyTree]:
    """Outputs, and their gradient along a vector."""
    outputs, pullback = jax.vjp(function, params)
    return outputs, pullback(jnp.asarray(vector, outputs.dtype))[0]


def _contracted(
    found: list[Layer], weights: Float[Array, "n k"], params: PyTree, reference: PyTree
) -> tuple[list[Array], list[Array]]:
    """Σ over samples and outputs of weights · the Jacobian, from its layers, and the reference;
    both of each matrix as a few combinations of its rows.
    """
    leaves = jax.tree.leaves(params)
    of_leaf: list[list[Layer]] = [[] for _ in leaves]
    for layer in found:
        of_leaf[layer.source.leaf].append(layer)
    gradients, references = [], []
    for leaf, layers, expected in zip(leaves, of_leaf, jax.tree.leaves(reference), strict=True):
        products = [each for each in layers if isinstance(each, Product) and each.is_leaf_matrix]
        if len(products) == len(layers) > 0 and leaf.size >= _LARGE:
            rows = _rows(products[0].activations.shape[-1])
            terms = [each.contracted_along(weights, rows) for each in products]
            gradients.append(sum(terms[1:], terms[0]))
            matrix = expected.reshape(len(rows), -1).astype(terms[0].dtype)
            references.append(jnp.matmul(rows.T, matrix, precision=EXACT))
        else:
            terms = [layer.contracted(weights, leaves) for layer in layers]
            gradients.append(sum(terms[1:], terms[0]) if terms else jnp.zeros_like(leaf))
            references.append(expected)
    return gradients, references


def _rows(number: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(number, _ROWS)) / math.sqrt(_ROWS)
    return drawn.astype(np.float32)


def _distances(one: PyTree, other: PyTree) -> tuple[list[Float[Array, ""]], list[Float[Array, ""]]]:
    """For each parameter the norm of the difference, and the larger of the two norms."""
    pairs = [
        tuple(each.astype(jnp.result_type(a, b, jnp.float32)) for each in (a, b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    ]
    return [jnp.linalg.norm(a - b) for a, b in pairs], [
        jnp.maximum(jnp.linalg.norm(a), jnp.linalg.norm(b)) for a, b in pairs
    ]
