"""Inputs of a network: an array, or a tree of arrays, such as the `input_ids` and the
`attention_mask` of texts. The leading axis of each array is the samples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from ntk_tt.runtime.memory import compiled_blocks

Inputs = PyTree[Shaped[Array | np.ndarray, "_ ..."]]

_SHORTEST = 16  # of the lengths to which texts are cut, each twice the one before


@jax.tree_util.register_pytree_with_keys_class
class Tokens(dict):
    """Texts as `input_ids` (N, T) and `attention_mask` (N, T), 1 for what counts and 0 for padding
    on the right.

    A dict like any other to a network. In passes over the data each block is cut to what its
    longest text needs (`block_of`), rounded up to one of a few lengths, since each is a program of
    its own. So the network must take texts of any length, and padding must not change its logits.
    """

    def tree_flatten_with_keys(self) -> tuple[list, tuple]:
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple, values: Any) -> "Tokens":
        return cls(zip(names, values, strict=True))

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each text, padding left out."""
        mask = np.asarray(self["attention_mask"]) != 0
        return mask.shape[1] - np.argmax(mask[:, ::-1], axis=1) * mask.any(1)


def num_samples(inputs: Inputs) -> int:
    """N.

    Raises:
        ValueError: the arrays of a tree differ in it, or there are none.
    """
    leaves = jax.tree.leaves(inputs)
    if len(leaves) == 1:
        return len(leaves[0])
    found = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(found) != 1:
        raise ValueError(
            "inputs: the arrays of a tree must have one leading axis, the samples, got lengths "
            f"{sorted(found)}"
        )
    return found.pop()


def take(inputs: Inputs, rows: Any) -> Inputs:
    """Some samples: a slice or indices of the leading axis."""
    return jax.tree.map(lambda leaf: leaf[rows], inputs)


def as_batch(sample: PyTree) -> Inputs:
    """One sample, without an axis for it, as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[None], sample)


def on_host(inputs: Inputs) -> Inputs:
    """The same as NumPy's arrays: each slice of a JAX array would be a program of its own."""
    return jax.tree.map(np.asarray, inputs)


def placed(inputs: Inputs) -> Inputs:
    """The same as JAX's arrays."""
    return jax.tree.map(jnp.asarray, inputs)


def shapes(inputs: Inputs, number: int) -> PyTree:
    """What so many samples would be: a tree of shapes and types."""
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), inputs)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((number, *leaf.shape[1:]), leaf.dtype), few
    )


def block_of(inputs: Inputs, rows: Any) -> Inputs:
    """Some samples on the host; texts cut to what the longest of them needs."""
    return cut(on_host(take(inputs, rows)))


def cut(inputs: Inputs, length: int | None = None) -> Inputs:
    """The same with its texts (`Tokens`) cut to a length, or to what the longest needs."""

    def shorter(node: Any) -> Any:
        if not isinstance(node, Tokens):
            return node
        needed = int(rounded_up(node.lengths).max(initial=1)) if length is None else length
        return Tokens({name: leaf[:, :needed] for name, leaf in node.items()})

    return jax.tree.map(shorter, inputs, is_leaf=_is_text)


class CutInputs:
    """All samples on the device; of texts one copy for each of a few lengths, so that a block of
    short ones is computed at that length.

    Attributes:
        by_length: the copies; of anything but texts one, under 0.
    """

    def __init__(self, inputs: Inputs):
        lengths = text_lengths(inputs)
        self._lengths = None if lengths is None else rounded_up(lengths)
        found = [0] if self._lengths is None else np.unique(self._lengths).tolist()
        self.by_length = {
            length: placed(cut(inputs, length) if length else inputs) for length in found
        }

    @property
    def longest(self) -> Inputs:
        """All samples, nothing cut off."""
        return self.by_length[max(self.by_length)]

    def compiled(
        self, lower: Callable[[Inputs, int], Any], count: int, most: int, least: int = 1
    ) -> tuple[dict[int, Any], int]:
        """A pass over blocks of `count` samples, compiled for each length, and the size of its
        blocks, see `compiled_blocks`: what the longest allow.

        Args:
            lower: a copy and the size to the compiled program.
        """
        longest = max(self.by_length)
        found, size = compiled_blocks(lambda size: lower(self.longest, size), count, most, least)
        return {
            length: found if length == longest else lower(inputs, size)
            for length, inputs in self.by_length.items()
        }, size

    def length(self, rows: Int[np.ndarray, " b"]) -> int:
        """Which copy these samples need."""
        return 0 if self._lengths is None else int(self._lengths[rows].max())

    def ordered(self, rows: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """The same samples; texts with others of their length beside them."""
        if self._lengths is None:
            return rows
        return rows[np.argsort(self._lengths[rows], kind="stable")]


def rounded_up(lengths: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Each to the next of a few lengths."""
    steps = np.ceil(np.log2(np.maximum(lengths, 1) / _SHORTEST)).astype(int)
    return _SHORTEST << np.maximum(steps, 0)


def text_lengths(inputs: Inputs) -> Int[np.ndarray, " n"] | None:
    """Tokens of each sample, of its longest text; None where there are no texts."""
    leaves = jax.tree.leaves(inputs, is_leaf=_is_text)
    found = [node.lengths for node in leaves if _is_text(node)]
    return np.max(found, axis=0) if found else None


def in_order_of_length(inputs: Inputs, labels: Any) -> tuple[Inputs, Any]:
    """The same samples; texts in the order of their length, so that neighbours, which are computed
    together, need the same.
    """
    lengths = text_lengths(inputs)
    if lengths is None or len(labels) != len(lengths):
        return inputs, labels
    order = np.argsort(lengths, kind="stable")
    return take(inputs, order), np.asarray(labels)[order]


def _is_text(node: Any) -> bool:
    return isinstance(node, Tokens)
