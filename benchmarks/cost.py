"""What a prediction costs, beside its floor and beside the training it replaces, in one run.

    python -m benchmarks.cost      # the bundled network on digits
    python -m benchmarks.cost --network resnet20 --weights FILE --data folder:PATH --per-class 150
    python -m benchmarks.cost --network resnet18 --weights FILE --data folder:PATH \\
        --image-size 64 --sweep

The floor is one forward pass and C−1 vector-Jacobian products a sample: cross-entropy does not see
the sum of the logits, so C−1 gradients carry all it needs. Everything is run once to compile, which
is its own column, and then in rounds, one after the other, because a machine slows down under load:
rows are medians over the rounds, ratios are of processor seconds, which a shared machine disturbs
least. Training is timed over a few of its steps and multiplied: every step costs the same.
`--sweep` adds the features' cost against N, C and D'.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

import ntk_tt
from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import contrast_basis, in_contrasts
from ntk_tt.features.plan import plan_features
from ntk_tt.kernels.empirical import ntk_from_features
from ntk_tt.kernels.operators import ContrastKernel, DualKernel
from ntk_tt.losses import encode_targets
from ntk_tt.report.document import environment
from ntk_tt.surrogate.linear import LinearizedProblem

SMALL = 16384  # D' ≥ 4·N·C here: the least that a spectrum should have, see docs/features.md
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    network: str = "resnet8"
    weights: str | None = None
    data: str = "digits"
    image_size: int = 32
    classes: int = 5
    per_class: int = 150
    steps: int = 150
    measured_steps: int = 5
    repeats: int = 3
    sweep: bool = False
    seed: int = 0


def measure(functions: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and processor seconds of each call, taken in turns, and what its first call took
    beyond that.
    """
    first, wall, processor = (
        {},
        {label: [] for label in functions},
        {label: [] for label in functions},
    )
    for label, function in functions.items():
        clock = time.perf_counter()
        jax.block_until_ready(function())
        first[label] = time.perf_counter() - clock  # compilation, where there is any
    for done in range(rounds):
        for label, function in functions.items():
            start, start_processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            wall[label].append(time.perf_counter() - start)
            processor[label].append(time.process_time() - start_processor)
        print(f"round {done + 1} of {rounds}", file=sys.stderr, flush=True)
    seconds = {label: statistics.median(values) for label, values in wall.items()}
    return {
        label: {
            "seconds": seconds[label],
            "processor_seconds": statistics.median(processor[label]),
            "compile_seconds": max(0.0, first[label] - seconds[label]),
        }
        for label in functions
    }


def planned(
    apply, params, images, num_projections: int | str
) -> tuple[int, float, Callable[[], Array]]:
    """D', the seconds of compilation, and the feature pass alone."""
    clock = time.perf_counter()
    plan = plan_features(
        apply, params, images, options=ntk_tt.FeatureOptions(num_projections=num_projections)
    )
    return (
        plan.num_projections,
        time.perf_counter() - clock,
        lambda: compute_features(plan, params, images),
    )


def passes(model, params, images) -> dict[str, Callable]:
    """One forward pass, and one with a backward pass, in blocks of 32 as training takes them, the
    last with its neighbour's samples.
    """
    forward = jax.jit(model.apply)

    @jax.jit
    def one_vjp(params, block):  # summed over samples: the cheapest possible backward pass
        logits, pullback = jax.vjp(lambda params: model.apply(params, block), params)
        return pullback(jnp.zeros_like(logits).at[:, 0].set(1.0))

    size = min(32, len(images))
    blocks = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    return {
        "one forward pass": lambda: [forward(params, block) for block in blocks],
        "forward and one VJP": lambda: [one_vjp(params, block) for block in blocks],
    }


def add_floors(rows: dict[str, dict[str, float]], num_samples: int, num_outputs: int) -> None:
    """The passes as of all samples, and forward + C−1 and + C vector-Jacobian products."""
    size, names = min(32, num_samples), ("seconds", "processor_seconds")
    first, both = rows["one forward pass"], rows["forward and one VJP"]
    for row in (first, both):
        row |= {name: row[name] * num_samples / (num_samples // size * size) for name in names}
    for label, count in (("floor", num_outputs - 1), ("C VJPs", num_outputs)):
        rows[f"{label}: forward + {count} VJPs"] = {
            name: first[name] + count * (both[name] - first[name]) for name in names
        }


def main(config: Config) -> None:
    task = ntk_tt.load_task(
        config.data,
        num_classes=config.classes,
        per_class=config.per_class,
        image_size=config.image_size,
        seed=config.seed,
    )
    model = ntk_tt.load_model(
        config.network,
        weights=config.weights,
        num_classes=config.classes,
        image_size=config.image_size,
        key=jax.random.key(config.seed),
    )
    images, params, labels = model.preprocess(task.images), model.params, task.labels
    basis = contrast_basis(config.classes)
    apply = in_contrasts(model.apply, basis)

    functions, compiling, parts = passes(model, params, images), {}, {}
    ntk = jnp.zeros(())
    for number in (SMALL, "auto"):
        dimension, seconds, compute = planned(apply, params, images, number)
        label = f"D' = {dimension}" + (" (default)" if number == "auto" else "")
        features = compute()
        parts[label] = [f"features, {label}", f"Θ from them, {label}"]
        compiling[parts[label][0]] = seconds
        functions |= {
            parts[label][0]: compute,
            parts[label][1]: lambda features=features: ntk_from_features(features),
        }
        ntk = ntk_from_features(features).reshape(*features.shape[:2], *features.shape[:2])
    logits = jnp.concatenate(
        [
            jax.jit(model.apply)(params, images[start : start + 50])
            for start in range(0, len(images), 50)
        ]
    )
    problem = LinearizedProblem(
        ContrastKernel(DualKernel(ntk), basis),
        logits,
        jnp.zeros_like(logits),
        encode_targets(labels, config.classes, logits.dtype),
    )
    optimizers = {
        "full batch": ntk_tt.OptimizerConfig(0.001, 0.9),
        "batch 64": ntk_tt.OptimizerConfig(0.001, 0.9, batch_size=64),
    }
    training: dict[str, list[dict[str, float]]] = {label: [] for label in optimizers}

    def train(label: str) -> None:
        steps = config.measured_steps * (1 if optimizers[label].batch_size is None else 8)
        processor = time.process_time()
        run = ntk_tt.finetune(
            ntk_tt.from_function(model.apply, params),
            images,
            labels,
            optimizers[label],
            steps,
            record_every=steps,
        )
        share = run.seconds / (run.seconds + run.evaluation_seconds + run.compile_seconds)
        training[label].append(
            {
                "seconds": run.seconds * config.steps / steps,
                "compile_seconds": run.compile_seconds,
                "processor_seconds": (time.process_time() - processor)
                * share
                * config.steps
                / steps,
            }
        )

    for label, optimizer in optimizers.items():
        functions[f"replay, {config.steps} steps, {label}"] = lambda optimizer=optimizer: (
            jnp.asarray(
                ntk_tt.dynamics.simulate(problem, optimizer, config.steps, record_every=10).loss
            )
        )
        functions[f"real training, {config.steps} steps, {label}"] = lambda label=label: train(
            label
        )
    rows = measure(functions, config.repeats)
    add_floors(rows, len(images), config.classes)
    for label, seconds in compiling.items():
        rows[label]["compile_seconds"] = seconds
    ratios = {}
    for label, runs in training.items():
        trained = f"real training, {config.steps} steps, {label}"
        # the first was the one that compiled
        rows[trained] = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
        for name in ("seconds", "processor_seconds"):
            for dimension, pair in parts.items():
                ratios[f"{label}, {name}, {dimension}"] = rows[trained][name] / sum(
                    rows[each][name] for each in (*pair, f"replay, {config.steps} steps, {label}")
                )

    floor = next(row for label, row in rows.items() if label.startswith("floor"))[
        "processor_seconds"
    ]
    print(
        f"\n{config.network} on {config.data}: {len(images)} images, C = {config.classes}, D = "
        f"{model.num_params}; {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print(f"{'':45}{'seconds':>10}{'CPU-s':>10}{'× floor':>10}{'CPU-ms/image':>14}{'compile':>10}")
    for label, row in rows.items():
        compile_seconds = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        print(
            f"{label:45}{row['seconds']:10.3f}{row['processor_seconds']:10.3f}"
            f"{row['processor_seconds'] / floor:10.2f}"
            f"{1e3 * row['processor_seconds'] / len(images):14.2f}{compile_seconds:>10}"
        )
    for label, ratio in ratios.items():
        print(f"training / (features + Θ + replay), {label}: {ratio:.1f}")
    sweep = sweep_rows(config, model, images) if config.sweep else []
    RESULTS.mkdir(exist_ok=True)
    report = {
        "config": {
            **dataclasses.asdict(config),
            "weights": config.weights and Path(config.weights).name,
            "data": task.source.rpartition("/")[2],
        },
        "num_params": model.num_params,
        "rows": rows,
        "ratios": ratios,
        "sweep": sweep,
        "environment": environment(config.seed),
    }
    (RESULTS / f"cost_{config.network}.json").write_text(
        json.dumps(report, indent=1, default=float) + "\n"
    )


def sweep_rows(config: Config, model, images) -> list[dict[str, float]]:
    """The features' cost against N, C and D', one at a time."""
    found = []
    for num_samples, num_outputs, dimension in (
        (32, 4, 16384),
        (64, 4, 16384),
        (128, 4, 16384),
        (64, 1, 16384),
        (64, 2, 16384),
        (64, 4, 4096),
        (64, 4, 65536),
    ):
        basis = (
            jnp.eye(config.classes)[:, :num_outputs]
            if num_outputs < config.classes
            else jnp.eye(config.classes)
        )
        _, _, compute = planned(
            in_contrasts(model.apply, basis), model.params, images[:num_samples], dimension
        )
        row = measure({"features": compute}, config.repeats)["features"]
        found.append(
            {"num_samples": num_samples, "num_outputs": num_outputs, "num_projections": dimension}
            | row
        )
        print(
            f"N = {num_samples:4} outputs = {num_outputs} D' = {dimension:6}: "
            f"{1e3 * row['processor_seconds'] / num_samples:.2f} CPU-ms/image",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
