"""Figure 5: seconds to predict and to train.

    python -m experiments.run fig5 --scale cpu

Takes seconds, from the results of fig1 and tab1. Expected at `cpu`: training with the full batch
costs tens of predictions, with small batches only a few.

Processor seconds of one process, training without the evaluation of its curve, for 1, 10 and 100
settings a pass. The paper's prediction is features and replay. Ours is the whole command's work:
the pass, the replay of three orders of the data and the verdict. What compilation adds stands
apart: a first run pays it, later ones find the programs on disk.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.common.claims import Claim, counted
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import number
from experiments.paper import fig1, tab1

CLAIM = (
    "predicting is 30 to 45 times cheaper than the T = 150 steps of training it replaces, on "
    "a GPU and on a CPU"
)
PAPER = "30–45× (training on a GPU)"
RATIO = 30
SOURCES = {module.EXPERIMENT.name: module.EXPERIMENT for module in (tab1, fig1)}
SETTINGS = (1, 10, 100)
"""Settings priced with the same pass."""


@dataclasses.dataclass(frozen=True)
class Config:
    scale: Scale
    experiments: tuple[str, ...] = ("fig1", "tab1")
    """Whose runs are taken: of each network the first with the full batch and the first with small
    ones.
    """


SCALES: dict[Scale, Config] = {"tiny": Config("tiny"), "cpu": Config("cpu"), "gpu": Config("gpu")}


def compute(config: Config) -> dict[str, Any]:
    chosen: dict[tuple, dict[str, Any]] = {}
    sources = (SOURCES[name] for name in config.experiments)
    for record in (each for source in sources for each in source.runs(config.scale)):
        chosen.setdefault((record["task"]["network"], record["batch_size"] is None), record)
    return {"runs": list(chosen.values()), "rows": [row(each) for each in chosen.values()]}


def row(record: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a run and of its predictions, and training over them."""
    cost = record["cost"]
    names = {"paper": ("features", "predict"), "ours": ("ours_pass", "ours_predict")}
    once = {
        method: [cost[f"{name}_processor_seconds"] for name in parts]
        for method, parts in names.items()
        if f"{parts[0]}_processor_seconds" in cost
    }
    return {
        "network": record["task"]["network"],
        "num_samples": record["num_samples"],
        "batch_size": record["batch_size"],
        "num_steps": record["num_steps"],
        **cost,
        "ratios": {
            method: {
                str(count): count * cost["train_processor_seconds"] / (shared + count * each)
                for count in SETTINGS
            }
            for method, (shared, each) in once.items()
        },
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """On which share of networks and batch sizes training costs 30 times the prediction."""
    rows = results["rows"]
    return [
        counted(
            f"training costs at least {RATIO} times what predicting does, {count} setting"
            f"{'s' if count > 1 else ''} a pass{kind}",
            "cost",
            {
                method: [each["ratios"][method][str(count)] >= RATIO for each in part]
                for method in ("paper", "ours")
                if all(method in each["ratios"] for each in rows)
            },
        )
        for kind, part in (
            (", full batch", [each for each in rows if each["batch_size"] is None]),
            (", mini-batches", [each for each in rows if each["batch_size"] is not None]),
        )
        for count in SETTINGS
    ]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """By the paper's prediction. Reproduced: every ratio of one setting is at least 30; partly:
    some ratio is, of one setting or of ten; else not.
    """
    text = "; ".join(
        f"{each['network']}, {each['num_samples']} images, "
        f"{'full batch' if each['batch_size'] is None else 'B = ' + str(each['batch_size'])}: "
        f"training {number(each['train_processor_seconds'], '.1f')} s, ratio for "
        f"{' / '.join(map(str, SETTINGS))} settings {_ratios(each, 'paper')} (paper), "
        f"{_ratios(each, 'ours')} (ours)"
        for each in results["rows"]
    )
    good, further = (
        [each["ratios"]["paper"][str(count)] >= RATIO for each in results["rows"]]
        for count in SETTINGS[:2]
    )
    word = (
        "reproduced" if all(good) else "partly" if any(good) or any(further) else "not reproduced"
    )
    return text, (
        f"{word}: {sum(good)} of {len(good)} ratios reach {RATIO} for one setting, {sum(further)} "
        f"for {SETTINGS[1]} settings with the same features; "
        "small batches train cheaply, so less is saved"
    )


def _ratios(each: dict[str, Any], method: str) -> str:
    if method not in each["ratios"]:
        return "–"
    return " / ".join(number(ratio, ".0f") for ratio in each["ratios"][method].values())


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    figure, axes = subplots(1, 1, side=3.4, aspect=2)
    axis, rows = axes[0, 0], results["rows"]
    position = np.arange(len(rows))
    bars = (
        (("features_processor_seconds", "predict_processor_seconds"), "the paper's", OTHER),
        (("ours_pass_processor_seconds", "ours_predict_processor_seconds"), "ours", PREDICTED),
        (("train_processor_seconds",), "training", REAL),
    )
    for index, (names, label, colour) in enumerate(bars):
        axis.bar(
            position + 0.27 * (index - 1),
            [sum(row.get(name, 0.0) for name in names) for row in rows],
            0.25,
            color=colour,
            label=label,
        )
    axis.set_xticks(
        position,
        [
            f"{row['network']}, N = {row['num_samples']}\n"
            + ("GD" if row["batch_size"] is None else f"SGD, B = {row['batch_size']}")
            for row in rows
        ],
        fontsize=7,
    )
    axis.set(yscale="log", ylabel="processor seconds")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


EXPERIMENT = Experiment(
    name="fig5",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
