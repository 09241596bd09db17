"""Figure 10: loss and error curves, and predicted against real times at every threshold.

    python -m experiments.run fig10 --scale cpu

Takes five minutes on one core. Expected at `cpu`: the predicted loss lies above the real one late
in training, ε-times suffer less from that than the times to a fixed loss, and those are
over-estimated.

Two data sets, as the paper's MIT-67 and CIFAR-10, with GD and SGD.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.claims import COMPARED, Claim, counted, mean_error
from experiments.common.comparison import TINY_TASK, Setting, compare, on
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import describe, over_estimated, pairs, percent, signed_errors
from experiments.common.tasks import TaskConfig

CLAIM = (
    "ε-times are accurate where loss curves are not; at small ε training time is slightly "
    "over-estimated"
)
PAPER = "curves of MIT-67 and CIFAR-10; over-estimation at small ε, none at large ε"
ACCURATE = 0.2


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    further: tuple[tuple[TaskConfig, tuple[str, ...]], ...] = ()
    """Other networks, each with its data sets."""
    rates: tuple[float, ...] = (0.1, 0.3)
    batch_size: int = 32
    num_steps: int = 150
    record_every: int = 3


SCALES: dict[Scale, Config] = {
    "tiny": Config(TINY_TASK, ("digits",), batch_size=6, num_steps=8, record_every=1, rates=(0.3,)),
    "cpu": Config(
        TaskConfig("resnet8", per_class=20),
        ("scene15", "cifar10"),
        ((TaskConfig("resnet20", per_class=10), ("scene15", "cifar10")),),
    ),
    "gpu": Config(
        TaskConfig("resnet18", per_class=150, image_size=224),
        ("scene15", "cifar10"),
        batch_size=64,
        record_every=1,
    ),
}


def settings(config: Config) -> list[Setting]:
    return [
        Setting(
            on(data, task),
            rate,
            batch_size=batch,
            num_steps=config.num_steps,
            record_every=1 if batch is None else config.record_every,
        )
        for task, names in ((config.task, config.data), *config.further)
        for data in names
        for batch in (None, config.batch_size)
        for rate in config.rates
    ]


def compute(config: Config) -> dict[str, Any]:
    records = [compare(setting) for setting in settings(config)]
    times = {}
    for family in ("epsilon_relative", "epsilon_absolute", "loss_below", "error_below"):
        for name in records[0]["times"]["real"][family]:
            signed = signed_errors(pairs(records, "paper", family, [name]))
            times[f"{family} {name}"] = {
                **describe(pairs(records, "paper", family, [name])),
                "over_estimated": over_estimated(pairs(records, "paper", family, [name])),
                "mean_signed_steps": float(signed.mean() * config.num_steps)
                if len(signed)
                else None,
            }
    distance = [
        abs(each["final_loss"]["paper"] - each["final_loss"]["real"]) / each["final_loss"]["real"]
        for each in records
        if each["final_loss"]["real"]
    ]
    return {
        "runs": records,
        "times": times,
        "final_loss_error": float(np.median(distance)) if distance else None,
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """ε-times are accurate on average; at a small ε they are over-estimated; the curves are not
    accurate: the final loss is off by more than the times.
    """
    records = results["runs"]
    found = [
        mean_error(
            f"mean error of relative ε-times, ε = {float(name):.0%}",
            records,
            "epsilon_relative",
            ACCURATE,
            [name],
        )
        for name in ("0.01", "0.1", "0.4")
    ]
    later: dict[str, Sequence[bool] | None] = {
        method: [
            (np.inf if predicted is None else predicted) > real
            for predicted, real, _ in pairs(records, method, "epsilon_relative", ["0.01"])
            if real is not None
        ]
        for method in COMPARED
        if method in records[0]["times"]
    }
    found.append(
        counted("relative ε-times, ε = 1%, are over-estimated", "epsilon_relative", later, 0.5)
    )
    found += [
        mean_error(f"mean error of times to a share of {name}", records, family, ACCURATE)
        for family, name in (
            ("loss_below", "the initial loss"),
            ("error_below", "wrongly classified samples"),
        )
    ]
    return [each for each in found if each.count]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: ε-times within 20 % on average, and over-estimated at ε = 1 % more often than
    not; partly: one of them; else not.
    """
    times = results["times"]
    means = [times[f"epsilon_relative {name}"]["mean"] for name in ("0.01", "0.1", "0.4")]
    small, large, loss = (
        times["epsilon_relative 0.01"],
        times["epsilon_relative 0.4"],
        times["loss_below 0.25"],
    )
    accurate = all(mean is not None and mean <= ACCURATE for mean in means)
    over = (small["over_estimated"] or 0) > 0.5
    text = (
        f"final loss off by {percent(results['final_loss_error'])} (median); mean error of "
        "relative ε-times "
        f"{' / '.join(percent(mean) for mean in means)} at ε = 1 / 10 / 40 %; over-estimated "
        f"{percent(small['over_estimated'])} at 1 %, "
        f"{percent(large['over_estimated'])} at 40 %; time to a quarter of the initial loss off by "
        f"{percent(loss['mean'])}, over-estimated {percent(loss['over_estimated'])}"
    )
    word = "reproduced" if accurate and over else "partly" if accurate or over else "not reproduced"
    return (
        text,
        f"{word}: ε-times are {'' if accurate else 'not '}within {percent(ACCURATE)} on average "
        f"and {'' if over else 'not '}mostly over-estimated at ε = 1 %",
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    shown = [
        each
        for each in results["runs"]
        if each["rate"] == max(run["rate"] for run in results["runs"])
    ]
    figure, axes = subplots(3, len(shown), side=2.7, aspect=1.25)
    colours = {"real": (REAL, "-"), "ours": (PREDICTED, "--"), "paper": (OTHER, ":")}
    for column, record in zip(axes.T, shown, strict=True):
        for name, (colour, style) in colours.items():
            curve = record["curves"][name]
            for axis, quantity in zip(column, ("loss", "error"), strict=False):
                axis.plot(
                    curve["steps"],
                    np.asarray(curve[quantity], float),
                    color=colour,
                    linestyle=style,
                    label=name,
                )
                axis.set(ylabel=f"training {quantity}", xlabel="step", ylim=(0, None))
        column[0].set_title(
            f"{record['task']['data']}, {'GD' if record['batch_size'] is None else 'SGD'}",
            fontsize=9,
        )
        names = [
            (family, name)
            for family in ("epsilon_relative", "loss_below", "error_below")
            for name in record["times"]["real"][family]
        ]
        for index, name in enumerate(colours):
            heights = [record["times"][name][family][level] or 0 for family, level in names]
            column[2].bar(
                np.arange(len(names)) + 0.27 * (index - 1), heights, 0.25, color=colours[name][0]
            )
        column[2].set_xticks(
            np.arange(len(names)),
            [
                {"epsilon_relative": "ε ", "loss_below": "L/L₀<", "error_below": "err<"}[family]
                + level
                for family, level in names
            ],
            rotation=70,
            fontsize=7,
        )
        column[2].set(ylabel="time [steps] (no bar: not reached)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


EXPERIMENT = Experiment(
    name="fig10",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
