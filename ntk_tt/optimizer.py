"""The optimiser setting whose training time is asked for: a plain description, shared by prediction
and truth.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

MAX_STEPS = 10**7  # a replay keeps a rate, and perhaps the samples, of each step
MAX_SEEDS = 10**4

Sampling = Literal["epoch", "replacement"]
ScheduleName = Literal["constant", "cosine", "linear", "exponential", "warmup-cosine"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD as PyTorch and optax define it: d = ∇L + λ w; a ← m a + d; w ← w − η a (Nesterov: w ← w −
    η (d + m a)).

    Attributes:
        learning_rate: η, a number or any optax schedule (step -> η); a function of the step alone.
        momentum: m in [0, 1).
        nesterov: Nesterov's momentum instead of the heavy ball.
        weight_decay: λ, the L2 coefficient, on all trainable parameters.
        batch_size: B; None is the full batch (gradient descent).
        sampling: `epoch` shuffles once an epoch and drops the incomplete last batch; `replacement`
            draws every sample of every batch on its own.
    """

    learning_rate: float | Callable = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int | None = None
    sampling: Sampling = "epoch"

    def __post_init__(self):
        if not callable(self.learning_rate) and not (
            _is_number(self.learning_rate)
            and math.isfinite(self.learning_rate)
            and self.learning_rate > 0
        ):
            raise ValueError(
                "learning_rate: must be positive and finite, or a schedule (step -> rate), got "
                f"{self.learning_rate!r}"
            )
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum: must lie in [0, 1), got {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; give one or leave nesterov out")
        if not (
            _is_number(self.weight_decay)
            and math.isfinite(self.weight_decay)
            and self.weight_decay >= 0
        ):
            raise ValueError(
                f"weight_decay: must be 0 or more and finite, got {self.weight_decay!r}"
            )
        if self.batch_size is not None and not (
            _is_whole(self.batch_size) and self.batch_size >= 1
        ):
            raise ValueError(
                "batch_size: must be a whole number of at least 1 (or None for the full batch), "
                f"got {self.batch_size!r}"
            )
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling: unknown {self.sampling!r}; give 'epoch' or 'replacement'")

    def learning_rates(self, num_steps: int) -> np.ndarray:
        """η of each step, shape (num_steps,).

        A schedule is called as optax calls it, with an int32 array, and once with all steps
        (`vmap`) where it can be; one that decides in Python (`if step < 10`) is called step by
        step.

        Raises:
            ValueError: an absurd number of steps, or the schedule gives no number, or a negative or
                non-finite one, at some step, or another one when called again.
        """
        check_num_steps(num_steps)
        if not callable(self.learning_rate):
            return np.full(num_steps, float(self.learning_rate))
        if num_steps in self._known_rates:
            return self._known_rates[num_steps].copy()
        rates = _scheduled(self.learning_rate, num_steps)
        allowed = np.isfinite(rates) & (rates >= 0)
        if not allowed.all():
            worst = int(np.argmin(allowed))
            raise ValueError(
                f"learning_rate: the schedule gives {rates[worst]} at step {worst}; it must stay "
                "finite and not negative"
            )
        self._known_rates[num_steps] = rates
        return rates.copy()

    @functools.cached_property
    def _known_rates(self) -> dict[int, np.ndarray]:
        """By number of steps: each seed, record and verdict of a prediction asks for them."""
        return {}

    def is_full_batch(self, num_samples: int) -> bool:
        """Whether every step sees all samples: then there is no noise."""
        return self.batch_size is None or (
            self.batch_size == num_samples and self.sampling == "epoch"
        )

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
            raise ValueError(
                f"batch_size: {size} is larger than the {num_samples} samples; take at most that, "
                "or the full batch"
            )
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


def scaled(optimizer: OptimizerConfig, factor: float) -> OptimizerConfig:
    """The same setting at a multiple of its learning rates."""
    rate = optimizer.learning_rate
    return dataclasses.replace(
        optimizer,
        learning_rate=(lambda step: factor * rate(step)) if callable(rate) else factor * rate,
    )


def check_num_steps(num_steps: int, least: int = 1) -> None:
    """Raises ValueError for a number of steps that is not whole, below `least`, or absurd."""
    _check_count("num_steps", num_steps, least, MAX_STEPS)


def check_num_seeds(num_seeds: int) -> None:
    """Raises ValueError for a number of seeds that is not whole, below 1, or absurd."""
    _check_count("num_seeds", num_seeds, 1, MAX_SEEDS)


def _check_count(name: str, value: Any, least: int, most: int) -> None:
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(
            f"{name}: {value} is more than the {most} that are possible; give a smaller number"
        )


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, str | bytes | bool | complex)
        and np.ndim(value) == 0
        and hasattr(value, "__float__")
    )


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_)


def _scheduled(schedule: Callable, num_steps: int) -> np.ndarray:
    """What a schedule gives at each step, in float64: by one call where it is a function of
    arrays.
    """

    def one_by_one(step: int) -> Any:
        return schedule(np.int32(step))  # an array to those who want one, a number to Python

    rates, together = np.zeros(0), False
    try:
        rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(num_steps, dtype=jnp.int32)))
        together = rates.shape == (num_steps,) and _is_real(rates)
    except Exception:  # whatever a schedule does that tracers do not stand
        pass
    rates = (
        rates.astype(np.float64)
        if together
        else np.asarray([_rate(one_by_one, step) for step in range(num_steps)])
    )
    # One that counts its calls gives all steps the same when it is called once for all, and another
    # rate each time when it is not.
    if not together or (rates == rates[0]).all():
        again = _rate(one_by_one, num_steps - 1)
        if not np.isclose(again, rates[-1], rtol=1e-4, atol=0, equal_nan=True):
            raise ValueError(
                f"learning_rate: the schedule gives {rates[-1]} at step {num_steps - 1}, and "
                f"{again} when it is called again; it must depend on the step alone"
            )
    return rates


def _rate(schedule: Callable[[int], Any], step: int) -> float:
    try:
        rate = schedule(step)
    except Exception as error:
        raise ValueError(
            f"learning_rate: the schedule fails at step {step} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
    value = np.asarray(rate)
    if value.ndim != 0 or not _is_real(value):
        raise ValueError(
            f"learning_rate: the schedule gives {rate!r} at step {step}; it must give one real "
            "number"
        )
    return float(value)


def _is_real(values: np.ndarray) -> bool:
    return jnp.issubdtype(values.dtype, jnp.floating) or jnp.issubdtype(values.dtype, jnp.integer)
