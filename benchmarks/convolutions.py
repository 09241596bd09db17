"""Where XLA's convolutions fall off a cliff on a CPU, and what patches and slices cost instead.

    python -m benchmarks.convolutions              # three minutes on two cores

Each row is a convolution (or max-pool) of a batch of images, forward and forward with both
gradients, in processor milliseconds: median after compilation. `chosen` is what
`ntk_tt.models.zoo.convolution.preferred_method` takes. The last rows are whole training steps of
ResNet-18 at 64×64, with that rule and with XLA's convolutions alone. Read ratios.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from ntk_tt.models import load_model
from ntk_tt.models.zoo import convolution
from ntk_tt.models.zoo.blocks import max_pool
from ntk_tt.models.zoo.convolution import convolve, preferred_method
from ntk_tt.report.document import environment

RESULTS = Path(__file__).parent / "results"

# kernel, map, channels in and out, stride
CASES = (
    (3, 1, 64, 64, 1),
    (3, 1, 512, 512, 1),
    (3, 2, 64, 64, 1),
    (3, 2, 256, 256, 1),
    (3, 2, 512, 512, 1),
    (3, 4, 64, 128, 2),
    (3, 4, 256, 512, 2),
    (5, 4, 64, 192, 1),
    (3, 3, 256, 256, 1),
    (3, 4, 64, 64, 1),
    (3, 4, 256, 256, 1),
    (3, 4, 512, 512, 1),
    (3, 8, 64, 64, 1),
    (3, 8, 128, 128, 1),
    (3, 8, 256, 256, 1),
    (3, 16, 64, 64, 1),
    (7, 32, 3, 64, 2),
    (1, 16, 64, 128, 2),
    (1, 8, 256, 512, 1),
    (1, 4, 512, 512, 1),
)


@dataclasses.dataclass(frozen=True)
class Config:
    batch_sizes: tuple[int, ...] = (16, 64)
    repeats: int = 5
    max_seconds: float = 2.0
    """Of one row's repeats, so that the cliff itself does not take an hour."""
    network_batch: int = 32


def processor_milliseconds(function: Callable, arguments: tuple[Any, ...], config: Config) -> float:
    """Median processor time of a jitted call after compilation."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times, clock = [], time.perf_counter()
    while len(times) < config.repeats and (
        len(times) < 2 or time.perf_counter() - clock < config.max_seconds
    ):
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def forward_and_backward(
    function: Callable, arguments: tuple[Any, ...], config: Config
) -> dict[str, float]:
    def both(*arguments):
        y, pullback = jax.vjp(function, *arguments)
        return pullback(y)  # the outputs as signals: nothing can be left out

    return {
        "forward": processor_milliseconds(function, arguments, config),
        "forward_backward": processor_milliseconds(both, arguments, config),
    }


def _padded_pool(x):
    pads: Any = ((1, 1), (1, 1))
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def convolutions(config: Config) -> list[dict[str, Any]]:
    rows = []
    for batch in config.batch_sizes:
        for kernel, side, inputs, outputs, stride in CASES:
            pad = kernel // 2
            arguments = (array(batch, side, side, inputs), array(kernel, kernel, inputs, outputs))
            after = (side + 2 * pad - kernel) // stride + 1
            row: dict[str, Any] = {
                "what": f"{kernel}×{kernel}, {side}×{side} → {after}×{after}, {inputs} → {outputs}",
                "batch": batch,
                "chosen": preferred_method((side, side), (after, after), (kernel, kernel)),
            }
            for method in ("xla", "patches"):
                row[method] = forward_and_backward(
                    partial(
                        convolve,
                        stride=(stride, stride),
                        padding=((pad, pad), (pad, pad)),
                        method=method,
                    ),
                    arguments,
                    config,
                )
            rows.append(row)
            show(row)
    return rows


def pools(config: Config) -> list[dict[str, Any]]:
    rows = []
    for batch in config.batch_sizes:
        x = (array(batch, 32, 32, 64),)
        row = {
            "what": "max-pool 3×3, 32×32 → 16×16, 64",
            "batch": batch,
            "chosen": "patches",
            "xla": forward_and_backward(
                _padded_pool,
                x,
                config,
            ),
            "patches": forward_and_backward(lambda x: max_pool(x, 3, 2, padding=1), x, config),
        }
        rows.append(row)
        show(row)
    return rows


def network(config: Config) -> dict[str, dict[str, float]]:
    """Milliseconds an image of ResNet-18 at 64×64: a forward pass, and one with the gradient of all
    parameters.
    """
    model = load_model("resnet18", weights="random", num_classes=5, image_size=64)
    images, labels = array(config.network_batch, 64, 64, 3), jnp.arange(config.network_batch) % 5

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(
            model.apply(params, images), labels
        ).mean()

    results = {}
    for name, patched in (("chosen", preferred_method), ("xla", lambda *_: "xla")):
        with mock.patch.object(convolution, "preferred_method", patched):
            times = {
                "forward": processor_milliseconds(
                    lambda params: loss(params), (model.params,), config
                ),
                "forward_backward": processor_milliseconds(
                    lambda params: jax.grad(loss)(params), (model.params,), config
                ),
            }
        results[name] = {key: value / config.network_batch for key, value in times.items()}
        print(
            f"ResNet-18 at 64×64, {name:7}: forward {results[name]['forward']:8.2f}, forward + "
            f"backward {results[name]['forward_backward']:8.2f} ms an image",
            flush=True,
        )
    return results


def show(row: dict[str, Any]) -> None:
    numbers = "".join(
        f"{row[method][key]:10.2f}"
        for key in ("forward", "forward_backward")
        for method in ("xla", "patches")
    )
    print(f"{row['what']:38}{row['batch']:6}{numbers}   {row['chosen']}", flush=True)


def main(config: Config) -> None:
    print(
        f"{'processor milliseconds':38}{'batch':>6}{'forward: xla':>10}{'patches':>8}"
        f"{'both: xla':>12}{'patches':>8}   "
        "chosen"
    )
    report = {
        "config": dataclasses.asdict(config),
        "convolutions": convolutions(config),
        "pools": pools(config),
        "network": network(config),
        "environment": environment(0),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convolutions.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
