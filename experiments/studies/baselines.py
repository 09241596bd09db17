"""Every accuracy of the other experiments beside guesses that need no kernel.

    python -m experiments.run baselines --scale cpu

Takes seconds, from the results of fig1, tab1, fig6, fig10 and reply. Expected at `cpu`: with ε
relative to the final loss a constant is hard to beat at small ε; threshold times are where the
kernel shows skill, 1 − error/error of the constant.

- constant: the one time (a share of T) with the least mean relative error on the tuning data, used
  on the reporting data;
- power law, stretched exponential: fitted to as many first real steps as cost what the prediction
  costs, and to the first tenth of the steps. With a small network and small batches the former can
  be most of the training (fig5).
- log(1/ε)/(η λ̄): a single rate, that at which the loss begins to fall.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.comparison import METHODS
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import describe, number, pairs, percent, relative_errors
from experiments.common.tasks import REPORTING, TUNING
from experiments.paper import fig1, fig6, fig10, reply, tab1

CLAIM = "predictions are better than black-box regressions (reply); nothing is said of a constant"
PAPER = "no numbers"
FAMILIES = ("epsilon_relative", "epsilon_absolute", "loss_below", "error_below", "plateau")
SOURCES = {module.EXPERIMENT.name: module.EXPERIMENT for module in (fig1, tab1, fig6, fig10, reply)}
BLACK_BOX = ("constant", "power_law_tenth", "exponential_tenth")
"""What the claim is about: a tenth of the steps is three times what the paper's prediction
costs.
"""
GRID = np.linspace(0, 2, 401)
"""Constants tried, as shares of T; 2 is "not reached"."""


@dataclasses.dataclass(frozen=True)
class Config:
    scale: Scale
    experiments: tuple[str, ...] = ("fig1", "tab1", "fig6", "fig10", "reply")
    """Whose runs are taken, those of one setting once."""
    tuning: tuple[str, ...] = TUNING


SCALES: dict[Scale, Config] = {
    "tiny": Config("tiny", ("tab1",), tuning=("digits",)),
    "cpu": Config("cpu"),
    "gpu": Config("gpu"),
}


def compute(config: Config) -> dict[str, Any]:
    sources = (SOURCES[name] for name in config.experiments)
    records = [
        each
        for each in unique(each for source in sources for each in source.runs(config.scale))
        if each.get("loss", "ce") == "ce"
    ]
    tuning, reporting = (
        [each for each in records if each["task"]["data"] in names]
        for names in (config.tuning, REPORTING)
    )
    rows = []
    for family in FAMILIES:
        for name in records[0]["times"]["real"][family]:
            for steps in sorted({each["num_steps"] for each in records}):
                rows += group_rows(
                    family,
                    name,
                    [each for each in tuning if each["num_steps"] == steps],
                    [each for each in reporting if each["num_steps"] == steps],
                    steps,
                )
    probes = [each["probe_steps"] / each["num_steps"] for each in reporting]
    return {
        "runs": [
            {
                name: each[name]
                for name in (
                    "task",
                    "rate",
                    "batch_size",
                    "num_steps",
                    "seed",
                    "probe_steps",
                    "times",
                )
            }
            for each in records
        ],
        "rows": rows,
        "tuning_runs": len(tuning),
        "reporting_runs": len(reporting),
        "median_probe_share": float(np.median(probes)) if probes else None,
    }


def unique(records: Any) -> list[dict[str, Any]]:
    """One record a setting."""
    keys = ("task", "learning_rate", "momentum", "batch_size", "num_steps", "seed", "loss")
    return list(
        {
            json.dumps([each.get(key, "ce") for key in keys], sort_keys=True): each
            for each in records
        }.values()
    )


def group_rows(
    family: str, name: str, tuning: Sequence[dict], reporting: Sequence[dict], steps: int
) -> list[dict[str, Any]]:
    """The error of every method on the reporting data, for one time of one length of training."""
    label = {"family": family, "name": name, "num_steps": steps}
    chosen = best_constant([pair[1] for pair in pairs(tuning, "replay", family, [name])], steps)
    found = pairs(reporting, "replay", family, [name])
    if chosen is None or not found:
        return []
    constant = describe([(chosen, real, steps) for _, real, _ in found])
    rows: list[dict[str, Any]] = [
        {**label, "method": "constant", "constant": chosen, **constant, "skill": 0.0}
    ]
    for method in METHODS:
        if method == "single_rate" and family in ("error_below", "plateau"):
            continue  # it says nothing of the error
        if any(method not in each["times"] for each in reporting):
            continue  # of results that are older
        each = describe(pairs(reporting, method, family, [name]))
        same = describe(
            [(chosen, real, steps) for _, real, _ in pairs(reporting, method, family, [name])]
        )
        skill = (
            1 - each["mean"] / same["mean"] if each["mean"] is not None and same["mean"] else None
        )
        rows.append({**label, "method": method, **each, "skill": skill})
    return rows


def best_constant(real: Sequence[int | None], steps: int) -> int | None:
    """The time in steps with the least mean relative error; None where there is nothing to choose
    it on.
    """
    if not real:
        return None
    candidates = np.unique(np.round(GRID * steps).astype(int))
    errors = [
        relative_errors([(int(candidate), time, steps) for time in real]).mean()
        for candidate in candidates
    ]
    return int(candidates[int(np.argmin(errors))])


def overall(results: dict[str, Any], family: str, method: str) -> float | None:
    """Mean error over a family, weighted by the number of times."""
    rows = [
        row
        for row in results["rows"]
        if row["family"] == family and row["method"] == method and row["mean"] is not None
    ]
    count = sum(row["count"] for row in rows)
    return sum(row["mean"] * row["count"] for row in rows) / count if count else None


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: replay beats `BLACK_BOX` on relative ε-times and on fractions of the initial
    loss; partly: the constant on one of them; else not.
    """
    parts, beats_constant, beats_all = [], [], []
    names = {
        "constant": "constant",
        "replay": "replay",
        "paper": "paper's",
        "power_law": "power law at equal cost",
        "exponential": "exponential at equal cost",
        "power_law_tenth": "power law after T/10",
        "exponential_tenth": "exponential after T/10",
        "single_rate": "single rate",
    }
    for family, label in (
        ("epsilon_relative", "relative ε-times"),
        ("loss_below", "fractions of the initial loss"),
        ("error_below", "error levels"),
    ):
        errors = {method: overall(results, family, method) for method in names}
        parts.append(
            f"{label}: "
            + ", ".join(
                f"{names[method]} {percent(error)}"
                for method, error in errors.items()
                if error is not None
            )
        )
        best = errors["replay"]
        if best is not None and family != "error_below":
            beats_constant.append(best < (errors["constant"] or 0))
            beats_all.append(
                all(
                    best < error
                    for method, error in errors.items()
                    if method in BLACK_BOX and error is not None
                )
            )
    skill = {
        family: 1 - (overall(results, family, "replay") or 0) / constant
        for family in ("epsilon_relative", "loss_below")
        if (constant := overall(results, family, "constant"))
    }
    word = (
        "reproduced"
        if beats_all and all(beats_all)
        else "partly"
        if any(beats_constant)
        else "not reproduced"
    )
    text = (
        f"mean relative errors on {results['reporting_runs']} runs of the reporting data "
        f"(constants from {results['tuning_runs']} of the tuning data): " + "; ".join(parts)
    )
    text += f"; equal cost is {percent(results['median_probe_share'])} of the steps (median)"
    return text, f"{word}: skill over the constant " + ", ".join(
        f"{number(value)} ({family.replace('_', ' ')})" for family, value in skill.items()
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import subplots

    figure, axes = subplots(1, 1, side=3.6, aspect=2.6)
    methods = ["constant", *METHODS]
    groups = list(
        dict.fromkeys((row["family"], row["name"], row["num_steps"]) for row in results["rows"])
    )
    for index, method in enumerate(methods):
        found = {
            (row["family"], row["name"], row["num_steps"]): row["mean"]
            for row in results["rows"]
            if row["method"] == method
        }
        axes[0, 0].bar(
            np.arange(len(groups)) + 0.1 * (index - 3.5),
            [100 * (found.get(group) or 0) for group in groups],
            0.095,
            label=METHODS.get(method, "constant from the tuning data"),
        )
    axes[0, 0].set_xticks(
        np.arange(len(groups)),
        [f"{family.replace('_', ' ')} {name} (T = {steps})" for family, name, steps in groups],
        rotation=60,
        ha="right",
        fontsize=7,
    )
    axes[0, 0].set(ylabel="mean relative error [%]", ylim=(0, 250))
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


EXPERIMENT = Experiment(
    name="baselines",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
)
