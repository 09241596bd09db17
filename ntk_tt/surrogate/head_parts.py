"""A network as backbone and head, and what moves between the two and a problem with a real head."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntk_tt.jacobian.network import in_blocks, logits_of, working_type
from ntk_tt.models.heads import part, replaced
from ntk_tt.models.model import Model
from ntk_tt.surrogate.real_head import HeadProblem, HeadState

BLOCK = 20  # samples in a forward or backward pass


@dataclasses.dataclass(frozen=True)
class Parts:
    """A network as backbone and head.

    Attributes:
        embed: `(backbone, inputs) -> φ (N, F)`.
        backbone: trainable parameters without the head.
        weight, bias: of the head.
    """

    embed: Callable[[PyTree, Array], Array]
    backbone: PyTree
    weight: Float[Array, "f c"]
    bias: Float[Array, " c"] | None


def split_head(model: Model) -> Parts:
    """The network as backbone and head.

    Raises:
        ValueError: a network that does not say where its head is, whose head does not train, whose
            backbone does not, or whose logits are not its head times its features.
    """
    remedy = "take method='replay', the frozen kernel, which needs no head"
    if not model.head or model.apply_features is None:
        raise ValueError(
            f"model: {model.name} has no trainable linear head with features before it "
            f"(Model.head, Model.apply_features); {remedy}"
        )
    head, features = part(model.params, model.head), model.features
    if (
        not isinstance(head, dict)
        or "kernel" not in head
        or set(head) - {"kernel", "bias"}
        or head["kernel"].ndim != 2
    ):
        raise ValueError(
            f"model: the head {model.head!r} of {model.name} is no linear layer with a kernel (F, "
            f"C) and perhaps a bias; {remedy}"
        )
    backbone = replaced(model.params, model.head, None)
    if not jax.tree.leaves(backbone):
        raise ValueError(
            "model: only the head trains, so the network is linear in what trains; take "
            "method='replay', which is exact there"
        )
    return Parts(
        lambda params, inputs: features(replaced(params, model.head, head), inputs),
        backbone,
        head["kernel"],
        head.get("bias"),
    )


def head_of(model: Model, backbone: PyTree, state: HeadState) -> PyTree:
    """Parameters of the model with this backbone and the head of a state."""
    like = part(model.params, model.head)
    head = {"kernel": state.weight} | ({} if state.bias is None else {"bias": state.bias})
    return replaced(
        backbone, model.head, {name: leaf.astype(like[name].dtype) for name, leaf in head.items()}
    )


def velocity_of(problem: HeadProblem, model: Model, velocity: PyTree) -> HeadState:
    """An optimiser's momentum, a tree like `model.params`, as the velocity that `replay`
    begins with.
    """
    assert problem.projection is not None
    velocity = jax.tree.map(lambda leaf: leaf.astype(problem.jacobian.dtype), velocity)
    head = part(velocity, model.head)
    backbone = problem.projection(
        jax.tree.map(lambda leaf: leaf[None], replaced(velocity, model.head, None))
    )[0]
    return HeadState(backbone, jnp.zeros((), backbone.dtype), head["kernel"], head.get("bias"))


def along(
    embed: Callable[[PyTree, Array], Array], directions: Float[Array, "f r"]
) -> Callable[[PyTree, Array], Array]:
    """The features' coordinates along some directions, as a network with r outputs."""
    return lambda params, inputs: logits_of(embed, params, inputs) @ directions


def moved_weights(parts: Parts, directions, inputs, pushed: Float[Array, "n r"]) -> PyTree:
    """w₀ + Σᵢ J_φ,iᵀ U cᵢ: one backward pass over the data."""
    coordinates = along(parts.embed, directions)

    def pull(backbone, x, cotangents):
        moved, pullback = jax.vjp(lambda backbone: coordinates(backbone, x), backbone)
        return pullback(cotangents.astype(moved.dtype))[0]

    # sums of half precision would lose the small ones
    start = jax.tree.map(lambda leaf: leaf.astype(working_type(leaf)), parts.backbone)
    moved = functools.reduce(
        partial(jax.tree.map, jnp.add),
        in_blocks(pull, parts.backbone, inputs, pushed, block_size=BLOCK),
        start,
    )
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), moved, parts.backbone)
