"""How right are predictions past the frozen kernel? Real runs beside every method.

    python -m experiments.run accuracy --scale cpu
    python -m tools.calibrate      # then: intervals and the closed loop's constants

Takes two hours on two cores; needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. Expected: threshold times of
`curvature` within 20 % nearly as often as those of another real run.

Each setting, from 1/20 of the stable rate up to it, is fine-tuned for real in three orders of the
data (ResNet-18 in two) and predicted by the frozen kernel (`replay`), with a real head (`head`),
with the curvature of the backbone too (`curvature`), and after a few real steps (`one-shot`). Real
runs and predictions go on to 2 T, so that "not reached within T" can be told from "reached a little
later". One real run as the prediction of another (full-batch runs have no order: one at a learning
rate 2 % smaller) says what no method can beat by much. The closed loop and the guesses without a
kernel are computed from the curves (`experiments.common.methods`). Seconds are those of the
processor, without compilation. Constants are chosen on the
tuning data sets; the table is of the reporting ones.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntk_tt
from experiments.common import methods
from experiments.common.comparison import on
from experiments.common.experiment import FORMER_DIRECTIONS, Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import (
    REPORTING,
    TUNING,
    RealRun,
    TaskConfig,
    cache_folder,
    load,
    real_run,
)
from ntk_tt.prediction.one_shot import predict_after
from ntk_tt.prediction.residual import linearization_residual
from ntk_tt.report.document import write_json
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.expansion import expand

CLAIM = (
    "ours: with a real head and the backbone's curvature, threshold times hold in ordinary "
    "fine-tuning"
)
PAPER = "– (its future work: closed loop; its limit: the frozen kernel)"
NEARBY = 0.98  # learning rate of a full-batch run's other one, over its own
SETTINGS = (  # (learning rate over the largest stable one, momentum, batch size)
    (0.05, 0.9, 32),
    (0.2, 0.0, 32),
    (0.5, 0.0, 32),
    (1.0, 0.0, 32),
    (0.2, 0.9, 32),
    (0.5, 0.9, 32),
    (0.05, 0.9, None),
    (0.5, 0.0, None),
    (1.0, 0.0, None),
)


@dataclasses.dataclass(frozen=True)
class Group:
    """A network on some data sets; each takes the next few of the settings."""

    network: str = "resnet8"
    data: tuple[str, ...] = (*TUNING, *REPORTING)
    per_class: int = 40
    settings: int = 4
    seed: int = 1
    orders: int = 3
    """Orders of the data that are trained for real."""


@dataclasses.dataclass(frozen=True)
class Config:
    groups: tuple[Group, ...]
    classes: int = 5
    num_steps: int = 150
    record_every: int = 3
    seeds: int = 3
    """Orders of the data that a prediction averages."""
    chosen: tuple[tuple[float, float, int | None], ...] = SETTINGS


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        groups=(Group(data=("digits",), per_class=6, settings=1, orders=2),),
        classes=3,
        num_steps=30,
        seeds=1,
        chosen=((0.5, 0.9, 6),),
    ),
    "cpu": Config(
        groups=(
            Group(),
            Group("resnet20", ("cifar100", "cifar10", "dtd", "trashnet"), settings=1),
            Group("resnet18", ("dtd", "cub200"), per_class=20, settings=1, orders=2),
            Group(settings=2, seed=2),
        )
    ),
    "gpu": Config(
        groups=(
            Group("resnet18", (*TUNING, *REPORTING), per_class=150, settings=9),
            Group("densenet169", (*TUNING, *REPORTING), per_class=150, settings=9),
        )
    ),
}


def compute(config: Config) -> dict[str, Any]:
    runs, turn = [], 0
    for group in config.groups:
        for data in group.data:
            task = on(
                data,
                TaskConfig(
                    group.network,
                    data,
                    classes=config.classes,
                    per_class=group.per_class,
                    seed=group.seed,
                ),
            )
            chosen = [
                config.chosen[(turn + index) % len(config.chosen)]
                for index in range(group.settings)
            ]
            turn += group.settings
            runs += runs_of(config, task, chosen, group.orders)
            jax.clear_caches()  # programs of a task that is done would fill the memory's map
    return {"runs": runs, **methods.evaluate(runs)}


def runs_of(
    config: Config, task: TaskConfig, chosen: list[tuple[float, float, int | None]], orders: int
) -> list[dict[str, Any]]:
    """The records of one task, each kept in the cache by all that it depends on."""
    prepared, records = None, []
    for rate, momentum, batch_size in chosen:
        of_task = f"{task.network}-{task.data}-{task.seed}-{task.classes}x{task.per_class}"
        of_run = f"{rate}-{momentum}-{batch_size}-{config.num_steps}-{orders}"
        name = f"accuracy-{of_task}-{of_run}.json"
        path = cache_folder() / name
        if not path.exists():
            prepared = prepared or Prepared(config, task)
            write_json(path, prepared.record(rate, momentum, batch_size, orders))
        records.append(json.loads(path.read_text()))
    return records


class Prepared:
    """A task with the feature passes that all its settings share."""

    def __init__(self, config: Config, task: TaskConfig):
        self.config, self.task = config, task
        self.model, self.images, self.labels = load(task)
        key = jax.random.key(task.seed + 1000)
        self.seconds = {}
        with Stopwatch() as watch:
            self.frozen = jax.block_until_ready(
                ntk_tt.surrogate.linearize(
                    self.model,
                    self.images,
                    self.labels,
                    outputs="contrasts",
                    key=key,
                    options=ntk_tt.FeatureOptions(
                        num_projections=max(4096, 8 * len(self.labels) * (task.classes - 1))
                    ),
                )
            )
        self.seconds["replay"] = watch.processor_seconds
        with Stopwatch() as watch:
            self.head = jax.block_until_ready(
                expand(self.model, self.images, self.labels, curvature=False, key=key)
            )
        self.seconds["head"] = watch.processor_seconds
        with Stopwatch() as watch:
            self.curvature = jax.block_until_ready(
                expand(self.model, self.images, self.labels, key=key)
            )
        self.seconds["curvature"] = watch.processor_seconds
        self.problems = {"replay": self.frozen, "head": self.head, "curvature": self.curvature}
        self.orders_key = jax.random.key(task.seed + 2000)

    def record(
        self, rate: float, momentum: float, batch_size: int | None, orders: int
    ) -> dict[str, Any]:
        """One setting: curves, seconds and what a verdict could go by, as plain values."""
        steps = self.config.num_steps
        rest = {"momentum": momentum, "batch_size": batch_size}
        setting = {"learning_rate": stable_rate(self.frozen, rate, **rest), **rest}
        optimizer = ntk_tt.OptimizerConfig(**setting)
        real, *other = self.trained(setting, orders)
        curves, further = self.predicted(optimizer)
        seconds = {name: self.seconds[name] + further[name] for name in further}
        with Stopwatch() as watch:
            shot = self.after_first_steps(optimizer)
        seconds["one-shot"] = watch.processor_seconds
        curves["one-shot"] = {
            "steps": shot.trajectories[0].steps.tolist(),
            "loss": _mean(run.loss for run in shot.trajectories),
            "error": _mean(run.error for run in shot.trajectories),
        }
        residual = linearization_residual(self.model, self.images, self.labels, optimizer)
        margins = {
            name: ntk_tt.prediction.stability(problem, optimizer, steps)[0]
            for name, problem in {**self.problems, "one-shot": shot.problem}.items()
        }
        record = {
            **dataclasses.asdict(self.task),
            "role": "tuning" if self.task.data in TUNING else "reporting",
            "rate": rate,
            **setting,
            "num_steps": steps,
            "num_samples": len(self.labels),
            "real_steps_first": shot.run.steps[-1],
            "diverged_at": real.diverged_at,
            "growth": float(self.curvature.growth),
            "dropped": float(self.curvature.dropped),
            "num_directions": self.head.directions.shape[1],
            "residual": residual.value,
            "margins": margins,
            "seconds": seconds,
            "further_seconds": further,
            "train_seconds": real.processor_seconds / 2,
            "gd_seconds": real.processor_seconds
            / 2
            * len(self.labels)
            / (batch_size or len(self.labels)),
            "curves": {"real": _curve(real), **curves},
            "other_reals": [_curve(run) for run in other],
        }
        tell(record)
        return record

    def trained(self, setting: dict[str, Any], orders: int) -> list[RealRun]:
        """The real run, and others by the order of the data.

        A full batch has no order, so its other run is one that nobody would call another setting.
        """
        nearby = float(f"{NEARBY * setting['learning_rate']:.3g}")
        others = (
            [(setting, order) for order in range(1, orders)]
            if setting["batch_size"]
            else [(setting | {"learning_rate": nearby}, 0)]
        )
        steps, every = 2 * self.config.num_steps, self.config.record_every
        return [
            real_run(self.task, of, steps, seed=order, record_every=every)
            for of, order in [(setting, 0), *others]
        ]

    def predicted(
        self, optimizer: ntk_tt.OptimizerConfig
    ) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
        """Curve, and seconds of the T steps that a user would ask for, by method."""
        curves, seconds = {}, {}
        for name, problem in self.problems.items():
            with Stopwatch() as watch:
                prediction = ntk_tt.prediction.predict(
                    problem,
                    optimizer,
                    2 * self.config.num_steps,
                    num_seeds=self.config.seeds,
                    key=self.orders_key,
                    record_every=self.config.record_every,
                )
            curves[name], seconds[name] = _curve(prediction), watch.seconds / 2
        return curves, seconds

    def after_first_steps(self, optimizer: ntk_tt.OptimizerConfig) -> ntk_tt.prediction.OneShot:
        return predict_after(
            self.model,
            self.images,
            self.labels,
            optimizer,
            2 * self.config.num_steps,
            num_seeds=self.config.seeds,
            record_every=self.config.record_every,
            seed=self.task.seed + 3000,
            key=self.orders_key,
        )


def tell(record: dict[str, Any]) -> None:
    """A line on what was found."""
    view = methods.views(record | {"slowdowns": {}})[0]
    times = {
        name: methods.threshold_times(view, name).get("loss 50%")
        for name in ("real", "another run", *methods.CURVES)
    }
    setting = {name: record[name] for name in ("learning_rate", "momentum", "batch_size")}
    print(
        f"{record['network']} {record['data']} {setting}: half loss at "
        f"{ ({name: time and round(time, 1) for name, time in times.items()}) }, "
        f"margins { ({name: round(value, 2) for name, value in record['margins'].items()}) }",
        flush=True,
    )


def _mean(curves) -> list[float]:
    return np.round(np.mean(list(curves), 0), 5).tolist()


def _curve(run) -> dict[str, list[float]]:
    return {
        "steps": run.steps.tolist(),
        "loss": np.round(run.loss, 5).tolist(),
        "error": np.round(run.error, 4).tolist(),
    }


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    table = results["tables"]["reporting"]
    if not {"another run", "curvature", "replay", "one-shot", "constant"} <= set(table):
        return (
            "no threshold was reached in any run, or predicted to be",
            "not reproduced: too few steps to tell",
        )
    ours, frozen = table["curvature"], table["replay"]
    outcome = (
        f"threshold times within 20 %: {ours['within_20']:.0%} (curvature), "
        f"{table['one-shot']['within_20']:.0%} (one-shot), {frozen['within_20']:.0%} (frozen "
        "kernel), "
        f"{table['constant']['within_20']:.0%} (best constant); median error {ours['median']:.0%}, "
        f"{table['one-shot']['median']:.0%}, {frozen['median']:.0%}, "
        f"{table['constant']['median']:.0%}"
    )
    for words, share in (("20 %", "runs_within_20"), ("2×", "runs_within_2x")):
        counts = (
            f"{round(row[share] * row['runs'])} of {row['runs']} ({name})"
            for name, row in (
                ("curvature", ours),
                ("one-shot", table["one-shot"]),
                ("another real run", table["another run"]),
            )
        )
        outcome += f"; runs within {words}, by their median: {', '.join(counts)}"
    aims = {
        "20 % for 80 % of runs": ours["runs_within_20"] >= 0.8,
        "2× for 97 % of runs": ours["runs_within_2x"] >= 0.97,
        "one-shot 20 % for 90 % of runs": table["one-shot"]["runs_within_20"] >= 0.9,
    }
    missed = [name for name, met in aims.items() if not met]
    if not missed:
        return outcome, "reproduced: all aims are reached"
    partly = len(missed) < len(aims) or ours["median"] < frozen["median"]
    return outcome, f"{'partly' if partly else 'not reproduced'}: missed {', '.join(missed)}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Predicted against real threshold times, frozen kernel and curvature, reporting data sets."""
    import matplotlib.pyplot as plt

    runs = [run for run in results["runs"] if run["role"] == "reporting"]
    figure, axes = plt.subplots(
        1, 4, figsize=(16, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, ("replay", "curvature", "one-shot", "another run"), strict=True):
        for run in runs:
            pairs = methods.pairs(run, name)
            axis.scatter(
                [real for real, _ in pairs],
                [time for _, time in pairs],
                s=9,
                alpha=0.5,
                color="C0" if run["batch_size"] else "C1",
            )
        ends = np.asarray([1.0, 2 * max(run["num_steps"] for run in results["runs"])])
        axis.plot(ends, ends, color="black", linewidth=1)
        axis.fill_between(ends, ends / 1.2, ends * 1.2, color="black", alpha=0.1, linewidth=0)
        axis.set(xscale="log", yscale="log", title=name, xlabel="real steps")
    axes[0].set_ylabel("predicted steps")
    figure.suptitle(
        "threshold times of loss and error (orange: full batch; band: ± 20 %)", fontsize=10
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


EXPERIMENT = Experiment(
    name="accuracy",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    outdated=FORMER_DIRECTIONS,
)
