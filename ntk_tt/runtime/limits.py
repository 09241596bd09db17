"""What is a number, and numbers beyond which no answer would come, or none that fits anywhere: they
are refused before any work.
"""

import math
import operator
from typing import Any

import numpy as np

MAX_IMAGE_SIZE = 4096  # an image of that is 200 MB to a network
MAX_CLASSES = MAX_PER_CLASS = 10**6  # images of a class
MAX_PROJECTIONS = 2**31 - 1
MAX_SEED = 2**31 - 1


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raises ValueError, with the flag's name and the limit, for a number outside of least …
    most.
    """
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name}: must be at most {most}, got {value}")


def is_positive(value: Any) -> bool:
    """Whether it is a positive, finite number."""
    return is_number(value) and math.isfinite(value) and bool(value > 0)


def is_zero(value: Any) -> bool:
    """Whether it is the number 0."""
    return is_number(value) and bool(value == 0)


def is_fraction(value: Any) -> bool:
    """Whether it is a number in [0, 1)."""
    return is_number(value) and bool(0 <= value < 1)


def is_number(value: Any) -> bool:
    """Whether it is one real number, of any library."""
    return (
        not isinstance(value, str | bytes | bool | complex)
        and np.ndim(value) == 0
        and hasattr(value, "__float__")
    )


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of any library."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_)
