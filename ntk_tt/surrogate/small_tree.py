"""A tree of parameters with the sampled entries of each alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from ntk_tt.jacobian.network import working_type
from ntk_tt.models.linear_head import Head
from ntk_tt.runtime.parameter_names import named_leaves


class Sampled(eqx.Module):
    """One parameter of the small network.

    Attributes:
        name: dotted, as in the real network.
        size: entries that are sampled.
        is_whole: whether these are all; else one more entry stands for what is left out, so that
            norms of gradients over a parameter, or over all, come out right.
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    is_whole: bool = eqx.field(static=True)


def small_tree(tree: PyTree, entries: dict[str, Int[Array, " _"]], head: Head | None) -> PyTree:
    """The sampled entries of a tree like the parameters, and of each parameter one number more,
    whose square is that of all that are left out. Parameters that are neither sampled nor the
    head's stay as they are.
    """
    dtype = working_type(tree)
    small = []
    for name, leaf in named_leaves(tree).items():
        if head is not None and name in head.names:
            small.append(jnp.asarray(np.asarray(leaf).astype(dtype)))
        elif name in entries:
            small.append(_small_leaf(np.asarray(leaf).astype(dtype), np.asarray(entries[name])))
        else:
            small.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(tree), small)


def _small_leaf(leaf: np.ndarray, index: np.ndarray) -> Array:
    """By numpy: each shape would be some more programs to compile."""
    if len(index) == leaf.size:
        return jnp.asarray(leaf)
    found = leaf.reshape(-1)[index]
    rest = np.square(leaf, dtype=np.float64).sum() - np.square(found, dtype=np.float64).sum()
    found = np.append(found, np.sqrt(max(rest, 0)).astype(leaf.dtype))
    return jnp.asarray(found.reshape((1,) * (leaf.ndim - 1) + (-1,)))
