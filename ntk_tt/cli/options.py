"""The flags of every command, as they are typed; their checks are in `checks`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ntk_tt.prediction.passes import AnyMethod
from ntk_tt.prediction.setup import Setup
from ntk_tt.report.device_speed import STEPS
from ntk_tt.schedules import ScheduleName
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS

DEFAULT_STEPS = 150


@dataclasses.dataclass(frozen=True)
class Features(Setup):
    """Compute the features of a network on a task to disk, resumable; `predict` and `verify` with
    the same flags then find them.
    """

    method: AnyMethod = "auto"
    """Of the predictions that are to find them: `auto`, `curvature` and `head` share one pass; with
    `replay` they are those of all methods with a frozen kernel.
    """
    contrasts: bool = True
    """With a frozen kernel and cross-entropy the C−1 contrasts of the outputs, which is what
    `predict` uses, instead of all C.
    """


@dataclasses.dataclass(frozen=True)
class Models:
    """List the networks that have a name."""


@dataclasses.dataclass(frozen=True)
class Data:
    """List the paper's data sets, or describe one source: images, classes, images of a class,
    imbalance.
    """

    source: Annotated[str | None, tyro.conf.Positional] = None
    """Such as folder:PATH; without it, the list."""
    split: str = "train"
    """Of the data set."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Remaining steps and time of a run, from its loss log as it grows: CSV with a header, JSON
    lines, Python dicts, or trainer_state.json.
    """

    log: Annotated[Path, tyro.conf.Positional]
    """With a column or key for the step and one for the loss."""
    prediction: Path | None = None
    """Report of `ntk-tt predict --json` for this run, which the log corrects; without it the log
    alone is continued.
    """
    target: float | None = None
    """Loss to wait for; by default a tenth of the first one."""
    step_column: str | None = None
    """By default step, global_step, iteration, steps, … (docs/json.md), and epoch where there are
    no steps.
    """
    loss_column: str | None = None
    """By default loss, train_loss, train/loss, training_loss, … (docs/json.md)."""
    seconds_per_step: float | None = None
    """By default by the log's own clock, or measured while watching."""
    poll: float = 1.0
    """Seconds between two looks at the log."""
    once: bool = False
    """Print the present status and stop."""
    config: Path | None = None
    """A .toml or .yaml file of flags, such as `poll: 10`; what is typed counts more."""


@dataclasses.dataclass(frozen=True)
class Training(Setup):
    """A network, a task, and how the one is trained on the other."""

    optimizer: str = "sgd"
    """`sgd`, `adam`, `adamw`, `lion`, `rmsprop`, `adagrad`, or `path/to/file.py:factory` for an
    optax chain of your own: that file is run as any Python program is, so give only one that you
    trust.
    """
    learning_rate: float | None = None
    """The highest rate of the schedule; by default 0.001. It multiplies the updates of a chain of
    your own, by default by 1.
    """
    momentum: float | None = None
    """Of sgd and rmsprop, in [0, 1); by default 0.9 for sgd, and 0 for rmsprop."""
    nesterov: bool = False
    """Nesterov's momentum instead of the heavy ball."""
    weight_decay: float = 0.0
    """L2 coefficient; of adamw and lion the decoupled one."""
    betas: tuple[float, float] | None = None
    """Of adam, adamw and lion, each in [0, 1); by default optax's."""
    eps: float | None = None
    """Of adam, adamw, rmsprop and adagrad; by default optax's."""
    clip_norm: float | None = None
    """Cut the gradient's norm over all parameters to this, before anything else."""
    weight_ema: float | None = None
    """Loss and error at a moving average of the weights, which keeps this share of itself in each
    step, such as 0.99.
    """
    batch_size: int | Literal["full"] = "full"
    """Samples a step; `full` is gradient descent."""
    sampling: Literal["epoch", "replacement"] = "epoch"
    """Shuffle once an epoch, or draw with replacement."""
    steps: int = DEFAULT_STEPS
    """Optimiser steps, T."""
    epochs: float | None = None
    """Instead of `--steps`: how often all samples are seen."""
    schedule: ScheduleName = "constant"
    """Of the learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0; the schedule takes the others."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Batch-norm statistics in real training; the prediction always freezes them."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes, in [0, 1); of cross-entropy."""


@dataclasses.dataclass(frozen=True)
class Speed(Training):
    """Measure how long a step of training takes on this machine, and write it to a file, which
    `predict --device-speed` takes on any other.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("speed.json")
    """Where to."""
    timed_steps: int = STEPS
    """Real steps that are timed; their median is taken."""


@dataclasses.dataclass(frozen=True)
class Predict(Training):
    """Predict how long fine-tuning takes, without training. Without flags: the bundled network on
    handwritten digits.
    """

    method: AnyMethod = "auto"
    """How the curve is predicted, see docs/choosing.md: `auto` takes the most exact; `head` keeps
    the head real; `curvature` adds second-order terms of the backbone; `one-shot` begins with real
    steps; `replay`, `ode`, `sde`, … freeze the kernel.
    """
    effort: float | None = None
    """The most that predicting may cost, as a share of training, such as 0.02: it is then made from
    some of the samples, by `curvature` or `head`; by default from all.
    """
    first_steps: int | None = None
    """Real steps that `one-shot` begins with; by default what costs as much as its feature pass, at
    most a quarter.
    """
    observe: int | None = None
    """Take so many real steps and correct the prediction by them (the closed loop)."""
    target: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A level to be told of first: `loss=0.3` or `error=0.05`; may be given several times."""
    all_times: bool = False
    """Also print the times of all `--thresholds`, and the ε-times of the paper."""
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    """In (0, 1): ε of the ε-times, and levels of loss and error."""
    loss_thresholds: tuple[float, ...] = (1.0,)
    """Further levels of the loss, any positive number."""
    seeds: int = 5
    """Orders of the data to predict over; the times are their median, with their range."""
    record_every: int | None = None
    """Steps between records of the full-set loss; by default 1 for the full batch, else about 50
    records.
    """
    smoothing: int | None = None
    """Records in the running mean before times are read, of prediction and truth alike; by default
    1 for the full batch, else 3.
    """
    price_per_hour: float | None = None
    """Of the machine that will train; prints what training costs."""
    seconds_per_step: float | None = None
    """Of the machine that will train, where it is not this one."""
    device_speed: Path | None = None
    """The same by a file that `ntk-tt speed` wrote there."""
    json: Path | None = None
    """Write the whole report here."""
    html: Path | None = None
    """Write one self-contained page here."""
    plot: Path | None = None
    """Draw the curves here (.png, .pdf or .svg)."""


@dataclasses.dataclass(frozen=True)
class Verify(Predict):
    """Predict, then really train, and print both side by side."""
