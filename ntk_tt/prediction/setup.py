"""What every command begins with: the task, the network, its trainable part, and where its features
come from.
"""

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ntk_tt.data import Task, UpTo, default_classes, load_task
from ntk_tt.data.augmentation import Augmentation
from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.feature_options import FeatureOptions, Precision, ProjectionName
from ntk_tt.jacobian.bfloat16 import relative_error
from ntk_tt.losses import LossName
from ntk_tt.models import MODELS, Model, fit_linear_head, load_model, with_new_head
from ntk_tt.models.factory import load_factory
from ntk_tt.models.hub_folder import is_hub_folder, load_hub_folder
from ntk_tt.models.trainable import restrict
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.held_out import hold_out, read_validation
from ntk_tt.runtime.input_trees import (
    Inputs,
    in_order_of_length,
    on_host,
    take,
    text_lengths,
)
from ntk_tt.runtime.limits import (
    MAX_CLASSES,
    MAX_IMAGE_SIZE,
    MAX_PER_CLASS,
    MAX_PROJECTIONS,
    MAX_SEED,
    check_range,
)
from ntk_tt.runtime.memory import parse_bytes
from ntk_tt.runtime.progress import progress_bar

# what is taken unless more is asked for: as many a class as the paper, and as many in all as cost a
# few minutes and some hundred MB
_PER_CLASS, _IMAGES = 150, 3000
_IMAGE_SIZE = 32  # for a network of the user's own
_PRECISION_SAMPLES = 8  # on which bfloat16 is compared with float32


@dataclasses.dataclass(frozen=True)
class Setup:
    """A network, a task and the features of one on the other."""

    model: str = "resnet8"
    """Name of the network (`ntk-tt models` lists them), or `path/to/file.py:factory` for your own:
    that file is run as any Python program is, so give only one that you trust. A text encoder is
    `hf-folder:PATH` or `hf:owner/name`.
    """
    weights: str | None = None
    """A .safetensors or .pth file, `hf:owner/name`, `bundled` or `random`; by default the bundled
    ones where there are some.
    """
    head: Literal["pytorch", "lecun", "zero", "probe"] = "pytorch"
    """How the new head starts; `probe` fits it to the frozen features first. A network of your own
    keeps its head unless `lecun`, `zero` or `probe` is given.
    """
    trainable: str = "all"
    """What trains: `all`, `head`, `last:2`, `bias`, `norm`, `glob:PATTERN`, `regex:PATTERN`,
    `lora:8`, or several joined by `+`.
    """
    data: str = "digits"
    """`digits`, `folder:PATH` (PATH/<split>/<class>/<image>), `tfds:NAME`, `arrays:FILE.npz`,
    `list:FILE@ROOT` (see `ntk-tt data`); of texts `csv:FILE` or `jsonl:FILE`; the path of a folder
    or a file alone will do.
    """
    text_column: str | None = None
    """Of a file of texts; by default text, sentence or the like."""
    label_column: str | None = None
    """Of a file of texts; by default label, class, intent or the like."""
    max_length: int | None = None
    """Tokens to which texts are cut; by default what the tokenizer says, or 128."""
    pooling: Literal["mean", "first"] | None = None
    """What a text is to the head of an encoder: the mean of its tokens, or the first one; by
    default what its folder says, or the mean.
    """
    split: str = "train"
    """Of the data set."""
    validation: str | None = None
    """Also predict loss and error on samples that are not trained on: a share of the data, such as
    `0.2`, or the name of another split.
    """
    augment: str | None = None
    """`crop,flip`, or one of them: images are changed at random before each look at them."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """`skip` draws another image for one that cannot be read, and says how many."""
    classes: int | Literal["all"] | None = None
    """Random classes to learn; by default all of a folder, list or file, and 5 of `digits` and
    tfds.
    """
    per_class: int | Literal["all"] | None = None
    """Random images of each class; by default up to 150, and with many classes fewer: about 3,000
    in all, but at least 10.
    """
    image_size: int | None = None
    """Side of the images [pixels]; by default that of the network, and 32 for one of your own."""
    loss: LossName = "ce"
    """Softmax cross-entropy, or ½‖f − y‖²."""
    projections: Literal["auto", "exact"] | int = "auto"
    """Dimension D' of the projected gradients; `exact` projects nothing."""
    projection: ProjectionName = "fold"
    """Kind of random projection."""
    precision: Precision = "float32"
    """Of products and convolutions in the feature pass; sums stay float32."""
    memory: str | None = None
    """For the features, such as 4GiB: bounds D' where it is `auto`, and streams stored features
    that are larger.
    """
    store: Path | None = None
    """Folder for features on disk; by default $NTK_TT_CACHE or the user's cache folder."""
    seed: int = 0
    """Of classes, images, head, projection and data order."""
    config: Path | None = None
    """A .toml or .yaml file of flags, such as `steps: 300`; what is typed counts more."""

    def check(self) -> None:
        """What can be said to be wrong before any data is read."""
        if isinstance(self.projections, int):
            check_range("projections", self.projections, 1, MAX_PROJECTIONS)
        if self.image_size is not None:
            check_range("image-size", self.image_size, 1, MAX_IMAGE_SIZE)
        if isinstance(self.classes, int):
            check_range("classes", self.classes, 2, MAX_CLASSES)
        if isinstance(self.per_class, int):
            check_range("per-class", self.per_class, 1, MAX_PER_CLASS)
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: must lie in 0 … {MAX_SEED}, got {self.seed}")
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.validation is not None:
            read_validation(self.validation)
        if self.augment is not None:
            Augmentation.read(self.augment)
        if self.weights is None and self.model in MODELS and MODELS[self.model].bundled is None:
            raise ValueError(
                f"weights: none of {self.model} ship with the package; give --weights FILE, "
                "hf:owner/name, or random for an untrained network"
            )

        self._check_text()

    def _check_text(self) -> None:
        """Raises ValueError where a flag does not belong to such a network."""
        is_encoder = is_hub_folder(self.model)
        for name, value in (("max-length", self.max_length), ("pooling", self.pooling)):
            if value is not None and not is_encoder:
                raise ValueError(
                    f"{name}: belongs to a text encoder, --model hf-folder:PATH, got {self.model!r}"
                )
        for name, value in (("weights", self.weights), ("image-size", self.image_size)):
            if value is not None and is_encoder:
                raise ValueError(
                    f"{name}: a text encoder has its own weights and takes no images; leave it "
                    f"out, got {value!r}"
                )

    @property
    def side(self) -> int:
        """Of the images, as asked for or as the network is usually given them."""
        if self.image_size is not None:
            return self.image_size
        return MODELS[self.model].image_size if self.model in MODELS else _IMAGE_SIZE

    @property
    def num_classes(self) -> int | None:
        """To learn, as asked for or as it is usual for such data; None is all."""
        if self.classes is None:
            return default_classes(self.data)
        return self.classes if isinstance(self.classes, int) else None

    @property
    def options(self) -> FeatureOptions:
        """How the features are computed."""
        return FeatureOptions(
            num_projections=self.projections,
            projection=self.projection,
            precision=self.precision,
            memory=None if self.memory is None else parse_bytes(self.memory),
        )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a setup stands for.

    Attributes:
        images: normalised, as `model.apply` takes them.
        total_params: of the network, trainable or not.
        taken: how many images there are, where not all were taken and no number was asked for.
        validation: images and labels that are not trained on, where some were asked for.
    """

    task: Task
    model: Model
    images: Any
    total_params: int
    taken: str = ""
    validation: tuple[Any, Any] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        return tuple(note for note in (self.model.note, self.taken, *self.task.notes) if note)

    def finetuning(self, setup: Setup, *, label_smoothing: int | float = 0.0) -> Finetuning:
        """The same without flags, as predictions take it."""
        return Finetuning(
            self.model,
            self.images,
            self.task.labels,
            setup.loss,
            setup.options,
            setup.seed,
            setup.store,
            label_smoothing,
            self.validation,
            None if setup.augment is None else Augmentation.read(setup.augment),
        )


def load(setup: Setup) -> Loaded:
    """The task and the network with its new head, restricted to what trains.

    Raises:
        ValueError: there is no device to compute on, or anything wrong with the task or the
            network.
    """
    _check_devices()
    per_class = (
        UpTo(_PER_CLASS, _IMAGES)
        if setup.per_class is None
        else None
        if setup.per_class == "all"
        else setup.per_class
    )
    with progress_bar("images of the classes", compiles=False) as progress:
        read: Any = partial(
            load_task,
            setup.data,
            image_size=setup.side,
            seed=setup.seed,
            on_corrupt=setup.on_corrupt,
            text_column=setup.text_column,
            label_column=setup.label_column,
            progress=progress,
        )
        task, others = (
            read(num_classes=setup.num_classes, per_class=per_class, split=setup.split),
            None,
        )
        if setup.validation is not None:
            task, others = hold_out(
                task,
                read_validation(setup.validation),
                setup.seed,
                lambda split, names, most: read(classes=names, per_class=most, split=split),
            )
    with progress_bar("network"):
        return _with_network(setup, task, others)


def _with_network(setup: Setup, task: Task, others: Task | None) -> Loaded:
    """The task with its network, whose head fits it."""
    key = jax.random.key(setup.seed)
    rule = "pytorch" if setup.head == "probe" else setup.head
    if ".py:" in setup.model:
        if setup.weights is not None:
            raise ValueError(
                f"weights: the factory {setup.model!r} loads its own; leave --weights out, got "
                f"{setup.weights!r}"
            )
        model = load_factory(
            setup.model, num_classes=task.num_classes, image_size=setup.side, key=key
        )
        if setup.head in ("lecun", "zero"):  # pytorch is the default, and means the factory's own
            model = with_new_head(model, setup.head, key)
    elif is_hub_folder(setup.model):
        model = load_hub_folder(
            setup.model,
            num_classes=task.num_classes,
            pooling=setup.pooling,
            max_length=setup.max_length,
            key=key,
            head=rule,
        )
    else:
        model = load_model(
            setup.model,
            weights=setup.weights,
            num_classes=task.num_classes,
            image_size=setup.side,
            key=key,
            head=rule,
        )
    images, validation = _preprocessed(model, task, others)
    if task.is_text:
        images, order = in_order_of_length(images, np.arange(len(task.labels)))
        task = task._replace(
            images=task.images[order],
            labels=task.labels[order],
            passed_over=(*task.passed_over, *_cut_texts(model, images)),
        )
    if setup.head == "probe":
        model = fit_linear_head(model, images, task.labels)
    trained = restrict(model, setup.trainable, key=key)
    taken = _taken(task) if setup.per_class is None else ""
    return Loaded(task, trained, images, model.num_params, taken, validation)


def _preprocessed(
    model: Model, task: Task, others: Task | None
) -> tuple[Inputs, tuple[Inputs, np.ndarray] | None]:
    """All that the network is given, of one shape: texts are as long as the longest of all."""
    if others is None:
        return model.preprocess(task.images), None
    count = len(task.labels)
    found = on_host(model.preprocess(np.concatenate([task.images, others.images])))
    return take(found, slice(count)), (take(found, slice(count, None)), others.labels)


def _cut_texts(model: Model, texts: Inputs) -> list[str]:
    """How many texts lost their end."""
    most, lengths = getattr(model.tokenize, "max_length", None), text_lengths(texts)
    if most is None or lengths is None or not (cut := int((lengths >= most).sum())):
        return []
    return [
        f"{cut} of {len(lengths)} texts have {most} tokens or more, to which they are cut; "
        "--max-length takes longer ones"
    ]


def _taken(task: Task) -> str:
    """How many images there are, where not all were taken."""
    there = task.num_there or 0
    if there <= len(task.labels):
        return ""
    what = "texts" if task.is_text else "images"
    return (
        f"{task.num_classes:,} classes, {there:,} {what}; predicting a run on "
        f"{max(task.per_class):,} a class (--per-class all takes all)"
    )


def _check_devices() -> None:
    try:
        jax.devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # the latter where a plugin is missing altogether
        reason = " ".join(str(error).split()) or "there is no such device"
        raise ValueError(
            "JAX_PLATFORMS: JAX cannot compute on "
            f"{os.environ.get('JAX_PLATFORMS') or 'any device'!r} here ({reason[:200]}); "
            "unset it or set it to cpu, or install JAX for that device (pip install 'ntk-tt[cuda]' "
            "for NVIDIA's)"
        ) from error


def precision_error(setup: Setup, loaded: Loaded) -> float | None:
    """Relative error of Θ from bfloat16 on a few samples; None where the features are in
    float32.
    """
    if setup.precision == "float32":
        return None
    few = take(loaded.images, slice(_PRECISION_SAMPLES))
    precisions: tuple[Precision, ...] = (setup.precision, "float32")
    rounded, reference = (
        jacobian_features(
            loaded.model.apply,
            loaded.model.params,
            few,
            options=FeatureOptions(num_projections=4096, precision=each),
            key=jax.random.key(setup.seed),
        )
        for each in precisions
    )
    return relative_error(rounded, reference)
