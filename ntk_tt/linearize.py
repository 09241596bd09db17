"""A network at its pre-trained weights w₀: logits, and products with its Jacobian J (N, C, D) that never form it."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.memory import compiled_blocks
from ntk_tt.paths import named_leaves

Apply = Callable[[PyTree, Array], Float[Array, "n c"]]


def blocks(num_samples: int, block_size: int) -> Iterator[slice]:
    """Slices that cover 0 … num_samples; all of `block_size` but perhaps the last."""
    for start in range(0, num_samples, block_size):
        yield slice(start, min(start + block_size, num_samples))


def logits_and_tangent(apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."], tangent: PyTree, *,
                       block_size: int = 256) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """f(w₀) and J·tangent for all samples, one forward-mode pass in blocks (about two forward passes).

    Args:
        tangent: a direction in parameter space, a tree like `params`.
        block_size: samples at a time, fewer where these do not fit into memory.
    """
    step = jax.jit(lambda params, x, tangent: jax.jvp(lambda w: apply(w, x), (params,), (tangent,)))
    compiled, size = compiled_blocks(lambda size: step.lower(params, jnp.asarray(inputs[:size]), tangent).compile(), len(inputs), block_size)
    parts = [(compiled if block.stop - block.start == size else step)(params, jnp.asarray(inputs[block]), tangent) for block in blocks(len(inputs), size)]
    return jnp.concatenate([part[0] for part in parts]), jnp.concatenate([part[1] for part in parts])


def jacobian_block(apply: Apply, params: PyTree, inputs: Float[Array, "n ..."]) -> PyTree[Float[Array, "n c ..."]]:
    """J of a block of samples by `vmap(jacrev)`: a tree like `params`, leaves (n, C, *shape).

    One forward pass and C vector-Jacobian products a sample. The plain reference path: right for any pure function
    whose samples do not see each other; convolutions lower to grouped convolutions, which are slow on a CPU.
    """
    return jax.vmap(lambda x: jax.jacrev(lambda w: apply(w, x[None])[0])(params))(inputs)


def ntk_vector_product(apply: Apply, params: PyTree, inputs: Float[Array, "n ..."]) -> Callable[[Float[Array, "n c"]], Float[Array, "n c"]]:
    """v -> Θ v = J (Jᵀ v) exactly, from `jax.linearize` and its transpose: one VJP and one JVP a product.

    Holds the activations of all `inputs`: for small sets, and for checking what is built from features.
    """
    logits, pushforward = jax.linearize(lambda w: apply(w, inputs), params)
    pullback = jax.linear_transpose(pushforward, params)

    def product(vector):
        if vector.shape != logits.shape:
            raise ValueError(f"vector: must have the shape of the logits {logits.shape}, got {vector.shape}")
        return pushforward(pullback(vector)[0])

    return jax.jit(product)


def check_network(apply: Apply, params: PyTree, inputs: Float[Array | np.ndarray, "n ..."]) -> int:
    """The number of outputs C, after checking that `apply` is what the library takes.

    Raises:
        ValueError: no samples, NaN in inputs, weights or logits (the first is named), or logits that are not (N, C).
    """
    if len(inputs) == 0:
        raise ValueError("inputs: there are no samples")
    bad = int(np.sum(~np.isfinite(np.asarray(inputs)).reshape(len(inputs), -1).all(-1)))
    if bad:
        first = int(np.argmin(np.isfinite(np.asarray(inputs)).reshape(len(inputs), -1).all(-1)))
        raise ValueError(f"inputs: {bad} of {len(inputs)} samples hold NaN or infinity, the first is sample {first}; remove or repair them")
    leaves = named_leaves(params)
    if not leaves:
        raise ValueError("params: the tree has no arrays, so there is nothing to train")
    if not any(leaf.size for leaf in leaves.values()):
        raise ValueError("params: the arrays hold no numbers (a dimension of each is zero), so there is nothing to train")
    for name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"params: {name!r} has dtype {leaf.dtype}; trainable parameters must be floating point")
        if not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"params: {name!r} holds NaN or infinity; the weights are damaged")
    shape = jax.eval_shape(apply, params, inputs[:2])
    if not hasattr(shape, "shape") or len(shape.shape) != 2 or shape.shape[0] != len(inputs[:2]):
        raise ValueError(f"apply: must map (params, inputs) to logits of shape (N, C), got {jax.tree.map(lambda leaf: leaf.shape, shape)}")
    return shape.shape[1]


def check_logits(logits: Float[Array, "n c"]) -> None:
    """Raises ValueError where the network's outputs are not finite."""
    finite = np.asarray(np.isfinite(np.asarray(logits)).all(-1))
    if not finite.all():
        raise ValueError(f"logits: the network gives NaN or infinity on {int((~finite).sum())} of {len(finite)} samples, the first is sample {int(finite.argmin())}; check its weights and the preprocessing")
