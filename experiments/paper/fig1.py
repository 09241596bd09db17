"""Figure 1: predicted against real ε-time over many tasks, gradient descent and SGD.

    python -m experiments.run fig1 --scale cpu

Takes about two hours on one core. Expected at `cpu`: with ours relative ε-times of GD are within
13 % nearly always and those of SGD within 20 % nearly as often; times to a fixed loss are within
20 % more often than with the paper's method, times to a fixed error are not.

Each point is a task (random classes of a data set, number of images, learning rate, batch size) and
an ε of 1, 10 or 40 %. Half of the learning rates are the paper's own, half are shares of the
largest stable one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.claims import Claim, reported, trusted, within
from experiments.common.comparison import METHODS, TINY_TASK, Setting, compare_all, on
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import describe, over_estimated, pairs, percent
from experiments.common.tasks import REPORTING, TUNING, TaskConfig

CLAIM = (
    "ε-times (ε = 1…40 %, T = 150) are within 13 % of the real ones for GD and within 20 % "
    "for SGD, 95 % of the time"
)
PAPER = "GD: 95 % within 13 %; SGD: 95 % within 20 %"
LIMITS = {"gd": 0.13, "sgd": 0.20, "mse": 0.13}
FAMILIES = ("epsilon_relative", "epsilon_absolute", "loss_below", "error_below")
RATES = (0.01, 0.03, 0.1, 0.3)
"""η over the largest stable one: real training crosses its own bound soon above 0.3, since the
kernel grows.
"""
PAPER_RATES = (1e-4, 5e-4, 1e-3, 5e-3)
"""The paper's own, whatever is stable; half of the settings have one of them."""
NO_DIGITS = tuple(name for name in TUNING + REPORTING if name != "digits")


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random settings of one network: `gd` + `sgd` runs on each data set with cross-entropy, and
    `mse` full-batch ones with the squared error.
    """

    network: str
    data: tuple[str, ...]
    gd: int
    sgd: int
    mse: int = 0
    tasks: int = 1
    """Draws of classes and images that they take turns on."""
    per_class: tuple[int, ...] = (10, 20, 40)
    batch_sizes: tuple[int, ...] = (16, 32)
    num_steps: int = 150
    record_every: int = 3
    seed: int = 0
    """Of what is drawn."""


@dataclasses.dataclass(frozen=True)
class Config:
    draws: tuple[Draw, ...]
    classes: int = 5
    image_size: int | None = None
    seed: int = 0


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        (
            Draw(
                "resnet8",
                ("digits",),
                1,
                1,
                per_class=(TINY_TASK.per_class,),
                batch_sizes=(6,),
                num_steps=8,
                record_every=1,
            ),
        ),
        classes=TINY_TASK.classes,
    ),
    "cpu": Config(
        (
            Draw("resnet18", NO_DIGITS, gd=0, sgd=2, per_class=(20,), batch_sizes=(16,)),
            Draw("resnet8", TUNING + REPORTING, gd=2, sgd=3, mse=2, tasks=2, seed=3),
        )
    ),
    "gpu": Config(
        (
            Draw(
                "resnet18",
                TUNING + REPORTING,
                gd=10,
                sgd=10,
                tasks=2,
                per_class=(50, 100, 150),
                batch_sizes=(16, 32, 64),
                record_every=1,
            ),
        ),
        image_size=224,
    ),
}


def settings(config: Config) -> list[Setting]:
    """The random settings, each task's together: classes, images, learning rate and batch size come
    from the seed.
    """
    found = []
    for draw in config.draws:
        for data in draw.data:
            rng = np.random.default_rng([config.seed, draw.seed, *map(ord, draw.network + data)])
            tasks = [
                on(
                    data,
                    TaskConfig(
                        draw.network,
                        data,
                        config.classes,
                        int(rng.choice(draw.per_class)),
                        seed,
                        config.image_size,
                    ),
                )
                for seed in range(draw.tasks)
            ]
            kinds = ["gd"] * draw.gd + ["sgd"] * draw.sgd + ["mse"] * draw.mse
            drawn = [
                _drawn(rng, draw, kind, tasks[index % draw.tasks], index)
                for index, kind in enumerate(kinds)
            ]
            found += sorted(drawn, key=lambda setting: (setting.task.seed, setting.loss))
    return found


def _drawn(rng: np.random.Generator, draw: Draw, kind: str, task: TaskConfig, seed: int) -> Setting:
    rate, own = float(rng.choice(RATES)), float(rng.choice(PAPER_RATES))
    batch_size, is_own = int(rng.choice(draw.batch_sizes)), bool(rng.integers(2))
    return Setting(
        task,
        rate,
        batch_size=batch_size if kind == "sgd" else None,
        num_steps=draw.num_steps,
        record_every=draw.record_every if kind == "sgd" else 1,
        seed=seed,
        loss="mse" if kind == "mse" else "ce",
        learning_rate=own if is_own else None,
    )


def compute(config: Config) -> dict[str, Any]:
    records = compare_all(settings(config))
    return {"runs": records, "summary": {method: summary(records, method) for method in METHODS}}


def split(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Gradient descent and SGD apart, and gradient descent with the squared error."""
    kinds = {"gd": (True, "ce"), "sgd": (False, "ce"), "mse": (True, "mse")}
    return {
        kind: [
            each for each in records if (each["batch_size"] is None, each.get("loss", "ce")) == of
        ]
        for kind, of in kinds.items()
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """Relative ε-times as the paper has them, and times to a fixed loss or error, over all runs and
    over those that were trusted and are of data that nothing was chosen on.
    """
    found = []
    groups = {
        "all runs": list,
        "trusted": trusted,
        "trusted, reporting data": lambda records: reported(trusted(records)),
    }
    names = {"gd": "GD", "sgd": "SGD", "mse": "GD, squared error"}
    for group, chosen in groups.items():
        for kind, part in split(chosen(results["runs"])).items():
            limit = LIMITS[kind]
            found += [
                within(
                    f"{names[kind]}, {group}: relative ε-times within {limit:.0%}",
                    part,
                    "epsilon_relative",
                    limit,
                    0.95,
                ),
                *(
                    within(f"{names[kind]}, {group}: {what} within 20%", part, family, 0.2, 0.8)
                    for family, what in (
                        ("loss_below", "times to a fixed loss"),
                        ("error_below", "times to a fixed error"),
                    )
                ),
            ]
    return [each for each in found if each.count]


def summary(records: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    return {
        kind: {family: describe(pairs(part, method, family)) for family in FAMILIES}
        for kind, part in split(records).items()
    }


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """By the shares of relative ε-times of all runs with cross-entropy. Reproduced: 95 % within the
    paper's limit for both GD and SGD, by its own method; partly: for one, or half of all within it
    and r above 0.9; else not.
    """
    summary = results["summary"]
    paper = {kind: summary["paper"][kind]["epsilon_relative"] for kind in ("gd", "sgd")}
    parts = []
    for kind, found in paper.items():
        limit = f"within_{100 * LIMITS[kind]:.0f}"
        shares = {
            method: summary[method][kind]["epsilon_relative"][limit]
            for method in ("paper", "replay", "ours", "another_run")
        }
        parts.append(
            f"{kind.upper()}: relative ε-times within {percent(LIMITS[kind])}: "
            f"{_by_method(shares)}; 95 % of the paper's within {percent(found['error_at_95'])}, "
            f"r = {found['pearson'] or 0:.2f}"
        )
    for network, part in by_network(results["runs"]).items():
        shares = {
            method: describe(pairs(part, method, "loss_below"))["within_20"]
            for method in ("paper", "ours", "another_run")
        }
        parts.append(f"{network}, {len(part)} runs: loss thresholds: {_by_method(shares)}")
    share = {
        kind: found[f"within_{100 * LIMITS[kind]:.0f}"] or 0.0 for kind, found in paper.items()
    }
    passed = [share[kind] >= 0.95 for kind in paper]
    early = all(share[kind] >= 0.5 and (paper[kind]["pearson"] or 0) > 0.9 for kind in paper)
    word = "reproduced" if all(passed) else "partly" if any(passed) or early else "not reproduced"
    return f"{len(results['runs'])} runs. " + "; ".join(parts), f"{word}: {_cause(results)}"


def _by_method(shares: dict[str, float | None]) -> str:
    return ", ".join(
        f"{percent(share)} ({method.replace('_', ' ')})" for method, share in shares.items()
    )


def _cause(results: dict[str, Any]) -> str:
    late = {
        method: over_estimated(
            [
                pair
                for family in ("loss_below", "error_below")
                for pair in pairs(results["runs"], method, family)
            ]
        )
        for method in ("replay", "ours")
    }
    return (
        f"with a frozen kernel times to a fixed loss or error are over-estimated in "
        f"{percent(late['replay'])} of the cases, the mark of a kernel that grows in real training "
        f"(see causes); with ours in {percent(late['ours'])}"
    )


def by_network(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of each network."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in records:
        found.setdefault(each["task"]["network"], []).append(each)
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """The paper's method and ours, gradient descent and SGD, ε-times and times to a loss."""
    from experiments.common.figures import scatter, subplots

    figure, axes = subplots(2, 4, side=3.2)
    parts = split(results["runs"])
    panels = [(kind, method) for kind in ("gd", "sgd") for method in ("paper", "ours")]
    for row, family in zip(axes, ("epsilon_relative", "loss_below"), strict=True):
        for axis, (kind, method) in zip(row, panels, strict=True):
            label = {
                "epsilon_relative": "to within ε of the fall",
                "loss_below": "to a share of the initial loss",
            }[family]
            title = f"{kind.upper()}, {method}: time {label}"
            scatter(axis, parts[kind], family, LIMITS[kind], title=title, method=method)
    figure.savefig(path, dpi=130)


EXPERIMENT = Experiment(
    name="fig1",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
