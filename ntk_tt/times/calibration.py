"""How wrong predicted times were on tuning tasks, as intervals for the next one.

For each method and observed share of the run `calibration.json` holds the distribution of
log(real/predicted) over threshold times, with times that were not reached as censored
(Kaplan–Meier), and the |log(real/predicted)| that 90 % of them keep within, the half-width of the
interval; `python -m tools.calibrate` makes it. Near the bound of stability real training is
slower than predicted, as its kernel soon is larger than that of any of our models and what goes
past the bound oscillates: how much slower, by the stability margin on the way, is fitted there too
(`Slowdown`).
"""

import functools
import importlib.resources
import json
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COVERAGE = 0.9
# Groups of runs by their stability margin, from this on: errors grow below. The three give narrower
# intervals than two did, with the same coverage of tuning runs left out; the upper limit was first
# set when a few of the reporting ones were there.
MARGINS = {"past": 0.0, "edge": 0.5, "stable": 1.5}
MIN_MARGIN = MARGINS[
    "edge"
    # further past the bound runs are chaotic, and the tuning ones too few to say that they are
    # slower still
]


class Slowdown(NamedTuple):
    """By how much real training is slower than a method predicts: (`margin` / its stability
    margin)^`power` below `margin`, 1 above.
    """

    margin: float
    power: float

    def factor(self, margin: float) -> float:
        return max(1.0, self.margin / max(margin, MIN_MARGIN)) ** self.power


class Interval(NamedTuple):
    """Distribution of real/predicted times.

    Attributes:
        low, high: factors on a predicted time that hold the real one in 90 % of cases.
        ratios, cumulative: log(real/predicted) and the share of times at or below it.
    """

    low: float
    high: float
    ratios: Float[np.ndarray, " q"]
    cumulative: Float[np.ndarray, " q"]

    def probability(self, factor: float) -> float:
        """That real/predicted is at most this."""
        return float(np.interp(math.log(max(factor, 1e-9)), self.ratios, self.cumulative, left=0.0))

    def reached_within(self, horizon: float | int, time: float | int | None) -> float:
        """The probability that what is predicted at `time` comes within `horizon` steps.

        At most one half where it is predicted later, so that no table says "not reached" beside a
        chance of more; 0 where it is predicted never (None).
        """
        if time is None:
            return 0.0
        if time <= 0:
            return 1.0
        chance = self.probability(horizon / time)
        return chance if time <= horizon else min(chance, 0.5)


def kaplan_meier(
    ratios: Float[np.ndarray, " n"], censored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of values some of which are known only to be larger: (values, share at or
    below), product-limit estimate.

    Args:
        ratios: (n,) values, or what they are known to exceed.
        censored: (n,) booleans, which are the latter.
    """
    order = np.lexsort((censored, ratios))
    ratios, events = np.asarray(ratios, float)[order], ~np.asarray(censored, bool)[order]
    at_risk = np.arange(len(ratios), 0, -1)
    survival = np.cumprod(np.where(events, 1 - 1 / at_risk, 1.0))
    return ratios[events], 1 - survival[events]


def group_of(margin: float) -> str:
    """The group of a stability margin; a prediction near the edge is wrong by more."""
    return max(
        (name for name, least in MARGINS.items() if margin >= least),
        key=MARGINS.__getitem__,
        default="past",
    )


def from_quantiles(ratios: list[float], cumulative: list[float], reach: float | None) -> Interval:
    """The interval e^∓reach and a distribution given at some points.

    Where too many of its values were censored to say (`reach` None) the interval is open above, and
    below as wide as any that were seen.
    """
    values = np.asarray(ratios, float)
    low = math.exp(-(float(np.abs(values).max()) if reach is None else reach))
    return Interval(
        low, math.inf if reach is None else 1 / low, values, np.asarray(cumulative, float)
    )


@functools.cache
def _table() -> dict:
    return json.loads(
        importlib.resources.files("ntk_tt.times").joinpath("calibration.json").read_text()
    )


def slowdown(method: str, margin: float) -> float:
    """The factor on the times that a method predicts for a run of this stability margin; 1 for a
    method without.

    Args:
        method: `curvature`, `one-shot` or another of the command line's.
        margin: `Verdict.stability_margin`.
    """
    fitted = _table()["slowdowns"].get(method)
    return 1.0 if fitted is None else Slowdown(**fitted).factor(margin)


def slowed(
    steps: np.ndarray, curve: Float[np.ndarray, " s"], factor: float, start: int = 0
) -> Float[np.ndarray, " s"]:
    """A curve whose time after step `start` runs slower by a factor.

    Args:
        steps, curve: (S,) of a prediction.
        factor: at least 1, as `slowdown` gives it.
        start: the last real step that the prediction has seen.

    Returns:
        The curve (S,) at the same steps.
    """
    return np.interp(np.where(steps > start, start + (steps - start) / factor, steps), steps, curve)


def has_interval(method: str) -> bool:
    """Whether a method was calibrated."""
    return method in _table()["methods"]


def interval(method: str, observed: float = 0.0, margin: float | None = None) -> Interval:
    """The interval of a method.

    Args:
        method: that predicted.
        observed: share of the run that was seen; the largest calibrated one below it is taken.
        margin: stability margin of the run; None takes all runs together.

    Raises:
        ValueError: a method that was not calibrated.
    """
    table = _table()["methods"]
    if method not in table:
        raise ValueError(
            f"method: {method!r} has no calibrated intervals; there are {', '.join(table)}"
        )
    shares = sorted(table[method], key=float)
    groups = table[method][
        max(
            (share for share in shares if float(share) <= observed + 1e-9),
            key=float,
            default=shares[0],
        )
    ]
    chosen = groups.get("all" if margin is None else group_of(margin), groups["all"])
    return from_quantiles(chosen["ratios"], chosen["cumulative"], chosen["reach"])


FEW = 0.05  # one in twenty: no group of runs that chances come from has more than a few dozen


def chance_words(share: int | float) -> str:
    """A chance in words; what lies nearer to certainty than the few runs behind it can tell is not
    said.
    """
    if share < FEW:
        return f"under {FEW:.0%}"
    return f"over {1 - FEW:.0%}" if share > 1 - FEW else f"{share:.0%}"
