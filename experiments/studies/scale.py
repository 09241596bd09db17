"""Does it stay linear? Time, memory and disk of features and replay, up to 50,000 samples.

    python -m experiments.studies.scale
    python -m experiments.studies.scale --samples 200 400      # a minute: does it run?

Takes half an hour on two cores and 10 GB of disk. Expected: slope 1 of features, full-batch steps
and disk; no slope of a mini-batch step and of the memory, but for the images themselves (12 kB
each) and the logits.

The bundled network with 10 classes on Tiny-ImageNet at 32×32 from $NTK_TT_DATA, filled up with
noise images where there are too few of them (a record says how many). The features go to a store on
disk and are replayed from there; each part runs in a process of its own, whose peak memory is the
system's count, with the pages of the store that are mapped. Sizes run from small to large; one
whose time, by that of the sizes before, would pass the limit is left out, and the record says so.
Writes experiments/results/scale/<samples>.json, summary.json and cost_against_n.png.
"""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ntk_tt
from experiments.common.experiment import RESULTS as ALL_RESULTS
from ntk_tt.data import UpTo
from ntk_tt.dynamics import replay, replay_many
from ntk_tt.features.dimension import choose_num_projections, projection_advice
from ntk_tt.features.store import FeatureStore
from ntk_tt.features.write import write_features
from ntk_tt.jacobian.network import logits_and_tangent
from ntk_tt.kernels.streaming import StreamedKernel
from ntk_tt.losses import encode_targets
from ntk_tt.report.document import environment, write_json
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch

RESULTS = ALL_RESULTS / "scale"
CLASSES, IMAGE_CLASSES = 10, 200  # Tiny-ImageNet's classes are taken modulo 10
DATA = os.environ.get("NTK_TT_DATA")
IMAGES = Path(DATA) / "tiny_imagenet32" if DATA else None
RATES = (0.0005, 0.001, 0.002, 0.004)  # of the full-batch settings that are priced together


@dataclasses.dataclass(frozen=True)
class Config:
    samples: tuple[int, ...] = (1_000, 5_000, 20_000, 50_000)
    minutes: float = 30.0
    """Sizes that would take longer than what is left of this are not run."""
    disk_gigabytes: float = 10.0
    """For the features of the largest size; decides D', which all sizes share."""
    num_projections: int | None = None
    """D', instead of that."""
    memory_gigabytes: float = 0.5
    """Of features that the replay holds in memory."""
    block_size: int = 128
    """Samples at a time, and in a file."""
    steps: int = 4
    """Full-batch steps that are timed."""
    batch_size: int = 64
    data: Path | None = IMAGES
    """Folder of images; where there is none, all are noise."""
    folder: Path = Path(tempfile.gettempdir())
    """On the disk that the features go to; they are removed afterwards."""
    results: Path = RESULTS
    seed: int = 0
    stage: Literal["all", "features", "replay"] = "all"
    """Used by the experiment itself: one part, for the first size."""


def load_images(config: Config, num_samples: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Images (N, 32, 32, 3) and labels, and how many of them are real."""
    rng = np.random.default_rng(config.seed)
    images, labels = np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, int)
    if config.data is not None and config.data.is_dir():
        task = ntk_tt.load_task(
            f"folder:{config.data}",
            num_classes=None,
            per_class=UpTo(-(-num_samples // IMAGE_CLASSES)),
            seed=config.seed,
        )
        chosen = rng.permutation(len(task.labels))[:num_samples]
        images, labels = task.images[chosen], task.labels[chosen] % CLASSES
    missing = num_samples - len(images)
    noise = rng.integers(0, 256, (missing, 32, 32, 3), np.uint8)
    return (
        np.concatenate([images, noise]),
        np.concatenate([labels, np.arange(missing) % CLASSES]),
        len(images),
    )


def write(config: Config, folder: Path) -> dict[str, Any]:
    """Features into a store below `folder`, and beside it all else that the replay needs."""
    num_samples = config.samples[0]
    images, labels, num_real = load_images(config, num_samples)
    model = ntk_tt.load_model(num_classes=CLASSES, key=jax.random.key(config.seed))
    inputs = np.asarray(model.preprocess(images))
    with progress_bar("features") as progress, Stopwatch() as watch:
        store = write_features(
            model.apply,
            model.params,
            inputs,
            folder,
            options=ntk_tt.FeatureOptions(
                num_projections=config.num_projections or "auto",
                block_size=min(config.block_size, num_samples),
            ),
            key=jax.random.key(config.seed),
            progress=progress,
        )
    with Stopwatch() as logits_watch:
        logits, weight_logits = jax.block_until_ready(
            logits_and_tangent(model.apply, model.params, inputs, model.params)
        )
    np.savez(
        folder / "problem.npz",
        logits=logits,
        weight_logits=weight_logits,
        targets=encode_targets(labels, CLASSES),
        store=str(store.folder),
    )
    return {
        "images": num_real,
        "noise_images": num_samples - num_real,
        "num_params": model.num_params,
        "num_projections": store.shape[2],
        "advice": projection_advice(num_samples * CLASSES, store.shape[2], model.num_params),
        "seconds": watch.seconds,
        "compile_seconds": watch.compile_seconds,
        "logits_seconds": logits_watch.seconds,
        "input_bytes": inputs.nbytes,
        "disk_bytes": sum(file.stat().st_size for file in store.folder.iterdir()),
        "peak_bytes": peak_bytes(),
    }


def play(config: Config, folder: Path) -> dict[str, Any]:
    """Seconds of a full-batch step, of one that prices several settings, and of a mini-batch
    step.
    """
    with np.load(folder / "problem.npz") as file:
        arrays = {name: jnp.asarray(file[name]) for name in ("logits", "weight_logits", "targets")}
        store = FeatureStore.open(str(file["store"]))
    with Stopwatch() as opening:
        kernel = StreamedKernel(store, memory_bytes=int(config.memory_gigabytes * 1e9))
    problem = ntk_tt.surrogate.LinearizedProblem(
        kernel, arrays["logits"], arrays["weight_logits"], arrays["targets"]
    )
    optimizers = [ntk_tt.OptimizerConfig(rate, 0.9) for rate in RATES]
    with Stopwatch() as one:
        curve = replay(problem, optimizers[0], config.steps, record_every=config.steps)
    with Stopwatch() as many:
        replay_many(problem, optimizers, config.steps, record_every=config.steps)
    optimizer = ntk_tt.OptimizerConfig(
        RATES[0], 0.9, batch_size=min(config.batch_size, len(arrays["targets"]))
    )
    epoch = optimizer.steps_per_epoch(len(arrays["targets"]))
    with Stopwatch() as batches:
        epoch_curve = replay(problem, optimizer, epoch, record_every=epoch)
    passes = config.steps + 1  # of which the last only records
    return {
        "open_seconds": opening.seconds,
        "resident_samples": len(kernel.resident),
        "seconds_per_step": one.seconds / passes,
        "settings": len(RATES),
        "seconds_per_step_of_all_settings": many.seconds / passes,
        "steps_per_epoch": epoch,
        "batch_size": optimizer.batch_size,
        "epoch_seconds": batches.seconds,
        "seconds_per_batch_step": max(0.0, batches.seconds - 2 * one.seconds / passes)
        / epoch,  # two records
        "loss": curve.loss,
        "loss_of_epoch": epoch_curve.loss,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The most memory this process has had, mapped pages included."""
    if sys.platform == "linux":  # where ru_maxrss begins at the parent's
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(kilobytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(
    config: Config, stage: Literal["features", "replay"], num_samples: int, folder: Path
) -> dict[str, Any]:
    options = {
        "memory-gigabytes": config.memory_gigabytes,
        "block-size": config.block_size,
        "steps": config.steps,
        "batch-size": config.batch_size,
        "data": config.data,
        "num-projections": config.num_projections,
        "seed": config.seed,
        "samples": num_samples,
        "folder": folder,
        "stage": stage,
    }
    command = [
        sys.executable,
        "-m",
        "experiments.studies.scale",
        *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
    ]
    subprocess.run(command, check=True)
    return json.loads((folder / f"{stage}.json").read_text())


def main(config: Config) -> None:
    if config.stage != "all":
        run_stage(config)
        return
    if config.num_projections is None:
        num_params = ntk_tt.load_model(num_classes=CLASSES).num_params
        budget = int(config.disk_gigabytes * 1e9)
        config = dataclasses.replace(
            config,
            num_projections=choose_num_projections(
                max(config.samples), CLASSES, num_params, budget
            ),
        )
    start, runs, left_out = time.perf_counter(), [], []
    described = {
        name: value
        for name, value in vars(config).items()
        if name not in ("stage", "folder", "results")
    } | {"data": config.data.name if config.data else None}
    for num_samples in sorted(config.samples):
        elapsed = time.perf_counter() - start
        expected = runs[-1]["wall_seconds"] * num_samples / runs[-1]["num_samples"] if runs else 0.0
        if left_out or elapsed + expected > 60 * config.minutes:
            left_out.append({"num_samples": num_samples, "expected_seconds": expected})
            print(
                f"{num_samples} samples: left out, they would take about {expected / 60:.0f} "
                "minutes",
                flush=True,
            )
            continue
        runs.append(measure(config, num_samples))
        write_json(
            config.results / f"{num_samples}.json",
            {"config": described, "environment": environment(config.seed), **runs[-1]},
        )
    write_json(
        config.results / "summary.json",
        {
            "config": described,
            "environment": environment(config.seed),
            "slopes": slopes(runs),
            "left_out": left_out,
            "runs": runs,
        },
    )
    plot(runs, config.results / "cost_against_n.png")


def run_stage(config: Config) -> None:
    """One stage, in the process that is measured."""
    run = write if config.stage == "features" else play
    record = run(config, config.folder)
    write_json(
        config.folder / f"{config.stage}.json",
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in record.items()
        },
    )


def measure(config: Config, num_samples: int) -> dict[str, Any]:
    """Both stages of one size, each in a process of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        parts = {
            stage: in_a_process(config, stage, num_samples, Path(folder))
            for stage in ("features", "replay")
        }
    found = {
        "num_samples": num_samples,
        "num_outputs": CLASSES,
        "wall_seconds": time.perf_counter() - begin,
        **parts,
    }
    numbers = {
        part: {name: round(value, 4) for name, value in record.items() if isinstance(value, float)}
        for part, record in parts.items()
    }
    print(num_samples, numbers, flush=True)
    return found


TIMES = {
    "features": ("features", "seconds"),
    "full-batch step": ("replay", "seconds_per_step"),
    f"… of {len(RATES)} settings at once": ("replay", "seconds_per_step_of_all_settings"),
    "mini-batch step": ("replay", "seconds_per_batch_step"),
}
SIZES = {
    "features on disk": ("features", "disk_bytes"),
    "peak memory, features": ("features", "peak_bytes"),
    "peak memory, replay": ("replay", "peak_bytes"),
}

LINEAR = {*list(TIMES)[:3], "features on disk"}  # expected to be


def slopes(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of the logarithm of each quantity against that of N between the two largest sizes: 1 is
    linear.
    """
    if len(runs) < 2:
        return {}
    result = {}
    for label, (part, name) in (TIMES | SIZES).items():
        values = np.asarray([run[part][name] for run in runs[-2:]], float)
        counts = np.asarray([run["num_samples"] for run in runs[-2:]], float)
        result[label] = (
            float(np.diff(np.log(values))[0] / np.diff(np.log(counts))[0])
            if (values > 0).all()
            else None
        )
    return result


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    counts = np.asarray([run["num_samples"] for run in runs])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), constrained_layout=True)
    for axis, quantities, unit, label in (
        (axes[0], TIMES, 1.0, "seconds"),
        (axes[1], SIZES, 1e9, "GB"),
    ):
        for name, (part, entry) in quantities.items():
            values = np.asarray([run[part][entry] for run in runs], float) / unit
            (line,) = axis.loglog(counts, values, marker="o", label=name)
            if name in LINEAR:
                axis.loglog(
                    counts,
                    values[-1] * counts / counts[-1],
                    color=line.get_color(),
                    linestyle=":",
                    linewidth=1,
                )
        axis.set(xlabel="training samples N", ylabel=label)
        axis.grid(alpha=0.25, which="both")
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"C = {CLASSES}, D' = {runs[-1]['features']['num_projections']}; dotted: linear in N",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
