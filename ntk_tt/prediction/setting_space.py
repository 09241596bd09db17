"""Many settings from few words: grids, random draws, and spaces as Optuna has them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import numpy as np

from ntk_tt.optax_chain import HAS_NOT, OptimizerName, Transformation
from ntk_tt.optimizer import OptimizerConfig, check_num_steps
from ntk_tt.prediction.ranges import Draw, Range, read_range
from ntk_tt.runtime.limits import is_number
from ntk_tt.schedules import ScheduleName, named_schedule

MAX_SETTINGS = 100_000
_WHOLE = ("batch_size", "num_steps", "warmup_steps")
_WORDS: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "sampling": ("epoch", "replacement"),
}
NAMES = (
    "optimizer",
    "learning_rate",
    "batch_size",
    "momentum",
    "nesterov",
    "weight_decay",
    "betas",
    "eps",
    "clip_norm",
    "weight_ema",
    "sampling",
    "schedule",
    "warmup_steps",
    "epochs",
    "num_steps",
)
Space = Mapping[str, Any] | Callable[..., Any] | Iterable[Any]


@dataclasses.dataclass(frozen=True)
class SweptSetting:
    """One setting of a sweep.

    Attributes:
        optimizer: the optimiser and its batches.
        num_steps: T.
        values: what it was made of, by the names of `NAMES`; of a setting that was given as it is,
            what it says of itself.
    """

    optimizer: OptimizerConfig
    num_steps: int
    values: Mapping[str, Any]


def settings_of(
    space: Space,
    *,
    num_samples: int,
    num_steps: int | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> tuple[SweptSetting, ...]:
    """The settings of a space, each once.

    Args:
        space: by name a value, a list of choices, a `Range` or its text, or a distribution of
            Optuna's; or a function of an Optuna-like trial (`trial.suggest_float(…)`) that returns
            such values or an `OptimizerConfig`; or a list of settings, of `OptimizerConfig`, an
            optax chain or such values.
        num_samples: N, for batches and epochs.
        num_steps: T where the space has none.
        draws: so many at random instead of the whole grid.
        seed: of the draws.

    Raises:
        ValueError: an unknown name, a value out of range, no settings, or too many.

    What an optimiser does not have (`momentum` of adamw) is left out for it, so a grid over several
    optimisers has each of them once.
    """
    made = _values(space, draws, np.random.default_rng(seed))
    found: dict[Any, SweptSetting] = {}
    for values in made:
        setting = _setting(values, num_samples, num_steps)
        found.setdefault(_same(setting), setting)
        if len(found) > MAX_SETTINGS:
            raise ValueError(
                f"settings: there are more than {MAX_SETTINGS:,}; take fewer numbers of each, or "
                "draw some at random"
            )
    if not found:
        raise ValueError("settings: there are none; give at least one value of each name")
    return tuple(found.values())


def _same(setting: SweptSetting) -> Any:
    values = {name: setting.values[name] for name in NAMES if name in setting.values}
    own = setting.optimizer.transformation
    return repr(values), setting.num_steps, None if own is None else id(own)


def _values(space: Space, draws: int | None, rng: np.random.Generator) -> Iterable[Any]:
    if draws is not None and not 1 <= draws <= MAX_SETTINGS:
        raise ValueError(f"draws: must lie in 1 … {MAX_SETTINGS}, got {draws}")
    if callable(space):
        if draws is None:
            raise ValueError("draws: a space that is a function is drawn from; say how many")
        return [space(Draw(rng)) for _ in range(draws)]
    if not isinstance(space, Mapping):
        return space
    unknown = [name for name in space if name not in NAMES]
    if unknown:
        raise ValueError(f"space: {unknown[0]!r} is none of {', '.join(NAMES)}")
    if draws is not None:
        drawers = {name: _drawer(name, given) for name, given in space.items()}
        return [{name: draw(rng) for name, draw in drawers.items()} for _ in range(draws)]
    choices = {name: _choices(name, given) for name, given in space.items()}
    total = math.prod(map(len, choices.values()))
    if total > MAX_SETTINGS:
        raise ValueError(
            f"settings: the grid has {total:,}, and {MAX_SETTINGS:,} are possible; take fewer "
            "numbers of each, or draw some at random"
        )
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


def _parts(name: str, given: Any) -> list[Any]:
    """Values and ranges that were given for a name."""
    if name == "betas" and _is_pair(given):
        return [tuple(given)]
    if hasattr(given, "choices"):
        return [part for each in given.choices for part in _parts(name, each)]
    if hasattr(given, "low") and not isinstance(given, Range):  # a distribution of Optuna's
        step = getattr(given, "step", None)
        count = None if step is None or given.log else 1 + round((given.high - given.low) / step)
        return [Range(float(given.low), float(given.high), bool(given.log), count)]
    if isinstance(given, str):
        return [_of_text(name, each) for each in given.split(",") if each.strip()]
    if isinstance(given, list | tuple | np.ndarray | range):
        return [part for each in given for part in _parts(name, each)]
    return [given]


def _of_text(name: str, text: str) -> Any:
    text = text.strip()
    if name == "betas":
        pair = text.split("/")
        try:
            return (float(pair[0]), float(pair[1]))
        except (ValueError, IndexError):
            raise ValueError(f"betas: write two as 0.9/0.999, got {text!r}") from None
    if name in _WORDS:
        if text not in _WORDS[name]:
            raise ValueError(f"{name}: unknown {text!r}; known: {', '.join(_WORDS[name])}")
        return text
    if name == "batch_size" and text == "full":
        return None
    if ":" in text:
        return read_range(text)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: must be a number or a range, got {text!r}") from None


def _choices(name: str, given: Any) -> list[Any]:
    """The values of a grid, each once."""
    values = []
    for part in _parts(name, given):
        values += part.numbers() if isinstance(part, Range) else [part]
    found = list(dict.fromkeys(_value(name, each) for each in values))
    if not found:
        raise ValueError(f"{name}: there is no value; give one, a list or a range")
    return found


def _drawer(name: str, given: Any) -> Callable[[np.random.Generator], Any]:
    parts = _parts(name, given)
    if not parts:
        raise ValueError(f"{name}: there is no value; give one, a list or a range")

    def draw(rng: np.random.Generator) -> Any:
        part = parts[int(rng.integers(len(parts)))]
        return _value(name, part.draw(rng) if isinstance(part, Range) else part)

    return draw


def _value(name: str, value: Any) -> Any:
    if name in _WHOLE and is_number(value):
        if not math.isfinite(value):
            raise ValueError(f"{name}: must be a whole number, got {value}")
        return round(value)
    return tuple(value) if isinstance(value, list) else value


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and all(map(is_number, given))


def _setting(given: Any, num_samples: int, num_steps: int | None) -> SweptSetting:
    if isinstance(given, SweptSetting):
        given.optimizer.checked_batch_size(num_samples)
        return given
    if isinstance(given, Transformation):
        given = OptimizerConfig.of(given)
    if isinstance(given, OptimizerConfig):
        given.checked_batch_size(num_samples)
        steps = _steps(num_steps)
        return SweptSetting(given, steps, _own_values(given, steps))
    if not isinstance(given, Mapping):
        raise ValueError(
            f"settings: {type(given).__name__} is no setting; give OptimizerConfig, an optax "
            "chain, or values by name"
        )
    unknown = [name for name in given if name not in NAMES]
    if unknown:
        raise ValueError(f"space: {unknown[0]!r} is none of {', '.join(NAMES)}")
    return _made(dict(given), num_samples, num_steps)


def _made(values: dict[str, Any], num_samples: int, num_steps: int | None) -> SweptSetting:
    """The setting of values by name."""
    values = {name: value for name, value in values.items() if value is not None}
    name = values.setdefault("optimizer", "sgd")
    if name not in _WORDS["optimizer"]:
        raise ValueError(f"optimizer: unknown {name!r}; known: {', '.join(_WORDS['optimizer'])}")
    for missing in HAS_NOT[name]:
        values.pop(missing, None)
    if not values.get("momentum"):
        values.pop("nesterov", None)
    beside = {"optimizer", "learning_rate", "schedule", "warmup_steps", "epochs", "num_steps"}
    numbers: Any = {each: value for each, value in values.items() if each not in beside}
    peak = values.setdefault("learning_rate", 0.001)
    plain = OptimizerConfig(peak, name=name, **numbers)
    plain.checked_batch_size(num_samples)
    if "epochs" in values and "num_steps" in values:
        raise ValueError("epochs: give either num_steps or epochs of a setting, not both")
    if "epochs" in values:
        if not (is_number(values["epochs"]) and 0 < values["epochs"] < math.inf):
            raise ValueError(f"epochs: must be positive, got {values['epochs']}")
        steps = _steps(math.ceil(values["epochs"] * plain.steps_per_epoch(num_samples)))
    else:
        steps = _steps(values.get("num_steps", num_steps))
    schedule = values.setdefault("schedule", "constant")
    rate = named_schedule(schedule, peak, steps, values.get("warmup_steps", 0))
    return SweptSetting(
        dataclasses.replace(plain, learning_rate=rate), steps, _ordered(values, plain, steps)
    )


def _steps(num_steps: int | None) -> int:
    if num_steps is None:
        raise ValueError("num_steps: not given; give it, or epochs, to the sweep or in its space")
    check_num_steps(num_steps)
    return num_steps


def _own_values(optimizer: OptimizerConfig, steps: int) -> dict[str, Any]:
    rates = optimizer.learning_rates(steps)
    is_constant = bool((rates == rates[0]).all())
    values = {
        "optimizer": optimizer.name if optimizer.transformation is None else "transformation",
        "learning_rate": float(rates.max()),
        "schedule": "constant" if is_constant else "of its own",
    }
    return _ordered(values, optimizer, steps)


def _ordered(values: dict[str, Any], optimizer: OptimizerConfig, steps: int) -> dict[str, Any]:
    """What a setting is made of, in the order of `NAMES`."""
    for name in ("momentum", "weight_decay", "nesterov", "clip_norm", "weight_ema", "betas", "eps"):
        if getattr(optimizer, name):
            values.setdefault(name, getattr(optimizer, name))
    values |= {"batch_size": optimizer.batch_size, "num_steps": steps}
    return {name: values[name] for name in NAMES if name in values}
