"""The setting that the flags ask for: the optimiser, and how times are read off curves."""

import dataclasses
import math
from typing import NamedTuple, cast, get_args

from ntk_tt.cli.checks import record_every
from ntk_tt.cli.options import Predict, Training
from ntk_tt.optax_chain import OptimizerName, Transformation
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.by_method import Recording
from ntk_tt.runtime.user_file import read_function
from ntk_tt.schedules import named_schedule

_RATE, _MOMENTUM = 0.001, 0.9  # where none is given; of a chain of the user's the rate is 1


class Setting(NamedTuple):
    """What is predicted and trained alike: the optimiser, and how times are read off curves."""

    optimizer: OptimizerConfig
    recording: Recording
    num_samples: int

    @classmethod
    def of(cls, options: Predict, optimizer: OptimizerConfig, num_samples: int) -> "Setting":
        """The setting that the flags ask for, on so many samples."""
        optimizer.checked_batch_size(num_samples)
        full = optimizer.is_full_batch(num_samples)
        recording = Recording(
            options.steps,
            record_every(options, full),
            options.thresholds,
            options.loss_thresholds,
            options.smoothing or (1 if full else 3),
        )
        return cls(optimizer, recording, num_samples)


def in_steps(options: Predict, optimizer: OptimizerConfig, num_samples: int) -> Predict:
    """The same flags with steps instead of epochs, rounded up."""
    assert options.epochs is not None
    steps = math.ceil(options.epochs * optimizer.steps_per_epoch(num_samples))
    return dataclasses.replace(options, steps=steps, epochs=None)


def optimizer_of(options: Training) -> OptimizerConfig:
    """The optimiser that the flags ask for. A file of the user's with a chain is imported, and so
    run.

    Raises:
        ValueError: one of its flags is wrong, alone or with others.
    """
    name: OptimizerName = "sgd"
    transformation = None
    if options.optimizer in get_args(OptimizerName):
        name = cast(OptimizerName, options.optimizer)
    elif ".py:" in options.optimizer:
        transformation = _transformation(options.optimizer, options.steps)
    else:
        raise ValueError(
            f"optimizer: unknown {options.optimizer!r}; give {', '.join(get_args(OptimizerName))}, "
            "or path/to/file.py:function for an optax chain of your own"
        )
    momentum = options.momentum
    if momentum is None:
        momentum = _MOMENTUM if name == "sgd" and transformation is None else 0.0
    peak = peak_rate(options)
    OptimizerConfig(peak)  # a number out of range is no schedule's fault
    return OptimizerConfig(
        learning_rate=named_schedule(options.schedule, peak, options.steps, options.warmup_steps),
        momentum=momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        batch_size=None if options.batch_size == "full" else options.batch_size,
        sampling=options.sampling,
        name=name,
        betas=options.betas,
        eps=options.eps,
        clip_norm=options.clip_norm,
        transformation=transformation,
        weight_ema=options.weight_ema,
    )


def peak_rate(options: Training) -> float:
    """The highest learning rate of the schedule."""
    if options.learning_rate is not None:
        return options.learning_rate
    return 1.0 if ".py:" in options.optimizer else _RATE


def _transformation(reference: str, num_steps: int) -> Transformation:
    """The chain that a function in a file of the user's makes."""
    made = read_function(reference, flag="optimizer", makes="an optax.GradientTransformation").call(
        num_steps=num_steps
    )
    if not isinstance(made, Transformation):
        raise ValueError(
            f"optimizer: {reference!r} returned something of type {type(made).__name__}; return "
            "an optax.GradientTransformation, such as optax.adamw(1e-4)"
        )
    return made
