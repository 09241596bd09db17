"""Every way to tell a run's threshold times, and how wrong each was.

From the curves that `experiments.studies.accuracy` keeps.
"""

import itertools
from typing import Any

import numpy as np

from ntk_tt.times.calibration import Slowdown, slowed
from ntk_tt.times.crossing import crossing_time, epsilon_time, smooth
from ntk_tt.times.loss_law import MIN_POINTS, fit_loss_law
from ntk_tt.times.online import Predictor

LOSS_SHARES, ERROR_LEVELS, EPSILONS = (0.5, 0.25, 0.1), (0.2, 0.1, 0.05), (0.01, 0.1, 0.4)
CURVES = ("replay", "head", "curvature", "one-shot")
# methods whose margin on the way says how much slower real training is
SLOWED = ("head", "curvature", "one-shot")
UNSLOWED = " as it is"  # of a method's name: without the slowdown
OBSERVED = (0.1, 0.25)
METHODS = (
    "another run",
    *CURVES,
    *(name + UNSLOWED for name in SLOWED),
    *(f"closed loop {share:.0%}" for share in OBSERVED),
    "constant",
    "extrapolation, equal cost",
    *(f"extrapolation {share:.0%}" for share in OBSERVED),
)


def arrays(curve: dict[str, list]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(
        np.asarray([np.nan if value is None else value for value in curve[name]], float)
        for name in ("steps", "loss", "error")
    )  # pyright: ignore[reportReturnType]


def views(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The run once for each order of the data that was trained for real, as its `real` curve, with
    the next one as `another run`.

    A full-batch run has one order, and beside it a run of nearly the same learning rate.
    """
    real, other = run["curves"]["real"], run["other_reals"]
    pairs = (
        [(real, other[0])]
        if run["batch_size"] is None
        else list(zip([real, *other], [*other, real], strict=True))
    )
    return [
        run | {"curves": run["curves"] | {"real": one, "another run": another}}
        for one, another in pairs
    ]


def curve_of(run: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(steps, loss, error or None) of a view by a method; a method that sees real steps gives those
    as they were.
    """
    raw = method.removesuffix(UNSLOWED)
    if raw in run["curves"]:
        steps, loss, error = arrays(run["curves"][raw])
        if raw == method and method in run["slowdowns"]:
            loss, error = (
                slowed(
                    steps,
                    each,
                    run["slowdowns"][method],
                    run["real_steps_first"] if method == "one-shot" else 0,
                )
                for each in (loss, error)
            )
        return steps, loss, error
    steps, loss, _ = arrays(run["curves"]["real"])
    kind, _, share = method.rpartition(" ")
    if method == "extrapolation, equal cost":
        last = run["seconds"]["curvature"] / run["train_seconds"] * run["num_steps"]
    else:
        last = float(share.rstrip("%")) / 100 * run["num_steps"]
    seen = steps <= max(last, steps[MIN_POINTS - 1])
    if kind == "closed loop":
        predicted = curve_of(run, "curvature")
        if not np.isfinite(predicted[1]).all() or not np.isfinite(loss[seen]).all():
            return steps, np.full(len(steps), np.nan), None
        predictor = Predictor(predicted[0], predicted[1], horizon=run["num_steps"])
        for step, value in zip(steps[seen], loss[seen], strict=True):
            predictor.observe(int(step), float(value))
        forecast = predictor.forecast()
        return forecast.steps, forecast.loss, None
    if not np.isfinite(loss[seen]).all():
        return steps, np.full(len(steps), np.nan), None
    law = fit_loss_law(steps[seen], np.maximum(loss[seen], 1e-9))
    return steps, np.where(seen, loss, law(steps)), None


def threshold_times(run: dict[str, Any], method: str) -> dict[str, float | None]:
    """Steps of a view to shares of the initial loss and to levels of the error (those that have an
    error curve); None is not within 2 T.
    """
    steps, loss, error = curve_of(run, method)
    start = run["curves"]["real"]["loss"][0]
    smoothed = smooth(loss, 3)
    times = {
        f"loss {share:.0%}": crossing_time(steps, smoothed, share * start) for share in LOSS_SHARES
    }
    if error is not None:
        smoothed = smooth(error, 3)
        times |= {
            f"error {level:.0%}": crossing_time(steps, smoothed, level) for level in ERROR_LEVELS
        }
    return times


def pairs(
    run: dict[str, Any], method: str, *, constants: dict[str, float] | None = None
) -> list[tuple[float, float]]:
    """(real, predicted) of each threshold time that either has within T, in each order of the data;
    what is not reached within 2 T counts as that.
    """
    late, found = 2.0 * run["num_steps"], []
    for view in views(run):
        real = threshold_times(view, "real")
        predicted = (
            dict.fromkeys(real) | (constants or {})
            if method == "constant"
            else threshold_times(view, method)
        )
        for name, time in predicted.items():
            if name in real:
                pair = [
                    late if each is None else min(late, max(1.0, each))
                    for each in (real[name], time)
                ]
                if min(pair) <= run["num_steps"]:
                    found.append(tuple(pair))
    return found


def errors(
    run: dict[str, Any], method: str, constants: dict[str, float] | None = None
) -> list[float]:
    """max(predicted/real, real/predicted) − 1 of each threshold time."""
    return [max(a / b, b / a) - 1 for a, b in pairs(run, method, constants=constants)]


def best_constants(runs: list[dict[str, Any]]) -> dict[str, float]:
    """For each threshold the time that is nearest to all of them, as their median [steps]."""
    times: dict[str, list[float]] = {}
    for run in runs:
        for view in views(run):
            for name, time in threshold_times(view, "real").items():
                times.setdefault(name, []).append(2.0 * run["num_steps"] if time is None else time)
    return {name: float(np.median(values)) for name, values in times.items()}


def epsilon_errors(run: dict[str, Any], method: str) -> list[float]:
    """|predicted − real| of the relative ε-times over T."""
    found = []
    for view in views(run):
        curves = []
        for name in ("real", method):
            steps, loss, _ = curve_of(view, name)
            within = steps <= run["num_steps"]
            curves.append((steps[within].astype(int), smooth(loss[within], 3)))
        times = [
            [epsilon_time(steps, loss, epsilon, relative=True) for steps, loss in curves]
            for epsilon in EPSILONS
        ]
        found += [
            abs(a - b) / run["num_steps"] for a, b in times if a is not None and b is not None
        ]
    return found


def slowdown_of(runs: list[dict[str, Any]], method: str) -> Slowdown:
    """The mildest slowdown whose mean |log(predicted/real)| is within 2 % of the least there is:
    many do nearly as well. |log| beyond 1.5 counts as that.
    """
    times = [
        (run["margins"][method], np.log(pairs(run | {"slowdowns": {}}, method)).reshape(-1, 2))
        for run in runs
    ]
    scores = {}
    for each in itertools.starmap(
        Slowdown,
        itertools.product(
            (0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0),
            (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
        ),
    ):
        wrong = np.concatenate(
            [logs[:, 1] + np.log(each.factor(margin)) - logs[:, 0] for margin, logs in times]
        )
        scores[each] = float(np.minimum(np.abs(wrong), 1.5).mean())
    return min(
        (each for each, score in scores.items() if score <= 1.02 * min(scores.values())),
        key=lambda each: each.factor(0.0),
    )


def slowdowns(runs: list[dict[str, Any]]) -> dict[str, Slowdown]:
    """Of each method that is more right with one on data sets that it was not fitted to."""
    found, data = {}, sorted({run["data"] for run in runs})
    for method in SLOWED:
        before = after = 0.0
        for left_out in data if len(data) > 1 else ():
            others, own = (
                [run for run in runs if (run["data"] == left_out) == kept] for kept in (False, True)
            )
            fitted = slowdown_of(others, method)
            for run in own:
                as_it_is, moved = (
                    errors(run | {"slowdowns": factors}, method)
                    for factors in ({}, {method: fitted.factor(run["margins"][method])})
                )
                before, after = (
                    before + sum(np.minimum(np.log1p(as_it_is), 1.5)),
                    after + sum(np.minimum(np.log1p(moved), 1.5)),
                )
        if after < before:
            found[method] = slowdown_of(runs, method)
    return found


def table(runs: list[dict[str, Any]], constants: dict[str, float]) -> dict[str, dict[str, float]]:
    """For each method: median and 95th percentile of the error, share within 20 % and 2×, of runs
    too, skill, ε-times, cost.
    """
    found, scores = {}, {}
    for method in METHODS:
        by_run = [errors(run, method, constants) for run in runs]
        pooled = np.asarray([error for each in by_run for error in each])
        if not len(pooled):
            continue
        medians = np.asarray([np.median(each) for each in by_run if each])
        scores[method] = float(np.mean(np.log1p(pooled)))
        epsilon = (
            []
            if method == "constant"
            else [error for run in runs for error in epsilon_errors(run, method)]
        )
        found[method] = {
            "times": len(pooled),
            "runs": len(medians),
            "median": float(np.median(pooled)),
            "p95": float(np.percentile(pooled, 95)),
            "within_20": float(np.mean(pooled <= 0.2)),
            "within_2x": float(np.mean(pooled <= 1.0)),
            "runs_within_20": float(np.mean(medians <= 0.2)),
            "runs_within_2x": float(np.mean(medians <= 1.0)),
            "epsilon_error": float(np.mean(epsilon)) if epsilon else None,
            "further_gd_ratio": float(
                np.median([run["gd_seconds"] / run["further_seconds"][method] for run in runs])
            )
            if method in runs[0]["further_seconds"]
            else None,
            "gd_ratio": float(
                np.median([run["gd_seconds"] / run["seconds"][method] for run in runs])
            )
            if method in CURVES
            else None,
        }
    for method, row in found.items():
        for against in ("constant", "extrapolation, equal cost"):
            row[f"skill over {against}"] = (
                1 - scores[method] / scores[against] if scores.get(against) else None
            )
    return found


def evaluate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of tuning and of reporting data, constants and slowdowns from the tuning data
    (from all runs, where there are no others).
    """
    for run in runs:
        run["slowdowns"] = {}
    fitted_to = [run for run in runs if run["role"] == "tuning"] or runs
    constants, slow = best_constants(fitted_to), slowdowns(fitted_to)
    for run in runs:
        run["slowdowns"] = {
            method: each.factor(run["margins"][method]) for method, each in slow.items()
        }
    roles = {role: [run for run in runs if run["role"] == role] for role in ("tuning", "reporting")}
    return {
        "constants": constants,
        "slowdowns": {method: each._asdict() for method, each in slow.items()},
        "tables": {role: table(chosen, constants) for role, chosen in roles.items() if chosen},
    }


def markdown(tables: dict[str, dict[str, dict[str, float]]], role: str) -> str:
    """A table for the README."""
    lines = [
        "| method | median error | 95th percentile | within 20 % | within 2× | runs within 20 % | "
        "runs within 2× | skill over constant | over extrapolation | 150 GD steps cost | with the "
        "features there |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in tables[role].items():
        slower = tables[role][method.removesuffix(UNSLOWED)]
        if slower is not row and slower["p95"] == row["p95"]:
            continue  # the method has no slowdown
        skills = (
            row[f"skill over {against}"] for against in ("constant", "extrapolation, equal cost")
        )
        cells = [
            method,
            *(
                f"{row[name]:.0%}"
                for name in (
                    "median",
                    "p95",
                    "within_20",
                    "within_2x",
                    "runs_within_20",
                    "runs_within_2x",
                )
            ),
            *("" if skill is None else f"{skill:.2f}" for skill in skills),
            *(
                f"{row[name]:.0f}×" if row[name] else ""
                for name in ("gd_ratio", "further_gd_ratio")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
