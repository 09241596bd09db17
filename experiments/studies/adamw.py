"""Does the small network carry AdamW too, and how many directions does that take?

    python -m experiments.run adamw --scale cpu

Takes forty minutes on two cores; needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. Expected: with the usual
directions most times of five and ten classes are within 20 %; with those of SGD, ten classes come
too late.

Real runs of AdamW (batches of 32, weight decay 0.01) beside predictions with the directions that
`auto` takes for such an optimiser, with those that it takes for SGD, and without the backbone's
curvature. Another real run, in another order of the data, says what no prediction can beat by much;
the constant is the median time that the other runs of as many classes took to the same level. Times
are those to shares of the first loss and error. What was chosen (half as many directions as
classes) was chosen on the tuning data.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntk_tt
from experiments.common.comparison import on
from experiments.common.experiment import FORMER_DIRECTIONS, Experiment, Scale
from experiments.common.tasks import (
    REPORTING,
    TUNING,
    RealRun,
    TaskConfig,
    cache_folder,
    load,
    real_run,
)
from ntk_tt.dynamics import own_way
from ntk_tt.report.document import write_json
from ntk_tt.surrogate.expansion import expand

LEVELS = (0.7, 0.5, 0.3, 0.2, 0.1)
"""Shares of the first loss, and of the first error, whose times are compared."""
FEW = 4
"""Directions that SGD is followed in."""
METHODS = ("usual directions", "directions of SGD", "linear backbone", "another run", "constant")


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...]
    classes: tuple[int, ...] = (5, 10)
    per_class: int = 24
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    batch_size: int = 32
    num_steps: int = 200
    record_every: int = 4
    seeds: int = 2
    """Orders of the data that a prediction averages."""
    network: str = "resnet8"
    seed: int = 1


FEW_CLASSES = {"houses_rooms": 4, "trashnet": 6}
SCALES: dict[Scale, Config] = {
    "tiny": Config(
        ("digits",), (3,), 6, (1e-3,), batch_size=6, num_steps=20, record_every=2, seeds=1
    ),
    "cpu": Config((*TUNING, *REPORTING)),
    "gpu": Config((*TUNING, *REPORTING), (5, 10, 20), 150, (3e-5, 1e-4, 3e-4), network="resnet18"),
}


def compute(config: Config) -> dict[str, Any]:
    runs = []
    for data in config.data:
        for classes in config.classes:
            if classes > FEW_CLASSES.get(data, classes) and classes != min(config.classes):
                continue
            task = on(
                data, TaskConfig(config.network, data, classes, config.per_class, config.seed)
            )
            runs += kept_runs(config, task)
            jax.clear_caches()  # programs of a task that is done would fill the memory's map
    return {"runs": runs, "tables": tables(runs)}


def kept_runs(config: Config, task: TaskConfig) -> list[dict[str, Any]]:
    """The records of one task, from the cache where they were made before."""
    of_task = f"{task.network}-{task.data}-{task.seed}-{task.classes}x{task.per_class}"
    rates = "-".join(map(str, config.learning_rates))
    path = cache_folder() / f"adamw-{of_task}-{rates}-{config.batch_size}-{config.num_steps}.json"
    if not path.exists():
        write_json(path, {"runs": runs_of(config, task)})
    return json.loads(path.read_text())["runs"]


def runs_of(config: Config, task: TaskConfig) -> list[dict[str, Any]]:
    """Curves of one task at each rate."""
    model, images, labels = load(task)
    records = []
    for rate in config.learning_rates:
        setting: dict[str, Any] = {
            "learning_rate": rate,
            "name": "adamw",
            "weight_decay": 0.01,
            "batch_size": config.batch_size,
        }
        optimizer = ntk_tt.OptimizerConfig(**setting)
        way = own_way(optimizer, config.num_steps)
        key = jax.random.key(task.seed + 1000)
        usual = expand(model, images, labels, way=way, key=key)
        few = usual  # the same where there are few classes
        if usual.directions.shape[1] > FEW:
            few = expand(model, images, labels, way=way, key=key, num_directions="few")
        problems = {
            "usual directions": usual,
            "directions of SGD": few,
            "linear backbone": dataclasses.replace(usual, bend=None),
        }
        margin, _ = ntk_tt.prediction.stability(usual, optimizer, config.num_steps)
        curves = {}
        for name, problem in problems.items():
            curves[name] = _curve(
                ntk_tt.prediction.predict(
                    problem,
                    optimizer,
                    2 * config.num_steps,
                    num_seeds=config.seeds,
                    key=jax.random.key(task.seed + 2000),
                    record_every=config.record_every,
                )
            )
        real, another = (
            real_run(
                task, setting, 2 * config.num_steps, seed=seed, record_every=config.record_every
            )
            for seed in (0, 1)
        )
        records.append(
            {
                **dataclasses.asdict(task),
                "role": "tuning" if task.data in TUNING else "reporting",
                **setting,
                "num_steps": config.num_steps,
                "num_directions": {
                    name: problem.directions.shape[1] for name, problem in problems.items()
                },
                "dropped": float(usual.dropped),
                "growth": float(usual.growth),
                "margin": margin,
                "curves": {"real": _curve(real), "another run": _curve(another), **curves},
            }
        )
        print(task.data, task.classes, rate, _words(times(records[-1])), flush=True)
    return records


def _curve(run: RealRun | Any) -> dict[str, list[float]]:
    return {
        "steps": np.asarray(run.steps).tolist(),
        "loss": np.round(run.loss, 5).tolist(),
        "error": np.round(run.error, 4).tolist(),
    }


def times(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Steps until each level that the real run reaches within T, by method; 2 T where a prediction
    does not reach it.
    """
    found: dict[str, dict[str, float]] = {}
    for of in ("loss", "error"):
        first = record["curves"]["real"][of][0]
        for level in LEVELS:
            reached = {
                name: _time(curve["steps"], curve[of], level * first)
                for name, curve in record["curves"].items()
            }
            if 0 < reached["real"] <= record["num_steps"]:
                last = 2.0 * record["num_steps"]
                found[f"{of} {level:.0%}"] = {
                    name: min(time, last) for name, time in reached.items()
                }
    return found


def _time(steps: list[int], curve: list[float], level: float) -> float:
    """Interpolated between records."""
    below = np.flatnonzero(np.asarray(curve, float) < level)
    if not below.size:
        return np.inf
    after = int(below[0])
    if after == 0:
        return float(steps[0])
    high, low = curve[after - 1], curve[after]
    return steps[after - 1] + (high - level) / (high - low) * (steps[after] - steps[after - 1])


def errors(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """log(predicted/real) of each time and method, with what the run was."""
    read, found = [times(run) for run in runs], []
    for number, (run, of_run) in enumerate(zip(runs, read, strict=True)):
        for name, reached in of_run.items():
            others = [
                other[name]["real"]
                for index, other in enumerate(read)
                if index != number
                and name in other
                and runs[index]["classes"] == run["classes"]
                and runs[index]["learning_rate"] == run["learning_rate"]
            ]
            said = reached | ({"constant": float(np.median(others))} if others else {})
            logs = {
                method: float(np.log(said[method] / reached["real"]))
                for method in METHODS
                if method in said
            }
            facts = {each: run[each] for each in ("role", "data", "learning_rate", "margin")}
            group = "up to 6 classes" if run["classes"] <= 6 else f"{run['classes']} classes"
            found.append({**facts, "group": group, "time": name, "log_ratio": logs})
    return found


def tables(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By role and number of classes, for each method: how many times, the share within 20 % and 2×,
    the median of |log(predicted/real)| and of its sign.
    """
    found: dict[str, Any] = {}
    for row in errors(runs):
        place = found.setdefault(row["role"], {}).setdefault(row["group"], {})
        for method, ratio in row["log_ratio"].items():
            place.setdefault(method, []).append(ratio)
    return {
        role: {
            group: {method: _summary(ratios) for method, ratios in methods.items()}
            for group, methods in groups.items()
        }
        for role, groups in found.items()
    }


def _summary(ratios: list[float]) -> dict[str, float]:
    sizes = np.abs(ratios)
    return {
        "times": len(ratios),
        "within_20": float((sizes <= np.log(1.2)).mean()),
        "within_2x": float((sizes <= np.log(2)).mean()),
        "median": float(np.median(np.expm1(sizes))),
        "bias": float(np.exp(np.median(ratios))),
    }


def _words(found: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{name}: real {reached['real']:.0f}, usual {reached['usual directions']:.0f}, as SGD "
        f"{reached['directions of SGD']:.0f}"
        for name, reached in found.items()
        if name in ("loss 50%", "loss 20%", "error 50%")
    )


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    groups = results["tables"].get("reporting", {})
    if not groups:
        return "no level was reached in any run", "not reproduced: too few steps to tell"
    outcome = "; ".join(
        f"{group}: "
        + ", ".join(
            f"{methods[name]['within_20']:.0%} ({name})" for name in METHODS if name in methods
        )
        for group, methods in groups.items()
    )
    shares = [methods["usual directions"]["within_20"] for methods in groups.values()]
    reached = all(share >= 0.8 for share in shares)
    verdict = "reproduced" if reached else "partly: not 80 % of the times within 20 % everywhere"
    return f"times within 20 %: {outcome}", verdict


def draw(results: dict[str, Any], path: Path) -> None:
    """Predicted against real times of the reporting data."""
    import matplotlib.pyplot as plt

    runs = [run for run in results["runs"] if run["role"] == "reporting"]
    names = METHODS[:-1]
    figure, axes = plt.subplots(
        1, len(names), figsize=(16, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, names, strict=True):
        for run in runs:
            pairs = [(found["real"], found[name]) for found in times(run).values()]
            axis.scatter(
                [real for real, _ in pairs],
                [said for _, said in pairs],
                s=9,
                alpha=0.5,
                color="C0" if run["classes"] <= 6 else "C1",
            )
        ends = np.asarray([1.0, 2 * max(run["num_steps"] for run in results["runs"])])
        axis.plot(ends, ends, color="black", linewidth=1)
        axis.fill_between(ends, ends / 1.2, ends * 1.2, color="black", alpha=0.1, linewidth=0)
        axis.set(xscale="log", yscale="log", title=name, xlabel="real steps")
    axes[0].set_ylabel("predicted steps")
    figure.suptitle("AdamW: times to levels of loss and error (orange: ten classes)", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


EXPERIMENT = Experiment(
    name="adamw",
    claim="ours: a sample of the parameters carries AdamW as it carries SGD",
    paper_result="– (SGD only)",
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    outdated=FORMER_DIRECTIONS,
)
