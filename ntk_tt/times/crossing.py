"""Training time: from a loss or error curve to numbers of steps, "not reached" (None) being an
answer.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

DEFAULT_THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.5)
PLATEAU_DROP = 0.01

Steps = Int[np.ndarray, " s"]
Curve = Float[np.ndarray, " s"]
Time = int | None


def smooth(curve: Curve, window: int) -> Curve:
    """Centred running mean over `window` records; the window shrinks symmetrically towards the
    ends, which stay put.

    Each value is the mean of the records in its window and of no others: what is not finite, or
    immense, stays where it is.
    """
    if window < 1:
        raise ValueError(f"smoothing: the window must be at least 1 record, got {window}")
    curve = np.asarray(curve, np.float64)
    if window == 1 or len(curve) == 0:
        return curve
    position = np.arange(len(curve))
    reach = np.minimum(window // 2, np.minimum(position, len(curve) - 1 - position))
    length, start = 2 * reach + 1, position - reach
    # Sums over 1, 2, 4, … records make up those of any length; differences of running sums would
    # carry all that came before.
    total, sums, span = np.zeros(len(curve)), curve, 1
    while span <= length.max():
        taken = (length & span) != 0
        total[taken] += sums[start[taken]]
        start = start + span * taken
        if len(sums) > span:
            sums = sums[:-span] + sums[span:]
        span *= 2
    return total / length


def epsilon_time(steps: Steps, curve: Curve, epsilon: float, *, relative: bool) -> Time:
    """min{t : |L_t − L_T| < ε} (Algorithm 1), or with ε·(L₀ − L_T) in place of ε, which is
    scale-free.

    None where the curve is not finite, or (relative) where it has not fallen between 0 and T.
    Reached at T at the latest otherwise, so a curve that has not converged gives times close to T
    at small ε: read it beside `threshold_time`.
    """
    _check_fraction("epsilon", epsilon)
    final = curve[-1]
    width = epsilon * (curve[0] - final) if relative else epsilon
    if not np.isfinite(curve).all() or width <= 0:
        return None
    return _first(steps, np.abs(curve - final) < width)


def threshold_time(steps: Steps, curve: Curve, threshold: float) -> Time:
    """The first t with L_t < ℓ*; None where that is not reached within T."""
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold: must be positive and finite, got {threshold}")
    return _first(steps, curve < threshold)


def crossing_time(steps: Steps | Curve, curve: Curve, threshold: float) -> float | None:
    """As `threshold_time`, between records by a straight line: for curves that are recorded every
    few steps.

    Returns:
        Steps, perhaps a fraction; None where the curve does not get below the threshold.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold: must be positive and finite, got {threshold}")
    below = np.asarray(curve) < threshold
    if not below.any():
        return None
    index = int(np.argmax(below))
    if index == 0:
        return float(steps[0])
    before, after = curve[index - 1], curve[index]
    if not np.isfinite(before):
        return float(steps[index])
    return float(
        steps[index - 1]
        + (steps[index] - steps[index - 1]) * (before - threshold) / (before - after)
    )


def late_slope(steps: Steps | Curve, curve: Curve, *, share: float = 0.25) -> float:
    """d log(curve)/dt over its last quarter, or another share, at most 0 [1/step]: how a curve goes
    on after its end; 0 where one record cannot say.
    """
    if len(steps) < 2:
        return 0.0
    back = min(max(1, int(share * len(steps))), len(steps) - 1)
    if not steps[-1] > steps[-1 - back]:
        return 0.0
    last, before = (math.log(max(float(value), 1e-12)) for value in (curve[-1], curve[-1 - back]))
    return min(0.0, (last - before) / float(steps[-1] - steps[-1 - back]))


def continued_time(
    steps: Steps | Curve, curve: Curve, threshold: float, *, in_stairs: bool = False
) -> float | None:
    """`crossing_time`, and past the curve's end that of an exponential with its late slope; None
    where that does not fall.

    Args:
        in_stairs: the curve counts samples, as errors do, and may rest for long between two of its
            stairs. Where it does not fall over its last quarter, the last half tells.
    """
    time = crossing_time(steps, curve, threshold)
    if time is not None or len(curve) == 0 or not np.isfinite(curve).all():
        return time
    shares = (0.25, 0.5) if in_stairs else (0.25,)
    slope = next((slope for s in shares if (slope := late_slope(steps, curve, share=s)) < 0), 0.0)
    return None if slope == 0 else float(steps[-1] + math.log(threshold / float(curve[-1])) / slope)


def plateau_time(steps: Steps, error: Curve, *, drop: float = PLATEAU_DROP, window: int) -> Time:
    """The first t ≥ `window` at which the error fell by less than `drop` over the last `window`
    steps (reply to reviewers).

    Args:
        window: steps of one epoch.
    """
    if window < 1:
        raise ValueError(f"window: must be at least 1 step, got {window}")
    earlier = np.interp(steps - window, steps, error)
    return _first(steps, (steps >= window) & (earlier - error < drop))


def training_times(
    steps: Steps,
    loss: Curve,
    error: Curve,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    loss_thresholds: Sequence[float] = (),
    smoothing: int = 1,
    plateau_window: int = 10,
) -> dict:
    """All definitions at once.

    Args:
        steps, loss, error: the curve, one entry a record.
        thresholds: in (0, 1): ε of the ε-times, and levels of loss and error.
        loss_thresholds: further levels of the loss, any positive number.
        smoothing: records in the running mean; use the same for the two curves you compare.
        plateau_window: steps over which the plateau is judged.

    Returns:
        `{"epsilon_relative": {"0.01": steps or None, …}, "epsilon_absolute": {…}, "loss_below":
        {…}, "error_below": {…}, "plateau": steps or None}`; the ε-times are those of the loss. A
        key is a threshold as short as it can be read back exactly (`level_name`).

    Raises:
        ValueError: a threshold outside its range, or curves of different lengths.
    """
    if not len(steps) == len(loss) == len(error):
        raise ValueError(
            f"curves: steps, loss and error must have one length, got {len(steps)}, {len(loss)}, "
            f"{len(error)}"
        )
    check_thresholds(thresholds, loss_thresholds)
    loss, error = smooth(loss, smoothing), smooth(error, smoothing)
    return {
        "epsilon_relative": {
            level_name(e): epsilon_time(steps, loss, e, relative=True) for e in thresholds
        },
        "epsilon_absolute": {
            level_name(e): epsilon_time(steps, loss, e, relative=False) for e in thresholds
        },
        "loss_below": {
            level_name(level): threshold_time(steps, loss, level)
            for level in sorted({*thresholds, *loss_thresholds})
        },
        "error_below": {
            level_name(level): threshold_time(steps, error, level) for level in thresholds
        },
        "plateau": plateau_time(steps, error, window=plateau_window),
    }


def check_thresholds(thresholds: Sequence[float], loss_thresholds: Sequence[float] = ()) -> None:
    """Raises ValueError for a threshold outside (0, 1), or a loss threshold that is not positive
    and finite.
    """
    if not thresholds and not loss_thresholds:
        raise ValueError("thresholds: give at least one")
    for value in thresholds:
        _check_fraction("thresholds", value)
    for value in loss_thresholds:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"loss_thresholds: must be positive and finite, got {value}")


def combine_times(times: Sequence[dict], fraction: float) -> dict:
    """A quantile over several runs (seeds) of each time in dicts from `training_times`.

    "Not reached" counts as later than every number, so the quantile is None where too few runs
    reach the target. 0.5 is the median; of an even number of runs the mean of the two in the
    middle, None where the later one did not reach it. Other fractions lie between their neighbours
    alike.
    """
    combined = {}
    for name, first in times[0].items():
        each = [run[name] for run in times]
        combined[name] = (
            combine_times(each, fraction) if isinstance(first, dict) else _quantile(each, fraction)
        )
    return combined


def level_name(value: float) -> str:
    """A threshold as text: six digits where they are the number, else all that it has, so that two
    thresholds never share a name.
    """
    short = f"{value:g}"
    return short if float(short) == float(value) else repr(float(value))


def _quantile(times: Sequence[Time], fraction: float) -> int | float | None:
    """Linear between neighbours; a whole number where it is one."""
    ordered = sorted(times, key=lambda time: math.inf if time is None else time)
    position = fraction * (len(ordered) - 1)
    below = min(len(ordered) - 1, math.floor(position))
    low, weight = ordered[below], position - below
    if low is None or weight == 0:
        return low
    high = ordered[below + 1]
    if high is None:
        return None
    value = low + weight * (high - low)
    return int(value) if value == int(value) else value


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"{name}: must lie strictly between 0 and 1, got {value} (a loss level of 1 or more "
            "goes to loss_thresholds)"
        )


def _first(steps: Steps, condition: np.ndarray) -> Time:
    return int(steps[int(np.argmax(condition))]) if condition.any() else None
