"""Figure 5: seconds to predict and to train.

    python -m experiments.run fig5 --scale cpu        # two minutes on one core after fig1 and tab1, whose runs it shares; else 15

Both sides in processor time on the same machine, compilation kept apart; training without the evaluation of its curve.
Expected at `cpu`: training with the full batch costs tens of predictions, with small batches only a few.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments import fig1, tab1
from experiments.comparison import TINY_TASK, Setting, compare
from experiments.statistics import number
from experiments.tasks import TaskConfig

CLAIM = "predicting is 30 to 45 times cheaper than the T = 150 steps of training it replaces, on a GPU and on a CPU"
PAPER = "30–45× (training on a GPU)"
RATIO = 30
FURTHER = 10
"""Settings priced with the same features, in the second ratio."""


@dataclasses.dataclass(frozen=True)
class Config:
    fig1: fig1.Config
    tab1: tab1.Config
    networks: tuple[str, ...] = ("resnet20", "resnet18")
    """Of fig1's runs."""


SCALES = {
    "tiny": Config(fig1.SCALES["tiny"], tab1.SCALES["tiny"], networks=()),
    "cpu": Config(fig1.SCALES["cpu"], dataclasses.replace(tab1.SCALES["cpu"], data=("cifar10",))),
    "gpu": Config(fig1.SCALES["gpu"], tab1.SCALES["gpu"], networks=("resnet18",)),
}


def settings(config: Config) -> list[Setting]:
    """Of each network one run with the full batch and one with small ones; the smallest network also on more images."""
    found: dict[tuple, Setting] = {}
    for setting in [*tab1.settings(config.tab1)[-1:], *(each for each in fig1.settings(config.fig1) if each.task.network in config.networks)]:
        found.setdefault((setting.task.network, setting.batch_size is None), setting)
    small = next(iter(found.values()))
    batch = 6 if small.task.per_class == TINY_TASK.per_class else 32
    found.setdefault((small.task.network, False), dataclasses.replace(small, batch_size=batch, record_every=3))
    return list(found.values())


def compute(config: Config) -> dict[str, Any]:
    records = [compare(setting) for setting in settings(config)]
    rows = []
    for record in records:
        cost, task = record["cost"], TaskConfig(**record["task"])
        once = cost["features_processor_seconds"] + cost["predict_processor_seconds"]
        rows.append({"network": task.network, "num_samples": record["num_samples"], "batch_size": record["batch_size"], "num_steps": record["num_steps"], **cost,
                     "ratio": cost["train_processor_seconds"] / once,
                     "ratio_further": FURTHER * cost["train_processor_seconds"] / (cost["features_processor_seconds"] + FURTHER * cost["predict_processor_seconds"])})
    return {"runs": records, "rows": rows}


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: every full-batch ratio at least 30 and every other as well; partly: some ratio at least 30, or a ratio over ten settings; else not."""
    text = "; ".join(f"{row['network']}, {row['num_samples']} images, {'full batch' if row['batch_size'] is None else 'B = ' + str(row['batch_size'])}: "
                     f"{number(row['features_processor_seconds'] + row['predict_processor_seconds'], '.1f')} s against {number(row['train_processor_seconds'], '.1f')} s, "
                     f"ratio {number(row['ratio'], '.1f')} ({number(row['ratio_further'], '.0f')} for {FURTHER} settings)" for row in results["rows"])
    good = [row["ratio"] >= RATIO for row in results["rows"]]
    further = [row["ratio_further"] >= RATIO for row in results["rows"]]
    word = "reproduced" if all(good) else "partly" if any(good) or any(further) else "not reproduced"
    return text, (f"{word}: {sum(good)} of {len(good)} ratios reach {RATIO} for one setting, {sum(further)} for {FURTHER} settings with the same features; "
                  "small batches train cheaply, so less is saved")


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.figures import OTHER, PREDICTED, REAL, subplots

    figure, axes = subplots(1, 1, side=3.4, aspect=2)
    axis, rows = axes[0, 0], results["rows"]
    position = np.arange(len(rows))
    bars = (("features_processor_seconds", "features", PREDICTED), ("predict_processor_seconds", "replay", OTHER), ("train_processor_seconds", "training", REAL))
    for index, (name, label, colour) in enumerate(bars):
        axis.bar(position + 0.27 * (index - 1), [row[name] for row in rows], 0.25, color=colour, label=label)
    axis.set_xticks(position, [f"{row['network']}, N = {row['num_samples']}\n{'GD' if row['batch_size'] is None else 'SGD, B = ' + str(row['batch_size'])}" for row in rows], fontsize=8)
    axis.set(yscale="log", ylabel="processor seconds")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
