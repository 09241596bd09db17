"""Figure 5: seconds to predict and to train.

    python -m experiments.run fig5 --scale cpu

Takes seconds, from the results of fig1 and tab1. Expected at `cpu`: training with the full batch
costs tens of predictions, with small batches only a few.

Both sides in wall time of one process on the same core, compilation kept apart; training without
the evaluation of its curve. The core was shared with other work, so read ratios.
"""

import dataclasses
from typing import Any

import numpy as np

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
FURTHER = 10
"""Settings priced with the same features, in the second ratio."""


@dataclasses.dataclass(frozen=True)
class Config:
    scale: Scale
    experiments: tuple[str, ...] = ("tab1", "fig1")
    """Whose runs are taken: of each network the first with the full batch and the first with small
    ones.
    """


SCALES: dict[Scale, Config] = {"tiny": Config("tiny"), "cpu": Config("cpu"), "gpu": Config("gpu")}


def compute(config: Config) -> dict[str, Any]:
    chosen: dict[tuple, dict[str, Any]] = {}
    sources = (SOURCES[name] for name in config.experiments)
    for record in (each for source in sources for each in source.runs(config.scale)):
        chosen.setdefault((record["task"]["network"], record["batch_size"] is None), record)
    rows = []
    for record in chosen.values():
        cost = record["cost"]
        rows.append(
            {
                "network": record["task"]["network"],
                "num_samples": record["num_samples"],
                "batch_size": record["batch_size"],
                "num_steps": record["num_steps"],
                **cost,
                "ratio": cost["train_seconds"]
                / (cost["features_seconds"] + cost["predict_seconds"]),
                "ratio_further": FURTHER
                * cost["train_seconds"]
                / (cost["features_seconds"] + FURTHER * cost["predict_seconds"]),
            }
        )
    return {"runs": list(chosen.values()), "rows": rows}


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: every full-batch ratio at least 30 and every other as well; partly: some ratio at
    least 30, or a ratio over ten settings; else not.
    """
    text = "; ".join(
        f"{row['network']}, {row['num_samples']} images, "
        f"{'full batch' if row['batch_size'] is None else 'B = ' + str(row['batch_size'])}: "
        f"{number(row['features_seconds'] + row['predict_seconds'], '.1f')} s against "
        f"{number(row['train_seconds'], '.1f')} s, "
        f"ratio {number(row['ratio'], '.1f')} ({number(row['ratio_further'], '.0f')} for {FURTHER} "
        "settings)"
        for row in results["rows"]
    )
    good = [row["ratio"] >= RATIO for row in results["rows"]]
    further = [row["ratio_further"] >= RATIO for row in results["rows"]]
    word = (
        "reproduced" if all(good) else "partly" if any(good) or any(further) else "not reproduced"
    )
    return text, (
        f"{word}: {sum(good)} of {len(good)} ratios reach {RATIO} for one setting, {sum(further)} "
        f"for {FURTHER} settings with the same features; "
        "small batches train cheaply, so less is saved"
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    figure, axes = subplots(1, 1, side=3.4, aspect=2)
    axis, rows = axes[0, 0], results["rows"]
    position = np.arange(len(rows))
    bars = (
        ("features_seconds", "features", PREDICTED),
        ("predict_seconds", "replay", OTHER),
        ("train_seconds", "training", REAL),
    )
    for index, (name, label, colour) in enumerate(bars):
        axis.bar(
            position + 0.27 * (index - 1),
            [row[name] for row in rows],
            0.25,
            color=colour,
            label=label,
        )
    axis.set_xticks(
        position,
        [
            f"{row['network']}, N = "
            f"{row['num_samples']}\n"
            + ("GD" if row["batch_size"] is None else f"SGD, B = {row['batch_size']}")
            for row in rows
        ],
        fontsize=8,
    )
    axis.set(yscale="log", ylabel="seconds")
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
)
