"""The seconds that a prediction says training takes, beside those that it took.

    python -m benchmarks.seconds [--weights FOLDER] [--data FOLDER]

`ntk-tt verify` on three networks with real weights; the demo's come with the package, the others'
and the images lie in the folders (by default $NTK_TT_WEIGHTS and $NTK_TT_DATA). What is said comes
from the few real steps of the verdict, without compilation, what was taken from the whole run,
without compilation and evaluation. Both are wall seconds: other work on the machine shows.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import tyro

from ntk_tt.cli.entry import main as ntk_tt_main

MOST_OFF = 0.25  # that is asked for


@dataclasses.dataclass(frozen=True)
class Arguments:
    weights: Path = Path(os.environ.get("NTK_TT_WEIGHTS", "."))
    """Folder of the safetensors files."""
    data: Path = Path(os.environ.get("NTK_TT_DATA", "."))
    """Folder of the image sets."""


def cases(arguments: Arguments) -> dict[str, list[str]]:
    """Flags of `verify` by name."""
    small = ["--classes", "5", "--batch-size", "32", "--steps", "60"]
    return {
        "ResNet-8, the demo": ["--method", "curvature"],
        "ResNet-20, 32×32": [
            *("--model", "resnet20", "--learning-rate", "0.005", "--per-class", "40", *small),
            *("--weights", str(arguments.weights / "resnet20_cifar10.safetensors")),
            *("--data", f"folder:{arguments.data / 'cifar100'}"),
        ],
        "ResNet-18, 64×64": [
            *("--model", "resnet18", "--learning-rate", "0.001", "--per-class", "20", *small),
            *("--weights", str(arguments.weights / "resnet18_tinyimagenet.safetensors")),
            *("--data", f"folder:{arguments.data / 'dtd'}", "--image-size", "64"),
        ],
    }


def said_and_taken(report: dict) -> tuple[float, float]:
    """Seconds of the run of a report of `verify`."""
    optimizer, steps = report["optimizer"], report["prediction"]["steps"][-1]
    size = optimizer["batch_size"] or report["task"]["num_samples"]
    said = report["verdict"]["seconds_per_sample"] * size * steps
    return said, report["cost"]["train_seconds"]


def main(arguments: Arguments) -> None:
    rows, report = [], {}
    for name, flags in cases(arguments).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            ntk_tt_main(["verify", *flags, "--json", str(path)])
            report = json.loads(path.read_text())
        said, taken = said_and_taken(report)
        size = report["optimizer"]["batch_size"] or report["task"]["num_samples"]
        steps = report["prediction"]["steps"][-1]
        rows.append(
            f"| {name} | {size} × {steps} | {said:.1f} | {taken:.1f} | {said / taken:.2f} |"
        )
        if abs(said / taken - 1) > MOST_OFF:
            print(f"{name}: off by more than {MOST_OFF:.0%}")
    print(
        "\n| network | batch × steps | said [s] | took [s] | said / took |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))
    about = report["environment"]
    print(f"\n{about['device']}, {about['cores']} cores, JAX {about['jax']}, {about['date']}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
