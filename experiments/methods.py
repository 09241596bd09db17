"""Every way to tell a run's threshold times, from the curves that `experiments.accuracy` keeps; and how wrong each was."""

from typing import Any

import numpy as np

import ntk_tt
from ntk_tt.closed_loop import Predictor
from ntk_tt.extrapolation import MIN_POINTS, fit_power_law
from ntk_tt.one_shot import affordable_steps
from ntk_tt.training_time import crossing_time, epsilon_time, smooth

LOSS_SHARES, ERROR_LEVELS, EPSILONS = (0.5, 0.25, 0.1), (0.2, 0.1, 0.05), (0.01, 0.1, 0.4)
CURVES = ("replay", "head", "curvature", "one-shot")
OBSERVED = (0.1, 0.25)
METHODS = (*CURVES, *(f"closed loop {share:.0%}" for share in OBSERVED), "constant", "extrapolation, equal cost", *(f"extrapolation {share:.0%}" for share in OBSERVED))


def first_steps(num_samples: int, optimizer: ntk_tt.OptimizerConfig, num_steps: int, num_classes: int) -> int:
    """k of the one-shot form: what its default takes for a run of T steps."""
    return min(max(1, num_steps // 4), affordable_steps(num_samples, optimizer.checked_batch_size(num_samples), 2 * (num_classes - 1)))


def arrays(curve: dict[str, list]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.asarray([np.nan if value is None else value for value in curve[name]], float) for name in ("steps", "loss", "error"))  # pyright: ignore[reportReturnType]


def curve_of(run: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(steps, loss, error or None) by a method; a method that sees real steps gives those as they were."""
    if method in run["curves"]:
        return arrays(run["curves"][method])
    steps, loss, _ = arrays(run["curves"]["real"])
    kind, _, share = method.rpartition(" ")
    if method == "extrapolation, equal cost":
        last = run["seconds"]["curvature"] / run["train_seconds"] * run["num_steps"]
    else:
        last = float(share.rstrip("%")) / 100 * run["num_steps"]
    seen = steps <= max(last, steps[MIN_POINTS - 1])
    long = np.concatenate([steps, steps[-1] + steps[1:]])
    if kind == "closed loop":
        predicted = arrays(run["curves"]["curvature"])
        if not np.isfinite(predicted[1]).all() or not np.isfinite(loss[seen]).all():
            return long, np.full(len(long), np.nan), None
        predictor = Predictor(predicted[0], predicted[1], horizon=run["num_steps"])
        for step, value in zip(steps[seen], loss[seen], strict=True):
            predictor.observe(int(step), float(value))
        forecast = predictor.forecast()
        return forecast.steps, forecast.loss, None
    if not np.isfinite(loss[seen]).all():
        return long, np.full(len(long), np.nan), None
    law = fit_power_law(steps[seen], np.maximum(loss[seen], 1e-9))
    return long, np.where(long <= steps[seen][-1], np.interp(long, steps, loss), law(long)), None


def threshold_times(run: dict[str, Any], method: str) -> dict[str, float | None]:
    """Steps to shares of the initial loss and to levels of the error (those that have an error curve); None within the curve is never."""
    steps, loss, error = curve_of(run, method)
    start = run["curves"]["real"]["loss"][0]
    smoothed = smooth(loss, 3)
    times = {f"loss {share:.0%}": crossing_time(steps, smoothed, share * start) for share in LOSS_SHARES}
    if error is not None:
        smoothed = smooth(error, 3)
        times |= {f"error {level:.0%}": crossing_time(steps, smoothed, level) for level in ERROR_LEVELS}
    return times


def pairs(run: dict[str, Any], method: str, *, constants: dict[str, float] | None = None) -> dict[str, tuple[float, float]]:
    """(real, predicted) of each threshold time that either has within T; what is not reached, or later than that, counts as 2 T."""
    late, end = 2.0 * run["num_steps"], run["num_steps"]
    real = threshold_times(run, "real")
    predicted = dict.fromkeys(real) | (constants or {}) if method == "constant" else threshold_times(run, method)
    found = {}
    for name, time in predicted.items():
        if name not in real:
            continue
        true, time = real[name], late if time is None else min(late, time)
        if true is not None or time <= end:
            found[name] = max(1.0, late if true is None else true), max(1.0, time)
    return found


def errors(run: dict[str, Any], method: str, constants: dict[str, float] | None = None) -> dict[str, float]:
    """max(predicted/real, real/predicted) − 1 of each threshold time."""
    return {name: max(a / b, b / a) - 1 for name, (a, b) in pairs(run, method, constants=constants).items()}


def best_constants(runs: list[dict[str, Any]]) -> dict[str, float]:
    """For each threshold the time that is nearest to all of them, as the median of those reached within T [steps]."""
    times: dict[str, list[float]] = {}
    for run in runs:
        for name, time in threshold_times(run, "real").items():
            times.setdefault(name, []).append(2.0 * run["num_steps"] if time is None else time)
    return {name: float(np.median(values)) for name, values in times.items()}


def epsilon_errors(run: dict[str, Any], method: str) -> list[float]:
    """|predicted − real| of the relative ε-times over T."""
    curves = []
    for name in ("real", method):
        steps, loss, _ = curve_of(run, name)
        within = steps <= run["num_steps"]
        curves.append((steps[within].astype(int), smooth(loss[within], 3)))
    pairs = [[epsilon_time(steps, loss, epsilon, relative=True) for steps, loss in curves] for epsilon in EPSILONS]
    return [abs(a - b) / run["num_steps"] for a, b in pairs if a is not None and b is not None]


def table(runs: list[dict[str, Any]], constants: dict[str, float]) -> dict[str, dict[str, float]]:
    """For each method: median and 95th percentile of the error, share within 20 % and 2×, of runs too, skill, ε-times, cost."""
    found, scores = {}, {}
    for method in METHODS:
        by_run = [list(errors(run, method, constants).values()) for run in runs]
        pooled = np.asarray([error for each in by_run for error in each])
        if not len(pooled):
            continue
        medians = np.asarray([np.median(each) for each in by_run if each])
        scores[method] = float(np.mean(np.log1p(pooled)))
        epsilon = [] if method == "constant" else [error for run in runs for error in epsilon_errors(run, method)]
        found[method] = {
            "times": len(pooled), "runs": len(medians), "median": float(np.median(pooled)), "p95": float(np.percentile(pooled, 95)), "within_20": float(np.mean(pooled <= 0.2)),
            "within_2x": float(np.mean(pooled <= 1.0)), "runs_within_20": float(np.mean(medians <= 0.2)), "runs_within_2x": float(np.mean(medians <= 1.0)),
            "epsilon_error": float(np.mean(epsilon)) if epsilon else None,
            "gd_ratio": float(np.median([run["gd_seconds"] / run["seconds"][method] for run in runs])) if method in CURVES else None,
        }
    for method, row in found.items():
        for against in ("constant", "extrapolation, equal cost"):
            row[f"skill over {against}"] = 1 - scores[method] / scores[against] if scores.get(against) else None
    return found


def evaluate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of tuning and of reporting data, constants from the tuning data (from all runs, where there are no others)."""
    constants = best_constants([run for run in runs if run["role"] == "tuning"] or runs)
    roles = {role: [run for run in runs if run["role"] == role] for role in ("tuning", "reporting")}
    return {"constants": constants, "tables": {role: table(chosen, constants) for role, chosen in roles.items() if chosen}}


def markdown(tables: dict[str, dict[str, dict[str, float]]], role: str) -> str:
    """A table for the README."""
    lines = ["| method | median error | 95th percentile | within 20 % | within 2× | skill over constant | over extrapolation | 150 GD steps cost |", "|---|---|---|---|---|---|---|---|"]
    for method, row in tables[role].items():
        cost = f"{row['gd_ratio']:.0f}×" if row["gd_ratio"] else ""
        lines.append(f"| {method} | {row['median']:.0%} | {row['p95']:.0%} | {row['within_20']:.0%} | {row['within_2x']:.0%} | {row['skill over constant']:.2f} | "
                     f"{row['skill over extrapolation, equal cost']:.2f} | {cost} |")
    return "\n".join(lines)
