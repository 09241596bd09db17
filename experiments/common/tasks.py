"""What experiments share: tasks by name, and real training runs that are done once and kept.

A real run is the truth that any number of predictions are compared with, so its curve is kept under
`cache_folder()` by everything it depends on: experiments that ask for the same run share it, and an
interrupted experiment goes on where it was. The folder is not part of the repository; results that
are committed carry the curves' times themselves.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ntk_tt
from ntk_tt.data import UpTo
from ntk_tt.report.document import environment, write_json
from ntk_tt.runtime.stopwatch import Stopwatch

# Constants are chosen on the first and reported on the second; digits ship with scikit-learn, so
# they are always there.
TUNING = ("cifar100", "dtd", "stanford_cars", "houses_rooms")
REPORTING = ("digits", "cifar10", "cub200", "scene15", "trashnet")

WEIGHTS = {
    "resnet18": ("resnet18_tinyimagenet.safetensors", 64),
    "densenet169": ("densenet169_imagenet_backbone.safetensors", 64),
    "resnet20": ("resnet20_cifar10.safetensors", 32),
    "resnet50v1": ("resnet50v1_imagenet_to_layer3.safetensors", 64),
    "squeezenet1_0": ("squeezenet1_0_imagenet_features.safetensors", 64),
    "resnet8": (None, 32),
}
"""Network -> file under $NTK_TT_WEIGHTS (None: bundled with the package), side of its images
[pixels].
"""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A network on a few random classes of a data set."""

    network: str = "resnet8"
    data: str = "digits"
    """`digits`, or a name under $NTK_TT_DATA."""
    classes: int = 5
    per_class: int = 40
    """Images of each class; fewer where there are fewer."""
    seed: int = 0
    """Of classes, images and head."""
    image_size: int | None = None
    """Side [pixels]; None takes what the network's weights were trained with."""


class LoadedTask(NamedTuple):
    """Network, normalised images (N, h, w, 3) and labels (N,)."""

    model: ntk_tt.Model
    images: jax.Array
    labels: np.ndarray


class RealRun(NamedTuple):
    """A curve of real training: steps, mean loss and error rate at each record, and what it cost.

    Attributes:
        seconds: of the optimiser's steps alone [s].
        processor_seconds: the same in processor time, by the share of the steps in the whole run
            [s].
    """

    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    seconds: float
    processor_seconds: float
    diverged_at: int | None


def data_folder() -> Path:
    """$NTK_TT_DATA.

    Raises:
        ValueError: it is not set.
    """
    return _folder("NTK_TT_DATA", "image sets, as <name>/<split>/<class>/<image>")


def weights_folder() -> Path:
    """$NTK_TT_WEIGHTS.

    Raises:
        ValueError: it is not set.
    """
    return _folder("NTK_TT_WEIGHTS", "published weights, as safetensors")


def _folder(variable: str, contents: str) -> Path:
    if not os.environ.get(variable):
        raise ValueError(f"{variable}: is not set; set it to a folder of {contents}")
    return Path(os.environ[variable])


def cache_folder() -> Path:
    """$NTK_TT_RUNS, or `out/runs` in the working directory."""
    return Path(os.environ.get("NTK_TT_RUNS", "out/runs"))


@functools.lru_cache(maxsize=2)
def load(config: TaskConfig) -> LoadedTask:
    """The task of a configuration.

    Raises:
        ValueError: images or weights that are not there (with the folder looked in).
    """
    file, side = WEIGHTS[config.network]
    size = config.image_size or side
    source = "digits" if config.data == "digits" else f"folder:{data_folder() / config.data}"
    task = ntk_tt.load_task(
        source,
        num_classes=config.classes,
        per_class=UpTo(config.per_class),
        image_size=size,
        seed=config.seed,
    )
    model = ntk_tt.load_model(
        config.network,
        weights=None if file is None else str(weights_folder() / file),
        num_classes=config.classes,
        image_size=size,
        key=jax.random.key(config.seed),
    )
    return LoadedTask(model, model.preprocess(task.images), task.labels)


def run_path(
    config: TaskConfig,
    optimizer: dict[str, Any],
    num_steps: int,
    *,
    seed: int = 0,
    record_every: int = 1,
    loss: str = "ce",
    train_batch_norm: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Where a real run is kept, and all that it depends on."""
    described = {
        "task": dataclasses.asdict(config),
        "optimizer": optimizer,
        "num_steps": num_steps,
        "seed": seed,
        "record_every": record_every,
        "loss": loss,
        "train_batch_norm": train_batch_norm,
    }
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{config.network}-{config.data}-{name}.json", described


def timed(
    task: LoadedTask, optimizer: ntk_tt.OptimizerConfig, num_steps: int
) -> tuple[float, float]:
    """Seconds and processor seconds of some real steps, compilation apart."""
    with Stopwatch() as watch:
        ntk_tt.finetune(
            task.model,
            task.images,
            task.labels,
            optimizer,
            num_steps,
            record_every=num_steps,
        )
    return watch.seconds, watch.processor_seconds


def real_run(
    config: TaskConfig,
    optimizer: dict[str, Any],
    num_steps: int,
    *,
    seed: int = 0,
    record_every: int = 1,
    loss: str = "ce",
    train_batch_norm: bool = False,
) -> RealRun:
    """The curve of real training with these arguments of `ntk_tt.OptimizerConfig`, from the cache
    where it was run before.

    Args:
        optimizer: plain values only (no schedule functions), so that they name the run.
        seed: of the order of the data.
    """
    path, described = run_path(
        config,
        optimizer,
        num_steps,
        seed=seed,
        record_every=record_every,
        loss=loss,
        train_batch_norm=train_batch_norm,
    )
    if not path.exists():
        model, images, labels = load(config)
        processor, wall = time.process_time(), time.perf_counter()
        run = ntk_tt.finetune(
            model,
            images,
            labels,
            ntk_tt.OptimizerConfig(**optimizer),
            num_steps,
            loss=loss,
            seed=seed,
            record_every=record_every,
            train_statistics=train_batch_norm,
        )
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        write_json(
            path,
            {
                **described,
                "steps": run.steps.tolist(),
                "loss": run.loss.tolist(),
                "error": run.error.tolist(),
                "seconds": run.seconds,
                "processor_seconds": processor * run.seconds / wall,
                "diverged_at": run.diverged_at,
                "environment": environment(seed),
            },
        )
    stored = json.loads(path.read_text())
    loss_curve, error_curve = (
        np.asarray([np.nan if value is None else value for value in stored[name]], float)
        for name in ("loss", "error")
    )
    return RealRun(
        np.asarray(stored["steps"]),
        loss_curve,
        error_curve,
        stored["seconds"],
        stored["processor_seconds"],
        stored["diverged_at"],
    )
