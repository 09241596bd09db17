"""The optimiser setting whose training time is asked for: a plain description, shared by prediction and truth."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import optax

Sampling = Literal["epoch", "replacement"]
ScheduleName = Literal["constant", "cosine", "linear", "exponential", "warmup-cosine"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD as PyTorch and optax define it: d = ∇L + λ w; a ← m a + d; w ← w − η a (Nesterov: w ← w − η (d + m a)).

    Attributes:
        learning_rate: η, a number or any optax schedule (step -> η).
        momentum: m in [0, 1).
        nesterov: Nesterov's momentum instead of the heavy ball.
        weight_decay: λ, the L2 coefficient, on all trainable parameters.
        batch_size: B; None is the full batch (gradient descent).
        sampling: `epoch` shuffles once an epoch and drops the incomplete last batch; `replacement` draws every
            sample of every batch on its own.
    """

    learning_rate: float | Callable = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int | None = None
    sampling: Sampling = "epoch"

    def __post_init__(self):
        if not callable(self.learning_rate) and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: must lie in [0, 1), got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; give one or leave nesterov out")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay: must be 0 or more and finite, got {self.weight_decay}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1 (or None for the full batch), got {self.batch_size}")
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling: unknown {self.sampling!r}; give 'epoch' or 'replacement'")

    def learning_rates(self, num_steps: int) -> np.ndarray:
        """η of each step, shape (num_steps,).

        Raises:
            ValueError: the schedule gives a negative or non-finite rate.
        """
        if not callable(self.learning_rate):
            return np.full(num_steps, self.learning_rate)
        rates = np.asarray([float(self.learning_rate(step)) for step in range(num_steps)])
        if not (np.isfinite(rates) & (rates >= 0)).all():
            worst = int(np.argmin(np.isfinite(rates) & (rates >= 0)))
            raise ValueError(f"learning_rate: the schedule gives {rates[worst]} at step {worst}; it must stay finite and not negative")
        return rates

    def is_full_batch(self, num_samples: int) -> bool:
        """Whether every step sees all samples: then there is no noise."""
        return self.batch_size is None or (self.batch_size == num_samples and self.sampling == "epoch")

    def steps_per_epoch(self, num_samples: int) -> int:
        """Whole batches in one pass over the data."""
        return num_samples // self.checked_batch_size(num_samples)

    def checked_batch_size(self, num_samples: int) -> int:
        """B for a data set of this size.

        Raises:
            ValueError: the batch is larger than the data.
        """
        size = num_samples if self.batch_size is None else self.batch_size
        if size > num_samples:
            raise ValueError(f"batch_size: {size} is larger than the {num_samples} samples; take at most that, or the full batch")
        return size


def named_schedule(name: ScheduleName, peak: float, num_steps: int) -> float | optax.Schedule:
    """The learning rate by schedule name, `peak` at its highest.

    `constant`; `cosine` and `linear` fall to 0 at `num_steps`; `exponential` falls to peak/100;
    `warmup-cosine` rises over the first tenth of the steps.
    """
    if name == "constant":
        return peak
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, num_steps)
    if name == "linear":
        return optax.linear_schedule(peak, 0.0, num_steps)
    if name == "exponential":
        return optax.exponential_decay(peak, num_steps, 0.01)
    if name == "warmup-cosine":
        warmup = max(1, num_steps // 10)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(warmup + 1, num_steps))
    raise ValueError(f"schedule: unknown {name!r}; known: {', '.join(get_args(ScheduleName))}")


def check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps: must be at least 1, got {num_steps}")


