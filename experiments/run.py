"""Runs one experiment at one size, and writes what it found.

    python -m experiments.run NAME [--scale tiny|cpu|gpu] [--results FOLDER]
    python -m experiments.run NAME --scale cpu --redraw     # the figure again, from the JSON

Writes <results>/<name>/<scale>.json (configuration, versions and hardware, results) and
<scale>.png. Results go to experiments/results, except those of `tiny`, which only show that the
experiment runs: they go to out/experiments. Real training runs are kept
(`experiments.tasks.cache_folder`), so an interrupted experiment goes on where it was.

An experiment is a module of this folder with

    SCALES: dict[str, Config]                      tiny (seconds, digits and the bundled network),
    cpu, gpu (the paper's sizes) CLAIM, PAPER: str                              what the paper
    claims, and the numbers it gave compute(config) -> dict                        results as plain
    values; `runs` lists every run summarize(results) -> (str, str)               our result in
    numbers; the verdict and its reason, from the numbers draw(results, path) -> None
        the figure (not for tables)
"""

import dataclasses
import importlib
import json
import pkgutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ntk_tt.report.document import environment, write_json

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TINY_RESULTS = Path("out") / "experiments"
Scale = Literal["tiny", "cpu", "gpu"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    name: Annotated[str, tyro.conf.Positional]
    """Of the experiment."""
    scale: Scale = "cpu"
    """tiny: seconds; cpu: the committed results; gpu: the paper's sizes."""
    results: Path | None = None
    """Folder to write into."""
    redraw: bool = False
    """Only draw the figure again, from the results that are there."""


def names() -> list[str]:
    """All experiments of this folder that follow the contract above, sorted."""
    modules = (
        module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.name != "run"
    )
    return sorted(name for name in modules if "\nSCALES" in (FOLDER / f"{name}.py").read_text())


def load(name: str) -> Any:
    """The module of an experiment.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in names():
        raise ValueError(f"name: there is no experiment {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"experiments.{name}")


def result_path(name: str, scale: Scale, folder: Path | None = None) -> Path:
    """Where the JSON of an experiment lies; the figure lies beside it."""
    return (folder or (TINY_RESULTS if scale == "tiny" else RESULTS)) / name / f"{scale}.json"


def run(name: str, scale: Scale, folder: Path | None = None) -> dict[str, Any]:
    """Computes, writes and draws; returns the document that was written."""
    experiment = load(name)
    config = experiment.SCALES[scale]
    clock = time.perf_counter()
    results = experiment.compute(config)
    document = {
        "name": name,
        "scale": scale,
        "config": dataclasses.asdict(config),
        "environment": environment(getattr(config, "seed", 0)),
        "seconds": time.perf_counter() - clock,
        "results": results,
    }
    path = result_path(name, scale, folder)
    write_json(path, document)
    redraw(name, scale, folder)
    return document


def redraw(name: str, scale: Scale, folder: Path | None = None) -> None:
    """The figure and the summary, from the JSON."""
    experiment, path = load(name), result_path(name, scale, folder)
    results = json.loads(path.read_text())["results"]
    if hasattr(experiment, "draw"):
        experiment.draw(results, path.with_suffix(".png"))
    outcome, verdict = experiment.summarize(results)
    print(f"{name} ({scale}): {outcome}\n{verdict}\n-> {path}", flush=True)


def main(arguments: Arguments) -> None:
    (redraw if arguments.redraw else run)(arguments.name, arguments.scale, arguments.results)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
