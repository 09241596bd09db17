"""What experiments compare: the times of a real curve, of the predictions of it, and of guesses
that need no kernel.

A `Setting` names a run by its learning rate *relative to the largest stable one* at the pre-trained
weights, so that no task is past the bound by accident. `compare` gives one record a setting, as
plain values: the times of every method (`METHODS`), what each side cost, and the stability margin.
Prediction and truth take different random orders of the data.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ntk_tt
from experiments.common.extrapolation import power_law, stretched_exponential
from experiments.common.rates import stable_rate
from experiments.common.tasks import LoadedTask, RealRun, TaskConfig, load, real_run
from ntk_tt.dynamics import Method as Dynamics
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.prediction.one_setting import plateau_window
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.times.crossing import plateau_time, smooth, training_times

EPSILONS = (0.01, 0.1, 0.4)
LOSS_FRACTIONS = (0.5, 0.25, 0.1)
"""Of the initial loss."""
ERROR_LEVELS = (0.2, 0.1, 0.05)
PLATEAU_EPOCHS = (1, 5)
"""Over which the error falls by less than 1 %; an epoch counts as at least 10 steps."""
SMOOTHING = 3
METHODS = {
    "replay": "frozen kernel, replay (ours)",
    "paper": "frozen kernel, the paper's ODE or diagonal SDE",
    "power_law": "power law through real steps that cost as much",
    "exponential": "stretched exponential through the same",
    "power_law_tenth": "power law through the first T/10 real steps",
    "exponential_tenth": "stretched exponential through the same",
    "single_rate": "log(1/ε)/(η λ̄)",
}
SEEDS = {"replay": 3, "ode": 1, "sde-diagonal": 1}
"""Orders of the data, or noise paths, whose median time is the prediction. A path in D' dimensions
costs many replays.
"""
MAX_PROJECTIONS = 16384
"""D' is 16 N C, but at most this: a Brownian path of the paper's SDE has D' dimensions."""

NUM_CLASSES = {"houses_rooms": 4}
"""Of data sets that have fewer than the paper's five."""
TINY_TASK = TaskConfig(classes=3, per_class=6)
"""The task of all `tiny` experiments."""


@dataclasses.dataclass(frozen=True)
class Setting:
    task: TaskConfig = TINY_TASK
    rate: float = 0.1
    """η over the largest stable one of this momentum and batch size at w₀."""
    momentum: float = 0.0
    batch_size: int | None = None
    num_steps: int = 150
    record_every: int = 1
    seed: int = 0
    """Of the order of the data in real training."""


def on(data: str, task: TaskConfig) -> TaskConfig:
    """The same task on another data set, with as many classes as that has."""
    return dataclasses.replace(
        task, data=data, classes=min(task.classes, NUM_CLASSES.get(data, task.classes))
    )


class Prepared(NamedTuple):
    """A linearised task, and what that cost, with compilation apart.

    Attributes:
        problem: with Θ = ΦΦᵀ, for replay.
        primal: with the features themselves, which the paper's SDE needs.
    """

    task: LoadedTask
    problem: LinearizedProblem
    primal: LinearizedProblem
    cost: "Cost"


class Cost(NamedTuple):
    """Wall and processor time of a computation without compilation, and that of compilation [s].

    Other work on the same cores lengthens the first, not the second.
    """

    seconds: float
    processor_seconds: float
    compile_seconds: float


@contextlib.contextmanager
def priced() -> Iterator[list[Cost]]:
    """`with priced() as cost: …`, then `cost[0]`. Processor time is shared out as wall time is."""
    found: list[Cost] = []
    processor = time.process_time()
    with Stopwatch() as watch:
        yield found
    wall = watch.seconds + watch.compile_seconds
    found.append(
        Cost(
            watch.seconds,
            (time.process_time() - processor) * watch.seconds / wall,
            watch.compile_seconds,
        )
    )


@functools.lru_cache(maxsize=2)
def prepare(config: TaskConfig) -> Prepared:
    task = load(config)
    num_projections = min(16 * len(task.images) * config.classes, MAX_PROJECTIONS)
    with priced() as cost:
        primal = ntk_tt.surrogate.linearize(
            task.model,
            task.images,
            task.labels,
            space="primal",
            options=ntk_tt.FeatureOptions(num_projections=num_projections),
            key=jax.random.key(config.seed + 1000),
        )
        features = cast(PrimalKernel, primal.kernel).features
        rows = features.shape[:2]
        problem = eqx.tree_at(
            lambda each: each.kernel,
            primal,
            DualKernel(ntk_tt.kernels.ntk_from_features(features).reshape(*rows, *rows)),
        )
        jax.block_until_ready(problem.kernel)
    return Prepared(task, problem, primal, cost[0])


def optimizer_of(setting: Setting, problem: LinearizedProblem) -> dict[str, Any]:
    """Arguments of `OptimizerConfig`: the learning rate to two digits."""
    rest = {"momentum": setting.momentum, "batch_size": setting.batch_size}
    return {"learning_rate": stable_rate(problem, setting.rate, **rest), **rest}


def read_times(
    steps: np.ndarray, loss: np.ndarray, error: np.ndarray, window: int
) -> dict[str, dict[str, int | None]]:
    """Times by family: ε-times of the loss, fractions of the initial loss, levels of the error, the
    plateau.
    """
    of_loss = training_times(steps, loss, error, thresholds=EPSILONS, smoothing=SMOOTHING)
    fractions = training_times(
        steps, loss / loss[0], error, thresholds=LOSS_FRACTIONS, smoothing=SMOOTHING
    )
    levels = training_times(steps, loss, error, thresholds=ERROR_LEVELS, smoothing=SMOOTHING)
    plateau = {
        f"{epochs} epochs": plateau_time(steps, smooth(error, SMOOTHING), window=epochs * window)
        for epochs in PLATEAU_EPOCHS
    }
    return {
        "epsilon_relative": of_loss["epsilon_relative"],
        "epsilon_absolute": of_loss["epsilon_absolute"],
        "loss_below": fractions["loss_below"],
        "error_below": levels["error_below"],
        "plateau": plateau,
    }


def median_times(each: list[dict[str, dict[str, int | None]]]) -> dict[str, dict[str, int | None]]:
    """Of several seeds; "not reached" counts as later than every number."""

    def median(values: list[int | None]) -> int | None:
        middle = sorted(np.inf if value is None else value for value in values)[len(values) // 2]
        return None if np.isinf(middle) else int(middle)

    return {
        family: {name: median([times[family][name] for times in each]) for name in each[0][family]}
        for family in each[0]
    }


def paper_dynamics(setting: Setting) -> Dynamics:
    """Algorithm 1: the ODE for the full batch, else the SDE with diagonal covariance."""
    return "ode" if setting.batch_size is None else "sde-diagonal"


def compare(setting: Setting, *, curves: bool = False) -> dict[str, Any]:
    """One record: the setting, `times` by method (`real` and `METHODS`), `cost`, and the stability
    margin along the prediction.

    Args:
        curves: with the curves of the real run and of both predictions, at most 50 records each.
    """
    prepared = prepare(setting.task)
    problem = prepared.problem
    optimizer = optimizer_of(setting, problem)
    config = ntk_tt.OptimizerConfig(**optimizer)
    real = real_run(
        setting.task,
        optimizer,
        setting.num_steps,
        seed=setting.seed,
        record_every=setting.record_every,
    )
    window = plateau_window(config, problem.num_samples)

    def predict(method: Dynamics) -> tuple[dict, Any, Cost]:
        with priced() as cost:
            prediction = ntk_tt.prediction.predict(
                problem if method == "replay" else prepared.primal,
                config,
                setting.num_steps,
                method=method,
                num_seeds=SEEDS[method],
                key=jax.random.key(setting.seed + 2000),
                record_every=setting.record_every,
            )
        return (
            median_times(
                [read_times(run.steps, run.loss, run.error, window) for run in prediction.runs]
            ),
            prediction,
            cost[0],
        )

    replay_times, replay, cost = predict("replay")
    paper_times, paper, _ = predict(paper_dynamics(setting))
    margin, _ = ntk_tt.prediction.stability(problem, config, setting.num_steps)
    seconds_per_step = real.processor_seconds / setting.num_steps
    probe_steps = max(
        3 * setting.record_every,
        round((prepared.cost.processor_seconds + cost.processor_seconds) / seconds_per_step),
    )
    rate = initial_rate(problem, optimizer)
    record = {
        **dataclasses.asdict(setting),
        **optimizer,
        "num_samples": problem.num_samples,
        "stability_margin": margin,
        "diverged_at": real.diverged_at,
        "final_loss": {
            "real": float(real.loss[-1]),
            "replay": float(replay.loss[-1]),
            "paper": float(paper.loss[-1]),
        },
        "initial_rate": rate,
        "probe_steps": probe_steps,
        "times": {
            "real": read_times(real.steps, real.loss, real.error, window),
            "replay": replay_times,
            "paper": paper_times,
            **{
                name: read_times(*curve, window)
                for name, curve in guesses(real, probe_steps, rate).items()
            },
        },
        "cost": costs(prepared.cost, cost, real),
    }
    if curves:
        named = {"real": real, "replay": replay, "paper": paper}
        record["curves"] = {name: thinned(run) for name, run in named.items()}
    print(
        f"{setting.task.network} {setting.task.data} ({setting.task.seed}) N={problem.num_samples} "
        f"η={optimizer['learning_rate']:g} "
        f"B={setting.batch_size}: loss {real.loss[0]:.3g} -> {real.loss[-1]:.3g} real, "
        f"{replay.loss[-1]:.3g} predicted; "
        f"{probe_steps} probe steps, training {real.seconds:.1f} s",
        flush=True,
    )
    return record


def costs(features: Cost, prediction: Cost, real: RealRun) -> dict[str, float]:
    return {
        "features_seconds": features.seconds,
        "features_processor_seconds": features.processor_seconds,
        "predict_seconds": prediction.seconds,
        "predict_processor_seconds": prediction.processor_seconds,
        "compile_seconds": features.compile_seconds + prediction.compile_seconds,
        "train_seconds": real.seconds,
        "train_processor_seconds": real.processor_seconds,
    }


def thinned(run: Any) -> dict[str, list[float]]:
    """A curve in at most 50 records."""
    every = max(1, -(-len(run.steps) // 50))
    return {name: getattr(run, name)[::every].tolist() for name in ("steps", "loss", "error")}


def compare_all(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    """Settings of one task should follow each other: they share its features."""
    return [compare(setting) for setting in settings]


def initial_rate(problem: LinearizedProblem, optimizer: dict[str, Any]) -> float:
    """η̃ λ̄ with λ̄ = gᵀΘg/(N²L₀): the rate at which gradient flow begins to reduce the loss
    [1/step], d log L/dt at 0.
    """
    residuals = jax.nn.softmax(problem.initial_logits) - problem.targets
    loss, _ = problem.metrics(problem.initial_logits)
    decay = jnp.vdot(residuals, problem.kernel.product(residuals)) / (problem.num_samples**2 * loss)
    return float(optimizer["learning_rate"] / (1 - optimizer["momentum"]) * decay)


def guesses(
    real: RealRun, probe_steps: int, rate: float
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(steps, loss, error) by the methods that need no kernel; those from real steps see the first
    `probe_steps`, or a tenth, only.
    """
    steps = real.steps
    found = {}
    for suffix, last in (("", probe_steps), ("_tenth", steps[-1] / 10)):
        seen = steps <= max(last, steps[min(3, len(steps) - 1)])
        for name, extrapolate in (("power_law", power_law), ("exponential", stretched_exponential)):
            loss, error = (
                np.where(seen, curve, extrapolate(steps[seen], curve[seen], steps))
                for curve in (real.loss, real.error)
            )
            found[name + suffix] = (steps, loss, error)
    decay = np.exp(-rate * steps)
    return {**found, "single_rate": (steps, real.loss[0] * decay, real.error[0] * decay)}
