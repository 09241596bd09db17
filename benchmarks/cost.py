"""What a prediction costs, beside its floor and beside the training it replaces, in one run.

    python -m benchmarks.cost                                                   # the bundled network on digits
    python -m benchmarks.cost --network resnet20 --weights FILE --data folder:PATH --per-class 150
    python -m benchmarks.cost --network resnet18 --weights FILE --data folder:PATH --image-size 64 --sweep

The floor is one forward pass and C−1 vector-Jacobian products a sample: cross-entropy does not see the sum of the
logits, so C−1 gradients carry all it needs. Rows are medians of several runs after compilation, which is its own column;
ratios are of processor seconds, which a shared machine disturbs least. Training is timed over a few of its steps, once
compiled, and multiplied: every step costs the same. `--sweep` adds the features' cost against N, C and D'.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

import ntk_tt
from ntk_tt.features import compute_features, in_contrasts, plan_features
from ntk_tt.kernel import ContrastKernel, DualKernel, contrast_basis
from ntk_tt.losses import encode_targets
from ntk_tt.ntk import ntk_from_features
from ntk_tt.problem import LinearizedProblem
from ntk_tt.report import environment

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


def measure(function: Callable, repeats: int) -> dict[str, float]:
    """Median wall and processor seconds of a call that returns arrays, and what its first call took beyond that."""
    clock = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - clock  # compilation, where there is any
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return {"seconds": statistics.median(wall), "processor_seconds": statistics.median(processor), "compile_seconds": max(0.0, first - statistics.median(wall))}


def features_row(apply, params, images, num_projections: int | str, repeats: int) -> tuple[dict[str, float], Array]:
    """The feature pass alone, compiled before, and the features."""
    clock = time.perf_counter()
    plan = plan_features(apply, params, images, num_projections=num_projections)
    compiling = time.perf_counter() - clock
    features = compute_features(plan, params, images)
    row = measure(lambda: compute_features(plan, params, images), repeats)
    return row | {"compile_seconds": compiling, "block_bytes": plan.block_bytes}, features


def passes(model, params, images, num_outputs: int, repeats: int) -> dict[str, dict[str, float]]:
    """One forward pass and one with a backward pass, in blocks of 32 as training takes them, and the floor of both."""
    forward = jax.jit(model.apply)

    @jax.jit
    def one_vjp(params, block):  # summed over samples: the cheapest possible backward pass
        logits, pullback = jax.vjp(lambda params: model.apply(params, block), params)
        return pullback(jnp.zeros_like(logits).at[:, 0].set(1.0))

    blocks = [images[start : start + 32] for start in range(0, len(images) - len(images) % 32, 32)]
    scale = len(images) / (32 * len(blocks))
    found = {"one forward pass": measure(lambda: [forward(params, block) for block in blocks], repeats),
             "forward and one VJP": measure(lambda: [one_vjp(params, block) for block in blocks], repeats)}
    found = {label: {name: value * (scale if name != "compile_seconds" else 1) for name, value in row.items()} for label, row in found.items()}
    first, both = found["one forward pass"], found["forward and one VJP"]
    for label, count in ((f"floor: forward + {num_outputs - 1} VJPs", num_outputs - 1), (f"forward + {num_outputs} VJPs", num_outputs)):
        found[label] = {name: first[name] + count * (both[name] - first[name]) for name in ("seconds", "processor_seconds")}
    return found


def main(config: Config) -> None:
    task = ntk_tt.load_task(config.data, num_classes=config.classes, per_class=config.per_class, image_size=config.image_size, seed=config.seed)
    model = ntk_tt.load_model(config.network, weights=config.weights, num_classes=config.classes, image_size=config.image_size, key=jax.random.key(config.seed))
    images, params, labels = model.preprocess(task.images), model.params, task.labels
    basis = contrast_basis(config.classes)
    apply = in_contrasts(model.apply, basis)

    rows = passes(model, params, images, config.classes, config.repeats)
    floor = rows[f"floor: forward + {config.classes - 1} VJPs"]
    parts: dict[str, list[str]] = {}  # of a prediction, by D'
    ntk = jnp.zeros(())
    for number in (SMALL, "auto"):
        row, features = features_row(apply, params, images, number, config.repeats)
        label = f"D' = {features.shape[-1]}" + (" (default)" if number == "auto" else "")
        parts[label] = [f"features, {label}", f"Θ from them, {label}"]
        rows[parts[label][0]], rows[parts[label][1]] = row, measure(lambda features=features: ntk_from_features(features), config.repeats)
        ntk = ntk_from_features(features).reshape(*features.shape[:2], *features.shape[:2])
        del features
    num_samples = len(images)
    logits = jnp.concatenate([jax.jit(model.apply)(params, images[start : start + 50]) for start in range(0, num_samples, 50)])
    problem = LinearizedProblem(ContrastKernel(DualKernel(ntk), basis), logits, jnp.zeros_like(logits), encode_targets(labels, config.classes, logits.dtype))
    ratios = {}
    for label, optimizer in (("full batch", ntk_tt.OptimizerConfig(0.001, 0.9)), ("batch 64", ntk_tt.OptimizerConfig(0.001, 0.9, batch_size=64))):
        predicted, trained = f"replay, {config.steps} steps, {label}", f"real training, {config.steps} steps, {label}"
        rows[predicted] = measure(lambda optimizer=optimizer: jnp.asarray(ntk_tt.simulate(problem, optimizer, config.steps, record_every=10).loss), config.repeats)
        steps = config.measured_steps * (1 if optimizer.batch_size is None else 8)
        processor = time.process_time()
        run = ntk_tt.finetune(model.apply, params, images, labels, optimizer, steps, record_every=steps)
        share = run.seconds / (run.seconds + run.evaluation_seconds + run.compile_seconds)
        rows[trained] = {"seconds": run.seconds * config.steps / steps, "processor_seconds": (time.process_time() - processor) * share * config.steps / steps,
                         "compile_seconds": run.compile_seconds, "measured_steps": steps}
        for name in ("seconds", "processor_seconds"):
            for dimension, pair in parts.items():
                ratios[f"{label}, {name}, {dimension}"] = rows[trained][name] / sum(rows[each][name] for each in (*pair, predicted))

    print(f"\n{config.network} on {config.data}: {num_samples} images, C = {config.classes}, D = {model.num_params}; {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'':45}{'seconds':>10}{'CPU-s':>10}{'× floor':>10}{'CPU-ms/image':>14}{'compile':>10}")
    for label, row in rows.items():
        compile_seconds = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        print(f"{label:45}{row['seconds']:10.3f}{row['processor_seconds']:10.3f}{row['processor_seconds'] / floor['processor_seconds']:10.2f}"
              f"{1e3 * row['processor_seconds'] / num_samples:14.2f}{compile_seconds:>10}")
    for label, ratio in ratios.items():
        print(f"training / (features + Θ + replay), {label}: {ratio:.1f}")
    sweep = sweep_rows(config, model, images) if config.sweep else []
    RESULTS.mkdir(exist_ok=True)
    report = {"config": {**dataclasses.asdict(config), "weights": config.weights and Path(config.weights).name, "data": task.source.rpartition("/")[2]},
              "num_params": model.num_params, "rows": rows, "ratios": ratios, "sweep": sweep, "environment": environment(config.seed)}
    (RESULTS / f"cost_{config.network}.json").write_text(json.dumps(report, indent=1, default=float) + "\n")


def sweep_rows(config: Config, model, images) -> list[dict[str, float]]:
    """The features' cost against N, C and D', one at a time."""
    found = []
    for num_samples, num_outputs, dimension in ((32, 4, 16384), (64, 4, 16384), (128, 4, 16384), (64, 1, 16384), (64, 2, 16384), (64, 4, 4096), (64, 4, 65536)):
        basis = jnp.eye(config.classes)[:, :num_outputs] if num_outputs < config.classes else jnp.eye(config.classes)
        row, _ = features_row(in_contrasts(model.apply, basis), model.params, images[:num_samples], dimension, config.repeats)
        found.append({"num_samples": num_samples, "num_outputs": num_outputs, "num_projections": dimension} | row)
        print(f"N = {num_samples:4} outputs = {num_outputs} D' = {dimension:6}: {1e3 * row['processor_seconds'] / num_samples:.2f} CPU-ms/image", flush=True)
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
