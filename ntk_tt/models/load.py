"""A network by name with its weights: the one door."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from ntk_tt.models.catalogue import MODELS, Architecture
from ntk_tt.models.heads import HeadRule, check_head_rule, head_values, part, replaced
from ntk_tt.models.hub import fetch
from ntk_tt.models.hub_folder import is_hub_folder, load_hub_folder
from ntk_tt.models.model import IMAGENET_MEAN, IMAGENET_STD, Model, from_nnx, set_values
from ntk_tt.models.weights import fit_weights, read_checkpoint
from ntk_tt.runtime.parameter_names import named_leaves


def load_model(
    name: str = "resnet8",
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    key: Any = None,
    head: HeadRule = "pytorch",
) -> Model:
    """A network by name with pre-trained weights.

    A checkpoint may hold less than the network: cut after a stage, or without head. The network is
    then built as deep as the checkpoint, which `Model.note` says. Files may carry our names or
    PyTorch's (see `ntk_tt.models.weights`). Files without a record of their own are taken to expect
    ImageNet's mean and standard deviation, as torchvision's do; for others,
    `dataclasses.replace(model, mean=…, std=…)`.

    Args:
        name: one of `MODELS`, or a folder of a text encoder (`hf-folder:PATH`, `hf:owner/name`, see
            `ntk_tt.models.hub_folder`).
        weights: a file (.safetensors, .pth, the index of several), `hf:owner/name`, `bundled` for
            those that ship with the package, or `random`; None takes the bundled ones where the
            network has some and random ones otherwise.
        num_classes: a new head of this many outputs, initialised from `key`; None keeps the
            checkpoint's own head. Without either, the model has `features` only.
        image_size: side of the images it will see [pixels]; None takes the side the weights were
            trained on, where their record tells, else the network's usual one.
        key: a `jax.random.key` for whatever is initialised; key 0 where none is given.
        head: how a new head starts: `pytorch`, `lecun` or `zero` (see
            `ntk_tt.models.heads.head_values`).

    Raises:
        ValueError: unknown name, unreadable file, weights that do not fit (the first mismatch is
            named), images too small.
    """
    if is_hub_folder(name):
        if weights is not None or image_size is not None:
            raise ValueError(
                f"weights: {name!r} is a text encoder, which has its own and takes no images; "
                "leave weights and image_size out"
            )
        return load_hub_folder(name, num_classes=num_classes, key=key, head=head)
    architecture = _checked(name, num_classes, head)
    notes = []
    if weights is None:
        weights = "bundled" if architecture.bundled else "random"
        if weights == "random":
            notes.append(f"random weights: none of {name} ship with the package")
    if weights == "random" and num_classes is None:
        raise ValueError(
            "num_classes: give the number of classes for a randomly initialised network"
        )
    key = jax.random.key(0) if key is None else key
    stored = _Stored({}, {}, "", None, ())
    if weights != "random":
        stored = _read(name, architecture, weights, num_classes or 1, image_size)
    size = image_size or stored.record.get("image_size", architecture.image_size)
    if size < architecture.minimum_size:
        raise ValueError(
            f"image_size: {name} needs images of at least {architecture.minimum_size} pixels, got "
            f"{size}"
        )
    arrays = {architecture.own_name(name): array for name, array in stored.arrays.items()}
    if num_classes is not None:
        arrays = {
            name: array
            for name, array in arrays.items()
            if not name.startswith(f"{architecture.head}.")
        }
    arrays, options, note = architecture.read(arrays, size)
    held = arrays.get(f"{architecture.head}.kernel")
    outputs = num_classes if held is None else int(held.shape[-1])

    def initialised() -> nnx.Module:
        return architecture.build(outputs, rngs=_Keys(key), **options)

    if weights == "random":
        module = initialised()
    else:
        whole = stored.whole if (outputs, options) == stored.build else None
        module = _shapes(architecture, outputs, options) if whole is None else whole
        new_head = architecture.head if num_classes is not None else ""
        _fill(module, arrays, repr(weights), new_head, initialised if head == "pytorch" else None)
    if num_classes is not None and head != "pytorch":
        values = nnx.to_pure_dict(nnx.state(module))
        inputs, outputs = part(values, architecture.head)["kernel"].shape
        set_values(
            module, replaced(values, architecture.head, head_values(head, inputs, outputs, key))
        )
    return from_nnx(
        module,
        name=name,
        num_classes=outputs or 0,
        image_size=size,
        head=architecture.head if outputs else "",
        note="; ".join(filter(None, [*notes, stored.left_aside, note])),
        mean=tuple(stored.record.get("mean", IMAGENET_MEAN)),
        std=tuple(stored.record.get("std", IMAGENET_STD)),
    )


class _Stored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        arrays, record, left_aside: as `read_checkpoint` gives them.
        whole: the shapes of the whole network, by which the checkpoint was read.
        build: outputs and options that it was built with.
    """

    arrays: dict[str, Any]
    record: dict[str, Any]
    left_aside: str
    whole: nnx.Module | None
    build: tuple[Any, ...]


def _read(
    name: str, architecture: Architecture, weights: str, outputs: int, image_size: int | None
) -> _Stored:
    file = weight_file(name, architecture, weights)
    options = architecture.read({}, image_size or architecture.image_size).options
    whole = _shapes(architecture, outputs, options)
    known = set(named_leaves(nnx.to_pure_dict(nnx.state(whole))))
    return _Stored(*read_checkpoint(file, known, architecture.own_name), whole, (outputs, options))


def _shapes(architecture: Architecture, outputs: int | None, options: dict[str, Any]) -> nnx.Module:
    """The network without numbers: initialising what is then overwritten costs seconds of
    compilation.
    """
    return nnx.eval_shape(
        lambda: architecture.build(outputs, rngs=_Keys(jax.random.key(0)), **options)
    )


def _fill(
    module: nnx.Module,
    arrays: dict[str, Any],
    source: str,
    new_head: str,
    initialised: Callable[[], nnx.Module] | None,
) -> None:
    """Write a checkpoint's arrays into a network without numbers; a new head comes from the
    network that `initialised` makes, where it is given.
    """
    values = fit_weights(
        nnx.to_pure_dict(nnx.state(module)),
        arrays,
        source=source,
        fresh=(new_head,) if new_head else (),
    )
    if new_head and initialised is not None:
        # under jit, which leaves out all but the head
        head = jax.jit(lambda: part(nnx.to_pure_dict(nnx.state(initialised())), new_head))()
        values = replaced(values, new_head, head)
    set_values(module, values)


class _Keys(nnx.Rngs):
    """The keys of `nnx.Rngs(key)` in the same order, counted in Python.

    Flax counts in an array, which costs a search through everything traced so far at each key: 40 s
    for DenseNet-169.
    """

    def __init__(self, key: Any):
        super().__init__(key)
        self.first, self.drawn = key, 0

    def params(self) -> Any:
        self.drawn += 1
        return jax.random.fold_in(self.first, self.drawn - 1)


def _checked(name: str, num_classes: int | None, head: str) -> Architecture:
    if name not in MODELS:
        raise ValueError(f"model: unknown network {name!r}; known: {', '.join(MODELS)}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: must be at least 1, got {num_classes}")
    check_head_rule(head)
    return MODELS[name]


def weight_file(name: str, architecture: Architecture, weights: str) -> Path:
    """Where the weights lie, fetched from the hub if they are there."""
    if weights == "bundled":
        if architecture.bundled is None:
            raise ValueError(
                f"weights: no weights of {name!r} ship with the package; give a file, "
                "'hf:owner/name' or 'random'"
            )
        return Path(str(resources.files("ntk_tt.models") / "bundled" / architecture.bundled))
    if not weights.startswith("hf:"):
        return Path(weights)
    return fetch(weights.removeprefix("hf:"))
