"""The one shape in which every network enters: a pure `apply`, its parameters, and what surrounds
them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree, UInt8

from ntk_tt.models.switches import (
    Call,
    check_unchanged,
    depends_on,
    evaluated,
    evaluation_value,
    read_call,
    training_mode,
)
from ntk_tt.runtime.input_trees import Tokens
from ntk_tt.runtime.parameter_names import named_leaves, path_name

Apply = Callable[[PyTree, Any], Array]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BatchStatistics(eqx.Module):
    """Batch-norm statistics and the network as a function of them.

    `apply_train(params, state, images) -> (logits, new state)` normalises by the batch,
    `apply_eval(params, state, images) -> logits` by the running statistics.
    """

    state: PyTree
    apply_train: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]] = eqx.field(static=True)
    apply_eval: Callable[[PyTree, PyTree, Array], Array] = eqx.field(static=True)


class Model(eqx.Module):
    """A network as pure functions of its trainable parameters.

    Attributes:
        params: the trainable parameters w₀, a pytree of arrays.
        apply: `(params, images) -> logits`, batch-norm statistics frozen. What is predicted.
        batch_statistics: the statistics and the network as a function of them, for training that
            changes them; None where the network has none.
        apply_features: `(params, images) -> pooled activations before the head`, or None.
        name: what the network is called in reports.
        num_classes: logits per sample, C; 0 for a network without head, whose `apply` raises a
            ValueError.
        image_size: side of the square images the weights expect [pixels].
        mean, std: per-channel normalisation that belongs to the weights, on pixel values in [0, 1].
        head: dotted name in `params` of the last linear layer, which maps `features` to logits;
            empty where unknown: what needs it looks for it (`ntk_tt.models.linear_head`).
        tokenize: texts to what `apply` takes; None of a network of images.
        note: what of the network the checkpoint decided, such as a cut after a stage; empty for a
            whole network.
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
    tokenize: Callable[[Any], Tokens] | None = eqx.field(static=True, default=None)

    @property
    def num_params(self) -> int:
        """D, the number of trainable parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def features(self) -> Apply:
        """`(params, images) -> pooled activations (N, F) before the head`, a pure function like
        `apply`.

        Raises:
            ValueError: the network does not say where its head begins.
        """
        if self.apply_features is None:
            raise ValueError(
                f"{self.name} has no `features` method: give its module one that returns the "
                "activations before the head"
            )
        return self.apply_features

    def preprocess(self, images: UInt8[Any, "n h w c"] | np.ndarray | Sequence[str]) -> Any:
        """Pixels 0…255 (N, H, W, 3) to the normalised float32 images the weights were trained on;
        N texts to their `Tokens`.

        Raises:
            ValueError: texts for a network of images, or images for one of texts.
        """
        is_text = not isinstance(images, np.ndarray | jax.Array) or images.dtype.kind in "OUT"
        if is_text != (self.tokenize is not None):
            raise ValueError(
                f"data: {self.name} takes {'texts' if self.tokenize else 'images'}, got "
                f"{'texts' if is_text else 'images'}; give another network or other data"
            )
        if self.tokenize is not None:
            return self.tokenize(images)
        scaled = jnp.asarray(images, jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)


def from_nnx(
    module: nnx.Module,
    *,
    name: str = "",
    num_classes: int = 0,
    image_size: int = 32,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    head: str = "",
    note: str = "",
) -> Model:
    """A Flax NNX module as a `Model`: `module(images) -> logits`, parameters are its `nnx.Param`s.

    The module itself is not changed. `apply` runs batch norm and dropout in evaluation mode with
    the module's statistics, `batch_statistics.apply_train` in training mode: attributes and
    arguments of the call that switch between them (`deterministic`, `train`, …, see
    `ntk_tt.models.switches`) are given their values, and a key where the call needs one. A
    `features(images)` method, where there is one, becomes `Model.features`. Parameters appear as a
    nested dict by attribute name, so a leaf's path is its name in a checkpoint.

    Raises:
        ValueError: no callable module, or its call needs what is not offered. `apply` raises one
            where the network trains all the same: where it changes its statistics, or its logits
            depend on a random key.
    """
    label = name or type(module).__name__
    if not isinstance(module, nnx.Module) or not callable(module):
        raise ValueError(
            "module: must be a callable flax.nnx.Module, got something of type "
            f"{type(module).__name__}"
        )
    frozen_graph, param_state, rest = nnx.split(_switched(module, training=False), nnx.Param, ...)
    network = _NnxNetwork(
        label,
        read_call(type(module).__call__, 2, label),
        frozen_graph,
        nnx.graphdef(_switched(module, training=True)),
        param_state,
        rest,
        frozenset(named_leaves(_values(nnx.state(module, nnx.RngState)))),
    )
    call, statistics, keyed = network.call, _values(rest), bool(network.call.key)
    of_features: Any = getattr(type(module), "features", None)
    features_call = read_call(of_features, 2, label) if callable(of_features) else call
    return Model(
        params=_values(param_state),
        apply=lambda params, images: network.evaluate(call, "__call__", params, statistics, images),
        batch_statistics=BatchStatistics(
            {"values": statistics, "step": np.zeros((), np.int32)} if keyed else statistics,
            network.train,
            lambda params, state, images: network.evaluate(
                call, "__call__", params, state["values"] if keyed else state, images
            ),
        )
        if jax.tree.leaves(statistics)
        else None,
        apply_features=(
            lambda params, images: network.evaluate(
                features_call, "features", params, statistics, images
            )
        )
        if callable(of_features)
        else None,
        name=label,
        num_classes=num_classes,
        image_size=image_size,
        mean=mean,
        std=std,
        head=head,
        note=note,
    )


class _NnxNetwork(NamedTuple):
    """A module taken apart.

    Attributes:
        label: its name in messages.
        call: what it takes beside images.
        evaluating, training: the module without its values, its switches set for either.
        params, rest: what trains, and everything else; their values count for nothing.
        randoms: dotted names of the state of its random streams.
    """

    label: str
    call: Call
    evaluating: Any
    training: Any
    params: nnx.State
    rest: nnx.State
    randoms: frozenset[str]

    def merged(self, graph: Any, params: Any, state: Any) -> Any:
        """The module with these values."""
        return nnx.merge(graph, _with_values(self.params, params), _with_values(self.rest, state))

    def evaluate(self, call: Call, method: str, params: Any, state: Any, images: Any) -> Any:
        """The result of a method in evaluation."""

        def run(state, arguments, named):
            live = self.merged(self.evaluating, params, state)
            result = getattr(type(live), method)(live, images, *arguments, **_streams(named))
            after = named_leaves(
                _values(nnx.state(live, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate))))
            )
            return (
                result,
                {each: leaf for each, leaf in after.items() if each not in self.randoms},
                {each: leaf for each, leaf in after.items() if each in self.randoms},
            )

        def checked(arguments, named):
            result, kept, drawn = run(state, arguments, named)
            before = named_leaves(state)
            check_unchanged(
                {each: before[each] for each in kept if each in before},
                kept,
                lambda values: run(_renamed(state, values), arguments, named)[1],
                self.label,
            )
            if any(before[each] is not leaf for each, leaf in drawn.items()) and depends_on(
                lambda values: run(_renamed(state, values), arguments, named)[0],
                {each: leaf for each, leaf in before.items() if each in self.randoms},
            ):
                raise training_mode(self.label, "its logits depend on a random key of its own")
            return result

        return evaluated(call, checked, jax.random.key(0), self.label)

    def train(self, params: Any, state: Any, images: Any) -> tuple[Any, Any]:
        """(logits, new state) in training, with new keys in each step."""
        key = self.call.key
        live = self.merged(self.training, params, state["values"] if key else state)
        keys = {key: jax.random.fold_in(jax.random.key(0), state["step"])} if key else {}
        arguments, named = self.call.arguments(training=True, **keys)
        logits = live(images, *arguments, **_streams(named))
        new = _values(nnx.state(live, nnx.Not(nnx.Param)))
        return logits, {"values": new, "step": state["step"] + 1} if key else new


def _switched(module: nnx.Module, *, training: bool) -> nnx.Module:
    """A copy whose attributes that switch training have their value, in every module within."""
    copy = nnx.clone(module)
    copy.train() if training else copy.eval()
    # `nnx.iter_modules` came after flax 0.12.0
    for each in [node for _, node in nnx.iter_graph(copy) if isinstance(node, nnx.Module)]:
        for name, value in list(vars(each).items()):
            if (
                isinstance(value, bool)
                and (evaluating := evaluation_value(name, attribute=True)) is not None
            ):
                setattr(each, name, evaluating != training)
    return copy


def _streams(named: dict[str, Any]) -> dict[str, Any]:
    """Keys as NNX takes them: under the name `rngs` it wants streams of them."""
    return {
        name: nnx.Rngs(value) if name == "rngs" and value is not None else value
        for name, value in named.items()
    }


def _renamed(tree: dict, values: dict[str, Any]) -> dict:
    """The tree with other leaves under these dotted names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(path_name(path), leaf), tree
    )


def set_values(module: nnx.Module, values: dict) -> None:
    """Write values, nested by attribute name as in `Model.params` and `Model.state`, into a module
    in place.
    """
    variables = nnx.state(module)
    nnx.replace_by_pure_dict(variables, values)
    nnx.update(module, variables)


def _values(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)


def _with_values(template: nnx.State, values: dict) -> nnx.State:
    # a copy: `replace_by_pure_dict` writes in place
    filled = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(filled, values)
    return filled
