"""What experiments compare: the times of a real curve, of the predictions of it, and of guesses
that need no kernel.

A `Setting` names a run by its learning rate *relative to the largest stable one* at the pre-trained
weights, so that no task is past the bound by accident. `compare` gives one record a setting, as
plain values: the times of every method (`METHODS`), what each side cost, the verdict on ours, and
the curves. Prediction and truth take different random orders of the data. A record is kept beside
the real runs (`experiments.common.tasks`), so that an interrupted experiment goes on where it was
and several share one; remove `record-*` there to predict anew.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
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
from experiments.common.tasks import (
    LoadedTask,
    RealRun,
    TaskConfig,
    cache_folder,
    load,
    real_run,
)
from ntk_tt.dynamics import Method as Dynamics
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.prediction.one_setting import plateau_window
from ntk_tt.report.document import write_json
from ntk_tt.report.training_time import TrainingTimeReport
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
NEARBY = 0.98
"""Learning rate of a full-batch run's other one, over its own: it has no order of the data."""
METHODS = {
    "ours": "the small network, as `auto` predicts",
    "replay": "frozen kernel, replay",
    "paper": "frozen kernel, the paper's ODE or diagonal SDE",
    "another_run": "another real run: another order of the data, or a rate 2 % smaller",
    "power_law": "power law through real steps that cost as much",
    "exponential": "stretched exponential through the same",
    "power_law_tenth": "power law through the first T/10 real steps",
    "exponential_tenth": "stretched exponential through the same",
    "single_rate": "log(1/ε)/(η λ̄)",
}
SEEDS = {"ours": 3, "replay": 3, "ode": 1, "sde-diagonal": 1}
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
    loss: str = "ce"
    learning_rate: float | None = None
    """In place of `rate`, where it is given."""


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
def prepare(config: TaskConfig, loss: str = "ce") -> Prepared:
    task = load(config)
    num_projections = min(16 * len(task.images) * config.classes, MAX_PROJECTIONS)
    with priced() as cost:
        primal = ntk_tt.surrogate.linearize(
            task.model,
            task.images,
            task.labels,
            loss=cast(Any, loss),
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


@functools.lru_cache(maxsize=2)
def prepare_ours(config: TaskConfig, loss: str = "ce") -> tuple[ntk_tt.Prepared, Cost]:
    """The pass of `auto`, as a user gets it, and what that cost."""
    task = load(config)
    with priced() as cost:
        ours = ntk_tt.prepare(
            task.model, task.images, task.labels, loss=cast(Any, loss), seed=config.seed
        )
    return ours, cost[0]


def optimizer_of(setting: Setting, problem: LinearizedProblem) -> dict[str, Any]:
    """Arguments of `OptimizerConfig`: the learning rate to two digits."""
    rest = {"momentum": setting.momentum, "batch_size": setting.batch_size}
    if setting.learning_rate is not None:
        return {"learning_rate": setting.learning_rate, **rest}
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


def compare(setting: Setting) -> dict[str, Any]:
    """One record: the setting, `times` by method (`real` and `METHODS`), `cost`, `verdict` and
    `curves`; from the cache where it was made before.
    """
    described = dataclasses.asdict(setting)
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"record-{setting.task.network}-{setting.task.data}-{name}.json"
    if not path.exists():
        write_json(path, compared(setting))
    return json.loads(path.read_text())


def compared(setting: Setting) -> dict[str, Any]:
    """The record of a setting, trained and predicted now."""
    prepared = prepare(setting.task, setting.loss)
    problem = prepared.problem
    optimizer = optimizer_of(setting, problem)
    config = ntk_tt.OptimizerConfig(**optimizer)
    real, other = trained(setting, optimizer)
    window = plateau_window(config, problem.num_samples)

    def read(run: Any) -> dict[str, dict[str, int | None]]:
        return read_times(run.steps, run.loss, run.error, window)

    replay, cost = predict(prepared, setting, config, "replay")
    paper, _ = predict(prepared, setting, config, paper_dynamics(setting))
    ours, ours_cost = predict_ours(setting, config)
    seconds_per_step = real.processor_seconds / setting.num_steps
    probe_steps = max(
        3 * setting.record_every,
        round((prepared.cost.processor_seconds + cost.processor_seconds) / seconds_per_step),
    )
    rate = initial_rate(problem, optimizer)
    predictions = {
        "ours": ours.outcome.predicted.prediction,
        "replay": replay,
        "paper": paper,
    }
    curves = {"real": real, "another_run": other, **predictions}
    margin, largest = ntk_tt.prediction.stability(problem, config, setting.num_steps)
    record = {
        **dataclasses.asdict(setting),
        **optimizer,
        "rate": float(f"{optimizer['learning_rate'] / largest:.3g}")
        if setting.learning_rate is not None
        else setting.rate,
        "num_samples": problem.num_samples,
        "stability_margin": margin,
        "diverged_at": real.diverged_at,
        "final_loss": {name: float(run.loss[-1]) for name, run in curves.items()},
        "initial_rate": rate,
        "probe_steps": probe_steps,
        "verdict": verdict_of(ours),
        "times": {
            "real": read(real),
            "another_run": read(other),
            **{
                name: median_times([read(run) for run in prediction.runs])
                for name, prediction in predictions.items()
            },
            **{
                name: read_times(*curve, window)
                for name, curve in guesses(real, probe_steps, rate).items()
            },
        },
        "cost": costs(
            prepared.cost, cost, prepare_ours(setting.task, setting.loss)[1], ours_cost, real
        ),
        "curves": {name: thinned(run) for name, run in curves.items()},
    }
    tell(record)
    return record


def trained(setting: Setting, optimizer: dict[str, Any]) -> tuple[RealRun, RealRun]:
    """The real run, and another that nobody would call another setting."""
    nearby = optimizer | {"learning_rate": float(f"{NEARBY * optimizer['learning_rate']:.3g}")}
    of_other = (nearby, 0) if setting.batch_size is None else (optimizer, 1)
    real, other = (
        real_run(
            setting.task,
            of,
            setting.num_steps,
            seed=setting.seed + further,
            record_every=setting.record_every,
            loss=setting.loss,
        )
        for of, further in ((optimizer, 0), of_other)
    )
    return real, other


def predict(
    prepared: Prepared, setting: Setting, optimizer: ntk_tt.OptimizerConfig, method: Dynamics
) -> tuple[ntk_tt.prediction.Prediction, Cost]:
    """By the frozen kernel."""
    with priced() as cost:
        prediction = ntk_tt.prediction.predict(
            prepared.problem if method == "replay" else prepared.primal,
            optimizer,
            setting.num_steps,
            method=method,
            num_seeds=SEEDS[method],
            key=jax.random.key(setting.seed + 2000),
            record_every=setting.record_every,
        )
    return prediction, cost[0]


def predict_ours(
    setting: Setting, optimizer: ntk_tt.OptimizerConfig
) -> tuple[TrainingTimeReport, Cost]:
    """As a user is told it, verdict and slowdown with it."""
    prepared, _ = prepare_ours(setting.task, setting.loss)
    with priced() as cost:
        report = prepared.predict(
            optimizer,
            setting.num_steps,
            num_seeds=SEEDS["ours"],
            record_every=setting.record_every,
            smoothing=SMOOTHING,
        )
    return report, cost[0]


def verdict_of(ours: TrainingTimeReport) -> dict[str, Any]:
    """What was said of the prediction before anything was trained."""
    verdict = ours.outcome.verdict
    problem = ours.outcome.predicted.problem
    return {
        "trust": verdict.trust,
        "stability_margin": verdict.stability_margin,
        "largest_safe_learning_rate": verdict.largest_safe_learning_rate,
        "linearization_residual": verdict.linearization_residual,
        "expected_residual": verdict.expected_residual,
        "slowdown": ours.outcome.predicted.slowdown,
        "growth": float(getattr(problem, "growth", 1.0)),
    }


def tell(record: dict[str, Any]) -> None:
    """A line on what was found."""
    loss, task = record["final_loss"], record["task"]
    print(
        f"{task['network']} {task['data']} ({task['seed']}) N={record['num_samples']} "
        f"{record['loss']} η={record['learning_rate']:g} B={record['batch_size']}: loss "
        f"{record['curves']['real']['loss'][0]:.3g} -> "
        + ", ".join(f"{value:.3g} {name}" for name, value in loss.items())
        + f"; trust {record['verdict']['trust']}, "
        f"training {record['cost']['train_processor_seconds']:.1f} s",
        flush=True,
    )


def costs(
    features: Cost, prediction: Cost, ours: Cost, ours_prediction: Cost, real: RealRun
) -> dict[str, float]:
    return {
        "features_seconds": features.seconds,
        "features_processor_seconds": features.processor_seconds,
        "predict_seconds": prediction.seconds,
        "predict_processor_seconds": prediction.processor_seconds,
        "compile_seconds": features.compile_seconds + prediction.compile_seconds,
        "ours_pass_processor_seconds": ours.processor_seconds,
        "ours_predict_processor_seconds": ours_prediction.processor_seconds,
        "ours_compile_seconds": ours.compile_seconds + ours_prediction.compile_seconds,
        "train_seconds": real.seconds,
        "train_processor_seconds": real.processor_seconds,
    }


def thinned(run: Any) -> dict[str, list[float]]:
    """A curve in at most 50 records."""
    every = max(1, -(-len(run.steps) // 50))
    steps, loss, error = (np.asarray(getattr(run, name)) for name in ("steps", "loss", "error"))
    return {
        "steps": steps[::every].tolist(),
        "loss": np.round(loss[::every].astype(float), 5).tolist(),
        "error": np.round(error[::every].astype(float), 4).tolist(),
    }


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
