"""Where the error comes from: the paper's approximations taken back one at a time, on small tasks.

    python -m experiments.run causes --scale cpu

Takes about 8 minutes on one core. Expected at `cpu`: the first four differ little, so the
linearisation is the cause.

    paper       the ODE, or the SDE with diagonal covariance; projected features; another order of
                the data
    replay      the optimiser itself instead of the differential equation (− integrator, noise)
    exact       the features of all weights instead of their projection (− projection)
    same order  the batches that real training took (− order of the data)
    end kernel  the same, with the kernel of the trained network (what a grown kernel would say)

What is left in `same order` is the linearisation alone. Beside them, another real run with its own
order of the data says how well times can be known at all. The last columns of a run say how much
the kernel grew: tr Θ and gᵀΘg with g at w₀, after over before.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_tt
from experiments.common.comparison import (
    SEEDS,
    TINY_TASK,
    Setting,
    median_times,
    on,
    optimizer_of,
    paper_dynamics,
    prepare,
    read_times,
)
from experiments.common.experiment import Experiment, Scale
from experiments.common.statistics import describe, number, over_estimated, pairs, percent
from experiments.common.tasks import TaskConfig, real_run
from ntk_tt.data.order import batches_in_order
from ntk_tt.dynamics import replay
from ntk_tt.kernels.operators import DualKernel
from ntk_tt.prediction.one_setting import plateau_window
from ntk_tt.surrogate.linear import LinearizedProblem

CLAIM = (
    "the linear model with its approximations is close enough to real fine-tuning; "
    "overestimation comes from non-linearity"
)
PAPER = "no numbers"
LADDER = ("paper", "replay", "exact", "same order", "end kernel", "another real run")
FAMILIES = ("epsilon_relative", "loss_below", "error_below", "plateau")


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    rates: tuple[float, ...] = (0.03, 0.3)
    batch_sizes: tuple[int | None, ...] = (None, 16)
    num_steps: int = 150
    record_every: int = 3


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        TINY_TASK, ("digits",), rates=(0.3,), batch_sizes=(6,), num_steps=8, record_every=1
    ),
    "cpu": Config(TaskConfig("resnet8", per_class=20), ("cifar10", "trashnet", "scene15")),
    "gpu": Config(
        TaskConfig("resnet18", per_class=20, image_size=224),
        ("cifar10", "trashnet", "scene15", "cub200"),
    ),
}


def compute(config: Config) -> dict[str, Any]:
    records = []
    for data in config.data:
        task = on(data, config.task)
        exact = kernel_at(task, prepare(task).task.model.params)
        for rate in config.rates:
            for batch in config.batch_sizes:
                setting = Setting(
                    task,
                    rate,
                    batch_size=batch,
                    num_steps=config.num_steps,
                    record_every=1 if batch is None else config.record_every,
                )
                records.append(ladder(setting, exact))
    summary = {
        name: {
            family: describe(
                pairs([each for each in records if name in each["times"]], name, family)
            )
            for family in FAMILIES
        }
        for name in LADDER
    }
    return {"runs": records, "summary": summary}


def kernel_at(task: TaskConfig, params: Any) -> DualKernel:
    """Exact Θ (N, C, N, C) at some weights."""
    loaded = prepare(task).task
    return DualKernel(ntk_tt.kernels.empirical_ntk(loaded.model.apply, params, loaded.images))


def ladder(setting: Setting, exact: DualKernel) -> dict[str, Any]:
    loaded, problem, primal, *_ = prepare(setting.task)
    described = optimizer_of(setting, problem)
    optimizer = ntk_tt.OptimizerConfig(**described)
    steps, every, window = (
        setting.num_steps,
        setting.record_every,
        plateau_window(optimizer, problem.num_samples),
    )
    run = ntk_tt.finetune(
        loaded.model,
        loaded.images,
        loaded.labels,
        optimizer,
        steps,
        seed=setting.seed,
        record_every=every,
    )
    end = kernel_at(setting.task, run.params)
    batches = batches_of(setting, optimizer, problem.num_samples)

    def times(curve: Any) -> dict:
        return read_times(curve.steps, curve.loss, curve.error, window)

    def predicted(some: LinearizedProblem, method: Any = "replay") -> dict:
        prediction = ntk_tt.prediction.predict(
            some,
            optimizer,
            steps,
            method=method,
            num_seeds=SEEDS[method],
            key=jax.random.key(setting.seed + 2000),
            record_every=every,
        )
        return median_times([times(each) for each in prediction.runs])

    dense, ended = (
        LinearizedProblem(
            kernel, problem.initial_logits, problem.weight_logits, problem.targets, problem.loss
        )
        for kernel in (exact, end)
    )
    found = {
        "real": times(run),
        "paper": predicted(primal, paper_dynamics(setting)),
        "replay": predicted(problem),
        "exact": predicted(dense),
        "same order": times(replay(dense, optimizer, steps, batches=batches, record_every=every)),
        "end kernel": times(replay(ended, optimizer, steps, batches=batches, record_every=every)),
    }
    if batches is not None:
        found["another real run"] = times(
            real_run(setting.task, described, steps, seed=setting.seed + 1, record_every=every)
        )
    trace, growth = grown(problem, exact, end)
    print(
        f"{setting.task.data} rate {setting.rate} B={setting.batch_size}: tr Θ × {trace:.2f}, gᵀΘg "
        f"× {growth:.2f}",
        flush=True,
    )
    return {
        **dataclasses.asdict(setting),
        **described,
        "times": found,
        "trace_growth": trace,
        "gradient_growth": growth,
        "final_loss": {"real": float(run.loss[-1])},
        "cost": {"train_seconds": run.seconds},
    }


def batches_of(
    setting: Setting, optimizer: ntk_tt.OptimizerConfig, num_samples: int
) -> np.ndarray | None:
    """The samples of each step of the real run; None where each takes all."""
    if optimizer.is_full_batch(num_samples):
        return None
    order = batches_in_order(
        num_samples,
        optimizer.checked_batch_size(num_samples),
        False,
        optimizer.sampling,
        setting.seed,
    )
    return np.stack([next(order) for _ in range(setting.num_steps)])


def grown(problem: LinearizedProblem, exact: DualKernel, end: DualKernel) -> tuple[float, float]:
    """By what the trace of Θ grew in training, and by what its part along the first gradient."""
    residuals = jax.nn.softmax(problem.initial_logits) - problem.targets
    growth = float(
        jnp.vdot(residuals, end.product(residuals)) / jnp.vdot(residuals, exact.product(residuals))
    )
    return float(jnp.einsum("ncnc->", end.ntk) / jnp.einsum("ncnc->", exact.ntk)), growth


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """The cause is the step of the ladder after which the mean error of the threshold times falls
    most; what `same order` leaves is the linearisation's.
    """
    errors = {name: results["summary"][name]["loss_below"]["mean"] for name in LADDER}
    text = "mean error of the times to fractions of the initial loss: " + ", ".join(
        f"{name} {percent(error)}" for name, error in errors.items()
    )
    text += "; of relative ε-times: " + ", ".join(
        f"{name} {percent(results['summary'][name]['epsilon_relative']['mean'])}" for name in LADDER
    )
    text += (
        "; of plateau times: same order "
        f"{percent(results['summary']['same order']['plateau']['mean'])}, another real run "
        f"{percent(results['summary']['another real run']['plateau']['mean'])}"
    )
    growth = [each["gradient_growth"] for each in results["runs"]]
    text += (
        f"; gᵀΘg grew by {number(float(np.median(growth)), '.1f')} (median, up to "
        f"{number(max(growth), '.1f')})"
    )
    rungs = ("paper", "replay", "exact", "same order")
    left = errors["same order"]
    if left is None or errors["paper"] is None:
        return text, "partly: too few thresholds were reached to tell"
    gains = {
        name: (errors[before] or 0) - (errors[name] or 0)
        for before, name in itertools.pairwise(rungs)
    }
    late = (
        over_estimated(
            [
                pair
                for family in ("loss_below", "error_below")
                for pair in pairs(results["runs"], "same order", family)
            ]
        )
        or 0.0
    )
    reasons = {
        "replay": "the integrator",
        "exact": "the projection",
        "same order": "the order of the data",
    }
    dominant = left > max(gains.values())
    word = (
        "reproduced"
        if dominant and late > 0.5
        else "partly"
        if dominant or late > 0.5
        else "not reproduced"
    )
    return text, (
        f"{word}: taking back "
        + ", ".join(
            f"{reasons[name]} gains {100 * gain:.0f} points" for name, gain in gains.items()
        )
        + f"; {percent(left)} are left to the linearisation, {percent(late)} of it over-estimated"
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import PREDICTED, REAL, subplots

    figure, axes = subplots(1, 1, side=3.4, aspect=2)
    position = np.arange(len(LADDER))
    for offset, (family, label, colour) in enumerate(
        (
            ("epsilon_relative", "relative ε-times", REAL),
            ("loss_below", "fractions of the initial loss", PREDICTED),
        )
    ):
        axes[0, 0].bar(
            position + 0.4 * offset - 0.2,
            [100 * (results["summary"][name][family]["mean"] or 0) for name in LADDER],
            0.38,
            color=colour,
            label=label,
        )
    axes[0, 0].set_xticks(position, LADDER, fontsize=8)
    axes[0, 0].set(ylabel="mean relative error [%]")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


EXPERIMENT = Experiment(
    name="causes",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
)
