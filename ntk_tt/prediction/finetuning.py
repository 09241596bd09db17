"""What a prediction is of: a network, the data that it is to be fine-tuned on, and how passes over
them run.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ntk_tt.data.augmentation import Augmentation
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.runtime.input_trees import Inputs, num_samples, on_host, take
from ntk_tt.targets import encode_targets, smoothed


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """A network and the data that it is to be fine-tuned on.

    Attributes:
        model: the network, with the head that training begins with.
        inputs: (N, ...), as the network takes them, or a tree of such arrays.
        labels: (N,) classes, or (N, C) real targets for `mse`.
        loss: `ce` or `mse`.
        options: how passes over the data run.
        seed: of sampled parameters, projections and orders of the data.
        store: folder in which stored features are looked for; None is the user's cache folder.
        label_smoothing: ε, the share of each label that is spread over all classes.
        validation: inputs and labels that are not trained on, whose loss and error are wanted too.
        augment: how images are changed before each look at them.
    """

    model: Model
    inputs: Any
    labels: Int[Array, " n"] | Float[Array, "n c"] | Any
    loss: LossName = "ce"
    options: FeatureOptions = DEFAULT_OPTIONS
    seed: int = 0
    store: Path | None = None
    label_smoothing: int | float = 0.0
    validation: tuple[Any, Any] | None = None
    augment: Augmentation | None = None

    @property
    def targets(self) -> Any:
        """The labels, or with smoothing the shares (N, C) that are learned instead."""
        if not self.label_smoothing:
            return self.labels
        return smoothed(self.labels, self.num_outputs, self.label_smoothing, loss=self.loss)

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @property
    def num_validation(self) -> int:
        """How many are not trained on."""
        return 0 if self.validation is None else len(self.validation[1])

    @functools.cached_property
    def trained_on(self) -> tuple[Any, Any]:
        """Inputs and targets as a surrogate has them: with augmentation a few draws of each."""
        if self.augment is None:
            return self.inputs, self.targets
        self.augment.check(self.inputs)
        [images] = jax.tree.leaves(self.inputs)
        views = self.augment.views(images, self.seed)
        targets = np.repeat(np.asarray(self.targets), self.augment.draws, axis=0)
        structure = jax.tree.structure(self.inputs)
        return jax.tree.unflatten(structure, [views]), targets

    @property
    def num_views(self) -> int:
        """How many those are."""
        return self.num_samples * (1 if self.augment is None else self.augment.draws)

    @functools.cached_property
    def looked_at(self) -> tuple[Any, Any]:
        """Inputs and targets of a pass: those that are trained on, and behind them the others,
        whose labels are not smoothed.
        """
        trained, learned = self.trained_on
        if self.validation is None:
            return trained, learned
        inputs, labels = self.validation
        targets = (
            np.asarray(encode_targets(each, self.num_outputs, loss=self.loss))
            for each in (learned, labels)
        )
        joined = jax.tree.map(
            lambda *parts: np.concatenate([np.asarray(part) for part in parts]), trained, inputs
        )
        return joined, np.concatenate(list(targets))

    @property
    def num_outputs(self) -> int:
        shape = jax.eval_shape(self.model.apply, self.model.params, take(self.inputs, slice(1)))
        return int(shape.shape[-1]) if shape.ndim > 1 else int(shape.size)

    @property
    def key(self) -> Key[Array, ""]:
        """Of the sample of the parameters, and of projections."""
        return jax.random.key(self.seed)

    @property
    def orders(self) -> Key[Array, ""]:
        """Of the orders of the data that a prediction averages."""
        return jax.random.key(self.seed + 1)

    def first_order(self, num_runs: int) -> Key[Array, ""]:
        """Of the order of the data of a prediction's first run, of so many."""
        return jax.random.split(self.orders, num_runs)[0]


def checked_validation(
    inputs: Inputs, validation: tuple[Inputs, Any] | None
) -> tuple[Inputs, Any] | None:
    """Samples that are not trained on, on the host.

    Raises:
        ValueError: they are not as many as their labels, or of another shape than those that are
            trained on.
    """
    if validation is None:
        return None
    others, labels = on_host(validation[0]), np.asarray(validation[1])
    if not len(labels) or num_samples(others) != len(labels):
        raise ValueError(
            f"validation: there are {len(labels)} labels for {num_samples(others)} inputs; give "
            "one each, and at least one"
        )
    mine, theirs = (
        jax.tree.map(lambda leaf: np.shape(leaf)[1:], each) for each in (inputs, others)
    )
    if mine != theirs:
        raise ValueError(
            f"validation: its inputs have the shape {theirs} and those that are trained on {mine}; "
            "preprocess both alike"
        )
    return others, labels
