"""Figure 9: how well the linear model predicts weights, and how well outputs.

    python -m experiments.run fig9 --scale cpu

Takes about 2 minutes on one core. Expected: outputs better than weights at a small learning rate in
both readings; at a larger one as well, by less.

GD on the network and on its linearisation in weight space (one JVP and one VJP a step), from the
same weights. Errors are relative to how far the real ones have moved, ‖w − w_lin‖/‖w − w₀‖ and ‖f −
f_lin‖/‖f − f₀‖, and to their norms. The outputs of the small network of `auto` stand beside them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.comparison import prepare_ours
from experiments.common.experiment import Experiment, Scale
from experiments.common.rates import largest_stable_rate, two_digits
from experiments.common.tasks import TaskConfig, load

CLAIM = (
    "the relative error in predicting outputs is much smaller than that in predicting "
    "weights, at all times"
)
PAPER = "curves only"
MUCH = 0.5
"""Of the weights' error: below it the outputs' is much smaller."""


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    rates: tuple[float, ...] = (0.05, 0.3)
    """η over the largest stable one."""
    num_steps: int = 100
    record_every: int = 5


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        TaskConfig(classes=3, per_class=4), ("digits",), rates=(0.1,), num_steps=4, record_every=2
    ),
    "cpu": Config(TaskConfig(per_class=12), ("cifar10", "scene15"), num_steps=100),
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


class Course(NamedTuple):
    """The network and its linearisation at w₀ trained side by side: the compiled step of both, and
    how far apart they are.
    """

    initial: Any
    step: Callable[..., tuple[Any, ...]]
    errors: Callable[..., dict[str, jax.Array]]


def course_of(model: ntk_tt.Model, images: jax.Array, targets: jax.Array) -> Course:
    apply, initial = model.apply, model.params

    def loss(logits):
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def step(params, displacement, rate):
        logits, pullback = jax.vjp(lambda w: apply(w, images), params)
        start, change = jax.jvp(lambda w: apply(w, images), (initial,), (displacement,))
        linear = start + change
        _, pullback_at_start = jax.vjp(lambda w: apply(w, images), initial)
        descend = lambda w, g: w - rate * g  # noqa: E731
        after = jax.tree.map(descend, params, pullback(jax.grad(loss)(logits))[0])
        moved = jax.tree.map(descend, displacement, pullback_at_start(jax.grad(loss)(linear))[0])
        return after, moved, logits, linear, start

    @jax.jit
    def errors(params, displacement, logits, linear, start):
        moved = jax.tree.map(jnp.subtract, params, initial)
        off, travelled = (
            optax.tree_utils.tree_norm(jax.tree.map(jnp.subtract, moved, displacement)),
            optax.tree_utils.tree_norm(moved),
        )
        return {
            "weights": off / travelled,
            "outputs": jnp.linalg.norm(logits - linear) / jnp.linalg.norm(logits - start),
            "weights_of_norm": off / optax.tree_utils.tree_norm(params),
            "outputs_of_norm": jnp.linalg.norm(logits - linear) / jnp.linalg.norm(logits),
            "loss": loss(logits),
            "loss_linear": loss(linear),
        }

    return Course(initial, step, errors)


def follow(
    course: Course, rate: float, config: Config, ours: dict[int, np.ndarray]
) -> tuple[list[int], list[dict[str, float]]]:
    """The errors along training at one rate, and their steps; `ours` are outputs by step."""
    params, displacement = course.initial, jax.tree.map(jnp.zeros_like, course.initial)
    steps, curves = [], []
    for index in range(config.num_steps + 1):
        after, moved, *outputs = course.step(params, displacement, rate)
        if index and (index % config.record_every == 0 or index == config.num_steps):
            steps.append(index)
            found = course.errors(params, displacement, *outputs)
            logits, _, start = (np.asarray(each) for each in outputs)
            off = np.linalg.norm(logits - ours[index]) / np.linalg.norm(logits - start)
            curves.append(
                {name: float(value) for name, value in found.items()}
                | {"outputs_of_ours": float(off)}
            )
        params, displacement = after, moved
    return steps, curves


def outputs_of_ours(task: TaskConfig, rate: float, config: Config) -> dict[int, np.ndarray]:
    """Logits (N, C) of the small network, by step."""
    problem = prepare_ours(task)[0].found.problem
    assert problem is not None
    run = ntk_tt.dynamics.simulate(
        problem, ntk_tt.OptimizerConfig(rate), config.num_steps, save_logits=True
    )
    return dict(zip(run.steps.tolist(), np.asarray(run.logits), strict=True))


def compare(config: Config, task: TaskConfig) -> list[dict[str, Any]]:
    """Errors along training at each rate."""
    model, images, labels = load(task)
    largest = largest_stable_rate(ntk_tt.surrogate.linearize(model, images, labels))
    course = course_of(model, images, jax.nn.one_hot(labels, task.classes))
    records = []
    for relative in config.rates:
        rate = two_digits(relative * largest)
        steps, curves = follow(course, rate, config, outputs_of_ours(task, rate, config))
        records.append(
            {
                "task": dataclasses.asdict(task),
                "seed": task.seed,
                "learning_rate": rate,
                "relative_rate": relative,
                "momentum": 0.0,
                "batch_size": None,
                "num_samples": len(images),
                "steps": steps,
                **{name: [each[name] for each in curves] for name in curves[0]},
            }
        )
        print(
            f"fig9: {task.data} η={rate:g}: weights {records[-1]['weights'][-1]:.2f}, outputs "
            f"{records[-1]['outputs'][-1]:.2f}",
            flush=True,
        )
    return records


def claims(results: dict[str, Any]) -> list[Claim]:
    """At which records the outputs' error is much smaller than that of the linear model's weights,
    for the outputs of the linear model and for ours.
    """

    def much(name: str) -> list[bool]:
        return [
            output < MUCH * weight
            for run in results["runs"]
            for output, weight in zip(run[name], run["weights"], strict=True)
        ]

    holds = {"paper": much("outputs")}
    if "outputs_of_ours" in results["runs"][0]:
        holds["ours"] = much("outputs_of_ours")
    return [
        counted(
            f"records at which outputs are off by less than {MUCH:g} times what the linear model's "
            "weights are",
            "outputs",
            holds,
        )
    ]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """By displacement. Reproduced: the outputs' error is below MUCH times the weights' at every
    record of every run; partly: it is smaller at most records; else not.
    """
    ratios = [np.asarray(run["outputs"]) / np.asarray(run["weights"]) for run in results["runs"]]
    smaller = float(np.mean([(ratio < 1).mean() for ratio in ratios]))
    much = float(np.mean([(ratio < MUCH).mean() for ratio in ratios]))
    word = "reproduced" if much == 1 else "partly" if smaller > 0.5 else "not reproduced"
    outcome = (
        "at the last step, weights / outputs relative to how far they moved (to their norm): "
        + "; ".join(
            f"{run['task']['data']}, η = {run['learning_rate']:g}: {100 * run['weights'][-1]:.0f} "
            f"% / {100 * run['outputs'][-1]:.0f} % ({100 * run['weights_of_norm'][-1]:.1f} % / "
            f"{100 * run['outputs_of_norm'][-1]:.0f} %)"
            for run in results["runs"]
        )
    )
    return (
        outcome,
        f"{word}: relative to the distance moved, outputs are better than weights at "
        f"{100 * smaller:.0f} % of the records, by a factor of {1 / MUCH:g} at {100 * much:.0f} %",
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL, subplots

    runs = results["runs"]
    figure, axes = subplots(1, len(runs))
    for axis, run in zip(axes[0], runs, strict=True):
        axis.plot(run["steps"], run["outputs_of_ours"], color=OTHER, label="outputs, ours")
        for name, colour in (("weights", REAL), ("outputs", PREDICTED)):
            axis.plot(run["steps"], run[name], color=colour, label=f"{name}, of the distance moved")
            axis.plot(
                run["steps"],
                run[f"{name}_of_norm"],
                ":",
                color=colour,
                label=f"{name}, of the norm",
            )
        axis.set(xlabel="step", ylabel="relative error", ylim=(0, None))
        axis.set_title(f"{run['task']['data']}, η = {run['learning_rate']:g}", fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


EXPERIMENT = Experiment(
    name="fig9",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
