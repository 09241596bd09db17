"""How fast a machine trains, written there and read where its price is asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.report.document import write_json
from ntk_tt.runtime.limits import is_positive, is_whole
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.training import finetune

STEPS = 8  # that are timed; their median is taken


@dataclasses.dataclass(frozen=True)
class DeviceSpeed:
    """How long a step of training takes on a machine.

    Attributes:
        seconds_per_step: compiled and warm, with the optimiser's update; the median.
        compile_seconds: before the first step.
        batch_size: of the steps.
        model, num_params, input_shapes: of the network and of the arrays of one sample.
        optimizer: its name.
        device, jax: the device and the version of JAX.
    """

    seconds_per_step: int | float
    compile_seconds: int | float
    batch_size: int
    model: str
    num_params: int
    input_shapes: tuple[tuple[int, ...], ...]
    optimizer: str
    device: str
    jax: str

    @classmethod
    def measure(
        cls,
        what: Finetuning,
        optimizer: OptimizerConfig,
        *,
        num_steps: int = STEPS,
        progress: Progress = silent,
    ) -> "DeviceSpeed":
        """The speed of this machine: takes a few real steps.

        Raises:
            ValueError: as `finetune`.
        """
        run = finetune(
            what.model,
            what.inputs,
            what.labels,
            optimizer,
            num_steps,
            loss=what.loss,
            label_smoothing=what.label_smoothing,
            augment=what.augment,
            seed=what.seed + 2,
            record_every=num_steps,
            progress=progress,
        )
        return cls(
            run.step_seconds,
            run.compile_seconds,
            optimizer.checked_batch_size(what.num_samples),
            what.model.name,
            what.model.num_params,
            _shapes(what),
            optimizer.label,
            jax.devices()[0].device_kind,
            jax.__version__,
        )

    @classmethod
    def read(cls, path: str | Path) -> "DeviceSpeed":
        """What `write` wrote.

        Raises:
            ValueError: the file is none of these.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            given: dict[str, Any] = {
                each.name: found[each.name] for each in dataclasses.fields(cls)
            }
            shapes = tuple(tuple(each) for each in found["input_shapes"])
            speed = cls(**{**given, "input_shapes": shapes})
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"device-speed: {str(path)!r} is no file of `ntk-tt speed`; write one on the "
                "machine that will train"
            ) from error
        if not (
            is_positive(speed.seconds_per_step)
            and is_whole(speed.batch_size)
            and speed.batch_size >= 1
        ):
            raise ValueError(
                f"device-speed: {str(path)!r} says {speed.seconds_per_step!r} s for a step of "
                f"{speed.batch_size!r} samples; measure it anew with `ntk-tt speed`"
            )
        return speed

    def write(self, path: str | Path) -> None:
        """As JSON."""
        write_json(Path(path), dataclasses.asdict(self))

    def seconds(self, what: Finetuning, batch_size: int) -> float:
        """Of a step of another batch, in proportion to its samples.

        Raises:
            ValueError: the speed is that of another network, or of inputs of another shape.
        """
        asked: dict[str, Any] = {
            "model": what.model.name,
            "num_params": what.model.num_params,
            "input_shapes": _shapes(what),
        }
        for name, value in asked.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"device-speed: it was measured with {name} {getattr(self, name)}, and this is "
                    f"{value}; run `ntk-tt speed` with the flags of this run"
                )
        return self.seconds_per_step * batch_size / self.batch_size


def _shapes(what: Finetuning) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.shape(leaf)[1:]) for leaf in jax.tree.leaves(what.inputs))
