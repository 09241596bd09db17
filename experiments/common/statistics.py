"""Numbers that summarise records of `experiments.common.comparison`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats

Time = int | None


def pairs(
    records: Iterable[dict[str, Any]], method: str, family: str, names: Sequence[str] | None = None
) -> list[tuple[Time, Time, int]]:
    """(predicted, real, T) of every time of a family that at least one side reaches.

    ε-times exist wherever the loss fell at all, so there a pair needs both.
    """
    found = []
    for record in records:
        real, predicted = record["times"]["real"][family], record["times"][method][family]
        for name in names or real:
            pair = predicted[name], real[name]
            if pair != (None, None) and not (family.startswith("epsilon") and None in pair):
                found.append((*pair, record["num_steps"]))
    return found


def relative_errors(found: Iterable[tuple[Time, Time, int]]) -> np.ndarray:
    """|predicted − real|/real, real at least one step; a time that is not reached within T counts
    as 2 T.
    """
    times = [[2 * steps if time is None else time for time in pair] for *pair, steps in found]
    return np.asarray([abs(predicted - real) / max(real, 1) for predicted, real in times], float)


def signed_errors(found: Iterable[tuple[Time, Time, int]]) -> np.ndarray:
    """(predicted − real)/T of the pairs that both sides reach: positive is over-estimated."""
    return np.asarray(
        [
            (predicted - real) / steps
            for predicted, real, steps in found
            if predicted is not None and real is not None
        ],
        float,
    )


def over_estimated(found: Sequence[tuple[Time, Time, int]]) -> float | None:
    """Share of pairs whose predicted time is later than the real one; "not reached" is later than
    every time.
    """
    later = [np.inf if real is None else real for _, real, _ in found]
    return (
        float(
            np.mean(
                [
                    (np.inf if pair[0] is None else pair[0]) > real
                    for pair, real in zip(found, later, strict=True)
                ]
            )
        )
        if later
        else None
    )


def step_errors(found: Iterable[tuple[Time, Time, int]]) -> np.ndarray:
    """|predicted − real| in steps, of the pairs that both sides reach."""
    return np.asarray(
        [
            abs(predicted - real)
            for predicted, real, _ in found
            if predicted is not None and real is not None
        ],
        float,
    )


def pearson(found: Iterable[tuple[Time, Time, int]]) -> float | None:
    """Correlation of predicted and real times, of the pairs that both sides reach; None without
    spread.
    """
    both = np.asarray([pair[:2] for pair in found if None not in pair], float)
    return float(np.corrcoef(both.T)[0, 1]) if len(both) > 2 and (both.std(0) > 0).all() else None


def describe(found: list[tuple[Time, Time, int]]) -> dict[str, Any]:
    """Count, mean and median relative error, share within 13 % and 20 %, the error that 95 % stay
    below, r.
    """
    errors = relative_errors(found)
    if not len(errors):
        return {
            "count": 0,
            "mean": None,
            "median": None,
            "within_13": None,
            "within_20": None,
            "error_at_95": None,
            "pearson": None,
        }
    return {
        "count": len(errors),
        "mean": float(errors.mean()),
        "median": float(np.median(errors)),
        "within_13": float((errors <= 0.13).mean()),
        "within_20": float((errors <= 0.20).mean()),
        "error_at_95": float(np.quantile(errors, 0.95)),
        "pearson": pearson(found),
    }


def confidence_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval by Student's t; the half-width is 0 for a single
    value.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(
        scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)
