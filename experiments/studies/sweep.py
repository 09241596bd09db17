"""Is the ranking right? Every setting of a sweep is really trained.

    python -m experiments.run sweep --scale cpu

Takes about an hour on two cores, most of it real training; needs $NTK_TT_DATA. Expected: the order
of the trusted settings is nearly the real one, and the first choice is close to the best.

24 settings a task: SGD with momentum and AdamW, six rates each, two batch sizes. The target is a
quarter of the loss at the start. Regret is the real time of the setting that a method would run,
over the least real time, less one. What a method spends until it has reached the target is compared
at the same pace a step: the sweep and then runs in its order; runs in random order (the mean of all
orders); successive halving; and a power law fitted to a tenth of every run.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

import ntk_tt
from experiments.common.comparison import on
from experiments.common.experiment import Experiment, Scale
from experiments.common.tasks import TaskConfig, load, real_run
from ntk_tt.prediction.setting_space import settings_of
from ntk_tt.times.crossing import crossing_time, smooth, threshold_time
from ntk_tt.times.loss_law import MIN_POINTS, fit_loss_law

CLAIM = "ours: a sweep puts settings in the order of their real times, for less than one run costs"
PAPER = "–"
_DRAWS = 400  # random orders
_PROBED = 0.1  # of every run, before a power law says how it goes on
_HALVINGS = 3
_CLOSE = 0.15  # of the best real time: a first choice as good as that


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("digits", "cifar10", "scene15", "trashnet")
    task: TaskConfig = dataclasses.field(
        default_factory=lambda: TaskConfig("resnet8", per_class=60)
    )
    sgd_rates: str = "5e-4:1e-1:log:6"
    adamw_rates: str = "3e-5:1e-2:log:6"
    batch_sizes: tuple[int, ...] = (16, 64)
    num_steps: int = 200


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        data=("digits",),
        task=TaskConfig("resnet8", classes=3, per_class=6),
        sgd_rates="1e-3:1e-1:log:3",
        adamw_rates="1e-4:1e-3:log:2",
        batch_sizes=(6,),
        num_steps=20,
    ),
    "cpu": Config(),
    "gpu": Config(task=TaskConfig("resnet18", image_size=224, per_class=150), num_steps=600),
}


def compute(config: Config) -> dict[str, Any]:
    runs, tasks = [], []
    for data in config.data:
        task = on(data, config.task)
        loaded = load(task)
        prepared = ntk_tt.prepare(loaded.model, loaded.images, loaded.labels)
        count = len(loaded.labels)
        settings = [
            setting
            for name, rates, more in (
                ("sgd", config.sgd_rates, {"momentum": 0.9}),
                ("adamw", config.adamw_rates, {}),
            )
            for setting in settings_of(
                {
                    "optimizer": name,
                    "learning_rate": rates,
                    "batch_size": list(config.batch_sizes),
                    **more,
                },
                num_samples=count,
                num_steps=config.num_steps,
            )
        ]
        report = prepared.sweep(settings)
        cost = sum(each["seconds"] for each in report.document["sweep"]["passes"])
        cost += prepared.found.watch.seconds
        found = [
            _run(task, row, outcome.recording, report.target.value, config)
            for row, outcome in zip(report.rows, report.outcomes, strict=True)
        ]
        tasks.append({"data": data, "target": report.target.value, **_of_task(found, cost)})
        runs += found
        print(data, tasks[-1], flush=True)
    return {"runs": runs, "tasks": tasks}


def _run(
    task: TaskConfig, row: dict[str, Any], recording: Any, target: float, config: Config
) -> dict[str, Any]:
    """A setting with what was predicted and what came."""
    optimizer = {
        "name": row["optimizer"],
        "learning_rate": row["learning_rate"],
        "momentum": row.get("momentum", 0.0),
        "batch_size": row["batch_size"],
    }
    real = real_run(task, optimizer, config.num_steps, record_every=recording.record_every)
    curve = smooth(real.loss, recording.smoothing)
    is_lost = real.diverged_at is not None or not curve[-1] < max(real.loss[0], 1e-12)
    return {
        **dataclasses.asdict(task),
        **optimizer,
        "rank": row["rank"],
        "trust": row["trust"],
        "pace": row["seconds_per_step"],
        "num_steps": config.num_steps,
        "predicted": row["steps"],
        "predicted_final": row["final_loss"],
        "real": None if is_lost else threshold_time(real.steps, curve, target),
        "diverged": bool(is_lost),
        "steps": real.steps.tolist(),
        "loss": real.loss.tolist(),
        "target": target,
    }


def _seconds(run: dict[str, Any], which: str) -> float:
    """Until the target; not reached counts as twice the whole run."""
    steps = run[which]
    return run["pace"] * (2 * run["num_steps"] if steps is None else steps)


def _of_task(runs: list[dict[str, Any]], cost: float) -> dict[str, Any]:
    """What is judged of one task; runs are in the predicted order."""
    trusted = [run for run in runs if run["trust"] not in ("none",) and not run["diverged"]]
    sound = [run for run in runs if not run["diverged"]]
    lost = [run for run in runs if run["diverged"]]
    best = min((_seconds(run, "real") for run in sound), default=math.nan)
    spent = {
        "sweep": cost + _until(runs),
        "random order": float(
            np.mean(
                [
                    _until([runs[i] for i in np.random.default_rng(seed).permutation(len(runs))])
                    for seed in range(_DRAWS)
                ]
            )
        ),
        "successive halving": _halving(runs),
        "power law": _power_law(runs),
    }
    return {
        "spearman_trusted": _spearman(trusted),
        "spearman_sound": _spearman(sound),
        "num_diverged": len(lost),
        "diverged_called": sum(run["trust"] == "none" for run in lost),
        "num_refused": sum(run["trust"] == "none" for run in runs),
        "regret": _seconds(runs[0], "real") / best - 1,
        "best_seconds": best,
        "sweep_seconds": cost,
        "run_seconds": float(np.median([run["pace"] * run["num_steps"] for run in runs])),
        "spent": spent,
    }


def _spearman(runs: list[dict[str, Any]]) -> float | None:
    if len(runs) < 3:
        return None
    predicted, real = ([_seconds(run, which) for run in runs] for which in ("predicted", "real"))
    found = scipy.stats.spearmanr(predicted, real)
    value = float(np.asarray(found)[0])
    return value if math.isfinite(value) else None


def _until(runs: list[dict[str, Any]]) -> float:
    """Seconds until runs that are started one after another have reached the target."""
    total = 0.0
    for run in runs:
        if run["real"] is not None:
            return total + run["pace"] * run["real"]
        total += run["pace"] * run["num_steps"]
    return total


def _loss_at(run: dict[str, Any], step: float) -> float:
    value = float(np.interp(step, run["steps"], np.nan_to_num(run["loss"], nan=np.inf)))
    return value if math.isfinite(value) else math.inf


def _halving(runs: list[dict[str, Any]]) -> float:
    """All runs for an eighth of their steps, the better half for a quarter, …, until the target."""
    left, total, before = list(runs), 0.0, 0.0
    for level in range(_HALVINGS, -1, -1):
        reached = [
            run["pace"] * run["real"]
            for run in left
            if run["real"] is not None and run["real"] <= run["num_steps"] / 2**level
        ]
        steps = [run["num_steps"] / 2**level - before * run["num_steps"] for run in left]
        total += sum(run["pace"] * each for run, each in zip(left, steps, strict=True))
        if reached:
            return total
        before = 1 / 2**level
        ends = [(_loss_at(run, run["num_steps"] * before), i) for i, run in enumerate(left)]
        left = [left[i] for _, i in sorted(ends)[: max(1, len(left) // 2)]]
    return total


def _power_law(runs: list[dict[str, Any]]) -> float:
    """A tenth of every run, then runs in the order that their continued losses say."""
    total, order = 0.0, []
    for run in runs:
        steps, loss = np.asarray(run["steps"], float), np.asarray(run["loss"], float)
        seen = steps <= max(_PROBED * run["num_steps"], steps[min(MIN_POINTS, len(steps) - 1)])
        total += run["pace"] * float(steps[seen][-1])
        time = None
        if np.isfinite(loss[seen]).all() and seen.sum() >= MIN_POINTS:
            later = np.linspace(0, 2 * run["num_steps"], 400)
            time = crossing_time(later, fit_loss_law(steps[seen], loss[seen])(later), run["target"])
        order.append(math.inf if time is None else run["pace"] * time)
    return total + _until([runs[i] for i in np.argsort(order, kind="stable")])


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    tasks = results["tasks"]

    def median(name: str) -> float:
        values = [task[name] for task in tasks if task[name] is not None]
        return float(np.median(values)) if values else math.nan

    lost = sum(task["num_diverged"] for task in tasks)
    called = sum(task["diverged_called"] for task in tasks)
    close = sum(task["regret"] <= _CLOSE for task in tasks)
    spent = {
        name: float(np.median([task["spent"][name] for task in tasks]))
        for name in tasks[0]["spent"]
    }
    outcome = (
        f"rank correlation {median('spearman_trusted'):.2f} over trusted settings, "
        f"{median('spearman_sound'):.2f} over all that do not diverge; {called} of {lost} that "
        f"diverge are refused; first choice within 15 % of the best in {close} of {len(tasks)} "
        "tasks; seconds until the target, median: "
        + ", ".join(f"{name} {value:.0f}" for name, value in spent.items())
    )
    is_right = median("spearman_trusted") >= 0.9 and median("spearman_sound") >= 0.8
    is_close = close >= 0.8 * len(tasks) and (not lost or called >= 0.95 * lost)
    verdict = (
        "reproduced"
        if is_right and is_close
        else "partly"
        if is_right or is_close
        else ("not reproduced")
    )
    return outcome, f"{verdict}: ranks {'' if is_right else 'do not '}hold, choices " + (
        "do" if is_close else "do not"
    )


def draw(results: dict[str, Any], path) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(run["data"] for run in results["runs"]))
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.4), layout="constrained", squeeze=False
    )
    colours = {"high": "#1a7f37", "medium": "#9a6700", "low": "#bc4c00", "none": "#c1121f"}
    for axis, name in zip(axes[0], names, strict=True):
        runs = [run for run in results["runs"] if run["data"] == name and not run["diverged"]]
        for trust, colour in colours.items():
            some = [run for run in runs if run["trust"] == trust]
            axis.scatter(
                [_seconds(run, "real") for run in some],
                [_seconds(run, "predicted") for run in some],
                color=colour,
                label=f"trust {trust}",
                s=16,
            )
        axis.set(xscale="log", yscale="log", title=name, xlabel="real time [s]")
        axis.axline((1, 1), (2, 2), color="0.7", linewidth=1)
    axes[0, 0].set_ylabel("predicted time [s]")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


EXPERIMENT = Experiment(
    name="sweep",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
)
