"""Learning-rate schedules: those that have a name, and what any schedule gives at each step."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

ScheduleName = Literal["constant", "cosine", "linear", "exponential", "warmup-cosine"]


def named_schedule(
    name: ScheduleName, peak: float, num_steps: int, warmup_steps: int = 0
) -> float | optax.Schedule:
    """The learning rate by schedule name, `peak` at its highest.

    `constant`; `cosine` and `linear` fall to 0 at `num_steps`; `exponential` falls to peak/100;
    `warmup-cosine` rises over the first tenth of the steps.

    Args:
        name: of the schedule.
        peak: its highest rate.
        num_steps: T.
        warmup_steps: steps over which the rate first rises linearly, from 0 at step 0; the schedule
            takes the steps that are left.

    Raises:
        ValueError: an unknown name, or a warm-up that leaves no step, or comes before another one.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"warmup_steps: must lie in 0 … {num_steps - 1}, before the last of the {num_steps} "
            f"steps, got {warmup_steps}"
        )
    if warmup_steps and name == "warmup-cosine":
        raise ValueError(
            f"warmup_steps: 'warmup-cosine' has a warm-up of its own, got {warmup_steps} steps of "
            "another; take the schedule 'cosine' with it, or leave it out"
        )
    after = _without_warmup(name, peak, num_steps - warmup_steps)
    if not warmup_steps:
        return after
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup_steps),
            after if callable(after) else optax.constant_schedule(after),
        ],
        [warmup_steps],
    )


def _without_warmup(name: ScheduleName, peak: float, num_steps: int) -> float | optax.Schedule:
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


def rates_of(schedule: Callable, num_steps: int) -> np.ndarray:
    """What a schedule gives at each step, in float64: by one call where it is a function of
    arrays. Inside `jit` and `vmap` too, for steps are no tracers.

    Raises:
        ValueError: it fails, or gives no number, or another one when it is called again.
    """
    with jax.ensure_compile_time_eval():
        return _rates_of(schedule, num_steps)


def _rates_of(schedule: Callable, num_steps: int) -> np.ndarray:

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
