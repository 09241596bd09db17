"""The front door: how long will fine-tuning take? One call, one report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Int

from ntk_tt.data.augmentation import Augmentation
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.optax_chain import Transformation
from ntk_tt.optimizer import OptimizerConfig, as_setting, check_num_steps
from ntk_tt.prediction.by_method import Recording
from ntk_tt.prediction.finetuning import Finetuning, checked_validation
from ntk_tt.prediction.passes import AnyMethod, Pass, pass_over, pass_over_some
from ntk_tt.prediction.prepared import Outcome, predict_from
from ntk_tt.prediction.setting_space import Space
from ntk_tt.report.document import write_json
from ntk_tt.report.figure import draw_report, plot_report
from ntk_tt.report.page import notebook_cell, prediction_page, write_page
from ntk_tt.report.parts import check_seconds_per_step, document_of, level_part
from ntk_tt.report.sweep_report import SweepReport, sweep_of
from ntk_tt.report.text import report_text, sentence
from ntk_tt.runtime.input_trees import Inputs, in_order_of_length, on_host
from ntk_tt.targets import check_smoothing
from ntk_tt.times.levels import Level, asked_level
from ntk_tt.training import TrainingRun

Labels = Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"]
Setting = OptimizerConfig | Transformation


@dataclasses.dataclass(frozen=True, repr=False)
class TrainingTimeReport:
    """When a fine-tuning run is where it should be, and how far to trust that.

    Levels are given as `loss=0.5` or `error=0.1`, and as `val_loss=0.5` or `val_error=0.1` of
    samples that are not trained on; a time of None is "not reached within the steps".

    Attributes:
        outcome: the prediction with all that belongs to it.
        document: the same as plain values, as `write_json` writes them (docs/json.md).
    """

    outcome: Outcome
    document: dict[str, Any]

    @classmethod
    def of(cls, outcome: Outcome, **parts: Any) -> "TrainingTimeReport":
        """The report of a prediction; `parts` as `ntk_tt.report.parts.document_of` takes them."""
        return cls(outcome, document_of(outcome, **parts))

    def with_truth(self, truth: TrainingRun, **parts: Any) -> "TrainingTimeReport":
        """The same beside the real run, as `finetune` gives it."""
        return TrainingTimeReport.of(self.outcome, truth=truth, **parts)

    def steps_until(self, **level: int | float) -> int | float | None:
        """Optimiser steps until the level is reached, the median over orders of the data."""
        return self._level(**level)["steps"]

    def seconds_until(self, **level: int | float) -> float | None:
        """Seconds of training on the machine that is priced until the level is reached."""
        steps = self.steps_until(**level)
        return None if steps is None else steps * self.seconds_per_step

    def cost_until(self, price_per_hour: int | float, **level: int | float) -> float | None:
        """What it costs until the level is reached, in the currency of the price."""
        seconds = self.seconds_until(**level)
        return None if seconds is None else price_per_hour * seconds / 3600

    def interval(self, **level: int | float) -> tuple[int | None, int | None] | None:
        """The 90 % interval of `steps_until`; an end of None lies later than the last step. None
        where no intervals are known: an optimiser other than SGD, or a refused prediction.
        """
        found = self._level(**level)
        return None if found["probability"] is None else (found["low"], found["high"])

    def probability(self, **level: int | float) -> float | None:
        """The chance that the level is reached within the steps; None where it is not known."""
        return self._level(**level)["probability"]

    @property
    def trust(self) -> Literal["high", "medium", "low", "none"]:
        """`none` is a refused prediction: the run is unstable, or predicted to be."""
        return self.outcome.verdict.trust

    @property
    def reason(self) -> str:
        """Of the trust, with the numbers."""
        return self.outcome.verdict.reason

    @property
    def method(self) -> str:
        return self.outcome.method

    @property
    def largest_safe_learning_rate(self) -> float:
        return self.outcome.verdict.largest_safe_learning_rate

    @property
    def seconds_per_step(self) -> float:
        return self.document["cost"]["seconds_per_step"]

    @property
    def curve(self) -> dict[str, np.ndarray]:
        """`{"steps", "loss", "error"}`, arrays (S,): the mean over orders of the data; and
        `validation_loss` and `validation_error` where there are samples that are not trained on.
        """
        prediction = self.outcome.predicted.prediction
        names = ("steps", "loss", "error", "validation_loss", "validation_error")
        return {
            name: np.asarray(found)
            for name in names
            if (found := getattr(prediction, name)) is not None
        }

    @property
    def best_step(self) -> int | None:
        """The step of least loss on samples that are not trained on; None without such samples."""
        found = self.document["prediction"]["validation"]
        return None if found is None else found["best"]["step"]

    def plot(self, path: str | Path | None = None) -> Any:
        """The curves: written to a .png, .pdf or .svg, else a matplotlib figure."""
        if path is None:
            return draw_report(self.document, self._runs)
        return plot_report(self.document, self._runs, Path(path))

    def write_json(self, path: str | Path) -> None:
        """The whole report as strict JSON (docs/json.md)."""
        write_json(Path(path), self.document)

    def write_html(self, path: str | Path) -> None:
        """One page with all of it, that needs nothing else."""
        write_page(Path(path), prediction_page(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {sentence(self.document)}>"

    def __str__(self) -> str:
        return report_text(self.document).strip()

    def _repr_html_(self) -> str:
        """For notebooks: the sentence, the table and the picture."""
        return notebook_cell(str(self), self.plot())

    @property
    def _runs(self) -> list[dict[str, Any]]:
        runs = self.outcome.predicted.prediction.runs
        return [{"loss": each.loss, "error": each.error} for each in runs]

    def _level(self, **level: int | float) -> dict[str, Any]:
        return level_part(self.outcome, asked_level(level))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One pass over the data, for any number of settings: `predict` prices one.

    Attributes:
        found: of the pass: the method that was chosen, and the surrogate.
    """

    found: Pass

    @property
    def method(self) -> str:
        return self.found.method

    def predict(
        self,
        optimizer: Setting,
        num_steps: int,
        *,
        batch_size: int | None = None,
        targets: Sequence[Level] = (),
        num_seeds: int = 5,
        record_every: int | None = None,
        smoothing: int | None = None,
        first_steps: int | None = None,
        observe: int | None = None,
        price_per_hour: int | float | None = None,
        seconds_per_step: int | float | None = None,
    ) -> TrainingTimeReport:
        """The report of one setting; arguments as `predict_training_time`."""
        optimizer = as_setting(optimizer, batch_size)
        check_num_steps(num_steps)
        if seconds_per_step is not None:
            check_seconds_per_step(seconds_per_step)
        optimizer.checked_batch_size(self.found.trained.num_samples)
        is_full = optimizer.is_full_batch(self.found.trained.num_samples)
        recording = Recording.usual(num_steps, is_full, record_every, smoothing)
        outcome = predict_from(
            self.found,
            optimizer,
            recording,
            num_seeds=num_seeds,
            first_steps=first_steps,
            observe=observe,
        )
        return TrainingTimeReport.of(
            outcome,
            targets=targets,
            price_per_hour=price_per_hour,
            seconds_per_step=seconds_per_step,
        )

    def sweep(self, settings: Space, num_steps: int | None = None, **options: Any) -> SweepReport:
        """Many settings at once, the best first.

        Args:
            settings: values by name (`ntk_tt.prediction.setting_space.NAMES`), each a number, a
                list, a range such as `"1e-4:1e-1:log:12"` or a distribution of Optuna's; or a
                function of an Optuna-like trial; or a list of settings.
            num_steps: T, where the settings do not say.
            options: `draws` (so many at random, with `seed`), `target` (a `Level`; a quarter of the
                loss at the start), `deadline` [s], `price_per_hour`, `seconds_per_step` (by batch
                size, of the machine that will train), `num_seeds` (1: orders of the data),
                `record_every`, `smoothing` and `memory`.

        Raises:
            ValueError: a wrong range, no settings, or whatever `predict` raises.
        """
        return sweep_of(self.found, settings, num_steps, **options)


def prepare(
    model: Model,
    inputs: Inputs,
    labels: Labels,
    *,
    method: AnyMethod = "auto",
    optimizer: Setting | None = None,
    num_steps: int | None = None,
    loss: LossName = "ce",
    label_smoothing: int | float = 0.0,
    validation: tuple[Any, Any] | None = None,
    augment: Augmentation | None = None,
    options: FeatureOptions = DEFAULT_OPTIONS,
    seed: int = 0,
    store: str | Path | None = None,
    effort: int | float | None = None,
) -> Prepared:
    """The pass over the data that all settings share.

    Args:
        model: the network, from `load_model`, `from_nnx`, `from_function` or the like.
        inputs: (N, ...), as the network takes them.
        labels: (N,) classes, or (N, C) real targets for `mse`.
        method: see `ntk-tt predict --help`; `auto` takes the most exact that the network allows.
        optimizer, num_steps: of other optimisers than SGD, so that the network is expanded on their
            own way; the settings that are priced may differ in all numbers.
        loss: `ce` or `mse`.
        label_smoothing: share of each label that is spread over all classes, of `ce`.
        validation: inputs and labels that are not trained on; a few hundred are enough. Their loss
            and error are predicted too.
        augment: how images are changed at random before each look at them, as `finetune` takes it;
            the pass is of a few draws of each.
        options: how the pass runs.
        seed: of the sample of the parameters and the orders of the data.
        store: folder in which what the pass finds is kept, to be found again by another process;
            None keeps nothing, and looks into the user's cache folder.
        effort: the prediction costs at most this share of training with `optimizer` for
            `num_steps`: it is made from a subset, by a method that fits; None looks at all samples.

    Raises:
        ValueError: an argument out of range, a network that is not what the library takes, or more
            memory than there is.
        OSError: the folder cannot be written.
    """
    check_smoothing(label_smoothing, loss)
    inputs, labels = in_order_of_length(on_host(inputs), np.asarray(labels))
    what = Finetuning(
        model,
        inputs,
        labels,
        loss,
        options,
        seed,
        None if store is None else Path(store),
        label_smoothing,
        checked_validation(inputs, validation),
        augment,
    )
    setting = None if optimizer is None else as_setting(optimizer)
    if effort is not None:
        if setting is None or num_steps is None:
            raise ValueError("effort: it is a share of a run; give optimizer and num_steps too")
        return Prepared(pass_over_some(what, setting, num_steps, effort))
    found = pass_over(what, method, optimizer=setting, num_steps=num_steps, keep=store is not None)
    return Prepared(found)


def predict_training_time(
    model: Model,
    inputs: Inputs,
    labels: Labels,
    optimizer: Setting,
    num_steps: int,
    *,
    batch_size: int | None = None,
    targets: Sequence[Level] = (),
    method: AnyMethod = "auto",
    loss: LossName = "ce",
    label_smoothing: int | float = 0.0,
    validation: tuple[Any, Any] | None = None,
    augment: Augmentation | None = None,
    num_seeds: int = 5,
    record_every: int | None = None,
    smoothing: int | None = None,
    first_steps: int | None = None,
    observe: int | None = None,
    price_per_hour: int | float | None = None,
    seconds_per_step: int | float | None = None,
    options: FeatureOptions = DEFAULT_OPTIONS,
    seed: int = 0,
    effort: int | float | None = None,
) -> TrainingTimeReport:
    """How long fine-tuning takes: steps, seconds, price, and how far to trust that.

    All that `ntk-tt predict` does. To price several settings, `prepare` once.

    Args:
        model: the network with its new head, from `load_model`, `from_nnx` or the like.
        inputs: (N, ...), as the network takes them (`Model.preprocess`).
        labels: (N,) classes, or (N, C) real targets for `mse`.
        optimizer: an `OptimizerConfig`, or any optax chain such as `optax.adamw(1e-4)`.
        num_steps: T, optimiser steps.
        batch_size: samples a step, with an optax chain; None is the full batch.
        targets: levels that the report names first, such as `Level("loss", 0.3, True)`.
        method: `auto` takes the most exact that the network allows.
        loss: `ce` (softmax cross-entropy) or `mse` (½‖f − y‖²).
        label_smoothing: share of each label that is spread over all classes, of `ce`.
        validation: inputs and labels that are not trained on, whose loss and error are predicted
            too; a few hundred are enough.
        augment: how images are changed at random before each look at them, as `finetune` takes it.
        num_seeds: orders of the data that are averaged.
        record_every: steps between records; by default 1 for the full batch, else T/50.
        smoothing: records in the running mean before times are read; by default 1 for the full
            batch, else 3.
        first_steps: real steps that `one-shot` begins with.
        observe: real steps that correct the prediction.
        price_per_hour: of the machine that will train.
        seconds_per_step: of that machine, where it is not this one (`ntk_tt.report.device_speed`).
        options: how the pass over the data runs.
        seed: of the sample of the parameters and the orders of the data.
        effort: the most that predicting may cost, as a share of training (`prepare`).

    Raises:
        ValueError: an argument out of range, a network that is not what the library takes, or more
            memory than there is.

    Cost: see `ntk_tt.surrogate.expand`; the verdict takes as much as two or three replays.

    Example:
        >>> import ntk_tt, optax
        >>> task = ntk_tt.load_task("digits", num_classes=3, per_class=20)
        >>> model = ntk_tt.load_model(num_classes=3)
        >>> images = model.preprocess(task.images)
        >>> report = ntk_tt.predict_training_time(
        ...     model, images, task.labels, optax.sgd(0.003, momentum=0.9), 100, batch_size=20
        ... )
        >>> steps = report.steps_until(loss=0.5)  # None: not reached
    """
    setting = as_setting(optimizer, batch_size)
    check_num_steps(num_steps)
    prepared = prepare(
        model,
        inputs,
        labels,
        method=method,
        optimizer=setting,
        num_steps=num_steps,
        loss=loss,
        label_smoothing=label_smoothing,
        validation=validation,
        augment=augment,
        options=options,
        seed=seed,
        effort=effort,
    )
    return prepared.predict(
        setting,
        num_steps,
        targets=targets,
        num_seeds=num_seeds,
        record_every=record_every,
        smoothing=smoothing,
        first_steps=first_steps,
        observe=observe,
        price_per_hour=price_per_hour,
        seconds_per_step=seconds_per_step,
    )
