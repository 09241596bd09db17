"""What a prediction is of: a network, the data that it is to be fine-tuned on, and how passes over
them run.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.runtime.input_trees import take
from ntk_tt.targets import smoothed


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
    """

    model: Model
    inputs: Any
    labels: Int[Array, " n"] | Float[Array, "n c"] | Any
    loss: LossName = "ce"
    options: FeatureOptions = DEFAULT_OPTIONS
    seed: int = 0
    store: Path | None = None
    label_smoothing: int | float = 0.0

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
