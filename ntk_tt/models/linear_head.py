"""Where a network's linear head is: by its name, or found in what the network does."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.jacobian.jaxpr import arguments_used, trace
from ntk_tt.jacobian.last_product import LastProduct, last_product, operand_of
from ntk_tt.jacobian.network import compiled_logits
from ntk_tt.models.heads import part
from ntk_tt.models.model import Apply, Model
from ntk_tt.runtime.input_trees import Inputs, num_samples, placed, take
from ntk_tt.runtime.parameter_names import named_leaves

_TOLERANCE = 2e-2  # of products in half precision; what is arranged otherwise is off by all of it


@dataclasses.dataclass(frozen=True)
class Head:
    """Which parameters are the head: logits = embeddings · weight + bias.

    Attributes:
        weight: dotted name of the matrix, (F, C).
        bias: that of the bias, with C entries; None without.
        is_transposed: the matrix is kept as (C, F), as Equinox and PyTorch do.
    """

    weight: str
    bias: str | None = None
    is_transposed: bool = False

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.weight} if self.bias is None else {self.weight, self.bias})

    def read(
        self, tree: PyTree, dtype: Any
    ) -> tuple[Float[Array, "f c"], Float[Array, " c"] | None]:
        """Weight and bias from a tree like the parameters."""
        leaves = named_leaves(tree)
        weight = leaves[self.weight].astype(dtype)
        bias = None if self.bias is None else leaves[self.bias].astype(dtype).reshape(-1)
        return weight.T if self.is_transposed else weight, bias

    def by_name(
        self,
        weight: Float[Array | np.ndarray, "f c"],
        bias: Float[Array | np.ndarray, " c"] | None,
    ) -> dict[str, Any]:
        """The other way: entries of such a tree, but for the shape of the bias."""
        found: dict[str, Any] = {self.weight: weight.T if self.is_transposed else weight}
        return found if self.bias is None else {**found, self.bias: bias}


def named_head(model: Model) -> Head | None:
    """The head that the model names, where that is a linear layer, `kernel` (F, C) and perhaps
    `bias`, all of which trains.
    """
    if not model.head:
        return None
    try:
        found = part(model.params, model.head)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError):
        return None  # it does not train
    if (
        not isinstance(found, dict)
        or "kernel" not in found
        or set(found) - {"kernel", "bias"}
        or found["kernel"].ndim != 2
    ):
        return None
    bias = f"{model.head}.bias" if found.get("bias") is not None else None
    return Head(f"{model.head}.kernel", bias)


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """`(params, inputs) -> what the head reads (N, F)`, of a network that does not say it itself.

    Two are equal, and share what was compiled, where network and weight are the same.

    Raises:
        ValueError: with these inputs the network does not end in a product with the weight.
    """

    apply: Apply
    weight: str

    def __call__(self, params: PyTree, inputs: Inputs) -> Float[Array, "n f"]:
        product = _traced(self.apply, params, inputs)
        names = list(named_leaves(params))
        if product is None or names[product.weight] != self.weight:
            raise ValueError(
                f"apply: with inputs of shape {_shape_of(inputs)} the network does not end in a "
                f"product with {self.weight!r}, though with others it does; name its head, or take "
                "expand(…, head=False)"
            )
        return operand_of(product, [*jax.tree.leaves((params, inputs))], num_samples(inputs))


def find_head(apply: Apply, params: PyTree, inputs: Inputs) -> tuple[Head, Embeddings] | None:
    """The linear head of a network, and the network before it, found in its trace.

    It is the product of a matrix of the parameters with what the inputs made, and perhaps a bias
    of theirs, that gives the logits: nothing else is done to them, and what the inputs made does
    not depend on matrix or bias. Names and orientation may be any.

    Args:
        apply, params: the network.
        inputs: a few samples, on which it is tried: with random numbers in the place of the head,
            the logits must be those of the head.

    Returns:
        None where there is no such head: logits that are scaled or normalised, a matrix that is
        frozen, tied to an embedding, used twice, or adapted.

    Cost: a few traces, and two forward passes over the inputs.
    """
    leaves = named_leaves(params)
    names = list(leaves)
    product = _traced(apply, params, take(inputs, slice(2)))
    if product is None:
        return None
    embeddings = Embeddings(apply, names[product.weight])
    of_head = [names[product.weight]] + ([] if product.bias is None else [names[product.bias]])
    try:
        used, reads_inputs = leaves_used(embeddings, params, take(inputs, slice(2)))
    except ValueError:
        return None  # not one row a sample
    if not reads_inputs or len({*of_head}) < len(of_head) or used & {*of_head}:
        return None
    rows = np.asarray(compiled_logits(embeddings, params, inputs))
    columns = leaves[of_head[0]].size // max(1, rows.shape[1])
    for is_transposed in (False, True):
        head = Head(*of_head, is_transposed=is_transposed)
        shape = (rows.shape[1], columns)
        if (
            leaves[of_head[0]].shape == (shape[::-1] if is_transposed else shape)
            and all(leaves[name].size == columns for name in of_head[1:])
            and _is_read(head, rows, columns, apply, params, inputs)
        ):
            return head, embeddings
    return None


def leaves_used(apply: Apply, params: PyTree, inputs: Inputs) -> tuple[frozenset[str], bool]:
    """The names of the parameters that a function's result depends on, and whether it depends on
    the inputs.
    """
    leaves, tree = jax.tree.flatten(params)
    traced = trace(
        lambda leaves, inputs: apply(jax.tree.unflatten(tree, leaves), inputs),
        leaves,
        placed(inputs),
    )
    names = named_leaves(params)
    are_used = arguments_used(traced)
    used, reads_inputs = are_used[: len(names)], any(are_used[len(names) :])
    return frozenset(
        name for name, is_used in zip(names, used, strict=True) if is_used
    ), reads_inputs


def _shape_of(inputs: Inputs) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, inputs)


def _traced(apply: Apply, params: PyTree, inputs: Any) -> LastProduct | None:
    leaves, tree = jax.tree.flatten(params)
    closed = trace(
        lambda leaves, inputs: apply(jax.tree.unflatten(tree, leaves), inputs), leaves, inputs
    )
    return last_product(closed, len(leaves))


def _is_read(
    head: Head, rows: np.ndarray, columns: int, apply: Apply, params: PyTree, inputs: Any
) -> bool:
    """Whether the logits are rows · weight + bias, with random numbers for these: a head of zeros
    would hide how it is arranged.
    """
    draw, leaves = np.random.default_rng(0), named_leaves(params)
    rows = rows.astype(np.float64)
    weight = draw.standard_normal((rows.shape[1], columns)) / np.sqrt(max(1, rows.shape[1]))
    bias = draw.standard_normal(columns) * np.abs(rows).mean()
    changed = {
        name: value.reshape(leaves[name].shape).astype(leaves[name].dtype)
        for name, value in head.by_name(weight, bias).items()
    }
    there = jax.tree.unflatten(
        jax.tree.structure(params), [changed.get(name, leaf) for name, leaf in leaves.items()]
    )
    weight = changed[head.weight].astype(np.float64)  # as it was rounded
    read = rows @ (weight.T if head.is_transposed else weight)
    if head.bias is not None:
        read = read + changed[head.bias].astype(np.float64).reshape(-1)
    logits = np.asarray(compiled_logits(apply, there, inputs)).astype(np.float64)
    if logits.shape != read.shape:
        return False
    return bool(np.abs(logits - read).max() <= _TOLERANCE * np.abs(read).max())
