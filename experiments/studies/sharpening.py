"""Why is real training slower than predicted near the stability bound? It becomes sharper.

    python -m experiments.run sharpening --scale cpu

Takes ten minutes on two cores; needs $NTK_TT_DATA. Expected: sharpness grows several times over,
within the first steps already, and the models see a part of it, however many their directions. A
run at a higher rate then reaches its bound long before they say.

Tuning data only. Full-batch training at a twentieth of the stable rate, so nothing oscillates: the
largest eigenvalue of the Gauss–Newton Hessian at the weights on the way, by the loss there, beside
that of the frozen kernel, of the real head on a linear backbone, of `curvature`, and of `curvature`
with all F directions.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_tt
from experiments.common.comparison import on
from experiments.common.experiment import FORMER_SURROGATE, Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import TUNING, LoadedTask, TaskConfig, load
from ntk_tt import losses
from ntk_tt.dynamics import replay, states_along
from ntk_tt.jacobian.network import blocks
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.sharpness import largest_curvature

CLAIM = "ours: sharpness grows faster than any expansion at one or two points says"
PAPER = "–"
BLOCK = 50


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = TUNING
    task: TaskConfig = dataclasses.field(default_factory=lambda: TaskConfig("resnet8", seed=1))
    rate: float = 0.05
    """Learning rate over the largest stable one."""
    momentum: float = 0.9
    num_steps: int = 60
    measurements: int = 6


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        data=("digits",),
        task=TaskConfig("resnet8", classes=3, per_class=6),
        num_steps=6,
        measurements=2,
    ),
    "cpu": Config(),
    "gpu": Config(task=TaskConfig("resnet18", image_size=224, per_class=150)),
}


def compute(config: Config) -> dict[str, Any]:
    runs = []
    for data in config.data:
        task = on(data, config.task)
        loaded, key = load(task), jax.random.key(task.seed + 1000)
        arguments = (loaded.model, loaded.images, loaded.labels)
        frozen = at_weights(loaded, loaded.model.params, key)
        rate = stable_rate(frozen, config.rate, momentum=config.momentum)
        optimizer = ntk_tt.OptimizerConfig(rate, config.momentum)
        problems = {
            "head": expand(*arguments, curvature=False, key=key),
            "curvature": expand(*arguments, key=key),
            "curvature, all directions": expand(*arguments, key=key, num_directions="all"),
        }
        found = {
            "real": trained(loaded, optimizer, config, key),
            "frozen kernel": along_replay(frozen, optimizer, config),
        }
        for name, problem in problems.items():
            states = states_along(problem, optimizer, config.num_steps, config.measurements)
            found[name] = [
                (
                    float(problem.metrics(problem.logits(state))[0]),
                    largest_curvature(problem.tangent(state), problem.logits(state))[0],
                )
                for state, *_ in states
            ]
        runs.append(
            {
                **dataclasses.asdict(task),
                "learning_rate": optimizer.learning_rate,
                "num_directions": problems["head"].directions.shape[1],
                "width": problems["head"].outputs.shape[1],
                "loss": {name: [loss for loss, _ in pairs] for name, pairs in found.items()},
                "sharpness": {name: [value for _, value in pairs] for name, pairs in found.items()},
            }
        )
        print(
            data,
            {name: f"{pairs[0][1]:.3g} … {pairs[-1][1]:.3g}" for name, pairs in found.items()},
            flush=True,
        )
    return {"runs": runs}


def at_weights(loaded: LoadedTask, params, key):
    return ntk_tt.surrogate.linearize(
        ntk_tt.from_function(loaded.model.apply, params),
        loaded.images,
        loaded.labels,
        outputs="contrasts",
        key=key,
        options=ntk_tt.FeatureOptions(num_projections=8192),
    )


def trained(
    loaded: LoadedTask, optimizer: ntk_tt.OptimizerConfig, config: Config, key
) -> list[tuple[float, float]]:
    """(Loss, sharpness) on the way of real training, by optax."""
    model, images = loaded.model, loaded.images
    targets = losses.encode_targets(loaded.labels, model.num_classes, np.float32)
    gradient = jax.jit(
        jax.grad(lambda params, x, y: optax.softmax_cross_entropy(model.apply(params, x), y).sum())
    )
    rule = optax.sgd(optimizer.learning_rate, momentum=config.momentum)
    params, found, every = model.params, [], -(-config.num_steps // config.measurements)
    state = rule.init(params)
    for step in range(config.num_steps + 1):
        if step % every == 0:
            problem = at_weights(loaded, params, key)
            found.append(
                (
                    float(losses.mean_loss("ce", problem.initial_logits, targets)),
                    largest_curvature(problem, problem.initial_logits)[0],
                )
            )
        parts = [
            gradient(params, images[block], targets[block]) for block in blocks(len(images), BLOCK)
        ]
        updates, state = rule.update(
            jax.tree.map(lambda *each: sum(each) / len(images), *parts), state, params
        )
        params = optax.apply_updates(params, updates)
    return found


def along_replay(
    problem, optimizer: ntk_tt.OptimizerConfig, config: Config
) -> list[tuple[float, float]]:
    every = -(-config.num_steps // config.measurements)
    run = replay(problem, optimizer, config.num_steps, record_every=every, save_logits=True)
    assert run.logits is not None
    return [
        (float(loss), largest_curvature(problem, jnp.asarray(logits))[0])
        for loss, logits in zip(run.loss, run.logits, strict=True)
    ]


def growth(run: dict[str, Any], name: str) -> float:
    values = run["sharpness"][name]
    return max(values) / values[0]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    runs = results["runs"]
    grown = {
        name: float(np.median([growth(run, name) for run in runs])) for name in runs[0]["sharpness"]
    }
    outcome = "largest sharpness on the way over the initial one, median: " + ", ".join(
        f"{name} {value:.1f}×" for name, value in grown.items()
    )
    third = float(
        np.median(
            [
                values[len(values) // 3] / values[0]
                for values in (run["sharpness"]["real"] for run in runs)
            ]
        )
    )
    outcome += f"; real after a third of the steps {third:.1f}×"
    seen = (grown["curvature"] - 1) / max(1e-9, grown["real"] - 1)
    return (
        outcome,
        f"{'reproduced' if seen < 0.75 else 'not reproduced'}: `curvature` sees {seen:.0%} of the "
        "growth, with all directions "
        f"{(grown['curvature, all directions'] - 1) / max(1e-9, grown['real'] - 1):.0%}",
    )


def draw(results: dict[str, Any], path) -> None:
    import matplotlib.pyplot as plt

    runs = results["runs"]
    figure, axes = plt.subplots(
        1, len(runs), figsize=(3.4 * len(runs), 3.2), layout="constrained", squeeze=False
    )
    for axis, run in zip(axes[0], runs, strict=True):
        for name, values in run["sharpness"].items():
            axis.plot(
                run["loss"][name],
                values,
                marker=".",
                linewidth=1.2,
                color="black" if name == "real" else None,
                label=name,
            )
        axis.set(xscale="log", yscale="log", title=run["data"], xlabel="loss")
        axis.invert_xaxis()
    axes[0, 0].set_ylabel("sharpness λ")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


EXPERIMENT = Experiment(
    name="sharpening",
    outdated=FORMER_SURROGATE,
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
)
