"""Figures 2 and 12: ODE, SDE and real training at a high rate; curves at equal effective rate.

    python -m experiments.run fig2 --scale cpu

Takes about 3 minutes on one core. Expected: the ODE misses the noise of SGD, and at this rate both
are later than real training, whose kernel grows; curves at equal η/(1−m) meet after the first
1/(1−m) steps.

Left: SGD with small batches at half of the largest stable learning rate. Right: pairs (η, m) with
the same η/(1−m), on several data sets.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.comparison import on, prepare, prepare_ours
from experiments.common.experiment import Experiment, Scale
from experiments.common.rates import largest_stable_rate, two_digits
from experiments.common.tasks import TaskConfig, real_run

CLAIM = (
    "at a high learning rate the SDE describes SGD and the ODE does not; equal η/(1−m) gives "
    "similar loss curves"
)
PAPER = "curves only (MIT-67; Fig. 12: five more data sets)"
SIMILAR = 0.1
"""Largest mean distance, over the initial loss, of curves that count as similar."""


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    momenta: tuple[float, ...] = (0.0, 0.5, 0.9)
    high_rate: float = 0.5
    """η over the largest stable one, for the first comparison."""
    effective_rate: float = 0.1
    """η/(1−m) over the largest stable η without momentum, for the second."""
    batch_size: int = 16
    num_steps: int = 150
    num_seeds: int = 4
    methods: tuple[str, ...] = ("ode", "sde", "sde-diagonal", "replay")
    """Of the frozen kernel; ours stands beside them."""


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        TaskConfig(classes=3, per_class=6),
        ("digits",),
        momenta=(0.0, 0.9),
        batch_size=6,
        num_steps=6,
        num_seeds=2,
    ),
    "cpu": Config(
        TaskConfig(per_class=12),
        ("scene15", "cifar10", "trashnet"),
        momenta=(0.0, 0.9),
        batch_size=8,
        num_steps=100,
        num_seeds=3,
    ),
    "gpu": Config(
        TaskConfig("resnet18", per_class=150, image_size=224),
        ("scene15", "cifar10", "cub200", "trashnet"),
    ),
}


def compute(config: Config) -> dict[str, Any]:
    high, momentum = [], []
    for data in config.data:
        task = on(data, config.task)
        problem = prepare(task).problem
        largest = largest_stable_rate(problem, batch_size=config.batch_size)
        high.append(noise(config, task, two_digits(config.high_rate * largest)))
        momentum.append(effective(config, task, two_digits(config.effective_rate * largest)))
        print(
            f"fig2: {data}: distance to real {high[-1]['distance']}, at equal effective rate "
            f"{momentum[-1]['distance']}",
            flush=True,
        )
    return {"runs": [*high, *momentum]}


def noise(config: Config, task: TaskConfig, rate: float) -> dict[str, Any]:
    """Real SGD over several orders of the data beside each method over as many seeds."""
    prepared = prepare(task)
    setting = {"learning_rate": rate, "momentum": 0.0, "batch_size": config.batch_size}
    reals = [
        real_run(task, setting, config.num_steps, seed=seed, record_every=3)
        for seed in range(config.num_seeds)
    ]
    curves = {"real": [run.loss for run in reals]}
    for method in config.methods:
        problem = prepared.primal if method == "sde-diagonal" else prepared.problem
        prediction = ntk_tt.prediction.predict(
            problem,
            ntk_tt.OptimizerConfig(**setting),
            config.num_steps,
            method=method,  # pyright: ignore[reportArgumentType]
            num_seeds=config.num_seeds,
            key=jax.random.key(task.seed + 1),
            record_every=3,
        )
        curves[method] = [run.loss for run in prediction.runs]
    curves["ours"] = predicted_by_ours(config, task, setting)
    return {
        "kind": "noise",
        **describe(
            task,
            setting,
            config,
            reals[0].steps,
            curves,
            float(np.mean([run.seconds for run in reals])),
        ),
    }


def predicted_by_ours(
    config: Config, task: TaskConfig, setting: dict[str, Any]
) -> list[np.ndarray]:
    """The loss of each order of the data."""
    report = prepare_ours(task)[0].predict(
        ntk_tt.OptimizerConfig(**setting),
        config.num_steps,
        num_seeds=config.num_seeds,
        record_every=3,
    )
    return [run.loss for run in report.outcome.predicted.prediction.runs]


def effective(config: Config, task: TaskConfig, rate: float) -> dict[str, Any]:
    """SGD with η = rate·(1−m) for each momentum m, real and by ours; distances are to m = 0."""
    steps, curves, ours, seconds = np.zeros(1), {}, {}, []
    for momentum in config.momenta:
        setting = {
            "learning_rate": rate * (1 - momentum),
            "momentum": momentum,
            "batch_size": config.batch_size,
        }
        reals = [
            real_run(task, setting, config.num_steps, seed=seed, record_every=3)
            for seed in range(2)
        ]
        name = "real" if momentum == 0 else f"m = {momentum:g}"
        curves[name] = [run.loss for run in reals]
        ours[name] = predicted_by_ours(config, task, setting)
        steps, seconds = reals[0].steps, [*seconds, *(run.seconds for run in reals)]
    return {
        "kind": "effective",
        **describe(
            task,
            {
                "learning_rate": rate,
                "momentum": list(config.momenta),
                "batch_size": config.batch_size,
            },
            config,
            steps,
            curves,
            float(np.mean(seconds)),
        ),
        "distance_by_ours": distances(ours),
    }


def describe(
    task: TaskConfig,
    setting: dict[str, Any],
    config: Config,
    steps: np.ndarray,
    curves: dict[str, list],
    seconds: float,
) -> dict[str, Any]:
    mean = {name: np.mean(each, 0) for name, each in curves.items()}
    real = mean["real"]
    scatter = {name: roughness(each) for name, each in curves.items()}
    return {
        "task": dataclasses.asdict(task),
        **setting,
        "num_steps": config.num_steps,
        "num_seeds": config.num_seeds,
        "seed": task.seed,
        "train_seconds": seconds,
        "steps": steps.tolist(),
        "curves": {name: each.tolist() for name, each in mean.items()},
        "roughness": scatter,
        "distance": distances(curves),
        "within_real": float(
            np.mean([np.mean(np.abs(each - real)) for each in curves["real"]]) / real[0]
        ),
    }


def distances(curves: dict[str, list]) -> dict[str, float]:
    """Of the mean curves to the real one, over the initial loss."""
    mean = {name: np.mean(each, 0) for name, each in curves.items()}
    real = mean.pop("real")
    return {name: float(np.mean(np.abs(each - real)) / real[0]) for name, each in mean.items()}


def roughness(runs: list) -> float:
    """Mean absolute second difference of single curves over the initial loss: 0 for the ODE, the
    noise of batches for SGD.
    """
    return float(np.mean([np.mean(np.abs(np.diff(run, 2))) / run[0] for run in runs]))


def claims(results: dict[str, Any]) -> list[Claim]:
    """The SDE (ours: the small network) is nearer to real SGD than the ODE, and as rough; equal
    η/(1−m) gives similar curves, in reality and by ours.
    """
    noise, effective = (
        [run for run in results["runs"] if run["kind"] == kind] for kind in ("noise", "effective")
    )
    named = {"paper": "sde-diagonal", "replay": "replay", "ours": "ours"}

    def share(holds: Callable[[dict[str, Any], str], bool]) -> dict[str, list[bool]]:
        return {
            method: [holds(run, name) for run in noise]
            for method, name in named.items()
            if name in noise[0]["distance"]
        }

    def is_nearer(run: dict[str, Any], name: str) -> bool:
        return run["distance"][name] < run["distance"]["ode"]

    def is_as_rough(run: dict[str, Any], name: str) -> bool:
        return 0.5 <= run["roughness"][name] / max(run["roughness"]["real"], 1e-12) <= 2

    similar: dict[str, list[bool]] = {
        "another_run": [max(run["distance"].values()) <= SIMILAR for run in effective]
    }
    if "distance_by_ours" in effective[0]:
        similar["ours"] = [max(run["distance_by_ours"].values()) <= SIMILAR for run in effective]
    return [
        counted(
            "data sets whose mean curve is nearer to real SGD than the ODE's",
            "loss curve",
            share(is_nearer)
            | {"another_run": [run["within_real"] < run["distance"]["ode"] for run in noise]},
        ),
        counted(
            "data sets whose single curves are as rough as real SGD, within a factor of 2",
            "loss curve",
            share(is_as_rough),
        ),
        counted(
            f"data sets where equal η/(1−m) gives curves within {SIMILAR:.0%} of each other "
            "(another run: real training)",
            "loss curve",
            similar,
        ),
    ]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Noise: the SDE's curves (full or diagonal covariance) are closer to the real one than the
    ODE's on most data sets, and as rough within a factor of 2. Effective rate: all curves within
    SIMILAR of that without momentum. Reproduced: both; partly: one.
    """
    noise, effective = (
        [run for run in results["runs"] if run["kind"] == kind] for kind in ("noise", "effective")
    )
    closer = sum(
        min(run["distance"]["sde"], run["distance"]["sde-diagonal"]) < run["distance"]["ode"]
        for run in noise
    )
    rough = sum(
        0.5 <= run["roughness"]["sde"] / max(run["roughness"]["real"], 1e-12) <= 2 for run in noise
    )
    similar = sum(max(run["distance"].values()) <= SIMILAR for run in effective)
    parts = [
        f"{run['task']['data']} (η = {run['learning_rate']:g}): "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in run["distance"].items())
        + f"; roughness real {100 * run['roughness']['real']:.1f} %, sde "
        f"{100 * run['roughness']['sde']:.1f} %, ode {100 * run['roughness']['ode']:.1f} %"
        for run in noise
    ]
    momenta = [
        f"{run['task']['data']}: "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in run["distance"].items())
        for run in effective
    ]
    first = 2 * closer > len(noise) and 2 * rough > len(noise)
    second = similar == len(effective)
    word = "reproduced" if first and second else "partly" if first or second else "not reproduced"
    return (
        f"mean distance to the real loss curve over the initial loss: {'; '.join(parts)}. Equal "
        f"η/(1−m), distance to m = 0: {'; '.join(momenta)}",
        f"{word}: an SDE is closer than the ODE on {closer} of {len(noise)} data sets and as rough "
        f"as SGD on {rough}; curves at equal effective rate are within {100 * SIMILAR:.0f} % on "
        f"{similar} of {len(effective)}",
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    noise, effective = (
        [run for run in results["runs"] if run["kind"] == kind] for kind in ("noise", "effective")
    )
    styles = {
        "real": (REAL, "-"),
        "ode": ("0.5", ":"),
        "sde": (OTHER, "-"),
        "sde-diagonal": (OTHER, "--"),
        "replay": (PREDICTED, ":"),
        "ours": (PREDICTED, "-"),
    }
    figure, axes = subplots(2, len(noise))
    for column, (first, second) in enumerate(zip(noise, effective, strict=True)):
        for name, curve in first["curves"].items():
            axes[0, column].plot(
                first["steps"], curve, styles[name][1], color=styles[name][0], label=name
            )
        for (name, curve), colour in zip(
            second["curves"].items(), (REAL, OTHER, PREDICTED), strict=False
        ):
            axes[1, column].plot(
                second["steps"], curve, color=colour, label="m = 0" if name == "real" else name
            )
        axes[0, column].set(
            xlabel="step", ylabel="training loss", ylim=(0, 1.5 * max(first["curves"]["real"]))
        )
        axes[1, column].set(xlabel="step", ylabel="training loss")
        axes[0, column].set_title(
            f"{first['task']['data']}, η = {first['learning_rate']:g}", fontsize=9
        )
        axes[1, column].set_title(f"η/(1−m) = {second['learning_rate']:g}", fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=7)
    axes[1, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


EXPERIMENT = Experiment(
    name="fig2",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
