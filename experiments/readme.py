"""Writes the table of README.md from the committed results.

    python -m experiments.readme             # seconds
    python -m experiments.readme --check     # fails where the table is not what the results say
"""

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from experiments import run

README = Path(__file__).with_name("README.md")
START, END = "<!-- written by python -m experiments.readme -->\n", "<!-- end -->\n"
ORDER = ("fig1", "fig2", "fig3", "fig4", "tab1", "tab2", "fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "reply", "batchnorm", "baselines", "causes")


@dataclasses.dataclass(frozen=True)
class Arguments:
    check: bool = False
    """Change nothing; exit with 1 where the README differs."""


def table() -> str:
    """Markdown, a row an experiment: claim, command, the paper's result, ours, verdict."""
    known = run.names()
    names = [name for name in ORDER if name in known] + [name for name in known if name not in ORDER]
    lines = ["| | the paper's claim | the paper's result | ours (`cpu`) | verdict |", "|---|---|---|---|---|"]
    for name in names:
        experiment, path = run.load(name), run.result_path(name, "cpu")
        claim, paper = (text.strip() for text in (experiment.CLAIM, experiment.PAPER))
        if path.exists():
            document = json.loads(path.read_text())
            outcome, verdict = experiment.summarize(document["results"])
            files = f"[JSON](results/{name}/cpu.json)"
            if path.with_suffix(".png").exists():
                files += f", [figure](results/{name}/cpu.png)"
            word, _, reason = verdict.partition(":")
            outcome, verdict = f"{outcome} ({files}; {document['environment']['date']})", f"**{word}**{':' if reason else ''}{reason}"
        else:
            outcome, verdict = "not run", "–"
        lines.append(f"| `{name}` | {' | '.join(_cell(text) for text in (claim, paper, outcome, verdict))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def text() -> str:
    """README.md as it should be: its own prose, and the table between the two marks."""
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    return before + START + table() + END + after


def main(arguments: Arguments) -> None:
    if not arguments.check:
        README.write_text(text())
    elif README.read_text() != text():
        sys.exit(f"{README}: the table is not what the results say; run python -m experiments.readme")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
