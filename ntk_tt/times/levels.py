"""Levels of loss and error that mean something for one run."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from ntk_tt.times.crossing import check_thresholds

Quantity = Literal["loss", "error", "val-loss", "val-error"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
_SHARES = (0.5, 0.25, 0.1)  # of what a curve begins with


class Level(NamedTuple):
    """A level to wait for.

    Attributes:
        of: `loss` or `error` of the samples that are trained on, `val-loss` or `val-error` of
            others.
        value: the level; an error is a share of the samples.
        is_target: whether it was asked for.
    """

    of: Quantity
    value: float
    is_target: bool = False

    @property
    def words(self) -> str:
        """`loss 0.5`, `error 10 %` or `validation loss 0.5`."""
        whose = "validation " if self.is_validation else ""
        if self.is_loss:
            return f"{whose}loss {self.value:.6g}"
        return f"{whose}error {100 * self.value:.6g} %"

    @property
    def is_loss(self) -> bool:
        return self.of.endswith("loss")

    @property
    def is_validation(self) -> bool:
        return self.of.startswith("val-")


def levels_of(
    loss: Float[np.ndarray, " s"],
    error: Float[np.ndarray, " s"],
    targets: tuple[Level, ...] = (),
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Level, ...]:
    """What was asked for, then a half, a quarter and a tenth of what loss and error begin with;
    where the loss does not halve, the middle of its fall too. Two digits each. Of the loss and
    error of samples that are not trained on, the half, or the middle.
    """
    found = [*targets]
    for name, curve in zip(QUANTITIES, (loss, error, *(validation or ())), strict=False):
        start, least = float(curve[0]), float(np.where(np.isfinite(curve), curve, np.inf).min())
        if not (math.isfinite(start) and start > 0):
            continue
        shares = _SHARES[:1] if name.startswith("val-") else _SHARES
        values = [_rounded(share * start) for share in shares]
        if start * (1 - 1e-3) > least >= values[0]:
            values.insert(0, _rounded((start + least) / 2))
        found += [
            Level(name, value)
            for value in dict.fromkeys(values)
            if value < start and not any(each.of == name and each.value == value for each in found)
        ]
    return tuple(found)


def asked_level(level: Mapping[str, int | float]) -> Level:
    """Of `{"loss": 0.3}`, or another quantity's name with - or _.

    Raises:
        ValueError: it is not one quantity, or its value is none.
    """
    [(name, value)] = level.items() if len(level) == 1 else [("", 0)]
    if (of := _quantity(name)) is None:
        raise ValueError(
            f"level: give one of loss=…, error=…, val_loss=… or val_error=…, got {dict(level)}"
        )
    asked = Level(of, float(value), True)
    check_thresholds(*(((), (value,)) if asked.is_loss else ((value,),)))
    return asked


def _quantity(name: str) -> Quantity | None:
    """What a name stands for; None where it is none."""
    return next((each for each in QUANTITIES if each == name.replace("_", "-")), None)


def read_target(text: str) -> Level:
    """`loss=0.3` or `error=0.05` (`error=5%`) as a level; `val-loss=…` and `val-error=…` are of
    samples that are not trained on.

    Raises:
        ValueError: it is neither.
    """
    name, _, number = text.partition("=")
    name, number = name.strip(), number.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        value = math.nan
    of = _quantity(name)
    if of is None or not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"target: give loss=0.3, error=0.05, val-loss=… or val-error=…, got {text!r}"
        )
    if not (level := Level(of, value, True)).is_loss and value >= 1:
        raise ValueError(f"target: an error is a share of the samples, below 1, got {text!r}")
    return level


def _rounded(value: float) -> float:
    """Two digits, which is as much as a reader keeps."""
    return float(f"{value:.2g}")
