"""Table 1: absolute error of ε-times in steps, gradient descent at a low and a high learning rate.

    python -m experiments.run tab1 --scale cpu

Takes about 6 minutes on one core. Expected at `cpu`: low rates are right to a few steps, high ones
are off by more than the paper's.

All data sets with the bundled network, some with larger ones. Rates are relative to the largest
stable one: the paper's 0.0001 and 0.005, a factor of 50 apart, become 0.01 and 0.3.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.common.claims import Claim, mean_error, trusted
from experiments.common.comparison import EPSILONS, METHODS, TINY_TASK, Setting, compare_all, on
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import number, pairs, step_errors
from experiments.common.tasks import REPORTING, TUNING, TaskConfig

CLAIM = (
    "GD, T = 150: ε-times are off by few steps, by more at a small ε and at a high learning rate"
)
PAPER = (
    "mean over data sets, low / high rate: ε = 1 %: 7.6 / 13.9 steps; 10 %: 6.1 / 7.3; 40 %: "
    "3.6 / 2.6"
)
PAPER_MEANS = {"low": (7.6, 6.1, 3.6), "high": (13.9, 7.3, 2.6)}
SLACK = 1.25


@dataclasses.dataclass(frozen=True)
class Config:
    tasks: tuple[tuple[TaskConfig, tuple[str, ...]], ...]
    """Each network with its data sets."""
    low: float = 0.01
    high: float = 0.3
    """η over the largest stable one."""
    num_steps: int = 150


SCALES: dict[Scale, Config] = {
    "tiny": Config(((TINY_TASK, ("digits",)),), num_steps=8),
    "cpu": Config(
        (
            (TaskConfig("resnet18", per_class=10), ("cub200",)),
            (TaskConfig("resnet20", per_class=10), REPORTING),
            (TaskConfig("resnet8", per_class=20), TUNING + REPORTING),
        )
    ),
    "gpu": Config(((TaskConfig("resnet18", per_class=150, image_size=224), TUNING + REPORTING),)),
}


def settings(config: Config) -> list[Setting]:
    return [
        Setting(on(data, task), rate, num_steps=config.num_steps)
        for task, names in config.tasks
        for data in names
        for rate in (config.low, config.high)
    ]


def compute(config: Config) -> dict[str, Any]:
    records = compare_all(settings(config))
    rates = {"low": config.low, "high": config.high}
    errors = {
        method: {
            family: {
                label: [
                    _mean(
                        [each for each in records if each["rate"] == rate], method, family, epsilon
                    )
                    for epsilon in EPSILONS
                ]
                for label, rate in rates.items()
            }
            for family in ("epsilon_relative", "epsilon_absolute")
        }
        for method in METHODS
    }
    table = [
        {
            "data": each["task"]["data"],
            "network": each["task"]["network"],
            "rate": each["rate"],
            **{
                f"{epsilon:g}": _mean([each], "paper", "epsilon_absolute", epsilon)
                for epsilon in EPSILONS
            },
        }
        for each in records
    ]
    return {"runs": records, "mean_step_errors": errors, "table": table}


def claims(results: dict[str, Any]) -> list[Claim]:
    """The six means, of all runs and of those that are trusted."""
    rates = sorted({each["rate"] for each in results["runs"]})
    found = []
    for group, records in (("all", results["runs"]), ("trusted", trusted(results["runs"]))):
        for label, rate in zip(PAPER_MEANS, rates, strict=False):
            part = [each for each in records if each["rate"] == rate]
            found += [
                mean_error(
                    f"{label} rate, {group} runs: ε = {epsilon:.0%}, mean error in steps",
                    part,
                    "epsilon_absolute",
                    mean,
                    [f"{epsilon:g}"],
                    "steps",
                )
                for epsilon, mean in zip(EPSILONS, PAPER_MEANS[label], strict=True)
            ]
    return [each for each in found if each.count]


def _mean(records: list[dict[str, Any]], method: str, family: str, epsilon: float) -> float | None:
    errors = step_errors(pairs(records, method, family, [f"{epsilon:g}"]))
    return float(np.mean(errors)) if len(errors) else None


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: all six means (ε absolute, as in Algorithm 1) at most 1.25 times the paper's;
    partly: at least three; else not.
    """
    found = results["mean_step_errors"]["paper"]
    none = {label: [None] * len(EPSILONS) for label in PAPER_MEANS}
    ours = results["mean_step_errors"].get("ours", {}).get("epsilon_absolute", none)
    text = "; ".join(
        f"ε = {100 * epsilon:g} %: {number(found['epsilon_absolute']['low'][index], '.1f')} / "
        f"{number(found['epsilon_absolute']['high'][index], '.1f')} steps"
        f" (relative ε: {number(found['epsilon_relative']['low'][index], '.1f')} / "
        f"{number(found['epsilon_relative']['high'][index], '.1f')}; ours "
        f"{number(ours['low'][index], '.1f')} / {number(ours['high'][index], '.1f')})"
        for index, epsilon in enumerate(EPSILONS)
    )
    good = {
        label: sum(
            value is not None and value <= SLACK * paper
            for value, paper in zip(found["epsilon_absolute"][label], means, strict=True)
        )
        for label, means in PAPER_MEANS.items()
    }
    total = sum(good.values())
    word = "reproduced" if total == 6 else "partly" if total >= 3 else "not reproduced"
    return (
        text,
        f"{word}: {good['low']} of 3 means within {SLACK} times the paper's at the low rate, "
        f"{good['high']} of 3 at the high one",
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    figure, axes = subplots(1, 2, side=3.2, aspect=1.5)
    names = list(dict.fromkeys(_label(row) for row in results["table"]))
    for axis, rate in zip(axes[0], sorted({row["rate"] for row in results["table"]}), strict=False):
        rows = {_label(row): row for row in results["table"] if row["rate"] == rate}
        for index, (epsilon, colour) in enumerate(
            zip(EPSILONS, (PREDICTED, REAL, OTHER), strict=True)
        ):
            heights = [rows[name][f"{epsilon:g}"] or 0 for name in names]
            axis.bar(
                np.arange(len(names)) + 0.27 * (index - 1),
                heights,
                0.25,
                color=colour,
                label=f"ε = {100 * epsilon:g} %",
            )
        axis.set(
            title=f"learning rate {rate:g} of the largest stable one",
            ylabel="|predicted − real| [steps]",
        )
        axis.set_xticks(np.arange(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _label(row: dict[str, Any]) -> str:
    return row["data"] if row["network"] == "resnet8" else f"{row['data']}, {row['network']}"


EXPERIMENT = Experiment(
    name="tab1",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
