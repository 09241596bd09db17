"""Supplement A: batch-norm statistics frozen or trained, augmentation on or off.

    python -m experiments.run batchnorm --scale cpu

Takes about 2 minutes on one core. Expected: trained statistics take the outputs away from the
linear model from the first steps on, augmentation much less.

GD from the same weights in all four combinations, with statistics of the whole batch where they are
trained, and a random flip and crop (4 pixels of 32) of each image at each step where there is
augmentation. One prediction for all: frozen statistics, no augmentation. The training set itself is
evaluated, not augmented, by running statistics where those are trained.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.comparison import prepare, prepare_ours
from experiments.common.experiment import Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import LoadedTask, TaskConfig

CLAIM = (
    "freezing batch-norm statistics and leaving out augmentation both improve the "
    "linearisation; augmentation matters little beside batch norm"
)
PAPER = "no numbers (supplement A)"
CONDITIONS = {
    "frozen": (False, False),
    "augmented": (False, True),
    "training statistics": (True, False),
    "both": (True, True),
}
"""Name -> (statistics are trained, images are augmented)."""


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    rate: float = 0.1
    """η over the largest stable one."""
    num_steps: int = 100
    record_every: int = 5


SCALES: dict[Scale, Config] = {
    "tiny": Config(TaskConfig(classes=3, per_class=4), ("digits",), num_steps=3, record_every=1),
    "cpu": Config(TaskConfig(per_class=16), ("cifar10", "scene15"), num_steps=100),
    "gpu": Config(
        TaskConfig("resnet18", per_class=150, image_size=224), ("cifar10", "scene15"), num_steps=150
    ),
}


def compute(config: Config) -> dict[str, Any]:
    return {
        "runs": [
            record
            for data in config.data
            for record in compare(config, dataclasses.replace(config.task, data=data))
        ]
    }


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image flipped with probability ½ and shifted by up to an eighth of its side, edges
    repeated.
    """
    side = images.shape[1]
    reach = side // 8
    padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    shifts, flips = rng.integers(0, 2 * reach + 1, (len(images), 2)), rng.random(len(images)) < 0.5
    return np.stack(
        [
            padded[i, y : y + side, x : x + side][:, :: -1 if flip else 1]
            for i, ((y, x), flip) in enumerate(zip(shifts, flips, strict=True))
        ]
    )


def train(
    task: LoadedTask, rate: float, config: Config, trains_statistics: bool, augments: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Real GD: logits on the training set (S, N, C) every few steps, the loss there, and
    seconds.
    """
    model, images, labels = task
    statistics = model.batch_statistics
    if statistics is None:
        raise ValueError(f"task: {model.name} has no batch norm; take a network that has")

    @jax.jit
    def step(params, state, inputs):
        def loss(params):
            logits, after = (
                statistics.apply_train(params, state, inputs)
                if trains_statistics
                else (model.apply(params, inputs), state)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

        gradient, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda w, g: w - rate * g, params, gradient), after

    @jax.jit
    def evaluate(params, state):
        logits = statistics.apply_eval(params, state, images)
        return logits, optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params, state, rng, pixels = (
        model.params,
        statistics.state,
        np.random.default_rng(0),
        np.asarray(images),
    )
    found, clock = [], time.perf_counter()
    for index in range(config.num_steps + 1):
        if index % config.record_every == 0:
            found.append([np.asarray(each) for each in evaluate(params, state)])
        params, state = step(
            params, state, jnp.asarray(augment(pixels, rng)) if augments else images
        )
    return (
        np.stack([each[0] for each in found]),
        np.asarray([float(each[1]) for each in found]),
        time.perf_counter() - clock,
    )


def compare(config: Config, task: TaskConfig) -> list[dict[str, Any]]:
    """The distance of each condition from the one linear prediction."""
    prepared = prepare(task)
    problem = prepared.problem
    rate = stable_rate(problem, config.rate)
    prediction = ntk_tt.dynamics.simulate(
        problem,
        ntk_tt.OptimizerConfig(rate),
        config.num_steps,
        record_every=config.record_every,
        save_logits=True,
    )
    linear, records = np.asarray(prediction.logits), []
    small = prepare_ours(task)[0].found.problem
    assert small is not None
    ours = np.asarray(
        ntk_tt.dynamics.simulate(
            small,
            ntk_tt.OptimizerConfig(rate),
            config.num_steps,
            record_every=config.record_every,
            save_logits=True,
        ).logits
    )
    for name, (trains_statistics, augments) in CONDITIONS.items():
        logits, loss, seconds = train(prepared.task, rate, config, trains_statistics, augments)
        count = min(len(logits), len(linear))
        moved = np.maximum(np.linalg.norm((logits - logits[0])[1:count], axis=(1, 2)), 1e-12)
        residual, residual_of_ours = (
            np.linalg.norm(logits[1:count] - each[1:count], axis=(1, 2)) / moved
            for each in (linear, ours)
        )
        records.append(
            {
                "task": dataclasses.asdict(task),
                "seed": task.seed,
                "condition": name,
                "learning_rate": rate,
                "momentum": 0.0,
                "batch_size": None,
                "num_steps": config.num_steps,
                "steps": prediction.steps[:count].tolist(),
                "residual": residual.tolist(),
                "residual_of_ours": residual_of_ours.tolist(),
                "loss": loss[:count].tolist(),
                "predicted_loss": prediction.loss[:count].tolist(),
                "loss_distance": float(
                    np.mean(np.abs(loss[:count] - prediction.loss[:count])) / loss[0]
                ),
                "train_seconds": seconds,
            }
        )
        print(
            f"batchnorm: {task.data} {name}: residual {residual[0]:.2f} … {residual[-1]:.2f}, loss "
            f"{100 * records[-1]['loss_distance']:.1f} %",
            flush=True,
        )
    return records


def claims(results: dict[str, Any]) -> list[Claim]:
    """On which share of data sets each condition takes the outputs further from the prediction."""
    names = sorted({run["task"]["data"] for run in results["runs"]})
    of = {"paper": "residual", "ours": "residual_of_ours"}

    def further(condition: str, than: str) -> dict[str, list[bool]]:
        return {
            method: [
                mean_residual(results, condition, data, name)
                > mean_residual(results, than, data, name)
                for data in names
            ]
            for method, name in of.items()
            if name in results["runs"][0]
        }

    return [
        counted(f"data sets where {text}", "outputs", further(*conditions))
        for text, conditions in (
            (
                "trained statistics are further from the prediction",
                ("training statistics", "frozen"),
            ),
            ("augmentation is further from it", ("augmented", "frozen")),
            ("statistics matter more than augmentation", ("training statistics", "augmented")),
        )
    ]


def mean_residual(
    results: dict[str, Any], condition: str, data: str, name: str = "residual"
) -> float:
    return next(
        float(np.mean(run[name]))
        for run in results["runs"]
        if run["condition"] == condition and run["task"]["data"] == data
    )


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """By the mean of ‖f − f_lin‖/‖f − f₀‖ along training. Claims, each on all data sets: training
    the statistics raises it; so does augmentation; and that by less. Reproduced: all three; partly:
    some; else not.
    """
    names = sorted({run["task"]["data"] for run in results["runs"]})
    table = {
        data: {condition: mean_residual(results, condition, data) for condition in CONDITIONS}
        for data in names
    }
    claims = [
        all(row["training statistics"] > row["frozen"] for row in table.values()),
        all(row["augmented"] > row["frozen"] for row in table.values()),
        all(row["augmented"] < row["training statistics"] for row in table.values()),
    ]
    distances = {
        (run["task"]["data"], run["condition"]): run["loss_distance"] for run in results["runs"]
    }
    outcome = "mean of ‖f − f_lin‖/‖f − f₀‖ (distance of the loss curve): " + "; ".join(
        f"{data}: "
        + ", ".join(
            f"{condition} {value:.2f} ({100 * distances[data, condition]:.0f} %)"
            for condition, value in row.items()
        )
        for data, row in table.items()
    )
    word = "reproduced" if all(claims) else "partly" if any(claims) else "not reproduced"
    said = [
        f"{'' if claim else 'not '}{text}"
        for claim, text in zip(
            claims,
            (
                "worse with trained statistics",
                "worse with augmentation",
                "less so with augmentation than with statistics",
            ),
            strict=True,
        )
    ]
    return outcome, f"{word}: {'; '.join(said)}"


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    names = sorted({run["task"]["data"] for run in results["runs"]})
    styles = dict(
        zip(CONDITIONS, ((REAL, "-"), (REAL, "--"), (OTHER, "-"), (OTHER, "--")), strict=True)
    )
    figure, axes = subplots(2, len(names))
    for run in results["runs"]:
        column, (colour, style) = names.index(run["task"]["data"]), styles[run["condition"]]
        axes[0, column].plot(
            run["steps"][1:], run["residual"], style, color=colour, label=run["condition"]
        )
        axes[1, column].plot(run["steps"], run["loss"], style, color=colour, label=run["condition"])
        if run["condition"] == "both":
            axes[1, column].plot(
                run["steps"], run["predicted_loss"], ":", color=PREDICTED, label="predicted"
            )
        axes[0, column].set(
            xlabel="step", ylabel="‖f − f_lin‖ / ‖f − f₀‖", title=run["task"]["data"]
        )
        axes[1, column].set(xlabel="step", ylabel="training loss")
    axes[0, 0].legend(frameon=False, fontsize=7)
    axes[1, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


EXPERIMENT = Experiment(
    name="batchnorm",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
