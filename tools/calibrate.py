"""Intervals, verdict and the closed loop's constants, and how they do on the reporting data.

    python -m tools.calibrate             # after python -m experiments.run accuracy --scale cpu
    python -m tools.calibrate --tune      # also tries the closed loop's constants, prints the best

Takes seconds; a minute with `--tune`. Expected: 90 % intervals that hold about nine in ten of the
reporting runs' times.

From the tuning runs of `experiments.studies.accuracy`. Writes ntk_tt/times/calibration.json (the
distribution of real/predicted times by method, share of the run that was seen, and whether the run
is stable with room) and experiments/results/accuracy/calibration.json: coverage of the 90 %
intervals, by tuning and reporting data, what predicts the error, and the errors by grade of the
verdict. Only tuning runs are fitted to.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy.stats
import tyro
from sklearn.isotonic import isotonic_regression

from experiments.common import methods
from experiments.common.experiment import result_path
from ntk_tt.prediction.verdict import Trust, judge
from ntk_tt.report.document import write_json
from ntk_tt.times import online as closed_loop
from ntk_tt.times.calibration import (
    COVERAGE,
    MARGINS,
    Interval,
    from_quantiles,
    group_of,
    kaplan_meier,
)

TABLE = Path(closed_loop.__file__).parent / "calibration.json"
SHARES = {"replay": (0.0,), "head": (0.0,), "curvature": (0.0, 0.1, 0.25), "one-shot": (0.0,)}
# times that make a group of their own, and points of a distribution that are kept
MIN_COUNT, MAX_POINTS = 15, 60
LEVELS = (0.9, 0.92, 0.94, 0.96, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class Arguments:
    tune: bool = False
    """Also try the constants of the closed loop."""


def margin_of(run: dict[str, Any], method: str) -> float | None:
    """The stability margin that a user of the method sees; None where the benchmark does not keep
    it, so that all runs are one group.
    """
    return run["margins"].get(method)


def ratios(run: dict[str, Any], method: str, share: float) -> list[tuple[float, bool]]:
    """(log real/predicted, whether the real one is only known to be larger) of the times later than
    what was seen, in each order of the data.
    """
    late, found = 2.0 * run["num_steps"], []
    for real, time in later_times(run, method, share):
        if real is not None or time is not None:
            found.append(
                (float(np.log(max(1.0, real or late) / max(1.0, time or late))), real is None)
            )
    return found


def later_times(
    run: dict[str, Any], method: str, share: float
) -> list[tuple[float | None, float | None]]:
    """(real, predicted) of the threshold times later than the share of the run that was seen; None
    is not within 2 T.
    """
    name, seen = f"closed loop {share:.0%}" if share else method, share * run["num_steps"]
    found = []
    for view in methods.views(run):
        real, predicted = methods.threshold_times(view, "real"), methods.threshold_times(view, name)
        found += [
            (real[level], time)
            for level, time in predicted.items()
            if all(each is None or each > seen for each in (real[level], time))
        ]
    return found


def distribution(pairs: list[tuple[float, bool]], level: float) -> dict[str, Any]:
    """What `ntk_tt.times.calibration` reads: log(real/predicted), and the half-width that a share
    of these keep within.
    """
    logs, censored = (
        np.asarray([value for value, _ in pairs]),
        np.asarray([censored for _, censored in pairs]),
    )
    values, share = kaplan_meier(logs, censored)
    kept = np.unique(
        np.linspace(0, len(values) - 1, min(MAX_POINTS, len(values))).round().astype(int)
    )
    widths, within = kaplan_meier(np.where(censored, np.maximum(logs, 0.0), np.abs(logs)), censored)
    reach = float(widths[np.argmax(within >= level)]) if within[-1] >= level else None
    return {
        "count": len(pairs),
        "censored": int(censored.sum()),
        "reach": None if reach is None else round(reach, 4),
        "ratios": np.round(values[kept], 4).tolist(),
        "cumulative": np.round(share[kept], 4).tolist(),
    }


# of each run, its margin and its `ratios`
Known = list[tuple[float | None, list[tuple[float, bool]]]]


def known(runs: list[dict[str, Any]], method: str, share: float) -> Known:
    return [(margin_of(run, method), ratios(run, method, share)) for run in runs]


def distributions(runs: Known, level: float) -> dict[str, Any]:
    """Of all runs, and of those of each group of margins that has enough times, some of them
    reached.
    """
    groups: dict[str, list[tuple[float, bool]]] = {"all": [], **{name: [] for name in MARGINS}}
    for margin, pairs in runs:
        groups["all"] += pairs
        if margin is not None:
            groups[group_of(margin)] += pairs
    return {
        name: distribution(pairs, level)
        for name, pairs in groups.items()
        if len(pairs) >= MIN_COUNT and not all(censored for _, censored in pairs)
    }


def level_of(runs: Known) -> float:
    """The least level with which intervals of the other runs cover a run's times as often as they
    should: the times of one run are wrong together.
    """
    for level in LEVELS:
        covered = []
        for left_out, (margin, pairs) in enumerate(runs):
            spread = spread_of(
                distributions([run for index, run in enumerate(runs) if index != left_out], level),
                margin,
            )
            covered += [holds(spread, value, censored) for value, censored in pairs]
        if np.mean(covered) >= COVERAGE:
            return level
    return LEVELS[-1]


def fit(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of `ntk_tt/calibration.json`.

    A group with too few times after a share of the run takes those of less of it. With more seen an
    interval does not widen: where the few runs would have it otherwise, neighbours take their mean
    (isotonic regression).
    """
    table: dict[str, Any] = {}
    for method, shares in SHARES.items():
        groups: dict[str, Any] = {}
        for share in shares:
            of_runs = known(runs, method, share)
            groups = {**groups, **distributions(of_runs, level_of(of_runs))}
            table.setdefault(method, {})[f"{share:g}"] = groups
        for name in groups:
            of_shares = [each for each in table[method].values() if name in each]
            reaches = [each[name]["reach"] for each in of_shares]
            if None not in reaches:
                for each, reach in zip(
                    of_shares, isotonic_regression(reaches, increasing=False), strict=True
                ):
                    each[name] = each[name] | {"reach": round(float(reach), 4)}
    return table


def holds(spread: Interval, value: float, censored: bool) -> bool:
    """Whether the interval holds the real time; one not reached where it goes beyond what is
    known.
    """
    return bool(np.exp(value) <= spread.high and (censored or np.exp(value) >= spread.low))


def spread_of(groups: dict[str, Any], margin: float | None) -> Interval:
    chosen = groups.get("all" if margin is None else group_of(margin), groups["all"])
    return from_quantiles(chosen["ratios"], chosen["cumulative"], chosen["reach"])


def coverage(runs: list[dict[str, Any]], table: dict[str, Any]) -> dict[str, Any]:
    """Share of times within the 90 % interval (those not reached within 2 T count as covered where
    it goes beyond that), and of "reached" against its probability.
    """
    found = {}
    for method, shares in SHARES.items():
        for share in shares:
            covered, chances, reached = [], [], []
            for run in runs:
                spread, end = (
                    spread_of(table[method][f"{share:g}"], margin_of(run, method)),
                    run["num_steps"],
                )
                covered += [
                    holds(spread, value, censored) for value, censored in ratios(run, method, share)
                ]
                for real, time in later_times(run, method, share):
                    chances.append(spread.probability(end / max(1.0, time or 2.0 * end)))
                    reached.append(real is not None and real <= end)
            found[f"{method}, {share:.0%} seen"] = {
                "times": len(covered),
                "covered": float(np.mean(covered)),
                "reached": float(np.mean(reached)),
                "mean_probability": float(np.mean(chances)),
                "brier": float(np.mean((np.asarray(chances) - reached) ** 2)),
                "brier_of_base_rate": float(np.mean(reached) * (1 - np.mean(reached))),
            }
    return found


def coverage_left_out(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Share of times within the interval that the runs of the other data sets give."""
    counted: dict[str, list[tuple[int, float]]] = {}
    for data in sorted({run["data"] for run in runs}):
        own, others = (
            [run for run in runs if (run["data"] == data) == kept] for kept in (True, False)
        )
        for name, each in coverage(own, fit(others)).items():
            counted.setdefault(name, []).append((each["times"], each["covered"]))
    return {
        name: sum(times * covered for times, covered in each) / sum(times for times, _ in each)
        for name, each in counted.items()
    }


def _rank_correlation(first: list, second: list) -> float:
    found: Any = scipy.stats.spearmanr(first, second)
    return float(found.statistic)


def what_predicts_the_error(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman correlation of each measure with a run's median error, by method."""
    measures = {
        "frozen margin": lambda run: run["margins"]["replay"],
        "margin on the way": lambda run: run["margins"]["curvature"],
        "kernel growth": lambda run: run["growth"],
        "linearisation residual": lambda run: run["residual"],
        "head against curvature": disagreement,
    }
    found: dict[str, dict[str, float]] = {}
    for method in methods.CURVES:
        pairs = [(run, np.median(each)) for run in runs if (each := methods.errors(run, method))]
        errors = [error for _, error in pairs]
        found[method] = {
            name: _rank_correlation([measure(run) for run, _ in pairs], errors)
            for name, measure in measures.items()
        }
    return found


def disagreement(run: dict[str, Any]) -> float:
    """Median |log| between the threshold times of `head` and `curvature`: free where both were
    made.
    """
    view = methods.views(run)[0]
    one, other = (methods.threshold_times(view, name) for name in ("head", "curvature"))
    late = 2.0 * run["num_steps"]
    return float(
        np.median(
            [abs(np.log(max(1, one[name] or late) / max(1, other[name] or late))) for name in one]
        )
    )


def by_grade(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Errors of the curvature and the one-shot method by the trust that the verdict gives them, and
    of another real run of the same settings.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in ("curvature", "one-shot"):
        for grade in get_args(Trust):
            chosen = [
                run
                for run in runs
                if judge(run["margins"][method], 0.0, follows_kernel=True).trust == grade
            ]
            if any(methods.errors(run, method) for run in chosen):
                found.setdefault(method, {})[grade] = {
                    "runs": len(chosen),
                    **{of: errors_of(chosen, of) for of in (method, "another run")},
                }
    return found


def errors_of(runs: list[dict[str, Any]], method: str) -> dict[str, float]:
    pooled = np.asarray([error for run in runs for error in methods.errors(run, method)])
    return {
        "times": len(pooled),
        "median": float(np.median(pooled)),
        "within_20": float(np.mean(pooled <= 0.2)),
        "within_2x": float(np.mean(pooled <= 1)),
    }


def tune(runs: list[dict[str, Any]]) -> list[tuple[float, dict[str, float]]]:
    """Mean log error of the closed loop for each choice of its constants, best first."""
    scores = []
    for spread, level, recent, distrust in itertools.product(
        (0.15, 0.3, 0.6), (0.05, 0.1, 0.3), (0.3, 0.5, 1.0), (0.03, 0.1, 0.3)
    ):
        (
            closed_loop.TIME_SPREAD,
            closed_loop.LEVEL_SPREAD,
            closed_loop.RECENT,
            closed_loop.DISTRUST,
        ) = spread, level, recent, distrust
        errors = [
            np.log1p(error)
            for run in runs
            for share in methods.OBSERVED
            for error in methods.errors(run, f"closed loop {share:.0%}")
        ]
        scores.append(
            (
                float(np.mean(errors)),
                {
                    "TIME_SPREAD": spread,
                    "LEVEL_SPREAD": level,
                    "RECENT": recent,
                    "DISTRUST": distrust,
                },
            )
        )
    return sorted(scores, key=lambda score: score[0])


def main(arguments: Arguments) -> None:
    path = result_path("accuracy", "cpu")
    document = json.loads(path.read_text())
    runs = document["results"]["runs"]
    tuning, reporting = (
        [run for run in runs if run["role"] == role] for role in ("tuning", "reporting")
    )
    if arguments.tune:
        for score, constants in tune(tuning)[:5]:
            print(f"{score:.4f}", constants)
        return
    table = fit(tuning)
    write_json(
        TABLE,
        {
            "made_by": "python -m tools.calibrate",
            "runs": len(tuning),
            "data": sorted({run["data"] for run in tuning}),
            "slowdowns": document["results"]["slowdowns"],
            "methods": table,
        },
    )
    report = {
        "coverage": {"tuning": coverage(tuning, table), "reporting": coverage(reporting, table)},
        "coverage of tuning data sets left out": coverage_left_out(tuning),
        "what predicts the error (Spearman)": {
            "tuning": what_predicts_the_error(tuning),
            "reporting": what_predicts_the_error(reporting),
        },
        "by trust": {"tuning": by_grade(tuning), "reporting": by_grade(reporting)},
        "environment": document["environment"],
    }
    write_json(path.parent / "calibration.json", report)
    print(
        json.dumps(
            {name: value for name, value in report.items() if name != "environment"}, indent=1
        )
    )
    print(methods.markdown(document["results"]["tables"], "reporting"))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
