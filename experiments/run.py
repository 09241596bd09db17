"""Runs one experiment at one size, and writes what it found.

    python -m experiments.run NAME [--scale tiny|cpu|gpu] [--results FOLDER]
    python -m experiments.run NAME --scale cpu --redraw     # the figure again, from the JSON

Writes <results>/<name>/<scale>.json (configuration, versions and hardware, results) and
<scale>.png. Results go to experiments/results, except those of `tiny`, which only show that the
experiment runs: they go to out/experiments. Real training runs are kept
(`experiments.common.tasks.cache_folder`), so an interrupted experiment goes on where it was.

Names are those of `experiments.registry`; what an experiment is says
`experiments.common.experiment`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments.common.experiment import Scale
from experiments.registry import find


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


def main(arguments: Arguments) -> None:
    experiment = find(arguments.name)
    (experiment.redraw if arguments.redraw else experiment.run)(arguments.scale, arguments.results)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
