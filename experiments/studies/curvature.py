"""What remains when the head is real, and which way of bending the backbone takes most of it away?

    python -m experiments.run curvature --scale cpu

Takes a quarter of an hour on two cores; needs $NTK_TT_DATA. Expected: second order wins, wherever
the point, but for the highest rate. 25 % is taken. More directions and more entries hardly matter.

Tuning data only. The error of log-loss along the run, against real training: frozen kernel; head
real and backbone linear; linearised anew at the weights predicted for 40 % of the loss (a kernel
re-evaluated where training will be, from there on); second order along the path, with the second
point where the predicted loss has fallen to 60, 40, 25 and 15 %; and that with fewer and more
directions of each sample's own and sampled entries; and how wrong the times to 50, 25 and 10 % of
the loss are.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

import ntk_tt
from experiments.common.comparison import on
from experiments.common.experiment import FORMER_SURROGATE, Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import TUNING, LoadedTask, TaskConfig, load, real_run
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.backbone import split
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.second_point import path_to
from ntk_tt.surrogate.small_network import SmallNetwork
from ntk_tt.times.crossing import crossing_time, smooth

CLAIM = (
    "ours: the backbone's second-order terms along the path remove most of what a real head leaves"
)
PAPER = "–"
FALLS = (0.6, 0.4, 0.25, 0.15)
DIRECTIONS = (1, 2, "all")  # k, of each sample's own; `auto` is in all others
SHARES = (0.5, 0.25, 0.1)
ENTRIES = (1024, 4096, 8192)  # D'; `auto` is in all others
TASK = TaskConfig("resnet8")


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = TUNING
    task: TaskConfig = TASK
    rates: tuple[tuple[float, float, int | None], ...] = (
        (0.2, 0.0, 32),
        (0.5, 0.0, 32),
        (0.05, 0.9, 32),
        (0.05, 0.9, None),
    )
    """(Learning rate over the largest stable one, momentum, batch size)."""
    num_steps: int = 150
    record_every: int = 3


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        data=("digits",),
        task=TaskConfig("resnet8", classes=3, per_class=6),
        rates=((0.3, 0.9, None),),
        num_steps=20,
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
        frozen = ntk_tt.surrogate.linearize(
            loaded.model,
            *arguments[1:],
            outputs="contrasts",
            key=key,
            options=ntk_tt.FeatureOptions(num_projections=8192),
        )
        problems, seconds = {}, {}
        for name, options in ways().items():
            with Stopwatch() as watch:
                problems[name] = jax.block_until_ready(expand(*arguments, key=key, **options))
            seconds[name] = watch.seconds
        again = anew(problems["head"], loaded, key)
        for rate, momentum, batch_size in config.rates:
            rest = {"momentum": momentum, "batch_size": batch_size}
            setting = {"learning_rate": stable_rate(frozen, rate, **rest), **rest}
            optimizer = ntk_tt.OptimizerConfig(**setting)
            real = real_run(task, setting, config.num_steps, record_every=config.record_every)
            curves = {
                name: replayed(problem, optimizer, config)
                for name, problem in {"frozen kernel": frozen, **problems}.items()
            }
            curves["linearised anew"] = joined(
                curves["head"], replayed(again, optimizer, config), real.steps
            )
            truth = np.log(smooth(real.loss, 3))
            errors = {
                name: float(np.abs(np.log(np.maximum(smooth(curve, 3), 1e-9)) - truth).mean())
                for name, curve in curves.items()
            }
            runs.append(
                {
                    **dataclasses.asdict(task),
                    **setting,
                    "rate": rate,
                    "errors": errors,
                    "seconds": seconds,
                    "curves": {
                        name: np.round(curve, 5).tolist()
                        for name, curve in {"real": real.loss, **curves}.items()
                    },
                    "steps": real.steps.tolist(),
                }
            )
            print(
                data, setting, {name: round(error, 3) for name, error in errors.items()}, flush=True
            )
    return {
        "runs": runs,
        "mean_error": {
            name: float(np.mean([run["errors"][name] for run in runs]))
            for name in runs[0]["errors"]
        },
    }


def ways() -> dict[str, dict[str, Any]]:
    """Arguments of `expand` by name."""
    return {
        "head": {"curvature": False},
        **{f"second order, {fall:.0%}": {"fall": fall} for fall in FALLS},
        **{f"… 25%, k = {count}": {"num_directions": count} for count in DIRECTIONS},
        **{
            f"… 25%, D' = {count}": {"options": ntk_tt.FeatureOptions(num_projections=count)}
            for count in ENTRIES
        },
    }


def replayed(problem, optimizer, config: Config) -> np.ndarray:
    return ntk_tt.prediction.predict(
        problem,
        optimizer,
        config.num_steps,
        num_seeds=3,
        key=jax.random.key(7),
        record_every=config.record_every,
    ).loss


def anew(small: SmallNetwork, loaded: LoadedTask, key) -> SmallNetwork:
    """Expanded to first order at the weights that the linear backbone reaches at 40 % of the
    loss.
    """
    model, images, labels = loaded
    state, pushed = path_to(small, 0.4)
    backbone = split(model, images, with_head=True, options=ntk_tt.FeatureOptions())
    cotangents = np.einsum("nk,nkf->nf", pushed, small.directions)
    moved = jax.tree.map(np.add, model.params, backbone.pull(model.params, images, cotangents))
    of_head = {
        name: leaf
        for name, leaf in named_leaves(state).items()
        if small.head is not None and name in small.head.names
    }
    leaves = [of_head.get(name, leaf) for name, leaf in named_leaves(moved).items()]
    params = jax.tree.unflatten(jax.tree.structure(moved), leaves)
    there = dataclasses.replace(model, params=params)
    return expand(there, images, labels, curvature=False, key=key)


def joined(first: np.ndarray, then: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A curve until it has fallen to where the other begins, and that from there on."""
    at = int(np.argmax(first < then[0])) if (first < then[0]).any() else len(steps) - 1
    return np.concatenate([first[:at], then])[: len(steps)]


def time_errors(results: dict[str, Any]) -> dict[str, float]:
    """Median of max(predicted/real, real/predicted) − 1 over the times to `SHARES` of the loss that
    the real runs reach; none predicted counts as the last step.
    """
    found: dict[str, list[float]] = {}
    for run in results["runs"]:
        steps = np.asarray(run["steps"], float)
        curves = {name: smooth(np.asarray(curve), 3) for name, curve in run["curves"].items()}
        real = curves.pop("real")
        for share in SHARES:
            time = crossing_time(steps, real, share * real[0])
            if time is None:
                continue
            for name, curve in curves.items():
                predicted = crossing_time(steps, curve, share * real[0]) or steps[-1]
                found.setdefault(name, []).append(max(predicted / time, time / predicted) - 1)
    return {name: float(np.median(values)) for name, values in found.items()}


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    means, times = results["mean_error"], time_errors(results)
    best = min((name for name in means if "…" not in name), key=means.__getitem__)
    kept = means["second order, 25%"]
    return (
        "mean error of log-loss (median error of times): "
        + ", ".join(
            f"{name} {error:.3f}" + (f" ({times[name]:.0%})" if name in times else "")
            for name, error in means.items()
        ),
        f"{'reproduced' if kept < 0.5 * means['frozen kernel'] else 'partly'}: second order with "
        f"the second point at 25 % of the loss leaves {kept / means['frozen kernel']:.0%} of the "
        "frozen kernel's error "
        f"and {kept / means['head']:.0%} of the real head's; best is {best}",
    )


def draw(results: dict[str, Any], path) -> None:
    import matplotlib.pyplot as plt

    runs = results["runs"]
    columns = min(4, len(runs))
    figure, axes = plt.subplots(
        -(-len(runs) // columns),
        columns,
        figsize=(3.2 * columns, 2.7 * -(-len(runs) // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis, run in zip(axes.flat, runs, strict=False):
        for name in ("frozen kernel", "head", "linearised anew", "second order, 25%"):
            axis.plot(run["steps"], run["curves"][name], linewidth=1, label=name)
        axis.plot(run["steps"], run["curves"]["real"], color="black", linewidth=1.5, label="real")
        axis.set(
            yscale="log",
            title=f"{run['data']}, η = {run['learning_rate']:g}, m = {run['momentum']:g}, B = "
            f"{run['batch_size'] or 'N'}",
        )
        axis.title.set_fontsize(7)
    axes.flat[0].legend(frameon=False, fontsize=6)
    figure.savefig(path, dpi=130)
    plt.close(figure)


EXPERIMENT = Experiment(
    name="curvature",
    outdated=FORMER_SURROGATE,
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
)
