"""Ranges of numbers, and draws from them as Optuna's trials make them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_tt.runtime.limits import is_number


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers between two.

    Attributes:
        low, high: both in it.
        log: evenly in the logarithm.
        count: how many a grid takes; None is for random draws alone.
    """

    low: float
    high: float
    log: bool = False
    count: int | None = None

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if not all(is_number(end) and math.isfinite(end) for end in ends) or self.low > self.high:
            raise ValueError(f"range: its ends must be finite and rise, got {self._words}")
        if self.log and self.low <= 0:
            raise ValueError(f"range: a logarithmic one lies above 0, got {self._words}")
        if self.count is not None and self.count < (1 if self.low == self.high else 2):
            raise ValueError(f"range: takes both ends, so at least 2 numbers, got {self._words}")

    @property
    def _words(self) -> str:
        end = "" if self.count is None else f":{self.count}"
        return f"{self.low:g}:{self.high:g}{':log' if self.log else ''}{end}"

    def numbers(self) -> list[float]:
        """Those of a grid, in six digits.

        Raises:
            ValueError: it does not say how many.
        """
        if self.count is None:
            raise ValueError(
                f"range: {self._words} does not say how many numbers; write {self._words}:8, or "
                "draw settings at random"
            )
        make = np.geomspace if self.log else np.linspace
        return [float(f"{number:.6g}") for number in make(self.low, self.high, self.count)]

    def draw(self, rng: np.random.Generator) -> float:
        """One of them at random."""
        if not self.log:
            return float(rng.uniform(self.low, self.high))
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


def read_range(text: str) -> Range:
    """`LOW:HIGH:COUNT`, `LOW:HIGH:log:COUNT`, or without COUNT for draws.

    Raises:
        ValueError: it is none, with what is wrong.
    """
    parts = [part.strip() for part in text.split(":")]
    is_log = len(parts) > 2 and parts[2] == "log"
    numbers = [*parts[:2], *parts[2 + is_log :]]
    try:
        if len(numbers) not in (2, 3):
            raise ValueError
        low, high = float(numbers[0]), float(numbers[1])
        count = int(numbers[2]) if len(numbers) == 3 else None
    except ValueError:
        raise ValueError(
            f"range: {text!r} is none; write LOW:HIGH:COUNT or LOW:HIGH:log:COUNT, such as "
            "1e-4:1e-1:log:12"
        ) from None
    return Range(low, high, is_log, count)


class Draw:
    """What stands for Optuna's trial where a space is a function: it draws at random.

    `suggest_float`, `suggest_int` and `suggest_categorical` are as there; `params` has what was
    drawn.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng, self.params = rng, {}

    def suggest_float(
        self,
        name: str,
        low: float | int,
        high: float | int,
        *,
        step: float | int | None = None,
        log: bool = False,
    ) -> float:
        """A number between two, or one `step` apart from the lower."""
        value = Range(float(low), float(high), log).draw(self._rng)
        if step is not None:
            value = low + step * round((value - low) / step)
        return self._kept(name, float(value))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number between two."""
        if log:
            value = min(high, max(low, round(Range(low, high, True).draw(self._rng))))
        else:
            value = low + step * int(self._rng.integers((high - low) // step + 1))
        return self._kept(name, value)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some."""
        return self._kept(name, choices[int(self._rng.integers(len(choices)))])

    def _kept(self, name: str, value: Any) -> Any:
        self.params[name] = value
        return value
