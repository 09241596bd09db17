"""What a prediction costs, beside its floor and beside the training it replaces, in one run.

    python -m benchmarks.cost                       # the bundled network on digits, about three minutes on two cores

The floor is one forward pass and C−1 vector-Jacobian products a sample: cross-entropy does not see the sum of the
logits, so C−1 gradients carry all it needs. Every row is the median of several runs after compilation; compilation is
its own column. The machine may be shared: read ratios.
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

import ntk_tt
from ntk_tt.features import jacobian_features
from ntk_tt.kernel import smaller_kernel
from ntk_tt.projection import default_num_projections
from ntk_tt.report import environment

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    classes: int = 5
    per_class: int = 150
    steps: int = 150
    repeats: int = 3
    seed: int = 0


def measure(function: Callable, repeats: int) -> dict[str, float]:
    """Median wall and processor seconds of a call that returns arrays, and what its first call took beyond that."""
    clock = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - clock
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return {"seconds": statistics.median(wall), "processor_seconds": statistics.median(processor), "compile_seconds": max(0.0, first - statistics.median(wall))}


def main(config: Config) -> None:
    task = ntk_tt.load_task("digits", num_classes=config.classes, per_class=config.per_class, seed=config.seed)
    model = ntk_tt.load_model(num_classes=config.classes, key=jax.random.key(config.seed))
    images, params = model.preprocess(task.images), model.params
    num_samples, num_outputs = len(task.labels), config.classes

    @jax.jit
    def forward(params):
        return model.apply(params, images)

    @jax.jit
    def one_vjp(params):
        logits, pullback = jax.vjp(lambda params: model.apply(params, images), params)
        return pullback(jnp.zeros_like(logits).at[:, 0].set(1.0))  # summed over samples: the cheapest possible backward pass

    rows = {"one forward pass": measure(lambda: forward(params), config.repeats), "forward and one VJP": measure(lambda: one_vjp(params), config.repeats)}
    forward_seconds = rows["one forward pass"]["seconds"]
    floor = forward_seconds + (num_outputs - 1) * (rows["forward and one VJP"]["seconds"] - forward_seconds)
    rows[f"floor: forward + {num_outputs - 1} VJPs"] = {"seconds": floor}
    dimension = default_num_projections(num_samples * num_outputs, model.num_params)
    for label, projections in ((f"features, D' = {dimension} (default)", "auto"), ("features, D' = 4096", 4096)):
        rows[label] = measure(lambda projections=projections: jacobian_features(model.apply, params, images, num_projections=projections), config.repeats)
    features = jacobian_features(model.apply, params, images)
    rows["Θ from the features"] = measure(lambda: smaller_kernel(features), config.repeats)
    del features
    problem = ntk_tt.linearize(model.apply, params, images, task.labels)
    settings = {"full batch": ntk_tt.OptimizerConfig(0.001, 0.9), "batch 64": ntk_tt.OptimizerConfig(0.001, 0.9, batch_size=64)}
    predicted, trained = {}, {}
    for label, optimizer in settings.items():
        predicted[label] = f"replay, {config.steps} steps, {label}"
        rows[predicted[label]] = measure(lambda optimizer=optimizer: jnp.asarray(ntk_tt.simulate(problem, optimizer, config.steps).loss), config.repeats)
        processor = time.process_time()
        run = ntk_tt.finetune(model.apply, params, images, task.labels, optimizer, config.steps, record_every=config.steps)
        trained[label] = f"real training, {config.steps} steps, {label}"
        rows[trained[label]] = {"seconds": run.seconds, "processor_seconds": time.process_time() - processor, "compile_seconds": run.compile_seconds}

    print(f"\n{num_samples} images, C = {num_outputs}, D = {model.num_params}; {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'':45}{'seconds':>10}{'× floor':>10}{'ms/image':>10}{'compile':>10}")
    for label, row in rows.items():
        compile_seconds = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        print(f"{label:45}{row['seconds']:10.3f}{row['seconds'] / floor:10.2f}{1e3 * row['seconds'] / num_samples:10.2f}{compile_seconds:>10}")
    ratios = {}
    feature_row = rows[f"features, D' = {dimension} (default)"]
    for label in settings:
        cost = feature_row["seconds"] + rows["Θ from the features"]["seconds"] + rows[predicted[label]]["seconds"]
        ratios[label] = rows[trained[label]]["seconds"] / cost
        print(f"training / prediction, {label}: {ratios[label]:.1f} for one setting; {rows[trained[label]]['seconds'] / rows[predicted[label]]['seconds']:.0f} for each further one")
    RESULTS.mkdir(exist_ok=True)
    report = {"config": dataclasses.asdict(config), "num_params": model.num_params, "rows": rows, "ratios": ratios, "environment": environment(config.seed)}
    (RESULTS / "cost.json").write_text(json.dumps(report, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
