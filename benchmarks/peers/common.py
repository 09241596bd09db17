"""What all peers share: arguments, weights, images, clocks and the report. Needs numpy and
safetensors alone.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

BATCH_NORM_EPSILON = 1e-5
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Network(NamedTuple):
    """A checkpoint: its file, the side of its images in pixels, and the name of its head."""

    file: str
    side: int
    head: str


NETWORKS = {
    "resnet20": Network("resnet20_cifar10.safetensors", 32, "linear"),
    "resnet18": Network("resnet18_tinyimagenet.safetensors", 64, "fc"),
}


class Arguments(NamedTuple):
    """Of one measurement; see `arguments`."""

    network: str
    num_samples: int
    num_outputs: int
    repeats: int
    limit: float
    seed: int
    convolutions: str
    implementation: str
    out: Path | None


def arguments(description: str | None) -> Arguments:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--num-samples", type=int, default=100, help="N")
    parser.add_argument("--num-outputs", type=int, default=5, help="C, of a new random head")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="after the first call, whose surplus over their median is compilation",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=float("inf"),
        help="seconds after which no further repeat begins (one is always made)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images and the head")
    parser.add_argument(
        "--convolutions",
        choices=("im2col", "native"),
        default="im2col",
        help="im2col: 3×3 convolutions on maps up to 4×4 as patches and a matrix product (JAX "
        "only; XLA is slow there on CPUs)",
    )
    parser.add_argument(
        "--implementation",
        choices=("structured", "default"),
        default="structured",
        help="of neural-tangents",
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the report")
    return Arguments(**vars(parser.parse_args()))


def weights_folder() -> Path:
    """$NTK_TT_WEIGHTS, where published weights lie as safetensors files."""
    folder = os.environ.get("NTK_TT_WEIGHTS")
    if not folder:
        raise SystemExit("peers: say where the weights are: NTK_TT_WEIGHTS=FOLDER")
    return Path(folder)


def read_checkpoint(
    name: str, num_outputs: int | None, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and frozen batch-norm statistics by torchvision's names, float32, kernels OIHW.

    Args:
        num_outputs: of a new head, uniform in ±1/√inputs; None keeps the checkpoint's.
    """
    network = NETWORKS[name]
    file = weights_folder() / network.file
    if not file.is_file():
        raise SystemExit(
            f"weights: there is no {file}; set NTK_TT_WEIGHTS to the folder that holds "
            f"{network.file}"
        )
    arrays = {
        key: array.astype(np.float32)
        for key, array in safetensors.numpy.load_file(str(file)).items()
    }
    statistics_ = {key: arrays.pop(key) for key in list(arrays) if ".running_" in key}
    if num_outputs is not None:
        inputs = arrays[f"{network.head}.weight"].shape[1]
        generator = np.random.default_rng(seed)
        for part, shape in (("weight", (num_outputs, inputs)), ("bias", (num_outputs,))):
            arrays[f"{network.head}.{part}"] = generator.uniform(
                -(inputs**-0.5), inputs**-0.5, shape
            ).astype(np.float32)
    return arrays, statistics_


def normalised(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) as the networks take them."""
    return ((images / 255.0 - _MEAN) / _STD).astype(np.float32)


def images(name: str, num_samples: int, seed: int = 0) -> np.ndarray:
    """(N, H, W, 3) of uniform random bytes: the same for every peer, in every environment."""
    side = NETWORKS[name].side
    return normalised(
        np.random.default_rng([seed, 1]).integers(
            0, 256, (num_samples, side, side, 3), dtype=np.uint8
        )
    )


def first_call_mark(out: Path) -> Path:
    """The file whose presence says that the first call has returned."""
    return out.with_suffix(".first")


def measure(function: Callable[[], Any], given: Arguments) -> tuple[Any, dict[str, Any]]:
    """What a call gives, and its median wall and processor seconds over the repeats.

    `compile_seconds` is what the first call took beyond the median. The function must wait for its
    results.
    """
    began = time.perf_counter()
    result = function()
    first = time.perf_counter() - began
    if given.out is not None:
        first_call_mark(given.out).touch()
    wall, processor = [], []
    while len(wall) < max(1, given.repeats) and (
        not wall or time.perf_counter() - began < given.limit
    ):
        result = None  # so that memory holds one at a time
        start, start_processor = time.perf_counter(), time.process_time()
        result = function()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    seconds = statistics.median(wall)
    return result, {
        "seconds": seconds,
        "processor_seconds": statistics.median(processor),
        "compile_seconds": max(0.0, first - seconds),
        "first_call_seconds": first,
        "repeats": len(wall),
    }


def run(peer: str, given: Arguments, ntk: Callable[[], np.ndarray], *packages: str) -> None:
    """Measures and reports one way to Θ.

    Args:
        ntk: gives Θ as (N, C, N, C) in host memory.
        packages: that did it, whose versions belong to the report.
    """
    result, clocks = measure(ntk, given)
    rows = given.num_samples * given.num_outputs
    matrix = np.asarray(result, np.float64).reshape(rows, rows)
    entries = {
        f"{i},{j}": float(matrix[i, j])
        for i, j in ((0, 0), (0, 1), (0, rows - 1), (rows // 2, rows // 3), (rows - 1, rows - 1))
    }
    report(
        peer,
        given,
        {
            **clocks,
            "frobenius_norm": float(np.linalg.norm(matrix)),
            "entries": entries,
            "asymmetry": float(np.abs(matrix - matrix.T).max()),
        },
        *packages,
    )


def report(peer: str, given: Arguments, numbers: dict[str, Any], *packages: str) -> None:
    """Prints the JSON report, and writes it where `--out` says. `peak_bytes` is that of the whole
    process.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    document = {
        "peer": peer,
        "arguments": {
            key: value for key, value in given._asdict().items() if key not in ("out", "limit")
        },
        **numbers,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", *packages)},
        },
    }
    text = json.dumps(document, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
