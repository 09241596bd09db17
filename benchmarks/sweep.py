"""What a sweep of many settings costs, beside the least that its products could.

    python -m benchmarks.sweep [--settings 1000] [--steps 2000] [--batch-size 32]

The bundled ResNet-8 on handwritten digits, 5 classes × 100 images; SGD, a quarter of the settings
with each of four momenta, rates from 1e-4 to 1e-1. Prints processor seconds, which other work on
the machine hardly changes, and wall seconds, which it does. The pass itself is apart.

The floor is the time of the replay's products alone: a step multiplies the batch's rows of Ψ and B
with each state, forth and back, 2·4·B·k·D' flops a setting, at the speed of the fastest product of
matrices that this machine is seen to do.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ntk_tt
from ntk_tt.prediction.passes import Pass
from ntk_tt.prediction.setting_space import settings_of
from ntk_tt.prediction.sweep import sweep
from ntk_tt.surrogate import SmallNetwork


@dataclasses.dataclass(frozen=True)
class Arguments:
    settings: int = 1000
    """How many are priced."""
    steps: int = 2000
    """Of each."""
    batch_size: int | None = 32
    """Of each; None is the full batch."""
    classes: int = 5
    """Of the digits."""
    per_class: int = 100
    """Images of each."""


def main(arguments: Arguments) -> None:
    found = _pass(arguments)
    problem = found.problem
    assert isinstance(problem, SmallNetwork)
    momenta = [0.0, 0.5, 0.8, 0.9]
    space = {
        "learning_rate": f"1e-4:1e-1:log:{max(2, arguments.settings // len(momenta))}",
        "momentum": momenta,
        "batch_size": [arguments.batch_size],
    }
    settings = settings_of(space, num_samples=problem.num_samples, num_steps=arguments.steps)
    begun, wall = time.process_time(), time.perf_counter()
    swept = sweep(found, settings, num_seeds=1)
    processor, wall = time.process_time() - begun, time.perf_counter() - wall
    compiled = sum(watch.compile_seconds for watch in swept.watches.values())
    together = swept.watches["replay"]
    rows, depth = problem.directions.shape[1], problem.jacobian.shape[2]
    size = arguments.batch_size or problem.num_samples
    flops = 8.0 * size * rows * depth * len(settings) * arguments.steps
    records = 51 if arguments.batch_size else 0
    looked_at = 4.0 * problem.num_samples * rows * depth * len(settings) * records
    speed = _speed(depth)
    trust = [each.verdict.trust for each in swept.outcomes]
    print(
        f"{len(settings)} settings, {arguments.steps} steps, N = {problem.num_samples}, "
        f"k = {rows}, D' = {depth}, batch {size}: {processor:.0f} processor s, {wall:.0f} s of "
        f"wall time, of that {compiled:.0f} s compiling; replay and verdicts "
        f"{together.processor_seconds:.0f} processor s"
    )
    print(
        f"floor: {flops / 1e12:.2f} Tflop of steps and {looked_at / 1e12:.2f} of records at "
        f"{speed / 1e9:.0f} Gflop a processor second: {(flops + looked_at) / speed:.0f} processor s"
    )
    print({each: trust.count(each) for each in sorted({*trust})})


def _pass(arguments: Arguments) -> Pass:
    task = ntk_tt.load_task("digits", num_classes=arguments.classes, per_class=arguments.per_class)
    model = ntk_tt.load_model(num_classes=task.num_classes)
    return ntk_tt.prepare(model, model.preprocess(task.images), task.labels).found


def _speed(depth: int) -> float:
    """Flops a processor second of a product as the replay has it, the best of five."""
    rng = np.random.default_rng(0)
    one, other = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((512, depth), (depth, 512))
    )
    product = jax.jit(jnp.matmul)
    product(one, other).block_until_ready()
    best = np.inf
    for _ in range(5):
        begun = time.process_time()
        for _ in range(4):
            product(one, other).block_until_ready()
        best = min(best, (time.process_time() - begun) / 4)
    return 2.0 * 512 * depth * 512 / best


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
