"""A network at its pre-trained weights w₀: logits, and products with its Jacobian J (N, C, D) that
never form it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.runtime.input_trees import Inputs, as_batch, num_samples, placed, shapes, take
from ntk_tt.runtime.memory import compiled_blocks
from ntk_tt.runtime.parameter_names import named_leaves

Apply = Callable[[PyTree, Any], Float[Array, "n c"]]


def blocks(num_samples: int, block_size: int) -> Iterator[slice]:
    """Slices that cover 0 … num_samples; all of `block_size` but perhaps the last."""
    for start in range(0, num_samples, block_size):
        yield slice(start, min(start + block_size, num_samples))


def working_type(params: PyTree) -> Any:
    """Of features, Θ, and all dynamics: the type of the parameters, float32 at least; half
    precision cannot add small steps up.
    """
    return jnp.result_type(*jax.tree.leaves(params), jnp.float32)


def logits_of(apply: Apply, params: PyTree, inputs: Inputs) -> Float[Array, "n c"]:
    """f (N, C), also where `apply` drops axes of length one (`logits.squeeze()`): C of one sample,
    N of one output.
    """
    return apply(params, inputs).reshape(num_samples(inputs), -1)


@partial(jax.jit, static_argnums=0)
def compiled_logits(apply: Apply, params: PyTree, inputs: Inputs) -> Float[Array, "n c"]:
    """`logits_of`, compiled once for a function and its shapes."""
    return logits_of(apply, params, placed(inputs))


def in_blocks(
    function: Callable[..., Any], params: PyTree, *arrays: Inputs, block_size: int
) -> Iterator[Any]:
    """`function(params, samples of each array)`, compiled, for one block of samples after another:
    `block_size`, or as many as memory holds.

    Raises:
        ValueError: not even one sample fits.
    """
    step = jax.jit(function)
    compiled, size = compiled_blocks(
        lambda size: step.lower(
            params, *(placed(take(array, slice(size))) for array in arrays)
        ).compile(),
        num_samples(arrays[0]),
        block_size,
    )
    for block in blocks(num_samples(arrays[0]), size):
        yield (compiled if block.stop - block.start == size else step)(
            params, *(placed(take(array, block)) for array in arrays)
        )


def logits_and_tangent(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    tangent: PyTree,
    *,
    block_size: int = 256,
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """f(w₀) and J·tangent for all samples, one forward-mode pass in blocks (about two forward
    passes).

    Args:
        tangent: a direction in parameter space, a tree like `params`.
        block_size: samples at a time, fewer where these do not fit into memory.
    """
    arguments, options = ((params, tangent), inputs), {"block_size": block_size}
    try:
        parts = list(in_blocks(partial(_step, _forward, apply), *arguments, **options))
    except TypeError as error:  # JAX says so when it compiles
        if "custom_vjp" not in str(error):
            raise
        parts = list(in_blocks(partial(_step, _transposed, apply), *arguments, **options))
    return jnp.concatenate([part[0] for part in parts]), jnp.concatenate(
        [part[1] for part in parts]
    )


def _step(
    product: Callable, apply: Apply, params: tuple[PyTree, PyTree], inputs: Inputs
) -> tuple[Array, Array]:
    at, direction = params
    return product(lambda w: logits_of(apply, w, inputs), at, direction)


def _forward(
    function: Callable[[PyTree], Array], params: PyTree, tangent: PyTree
) -> tuple[Array, Array]:
    return jax.jvp(function, (params,), (tangent,))


def _transposed(
    function: Callable[[PyTree], Array], params: PyTree, tangent: PyTree
) -> tuple[Array, Array]:
    """The same where a `jax.custom_vjp` within has no forward rule: the transpose of its backward
    pass.
    """
    value, pullback = jax.vjp(function, params)
    (moved,) = jax.linear_transpose(lambda cotangent: pullback(cotangent)[0], value)(tangent)
    return value, moved


def jacobian_block(apply: Apply, params: PyTree, inputs: Inputs) -> PyTree[Float[Array, "n c ..."]]:
    """J of a block of samples by `vmap(jacrev)`: a tree like `params`, leaves (n, C, *shape).

    One forward pass and C vector-Jacobian products a sample. The plain reference path: right for
    any pure function whose samples do not see each other; convolutions lower to grouped
    convolutions, which are slow on a CPU.
    """
    return jax.vmap(lambda x: jax.jacrev(lambda w: apply(w, as_batch(x)).reshape(-1))(params))(
        inputs
    )


def ntk_vector_product(
    apply: Apply, params: PyTree, inputs: Inputs
) -> Callable[[Float[Array, "n c"]], Float[Array, "n c"]]:
    """v -> Θ v = J (Jᵀ v) exactly, from `jax.linearize` and its transpose: one VJP and one JVP a
    product.

    Holds the activations of all `inputs`: for small sets, and for checking what is built from
    features.
    """
    logits, pushforward = jax.linearize(lambda w: logits_of(apply, w, inputs), params)
    pullback = jax.linear_transpose(pushforward, params)

    def product(vector):
        if vector.shape != logits.shape:
            raise ValueError(
                f"vector: must have the shape of the logits {logits.shape}, got {vector.shape}"
            )
        return pushforward(pullback(vector)[0])

    return jax.jit(product)


def check_network(apply: Apply, params: PyTree, inputs: Inputs) -> int:
    """The number of outputs C, after checking that `apply` is what the library takes.

    Raises:
        ValueError: no samples, NaN in inputs or weights (the first is named), or logits that are
            not (N, C) real numbers; axes of length one may be left out.
    """
    count = num_samples(inputs)
    if count == 0:
        raise ValueError("inputs: there are no samples")
    is_finite = np.ones(count, bool)
    for leaf in jax.tree.leaves(inputs):
        is_finite &= np.isfinite(np.asarray(leaf)).reshape(count, -1).all(-1)
    if not is_finite.all():
        raise ValueError(
            f"inputs: {int((~is_finite).sum())} of {count} samples hold NaN or infinity, the first "
            f"is sample {int(is_finite.argmin())}; remove or repair them"
        )
    leaves = named_leaves(params)
    if not leaves:
        raise ValueError("params: the tree has no arrays, so there is nothing to train")
    if not any(leaf.size for leaf in leaves.values()):
        raise ValueError(
            "params: the arrays hold no numbers (a dimension of each is zero), so there is nothing "
            "to train"
        )
    for name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"params: {name!r} has dtype {leaf.dtype}; trainable parameters must be floating "
                "point"
            )
        if not _is_finite(leaf):
            raise ValueError(f"params: {name!r} holds NaN or infinity; the weights are damaged")
    two, one = (jax.eval_shape(apply, params, shapes(inputs, number)) for number in (2, 1))
    if not hasattr(two, "shape") or two.shape[:1] != (2,) or len(two.shape) > 2 or two.size == 0:
        raise ValueError(
            "apply: must map (params, inputs) to logits of shape (N, C), got "
            f"{jax.tree.map(lambda leaf: leaf.shape, two)} for two samples"
        )
    if not jnp.issubdtype(two.dtype, jnp.floating):
        raise ValueError(
            f"apply: the logits have dtype {two.dtype}; they must be real floating-point numbers"
        )
    if 2 * one.size != two.size:
        raise ValueError(
            f"apply: must map (1, …) to (1, {two.size // 2}), got {one.shape}; the outputs of a "
            "sample must not depend on how many there are"
        )
    return two.size // 2


def check_logits(logits: Float[Array | np.ndarray, "n c"]) -> None:
    """Raises ValueError where the network's outputs are not finite."""
    finite = np.asarray(np.isfinite(np.asarray(logits)).all(-1))
    if not finite.all():
        raise ValueError(
            f"logits: the network gives NaN or infinity on {int((~finite).sum())} of {len(finite)} "
            f"samples, the first is sample {int(finite.argmin())}; check its weights and the "
            "preprocessing"
        )


def _is_finite(leaf: Array) -> bool:
    """By numpy where it can: each shape of a parameter would be one more program to compile."""
    if leaf.is_fully_addressable if isinstance(leaf, jax.Array) else True:
        return bool(np.isfinite(np.asarray(leaf).astype(working_type(leaf))).all())
    return bool(jnp.isfinite(leaf).all())


@jax.jit
def _finite_samples(values: Float[Array, "n ..."]) -> Array:
    return jnp.isfinite(values).all(tuple(range(1, values.ndim)))


def check_features(features: Float[Array | np.ndarray, "n ..."], first: int = 0) -> None:
    """Raises ValueError where gradients, or their inner products, are not finite: `first` is the
    number of the first sample.
    """
    finite = _finite_samples(features)
    if not bool(finite.all()):
        which = ""
        if finite.is_fully_addressable:
            which = (
                f" of {int((~finite).sum())} of {len(finite)} samples (the first is sample "
                f"{first + int(finite.argmin())})"
            )
        raise ValueError(
            f"params: the gradients{which} hold NaN or infinity; the network is not differentiable "
            "there (a root or a norm of zeros), or its numbers are "
            "too large for their type"
        )
