"""The one shape in which every network enters: a pure `apply`, its parameters, and what surrounds them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

Apply = Callable[[PyTree, Array], Array]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BatchStatistics(eqx.Module):
    """Batch-norm statistics and the network as a function of them.

    `apply_train(params, state, images) -> (logits, new state)` normalises by the batch, `apply_eval(params, state,
    images) -> logits` by the running statistics.
    """

    state: PyTree
    apply_train: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]] = eqx.field(static=True)
    apply_eval: Callable[[PyTree, PyTree, Array], Array] = eqx.field(static=True)


class Model(eqx.Module):
    """A network as pure functions of its trainable parameters.

    Attributes:
        params: the trainable parameters w₀, a pytree of arrays.
        apply: `(params, images) -> logits`, batch-norm statistics frozen. What is predicted.
        batch_statistics: the statistics and the network as a function of them, for training that changes them; None
            where the network has none.
        apply_features: `(params, images) -> pooled activations before the head`, or None.
        name: what the network is called in reports.
        num_classes: logits per sample, C; 0 for a network without head, whose `apply` raises a ValueError.
        image_size: side of the square images the weights expect [pixels].
        mean, std: per-channel normalisation that belongs to the weights, on pixel values in [0, 1].
        head: dotted name in `params` of the last linear layer, which maps `features` to logits; empty where unknown.
        note: what of the network the checkpoint decided, such as a cut after a stage; empty for a whole network.
    """

    params: PyTree
    apply: Apply = eqx.field(static=True)
    batch_statistics: BatchStatistics | None = None
    apply_features: Apply | None = eqx.field(static=True, default=None)
    name: str = eqx.field(static=True, default="model")
    num_classes: int = eqx.field(static=True, default=0)
    image_size: int = eqx.field(static=True, default=32)
    mean: tuple[float, ...] = eqx.field(static=True, default=IMAGENET_MEAN)
    std: tuple[float, ...] = eqx.field(static=True, default=IMAGENET_STD)
    head: str = eqx.field(static=True, default="")
    note: str = eqx.field(static=True, default="")

    @property
    def num_params(self) -> int:
        """D, the number of trainable parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def features(self) -> Apply:
        """`(params, images) -> pooled activations (N, F) before the head`, a pure function like `apply`.

        Raises:
            ValueError: the network does not say where its head begins.
        """
        if self.apply_features is None:
            raise ValueError(f"{self.name} has no `features` method: give its module one that returns the activations before the head")
        return self.apply_features

    def preprocess(self, images: UInt8[Any, "n h w c"]) -> Float[Array, "n h w c"]:
        """Pixels 0…255 to the normalised float32 images the weights were trained on."""
        scaled = jnp.asarray(images, jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)


def from_nnx(module: nnx.Module, *, name: str = "", num_classes: int = 0, image_size: int = 32,
             mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD, head: str = "", note: str = "") -> Model:
    """A Flax NNX module as a `Model`: `module(images) -> logits`, parameters are its `nnx.Param`s.

    The module itself is not changed. `apply` runs batch norm and dropout in evaluation mode with the module's
    statistics, `batch_statistics.apply_train` in training mode; a `features(images)` method, where there is one,
    becomes `Model.features`. Parameters appear as a nested dict by attribute name, so a leaf's path is its name in a
    checkpoint.
    """
    frozen_module, training_module = nnx.clone(module), nnx.clone(module)
    frozen_module.eval()
    training_module.train()
    frozen_graph, param_state, rest = nnx.split(frozen_module, nnx.Param, ...)
    training_graph = nnx.graphdef(training_module)
    statistics = _values(rest)

    def merge(graph, params, state):
        return nnx.merge(graph, _with_values(param_state, params), _with_values(rest, state))

    def apply(params, images):
        return merge(frozen_graph, params, statistics)(images)

    def apply_features(params, images):
        return merge(frozen_graph, params, statistics).features(images)  # pyright: ignore[reportAttributeAccessIssue]

    def apply_eval(params, state, images):
        return merge(frozen_graph, params, state)(images)

    def apply_train(params, state, images):
        live = merge(training_graph, params, state)
        logits = live(images)
        return logits, _values(nnx.state(live, nnx.Not(nnx.Param)))

    return Model(
        params=_values(param_state), apply=apply,
        batch_statistics=BatchStatistics(statistics, apply_train, apply_eval) if jax.tree.leaves(statistics) else None,
        apply_features=apply_features if hasattr(module, "features") else None,
        name=name or type(module).__name__, num_classes=num_classes, image_size=image_size, mean=mean, std=std, head=head, note=note)


def set_values(module: nnx.Module, values: dict) -> None:
    """Write values, nested by attribute name as in `Model.params` and `Model.state`, into a module in place."""
    variables = nnx.state(module)
    nnx.replace_by_pure_dict(variables, values)
    nnx.update(module, variables)


def _values(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)


def _with_values(template: nnx.State, values: dict) -> nnx.State:
    filled = jax.tree.map(lambda leaf: leaf, template)  # a copy: `replace_by_pure_dict` writes in place
    nnx.replace_by_pure_dict(filled, values)
    return filled
