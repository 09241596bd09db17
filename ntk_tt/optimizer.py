"""The optimiser setting whose training time is asked for: a plain description, shared by prediction
and truth.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ntk_tt.optax_chain import (
    HAS_NOT,
    ChainKind,
    OptimizerName,
    Transformation,
    chain_of,
    check_transformation,
    sgd_numbers,
)
from ntk_tt.runtime.limits import is_fraction, is_positive, is_whole, is_zero
from ntk_tt.schedules import rates_of

MAX_STEPS = 10**7  # a replay keeps a rate, and perhaps the samples, of each step
MAX_SEEDS = 10**4

Sampling = Literal["epoch", "replacement"]
_DEFAULT_RATE: Any = object()  # stands for 0.01, or for 1 where a transformation has a rate itself


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser of optax by name, or a chain of your own, with the batches that it sees.

    Of SGD, as PyTorch and optax define it: d = ∇L + λ w; a ← m a + d; w ← w − η a (Nesterov: w ←
    w − η (d + m a)).

    Attributes:
        learning_rate: η, a number or any optax schedule (step -> η); a function of the step alone.
            By default 0.01. It multiplies the updates of a `transformation`, by default by 1.
        momentum: m in [0, 1), of sgd and rmsprop.
        nesterov: Nesterov's momentum instead of the heavy ball.
        weight_decay: λ, on all trainable parameters: L2, added to the gradient, and decoupled from
            it (w ← w − η λ w) with adamw and lion.
        batch_size: B; None is the full batch (gradient descent).
        sampling: `epoch` shuffles once an epoch and drops the incomplete last batch; `replacement`
            draws every sample of every batch on its own.
        name: `sgd`, `adam`, `adamw`, `lion`, `rmsprop` or `adagrad`.
        betas: β₁ and β₂ of adam, adamw and lion; None takes optax's.
        eps: ε of adam, adamw, rmsprop and adagrad; None takes optax's.
        clip_norm: the gradient's norm over all parameters is cut to it, before anything else.
        transformation: any `optax.GradientTransformation` instead of all this but the learning
            rate, the batches and `weight_ema`; its updates are added to the parameters, as optax's
            are.
        weight_ema: β of a moving average of the weights, v ← β v + (1−β) w after each step, with
            v = w₀ at first. Training goes on as without it; loss and error are those at v.
    """

    learning_rate: float | Callable = _DEFAULT_RATE
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int | None = None
    sampling: Sampling = "epoch"
    name: OptimizerName = "sgd"
    betas: tuple[float, float] | None = None
    eps: float | None = None
    clip_norm: float | None = None
    transformation: Transformation | None = None
    weight_ema: float | None = None

    def __post_init__(self):
        if self.learning_rate is _DEFAULT_RATE:
            rate = 0.01 if self.transformation is None else 1.0
            object.__setattr__(self, "learning_rate", rate)
        if not callable(self.learning_rate) and not is_positive(self.learning_rate):
            raise ValueError(
                "learning_rate: must be positive and finite, or a schedule (step -> rate), got "
                f"{self.learning_rate!r}"
            )
        if self.name not in get_args(OptimizerName):
            raise ValueError(
                f"name: unknown {self.name!r}; known: {', '.join(get_args(OptimizerName))}; for "
                "any other give its optax chain as transformation"
            )
        if not is_fraction(self.momentum):
            raise ValueError(f"momentum: must lie in [0, 1), got {self.momentum!r}")
        self._check_what_it_has()
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; give one or leave nesterov out")
        if not (is_positive(self.weight_decay) or is_zero(self.weight_decay)):
            raise ValueError(
                f"weight_decay: must be 0 or more and finite, got {self.weight_decay!r}"
            )
        if self.betas is not None and not (
            isinstance(self.betas, tuple | list)
            and len(self.betas) == 2
            and all(map(is_fraction, self.betas))
        ):
            raise ValueError(f"betas: must be two numbers in [0, 1), got {self.betas!r}")
        for name in ("eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not is_positive(value):
                raise ValueError(
                    f"{name}: must be positive and finite (or None), got {value!r}; leave it out "
                    f"for {'the default' if name == 'eps' else 'no clipping'}"
                )
        if self.weight_ema is not None and not is_fraction(self.weight_ema):
            raise ValueError(
                f"weight_ema: must lie in [0, 1), such as 0.99, got {self.weight_ema!r}; leave it "
                "out for the weights themselves"
            )
        if self.batch_size is not None and not (is_whole(self.batch_size) and self.batch_size >= 1):
            raise ValueError(
                "batch_size: must be a whole number of at least 1 (or None for the full batch), "
                f"got {self.batch_size!r}"
            )
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling: unknown {self.sampling!r}; give 'epoch' or 'replacement'")

    def _check_what_it_has(self) -> None:
        """Raises ValueError for a number that this optimiser does not have."""
        given = {
            "momentum": self.momentum != 0,
            "nesterov": self.nesterov,
            "weight_decay": not is_zero(self.weight_decay),
            "betas": self.betas is not None,
            "eps": self.eps is not None,
            "clip_norm": self.clip_norm is not None,
        }
        if self.transformation is not None:
            check_transformation(self.transformation)
            given |= {"name": self.name != "sgd"}
            for field in (each for each, is_given in given.items() if is_given):
                raise ValueError(
                    f"{field}: a transformation has its own, got {getattr(self, field)!r}; leave "
                    "it out, and put what it does into the chain"
                )
        for field in HAS_NOT[self.name]:
            if given[field]:
                has = [name for name, missing in HAS_NOT.items() if field not in missing]
                raise ValueError(
                    f"{field}: {self.name} has none, got {getattr(self, field)!r}; leave it out, "
                    f"or take {' or '.join(has)}"
                )

    @classmethod
    def of(
        cls,
        transformation: Transformation,
        *,
        batch_size: int | None = None,
        sampling: Sampling = "epoch",
        learning_rate: float | Callable = 1.0,
    ) -> "OptimizerConfig":
        """The setting of an optax chain that has everything but the batches, such as
        `optax.adamw(1e-4)`.

        Args:
            transformation: any `optax.GradientTransformation`, or `optax.MultiSteps`.
            batch_size, sampling: see the class.
            learning_rate: multiplies its updates; a schedule too.

        Raises:
            ValueError: it is no transformation, or one of the others is out of range.
        """
        return cls(
            learning_rate, batch_size=batch_size, sampling=sampling, transformation=transformation
        )

    @property
    def is_sgd(self) -> bool:
        """Whether it is SGD without clipping, read at the weights themselves: linear in the
        gradient, as a frozen kernel needs.
        """
        return (
            self.transformation is None
            and self.name == "sgd"
            and self.clip_norm is None
            and self.weight_ema is None
        )

    @property
    def label(self) -> str:
        """For messages: its name, and what is done before and after it."""
        name = self.name if self.transformation is None else "a transformation of your own"
        beside = [each for each in ("clip_norm", "weight_ema") if getattr(self, each) is not None]
        return f"{name} with {' and '.join(beside)}" if beside else name

    @property
    def numbers(self) -> dict[str, Any]:
        """β₁, β₂ and ε by the names that optax has for them (`b1`, `b2`, `eps`): what was given,
        else optax's; only those that this optimiser has.
        """
        if self.transformation is not None:
            return {}
        missing = HAS_NOT[self.name]
        given = dict(zip(("b1", "b2"), self.betas or (None, None), strict=True))
        given = (given if "betas" not in missing else {}) | (
            {"eps": self.eps} if "eps" not in missing else {}
        )
        own = inspect.signature(getattr(optax, self.name)).parameters
        return {
            name: own[name].default if value is None else value for name, value in given.items()
        }

    def chain(
        self, num_steps: int, scale: float | Array = 1.0
    ) -> optax.GradientTransformationExtraArgs:
        """The whole optimiser as one optax chain, whose updates `optax.apply_updates` adds.

        Its rates are those of `learning_rates`, by the number of updates so far, so that all who
        use it see the same numbers.

        Args:
            num_steps: T; later steps have the last rate.
            scale: multiplies the learning rate; a tracer too, so that settings can be vmapped.

        Raises:
            ValueError: see `learning_rates`.
        """
        rates = jnp.asarray(self.learning_rates(num_steps))
        kind, numbers = self.kind_and_numbers()
        return chain_of(kind, numbers, rates, scale)

    def kind_and_numbers(self) -> tuple["ChainKind", dict[str, float]]:
        """The form of the chain, and the numbers in it, which may be traced: see `chain_of`."""
        kind = ChainKind(
            self.name,
            bool(self.momentum),
            self.nesterov,
            self.clip_norm is not None,
            self.transformation,
            self.weight_ema is not None,
        )
        given = {} if self.weight_ema is None else {"weight_ema": self.weight_ema}
        if self.transformation is not None:
            return kind, given
        given |= {"momentum": self.momentum, "weight_decay": self.weight_decay}
        if self.clip_norm is not None:
            given["clip_norm"] = self.clip_norm
        return kind, given | self.numbers

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
        rates = rates_of(self.learning_rate, num_steps)
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


def as_setting(
    optimizer: OptimizerConfig | Transformation, batch_size: int | None = None
) -> OptimizerConfig:
    """The setting that an optax chain with a batch size makes; a setting is one already.

    A chain that is plain SGD, at one rate or with a schedule, becomes the setting that says so, for
    which trust and intervals are known.

    Raises:
        ValueError: it is neither, or a batch size is given with a setting, which has its own.
    """
    if not isinstance(optimizer, OptimizerConfig):
        check_transformation(optimizer)
        found = sgd_numbers(optimizer)
        if found is not None:
            return OptimizerConfig(**found._asdict(), batch_size=batch_size)
        return OptimizerConfig.of(optimizer, batch_size=batch_size)
    if batch_size is not None:
        raise ValueError(
            f"batch_size: the setting has its own, {optimizer.batch_size}, got {batch_size}; give "
            "it there, or an optax chain instead of a setting"
        )
    return optimizer


def scaled(optimizer: OptimizerConfig, factor: float) -> OptimizerConfig:
    """The same setting at a multiple of its learning rates."""
    rate = optimizer.learning_rate
    return dataclasses.replace(
        optimizer,
        learning_rate=(lambda step: factor * rate(step)) if callable(rate) else factor * rate,
    )


def changed_at(
    optimizer: OptimizerConfig, step: int, learning_rate: float | int | Callable
) -> OptimizerConfig:
    """The same setting with another rate from a step on, as of a run whose rate was changed while
    it went on: momentum and moments stay as they are.

    Args:
        optimizer: as the run began.
        step: the first one at the new rate.
        learning_rate: from there on, a number or a schedule of the steps of the whole run.

    Raises:
        ValueError: the step is none, or the rate is out of range.
    """
    check_num_steps(step, least=0)
    before = optimizer.learning_rate
    dataclasses.replace(optimizer, learning_rate=learning_rate)  # says what is wrong with it

    def rate(count: Any) -> Any:
        first, then = (each(count) if callable(each) else each for each in (before, learning_rate))
        return jnp.where(count < step, first, then)

    return dataclasses.replace(optimizer, learning_rate=rate)


def check_sgd(optimizer: OptimizerConfig, method: str) -> None:
    """Raises ValueError where a method that carries SGD only is asked for another optimiser."""
    if not optimizer.is_sgd:
        raise ValueError(
            f"optimizer: method {method!r} knows SGD only, got {optimizer.label}; take "
            "method='head' or 'curvature'"
        )


def check_num_steps(num_steps: int, least: int = 1) -> None:
    """Raises ValueError for a number of steps that is not whole, below `least`, or absurd."""
    _check_count("num_steps", num_steps, least, MAX_STEPS)


def check_num_seeds(num_seeds: int) -> None:
    """Raises ValueError for a number of seeds that is not whole, below 1, or absurd."""
    _check_count("num_seeds", num_seeds, 1, MAX_SEEDS)


def _check_count(name: str, value: Any, least: int, most: int) -> None:
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(
            f"{name}: {value} is more than the {most} that are possible; give a smaller number"
        )
