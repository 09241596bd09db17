"""How many directions, and how many entries, does the surrogate need?

    python -m experiments.studies.surrogate

Takes minutes for each of nine tasks; needs $NTK_TT_DATA. It goes on where it was stopped. Expected:
three shared directions and a spare one are as close to all outputs as six shared ones, and D' =
2048 is close to 8192 until late in training.

Full-batch replay of SGD with momentum, and of adamw, on small networks of the same tasks. The
reference looks at every output of the backbone (`num_directions="all"`) with D' = 8192. The error
is the mean of |log(loss/reference)| from the start until the reference has fallen to a tenth, or a
fifth, of its start. One key draws the entries of all, so at D' = 8192 nearly the same entries are
taken, and what is left is what the directions do. `auto` and its 2,048 entries were chosen on the
tuning data sets.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
import tyro

import ntk_tt
from experiments.common.experiment import RESULTS as ALL_RESULTS
from experiments.common.rates import two_digits
from experiments.common.tasks import TUNING, TaskConfig, cache_folder, load
from ntk_tt.dynamics import replay
from ntk_tt.report.document import environment, write_json
from ntk_tt.surrogate.sharpness import largest_curvature
from ntk_tt.surrogate.small_network import SmallNetwork

RESULTS = ALL_RESULTS / "surrogate"
MOMENTUM = 0.9
SHARES = (0.1, 0.2)  # of the reference's initial loss, where the comparison ends
MOST_SAMPLES = 200
TASKS = (
    ("cifar100", 5),
    ("cifar100", 20),
    ("dtd", 5),
    ("houses_rooms", 4),
    ("stanford_cars", 10),
    ("cifar10", 5),
    ("trashnet", 5),
    ("scene15", 10),
    ("cub200", 10),
)


@dataclasses.dataclass(frozen=True)
class Config:
    tasks: tuple[tuple[str, int], ...] = TASKS
    """Data set and number of classes."""
    network: str = "resnet8"
    per_class: int = 30
    """At most 200 images in all."""
    directions: tuple[int, ...] = (4, 6)
    """Numbers of shared directions, without a spare, beside `auto`; at the largest D'."""
    entries: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """D' with `auto`."""
    shares: tuple[float, ...] = (0.03, 0.2)
    """Of the largest stable rate of SGD with momentum."""
    adamw_rates: tuple[float, ...] = (1e-4, 3e-4)
    curvature: bool = False
    """Expand to second order, along plain gradient descent."""
    steps: int = 150
    seed: int = 0


def main(config: Config) -> None:
    rows = [row for data, classes in config.tasks for row in of_task(data, classes, config)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {
        "config": dataclasses.asdict(config),
        "rows": rows,
        "medians": medians(rows),
        "environment": environment(config.seed),
    }
    write_json(RESULTS / "surrogate.json", document)
    for each in document["medians"]:
        print(
            f"{each['role']:9} {each['optimizer']:5} {each['way']:18} median error until 1/10 "
            f"{each['until 0.1']:.4f}, until 1/5 {each['until 0.2']:.4f}, of {each['runs']} runs"
        )


def of_task(data: str, classes: int, config: Config) -> list[dict[str, Any]]:
    """The rows of one task, from the cache where it was run before."""
    per_class = min(config.per_class, MOST_SAMPLES // classes)
    task = TaskConfig(config.network, data, classes, per_class, config.seed)
    described = dataclasses.asdict(config) | {"tasks": dataclasses.asdict(task)}
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"surrogate-{data}-{classes}-{name}.json"
    if not path.exists():
        write_json(path, {"described": described, "rows": measure(task, config)})
    return json.loads(path.read_text())["rows"]


def measure(task: TaskConfig, config: Config) -> list[dict[str, Any]]:
    """A row for each optimiser and each small network, beside the reference."""
    reference = small_network(task, config, "all", max(config.entries))
    optimizers = optimizers_of(reference, config)
    curves = [replay(reference, each, config.steps).loss for each in optimizers]
    reference = None  # the largest by far
    most = max(config.entries)
    ways = [("auto", count) for count in config.entries]
    rows = []
    for directions, entries in [*ways, *((count, most) for count in config.directions)]:
        small = small_network(task, config, directions, entries)
        for optimizer, curve in zip(optimizers, curves, strict=True):
            loss = replay(small, optimizer, config.steps).loss
            row = {
                **dataclasses.asdict(task),
                "role": "tuning" if task.data in TUNING else "reporting",
                "num_samples": small.num_samples,
                "optimizer": optimizer.name,
                "learning_rate": optimizer.learning_rate,
                "way": f"{directions}, D' = {entries}",
                "num_directions": small.directions.shape[1],
                "num_entries": small.jacobian.shape[2],
                "directions_dropped": float(small.dropped),
                "passes_per_sample": small.passes,
                "loss": np.round(loss[:: max(1, config.steps // 50)], 5).tolist(),
                "reference": np.round(curve[:: max(1, config.steps // 50)], 5).tolist(),
                **{f"until {share:g}": log_error(loss, curve, share) for share in SHARES},
            }
            rows.append(row)
            print(
                f"{task.data:13} C = {task.classes:2} {row['way']:18} {optimizer.name:5} "
                f"{optimizer.learning_rate:<8g} {row['until 0.1']:.4f} {row['until 0.2']:.4f}",
                flush=True,
            )
    return rows


def small_network(
    task: TaskConfig, config: Config, directions: int | str, entries: int
) -> SmallNetwork:
    return ntk_tt.surrogate.expand(
        *load(task),
        curvature=config.curvature,
        num_directions=directions,
        options=ntk_tt.FeatureOptions(num_projections=entries),
        key=jax.random.key(config.seed + 1),
    )


def optimizers_of(small: SmallNetwork, config: Config) -> list[ntk_tt.OptimizerConfig]:
    """SGD at shares of the rate that is stable at the start, and adamw."""
    curvature, _ = largest_curvature(small.tangent(small.zero()), small.initial_logits)
    stable = 2 * (1 + MOMENTUM) / curvature
    return [
        *(ntk_tt.OptimizerConfig(two_digits(share * stable), MOMENTUM) for share in config.shares),
        *(ntk_tt.OptimizerConfig(rate, name="adamw") for rate in config.adamw_rates),
    ]


def log_error(loss: np.ndarray, reference: np.ndarray, share: float) -> float:
    """Mean |log(loss/reference)| up to where the reference has fallen to a share of its start."""
    fallen = reference <= share * reference[0]
    end = int(fallen.argmax()) if fallen.any() else len(reference)
    return float(np.abs(np.log(loss[:end] / reference[:end])).mean())


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median errors by data's role, optimiser and small network."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["optimizer"], row["way"]), []).append(row)
    return [
        {
            "role": role,
            "optimizer": optimizer,
            "way": way,
            "runs": len(group),
            **{
                f"until {share:g}": float(np.median([row[f"until {share:g}"] for row in group]))
                for share in SHARES
            },
        }
        for (role, optimizer, way), group in groups.items()
    ]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
