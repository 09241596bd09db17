"""What a prediction costs on a GPU, beside C VJPs, real training and the card's peak.

    bash benchmarks/gpu.sh [--tiny]

Takes at most 10 minutes on one modern card; `--tiny` about a minute on a CPU. Expected: features
cost little more than C vector-Jacobian products, and a prediction a small part of 150 steps.

ResNet-18 (Tiny-ImageNet's weights) and DenseNet-169 (random weights: both sets would be too large
to carry, and a cost does not depend on them) at 224×224, 750 images of 5 classes. Everything else
it needs is in `benchmarks/gpu-data`, which `make gpu-data` makes. Each measurement is written as it
is done, and left out by the next call. Results are kept by card.

Flops are those that the mathematics needs: of one forward pass and one VJP for each output, counted
by XLA in the program as it is written. Bytes are XLA's count for the program as it is compiled. The
card's peak is that of a matrix product and of a copy, measured in the same run.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_tt
from benchmarks.gpu_records import Records, run
from benchmarks.gpu_table import table
from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import contrast_basis, in_contrasts
from ntk_tt.features.feature_options import Precision
from ntk_tt.features.plan import plan_features
from ntk_tt.runtime.stopwatch import Stopwatch

HERE = Path(__file__).parent
DATA, RESULTS = HERE / "gpu-data", HERE / "results" / "gpu.json"
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
REPEAT_SECONDS = 15.0
"""After which no further repeat begins."""


@dataclasses.dataclass(frozen=True)
class Size:
    networks: tuple[str, ...] = ("resnet18", "densenet169")
    side: int = 224
    classes: int = 5
    per_class: int = 150
    steps: int = 150
    block: int = 128
    """Samples at a time in forward and backward passes."""
    product: int = 8192
    """Side of the matrices whose product is the card's peak."""
    copied_bytes: int = 1 << 30
    repeats: int = 3
    predicted_in: tuple[Precision, ...] = PRECISIONS


TINY = Size(("resnet8",), 32, 3, 4, 6, 4, 256, 1 << 20, 1, ("float32",))
SEED, SHARE, MOMENTUM = 0, 0.2, 0.9  # the learning rate's share of the largest stable one


@dataclasses.dataclass(frozen=True)
class Setup:
    model: ntk_tt.Model
    images: jax.Array
    labels: np.ndarray


class Bench:
    """The networks and images of a size, loaded when they are first asked for."""

    def __init__(self, size: Size, records: Records):
        self.size, self.records = size, records
        self.loaded: tuple[str, Any] = "", None

    def setup(self, network: str) -> Setup:
        if network != self.loaded[0]:
            self.loaded = network, self._load(network)
        return self.loaded[1]

    def _load(self, network: str) -> Setup:
        size = self.size
        weights = DATA / f"{network}.safetensors"
        model = ntk_tt.load_model(
            network,
            weights=str(weights) if size != TINY and weights.exists() else None,
            num_classes=size.classes,
            image_size=size.side,
            key=jax.random.key(SEED),
        )
        images, labels = self.pixels()
        return Setup(model, jnp.asarray(model.preprocess(images)), labels)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        size = self.size
        if size == TINY:
            shape = (size.classes * size.per_class, size.side, size.side, 3)
            labels = np.arange(shape[0]) % size.classes
            return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8), labels
        if not DATA.is_dir():
            raise SystemExit(f"{DATA} is not there: run make gpu-data where the images are")
        task = ntk_tt.load_task(
            f"folder:{DATA / 'images'}",
            num_classes=None,
            per_class=size.per_class,
            image_size=size.side,
        )
        return task.images, task.labels

    def optimizer(self, network: str) -> ntk_tt.OptimizerConfig:
        """Full batch, at a share of the largest stable rate, which the frozen kernel says."""
        rate = self.records.get(f"{network} replay float32").get("learning_rate", 1e-3)
        return ntk_tt.OptimizerConfig(rate, MOMENTUM)


def timed(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of a call, and what the first took beyond that."""
    clocks: list[float] = []
    for _ in range(repeats + 1):
        clock = time.perf_counter()
        jax.block_until_ready(function())
        clocks.append(time.perf_counter() - clock)
        if sum(clocks[1:]) > REPEAT_SECONDS:
            break
    seconds = statistics.median(clocks[1:])
    return {"seconds": seconds, "compile_seconds": max(0.0, clocks[0] - seconds)}


def needed_flops(function: Callable, *arguments: Any) -> float:
    """Of a program as it is written; NaN where XLA does not say.

    Counted for the CPU: for a GPU JAX counts compiled programs alone, whose products are calls into
    libraries that XLA's count does not see.
    """
    try:
        cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names the GPU alone
        return np.nan
    shapes = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=cpu), arguments
    )
    return counted(jax.jit(function).lower(*shapes), "flops")


def counted(stage: Any, quantity: str) -> float:
    """`flops` or `bytes accessed` of a lowered or compiled program; NaN where XLA does not say."""
    found = stage.cost_analysis()
    found = found[0] if isinstance(found, list) else found
    value = float((found or {}).get(quantity, np.nan))
    return value if value >= 0 else np.nan


def peak(bench: Bench) -> dict[str, Any]:
    """Flops a second of a large matrix product, and bytes a second of a copy (read and written)."""
    side, rows = bench.size.product, {}
    key = jax.random.key(SEED)
    for name, dtype, precision in (
        ("float32", jnp.float32, None),
        ("float32, highest precision", jnp.float32, "highest"),
        ("bfloat16", jnp.bfloat16, None),
    ):
        square = jax.random.normal(key, (side, side), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = best_of(lambda product=product, square=square: product(square, square))
        rows[name] = 2.0 * side**3 / seconds
    numbers = jnp.ones(bench.size.copied_bytes // 4, jnp.float32)
    seconds = best_of(functools.partial(jax.jit(lambda x: x + 1.0), numbers))
    return {"flops_per_second": rows, "bytes_per_second": 2.0 * numbers.nbytes / seconds}


def best_of(function: Callable[[], Any], calls: int = 5, rounds: int = 3) -> float:
    """Seconds of one of several calls that are started together."""
    jax.block_until_ready(function())
    found = []
    for _ in range(rounds):
        clock = time.perf_counter()
        jax.block_until_ready([function() for _ in range(calls)])
        found.append((time.perf_counter() - clock) / calls)
    return min(found)


def passes(network: str, bench: Bench) -> dict[str, Any]:
    """All samples once forward, and forward and back along one output: C VJPs and the floor.

    One VJP is summed over the samples, the cheapest backward pass there is. The floor is one
    forward pass and C−1 VJPs, all that cross-entropy sees.
    """
    setup, size = bench.setup(network), bench.size
    params, block = setup.model.params, min(size.block, len(setup.images))

    def one_vjp(params, images):
        logits, pullback = jax.vjp(lambda params: setup.model.apply(params, images), params)
        return pullback(jnp.zeros_like(logits).at[:, 0].set(1.0))

    rows: dict[str, Any] = {}
    blocks = len(setup.images) / block
    starts = range(0, len(setup.images) - block + 1, block)
    for name, function in (("forward", setup.model.apply), ("forward and VJP", one_vjp)):
        with Stopwatch() as watch:
            compiled = jax.jit(function).lower(params, setup.images[:block]).compile()
        row = timed(
            lambda compiled=compiled: [
                compiled(params, setup.images[start : start + block]) for start in starts
            ],
            size.repeats,
        )
        rows[name] = {
            "seconds": row["seconds"] * blocks / len(starts),
            "compile_seconds": watch.compile_seconds,
            "flops": needed_flops(function, params, setup.images[:block]) * blocks,
            "bytes": counted(compiled, "bytes accessed") * blocks,
        }
    for name, outputs in (("C VJPs", size.classes), ("floor", size.classes - 1)):
        rows[name] = {
            quantity: rows["forward"][quantity]
            + outputs * (rows["forward and VJP"][quantity] - rows["forward"][quantity])
            for quantity in ("seconds", "flops", "bytes")
        }
    return {"num_params": setup.model.num_params, "num_samples": len(setup.images), **rows}


def features(network: str, precision: Precision, bench: Bench) -> dict[str, Any]:
    """The feature pass alone: C−1 contrasts of every sample, D' as the default takes it."""
    setup = bench.setup(network)
    apply = in_contrasts(setup.model.apply, contrast_basis(bench.size.classes))
    with Stopwatch() as watch:
        plan = plan_features(
            apply,
            setup.model.params,
            setup.images,
            options=ntk_tt.FeatureOptions(precision=precision),
        )
    row = timed(
        lambda: compute_features(plan, setup.model.params, setup.images), bench.size.repeats
    )
    blocks = -(-len(setup.images) // plan.block_size)
    return {
        "seconds": row["seconds"],
        "compile_seconds": watch.compile_seconds,
        "num_projections": plan.num_projections,
        "block_size": plan.block_size,
        "block_bytes": plan.block_bytes,
        "feature_bytes": plan.feature_bytes,
        "bytes": counted(plan.compute, "bytes accessed") * blocks,
    }


def prediction(network: str, method: str, precision: Precision, bench: Bench) -> dict[str, Any]:
    """From the images to the curve of all steps: the pass (features, kernel) and the replay."""
    setup, size = bench.setup(network), bench.size
    key = jax.random.key(SEED + 1)

    def prepare() -> Any:
        if method == "curvature":
            return ntk_tt.surrogate.expand(
                setup.model,
                setup.images,
                setup.labels,
                key=key,
                options=ntk_tt.FeatureOptions(precision=precision),
            )
        return ntk_tt.surrogate.linearize(
            setup.model,
            setup.images,
            setup.labels,
            outputs="contrasts",
            key=key,
            options=ntk_tt.FeatureOptions(precision=precision),
        )

    with Stopwatch() as first:
        problem = jax.block_until_ready(prepare())
    with Stopwatch() as again:
        problem = jax.block_until_ready(prepare())
    rate = bench.optimizer(network).learning_rate
    if f"{network} {method} {precision}" == f"{network} replay float32":
        initial = np.asarray(problem.initial_logits)[None]
        unit = ntk_tt.OptimizerConfig(1.0, MOMENTUM)
        rate = float(f"{SHARE * ntk_tt.prediction.stability(problem, unit, 1, initial)[1]:.2g}")
    optimizer = ntk_tt.OptimizerConfig(rate, MOMENTUM)

    def replay() -> ntk_tt.prediction.Prediction:
        return ntk_tt.prediction.predict(problem, optimizer, size.steps, num_seeds=1)

    with Stopwatch() as compiling:
        curve = replay()
    with Stopwatch() as replayed:
        curve = replay()
    return {
        "seconds": again.seconds + replayed.seconds,
        "pass_seconds": again.seconds,
        "replay_seconds": replayed.seconds,
        "compile_seconds": first.compile_seconds + compiling.compile_seconds,
        "learning_rate": rate,
        "steps": curve.steps,
        "loss": curve.loss,
    }


def training(network: str, bench: Bench) -> dict[str, Any]:
    """Real gradient descent with the full batch, at the rate of the predictions."""
    setup, steps = bench.setup(network), bench.size.steps
    optimizer = bench.optimizer(network)
    arguments = (setup.model, setup.images, setup.labels, optimizer)
    run = ntk_tt.finetune(*arguments, steps)
    return {
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "learning_rate": optimizer.learning_rate,
        "steps": run.steps,
        "loss": run.loss,
        "diverged_at": run.diverged_at,
    }


def measurements(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name; what a later one reads comes first. Another optimiser is one more entry."""
    found: dict[str, Callable[[], dict[str, Any]]] = {"peak": lambda: peak(bench)}
    for network in bench.size.networks:
        found[f"{network} passes"] = functools.partial(passes, network, bench)
        for precision in PRECISIONS:
            found[f"{network} features {precision}"] = functools.partial(
                features, network, precision, bench
            )
        for method in ("replay", "curvature"):
            for precision in bench.size.predicted_in:
                found[f"{network} {method} {precision}"] = functools.partial(
                    prediction, network, method, precision, bench
                )
        found[f"{network} training"] = functools.partial(training, network, bench)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a minute on a CPU, into out/")
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing begins after these")
    given = parser.parse_args(words)
    size = TINY if given.tiny else Size()
    kept = Path("out") / "gpu_tiny.json" if given.tiny else RESULTS
    written = Path(os.environ["OUT"]) / kept.name if "OUT" in os.environ else kept
    records = Records(read=[written, kept], write=written, described=dataclasses.asdict(size))
    done = run(measurements(Bench(size, records)), records, seconds=60 * given.minutes)
    print(table(records, size.networks), flush=True)
    print(f"-> {written}" + ("" if done else "; not all is measured: run it again"), flush=True)


if __name__ == "__main__":
    main()
