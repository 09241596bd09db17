"""Writes the tables of experiments/README.md and of the README from the committed results.

python -m tools.readme             # seconds
python -m tools.readme --check     # fails where a table is not what the results say
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.common import methods
from experiments.common.experiment import result_path
from experiments.registry import EXPERIMENTS
from ntk_tt.prediction import verdict

ROOT = Path(__file__).parents[1]
START, END = "<!-- {}: written by python -m tools.readme -->\n", "<!-- end -->\n"


@dataclasses.dataclass(frozen=True)
class Arguments:
    check: bool = False
    """Change nothing; exit with 1 where the README differs."""


def table() -> str:
    """Markdown, a row an experiment: claim, command, the paper's result, ours, verdict."""
    lines = [
        "| | the paper's claim | the paper's result | ours (`cpu`) | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, experiment in EXPERIMENTS.items():
        path = experiment.result_path("cpu")
        if path.exists():
            document = json.loads(path.read_text())
            outcome, judgement = experiment.summarize(document["results"])
            files = f"[JSON](results/{name}/cpu.json)"
            if path.with_suffix(".png").exists():
                files += f", [figure](results/{name}/cpu.png)"
            word, _, reason = judgement.partition(":")
            outcome, judgement = (
                f"{outcome} ({files}; {document['environment']['date']})",
                f"**{word}**{':' if reason else ''}{reason}",
            )
        else:
            outcome, judgement = "not run", "–"
        cells = (experiment.claim, experiment.paper_result, outcome, judgement)
        lines.append(f"| `{name}` | {' | '.join(_cell(text) for text in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def accuracy() -> str:
    """Markdown: errors by method on the reporting data, every number from
    `experiments.studies.accuracy`.
    """
    results = _accuracy("cpu.json")["results"]
    costs = []
    for network in dict.fromkeys(each["network"] for each in results["runs"]):
        runs = [each for each in results["runs"] if each["network"] == network]
        ratios = (
            f"{np.median([each['gd_seconds'] / each['seconds'][method] for each in runs]):.0f}× "
            f"({method})"
            for method in ("head", "curvature", "one-shot")
        )
        costs.append(f"{network} {', '.join(ratios)}")
    return (
        methods.markdown(results["tables"], "reporting")
        + f"\nCost by network, of all runs: 150 GD steps are {'; '.join(costs)}.\n"
    )


def trust() -> str:
    """Markdown: errors on the reporting data by the verdict's trust, beside those of another real
    run, and what the intervals hold.
    """
    found = _accuracy("calibration.json")
    limits = {
        "high": f"high: at least {verdict.WIDE_MARGIN:g}",
        "medium": f"medium: {verdict.CLOSE_MARGIN:g} to {verdict.WIDE_MARGIN:g}",
        "low": f"low: 1 to {verdict.CLOSE_MARGIN:g}",
        "none": "none: below 1, refused",
    }
    lines = [
        "| method | trust: margin | runs | median error | within 20 % | within 2× | another real "
        "run: median | within 20 % | within 2× |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, grades in found["by trust"]["reporting"].items():
        for grade, row in grades.items():
            cells = [
                f"{row[of][measure]:.0%}"
                for of in (method, "another run")
                for measure in ("median", "within_20", "within_2x")
            ]
            lines.append(f"| {' | '.join([method, limits[grade], str(row['runs']), *cells])} |")
    held = {name: row["covered"] for name, row in found["coverage"]["reporting"].items()}
    return "\n".join(lines) + (
        "\n\nOf the real times of the reporting runs the 90 % intervals hold "
        f"{held['curvature, 0% seen']:.0%} (`curvature`), {held['one-shot, 0% seen']:.0%} "
        "(`one-shot`), and with a tenth and a quarter "
        f"of the run seen {held['curvature, 10% seen']:.0%} and "
        f"{held['curvature, 25% seen']:.0%}.\n"
    )


def _accuracy(name: str) -> dict[str, Any]:
    return json.loads(result_path("accuracy", "cpu").with_name(name).read_text())


# Which document has which sections, each between its marks.
DOCUMENTS = {
    ROOT / "experiments" / "README.md": {"reproduction": table},
    ROOT / "README.md": {"accuracy": accuracy, "trust": trust},
}


def text(path: Path) -> str:
    """A document as it should be: its own prose, and what is written between the marks."""
    document = path.read_text()
    for name, write in DOCUMENTS[path].items():
        before, mark, rest = document.partition(START.format(name))
        if not mark or END not in rest:
            sys.exit(
                f"{path}: has no section between {START.format(name).strip()} and {END.strip()}"
            )
        document = before + mark + write() + END + rest.partition(END)[2]
    return document


def main(arguments: Arguments) -> None:
    for path in DOCUMENTS:
        if not arguments.check:
            path.write_text(text(path))
        elif path.read_text() != text(path):
            sys.exit(f"{path}: a table is not what the results say; run python -m tools.readme")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
