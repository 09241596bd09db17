"""Levels of loss and error that mean something for one run."""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Quantity = Literal["loss", "error"]
_SHARES = (0.5, 0.25, 0.1)  # of what a curve begins with


class Level(NamedTuple):
    """A level to wait for.

    Attributes:
        of: `loss` or `error`.
        value: the level; an error is a share of the samples.
        is_target: whether it was asked for.
    """

    of: Quantity
    value: float
    is_target: bool = False

    @property
    def words(self) -> str:
        """`loss 0.5` or `error 10 %`."""
        if self.of == "loss":
            return f"loss {self.value:.6g}"
        return f"error {100 * self.value:.6g} %"


def levels_of(
    loss: Float[np.ndarray, " s"],
    error: Float[np.ndarray, " s"],
    targets: tuple[Level, ...] = (),
) -> tuple[Level, ...]:
    """What was asked for, then a half, a quarter and a tenth of what loss and error begin with;
    where the loss does not halve, the middle of its fall too. Two digits each.
    """
    found = [*targets]
    curves: tuple[tuple[Quantity, np.ndarray], ...] = (("loss", loss), ("error", error))
    for name, curve in curves:
        start, least = float(curve[0]), float(np.where(np.isfinite(curve), curve, np.inf).min())
        if not (math.isfinite(start) and start > 0):
            continue
        values = [_rounded(share * start) for share in _SHARES]
        if start * (1 - 1e-3) > least >= values[0]:
            values.insert(0, _rounded((start + least) / 2))
        found += [
            Level(name, value)
            for value in dict.fromkeys(values)
            if value < start and not any(each.of == name and each.value == value for each in found)
        ]
    return tuple(found)


def read_target(text: str) -> Level:
    """`loss=0.3` or `error=0.05` (`error=5%`) as a level.

    Raises:
        ValueError: it is neither.
    """
    name, _, number = text.partition("=")
    name, number = name.strip(), number.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        value = math.nan
    if name not in ("loss", "error") or not (math.isfinite(value) and value > 0):
        raise ValueError(f"target: give loss=0.3 or error=0.05, got {text!r}")
    if name == "error" and value >= 1:
        raise ValueError(f"target: an error is a share of the samples, below 1, got {text!r}")
    return Level(name, value, True)


def _rounded(value: float) -> float:
    """Two digits, which is as much as a reader keeps."""
    return float(f"{value:.2g}")
