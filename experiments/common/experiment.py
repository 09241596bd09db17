"""What an experiment is, and how it is run: computed, written as JSON, summed up and drawn."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from experiments.common.claims import Claim
from ntk_tt.report.document import environment, write_json

Scale = Literal["tiny", "cpu", "gpu"]
Results = dict[str, Any]
"""Plain values, as the JSON has them; `runs` lists every run."""
Config = TypeVar("Config")

RESULTS = Path(__file__).parents[1] / "results"
TINY_RESULTS = Path("out") / "experiments"
FORMER_SURROGATE = (
    "These results are of version 0.1. They were measured before the small network replaced the "
    "former surrogate, whose directions were shared by all samples."
)
FORMER_DIRECTIONS = (
    "These predictions were made before the output directions became those of a head that turns "
    "only as far as its share of the gradient. On ResNet-18 they were far too early for that; with "
    "the bundled network the change is small."
)


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[Config]):
    """A question with its answer at three sizes."""

    name: str
    """Of its module, and of the folder of its results."""
    claim: str
    """What the paper claims; ours begin with "ours: "."""
    paper_result: str
    """The paper's own numbers."""
    scales: Mapping[Scale, Config]
    """`tiny` takes seconds and needs nothing but the package; `cpu` makes the committed results;
    `gpu` has the paper's sizes. Each is a frozen dataclass.
    """
    compute: Callable[[Config], Results]
    summarize: Callable[[Results], tuple[str, str]]
    """Our result in numbers; "reproduced", "partly" or "not reproduced", and why."""
    draw: Callable[[Results, Path], None] | None = None
    """Writes the figure; None for a table."""
    claims: Callable[[Results], list[Claim]] | None = None
    """The paper's statements in numbers, from the runs alone; `results.claims` of the JSON."""
    outdated: str = ""
    """What has changed since the committed results were made; empty once they are made anew."""

    def run(self, scale: Scale, folder: Path | None = None) -> dict[str, Any]:
        """Computes, writes and draws; returns the document that was written."""
        config: Any = self.scales[scale]
        clock = time.perf_counter()
        results = self.compute(config)
        if self.claims is not None:
            results["claims"] = [each.record for each in self.claims(results)]
        document = {
            "name": self.name,
            "scale": scale,
            "config": dataclasses.asdict(config),
            "environment": environment(getattr(config, "seed", 0)),
            "seconds": time.perf_counter() - clock,
            "results": results,
        }
        write_json(self.result_path(scale, folder), document)
        self.redraw(scale, folder)
        return document

    def redraw(self, scale: Scale, folder: Path | None = None) -> None:
        """The figure and the summary, from the JSON."""
        path = self.result_path(scale, folder)
        results = json.loads(path.read_text())["results"]
        if self.draw is not None:
            self.draw(results, path.with_suffix(".png"))
        outcome, verdict = self.summarize(results)
        print(f"{self.name} ({scale}): {outcome}\n{verdict}\n-> {path}", flush=True)

    def result_path(self, scale: Scale, folder: Path | None = None) -> Path:
        """Where the JSON lies; the figure lies beside it."""
        return result_path(self.name, scale, folder)

    def runs(self, scale: Scale) -> list[dict[str, Any]]:
        """For other experiments: from the results where they are there (`tiny` has none to keep),
        else computed.
        """
        path = self.result_path(scale)
        if scale != "tiny" and path.exists():
            return json.loads(path.read_text())["results"]["runs"]
        return self.compute(self.scales[scale])["runs"]


def result_path(name: str, scale: Scale, folder: Path | None = None) -> Path:
    """Where the JSON of an experiment lies."""
    return (folder or (TINY_RESULTS if scale == "tiny" else RESULTS)) / name / f"{scale}.json"
