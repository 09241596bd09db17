"""Writes the tables of the documents, and a page for each experiment, from the committed results.

python -m tools.readme             # seconds
python -m tools.readme --check     # fails where a document is not what the results say
"""

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.common import methods
from experiments.common.claims import COMPARED, markdown
from experiments.common.experiment import Experiment, result_path
from experiments.registry import EXPERIMENTS
from ntk_tt.prediction import verdict

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "experiments"
START, END = "<!-- {}: written by python -m tools.readme -->\n", "<!-- end -->\n"
WIDTH, TITLE_WIDTH = 100, 72
OTHERS = COMPARED[1:]


@dataclasses.dataclass(frozen=True)
class Arguments:
    check: bool = False
    """Change nothing; exit with 1 where a document differs."""


def overview(folder: str) -> str:
    """Markdown, a row an experiment with its verdict in a word; `folder` leads to the pages."""
    rows, links = [], []
    for name, experiment in EXPERIMENTS.items():
        if not experiment.result_path("cpu").exists():  # and so it has no page
            rows.append([name, _shortened(_title(experiment)), "not run"])
            continue
        word = _outcome(experiment)[1].partition(":")[0]
        rows.append([f"[{name}]", _shortened(_title(experiment)), word])
        links.append(f"[{name}]: {folder}/{name}.md")
    return _table(["", "question", "verdict"], rows) + "\n" + "\n".join(links) + "\n"


def page(experiment: Experiment[Any]) -> str:
    """Markdown: the paper's claim and result, ours, the verdict, and how ours came about."""
    name, path = experiment.name, experiment.result_path("cpu")
    heading, _, title = _docstring(experiment).rpartition(": ")
    outcome, judgement = _outcome(experiment)
    word, _, reason = judgement.partition(":")
    document = json.loads(path.read_text())
    where = document["environment"]
    results = f"../../experiments/results/{name}"
    shown = f"![{name}]({results}/cpu.png)\n" if path.with_suffix(".png").exists() else ""
    paper = "" if experiment.paper_result.strip() in ("", "–") else experiment.paper_result
    cores = f"{where['cores']} cores, " if "cores" in where else ""
    parts = [
        f"<!-- written by python -m tools.readme -->\n\n# {heading or name}\n",
        _wrapped(f"{title[0].upper()}{title[1:]}"),
        _wrapped(f"**{word.capitalize()}**{': ' if reason else '.'}{reason.strip()}"),
        "## Claim\n",
        _wrapped(experiment.claim),
        _wrapped(f"The paper's result: {' '.join(paper.split())}") if paper else "",
        "## Ours\n",
        _listed(outcome),
        shown,
        _claims_part(document["results"]),
        "## How it was measured\n",
        f"```\npython -m experiments.run {name} --scale cpu\n```\n",
        _wrapped(
            f"{where['device'].upper()}, {cores}{where['system']}, Python {where['python']}, "
            f"JAX {where['jax']}, Flax {where['flax']}, optax {where['optax']}, seed "
            f"{where['seed']}, {where['date']}. Every run is in [cpu.json]({results}/cpu.json)."
        ),
        _wrapped(experiment.outdated) if experiment.outdated else "",
    ]
    return "\n".join(part for part in parts if part)


CLAIM_HEADER = [
    "",
    "of",
    "claimed",
    "paper's method",
    "replay",
    "ours",
    "another run",
    "holds, ours",
]


def _claims_part(results: dict[str, Any]) -> str:
    """What each method gives, where the runs were compared so."""
    if not results.get("claims"):
        return ""
    told = (
        "*Paper's method* is Algorithm 1, *replay* the optimiser on the same frozen kernel, *ours* "
        "what `auto` predicts, *another run* a second real run. A dash was not measured, or makes "
        "no sense."
    )
    return f"## Claims\n\n{_table(CLAIM_HEADER, markdown(results['claims']))}\n{_wrapped(told)}"


def claims() -> str:
    """Markdown: how many of each row's claims hold, by method, and the headline's in full."""
    rows, headline = [], []
    for name, experiment in EXPERIMENTS.items():
        path = experiment.result_path("cpu")
        found = json.loads(path.read_text())["results"].get("claims") if path.exists() else None
        if not found:
            continue
        if name == "fig1":
            headline = found
        rows.append([f"[{name}]", *(_held(found, method) for method in ("paper", *OTHERS))])
    header = ["", "paper's method", *(method.replace("_", " ") for method in OTHERS)]
    table = _table(header, rows)
    return f"{table}\nThe headline, fig1:\n\n{_table(CLAIM_HEADER, markdown(headline))}"


def _held(found: list[dict[str, Any]], method: str) -> str:
    """How many of the claims that a method has a number for hold with it."""
    holds = [
        each[method] >= each["paper_claims"]
        if each["sense"] == "at least"
        else each[method] <= each["paper_claims"]
        for each in found
        if each[method] is not None
    ]
    return f"{sum(holds)} of {len(holds)}" if holds else "–"


def summary() -> str:
    """Markdown: four rows of the accuracy, and what high trust means."""
    found = _accuracy("cpu.json")["results"]["tables"]["reporting"]
    names = {
        "another run": "another real run",
        "curvature": "ntk-tt, `curvature`",
        "replay": "frozen kernel, as in the paper",
        "constant": "the best constant",
    }
    rows = [
        [shown, *(_percent(found[name][of]) for of in ("median", "within_20", "within_2x"))]
        for name, shown in names.items()
    ]
    high = _accuracy("calibration.json")["by trust"]["reporting"]["curvature"]["high"]
    trusted = (
        f'Where `curvature` says "trust: high" ({high["runs"]} of the runs), '
        f"{_percent(high['curvature']['within_20'])} of the times are within 20 %, and "
        f"{_percent(high['curvature']['within_2x'])} within a factor of two."
    )
    header = ["", "median error", "within 20 %", "within 2×"]
    return f"{_table(header, rows)}\n{_wrapped(trusted)}"


def accuracy() -> str:
    """Markdown: errors by method on the reporting data, every number from
    `experiments.studies.accuracy`.
    """
    measures = ("median", "p95", "within_20", "within_2x", "runs_within_20", "runs_within_2x")
    rows = [
        [method, *(_percent(row[name]) for name in measures), *_skills(row)]
        for method, row in _reported().items()
    ]
    header = ["method", "median error", "95th %ile", "≤ 20 %", "≤ 2×", "runs ≤ 20 %", "runs ≤ 2×"]
    return _table([*header, "skill ¹", "skill ²"], rows) + (
        "\n≤ 20 %, ≤ 2×: share of times within that error. ¹ Over a constant. ² Over an\n"
        "extrapolation of equal cost.\n"
    )


def costs() -> str:
    """Markdown: what 150 full-batch steps cost over the predictions of the accuracy benchmark."""
    results = _accuracy("cpu.json")["results"]
    rows = [
        [method, *(f"{row[of]:.0f}×" if row[of] else "" for of in ("gd_ratio", "further_gd_ratio"))]
        for method, row in _reported().items()
        if row["gd_ratio"]
    ]
    named = ("head", "curvature", "one-shot")
    networks = []
    for network in dict.fromkeys(each["network"] for each in results["runs"]):
        runs = [each for each in results["runs"] if each["network"] == network]
        ratios = (
            np.median([each["gd_seconds"] / each["seconds"][method] for each in runs])
            for method in named
        )
        networks.append([network, *(f"{ratio:.0f}×" for ratio in ratios)])
    return (
        _table(["median run, reporting data", "one setting", "a further setting"], rows)
        + "\n"
        + _table(["one setting, all runs", *named], networks)
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
    rows = []
    for method, grades in found["by trust"]["reporting"].items():
        for grade, row in grades.items():
            cells = (
                _percent(row[of][measure])
                for of in (method, "another run")
                for measure in ("median", "within_20", "within_2x")
            )
            rows.append([method, limits[grade], str(row["runs"]), *cells])
    held = {name: _percent(row["covered"]) for name, row in found["coverage"]["reporting"].items()}
    coverage = (
        "The last three columns are those of another real run. Of the real times of the reporting "
        f"runs the 90 % intervals hold {held['curvature, 0% seen']} (`curvature`), "
        f"{held['one-shot, 0% seen']} (`one-shot`), and with a tenth and a quarter of the run "
        f"seen {held['curvature, 10% seen']} and {held['curvature, 25% seen']}."
    )
    header = ["method", "trust: margin", "runs", *("median error", "≤ 20 %", "≤ 2×") * 2]
    return f"{_table(header, rows)}\n{_wrapped(coverage)}"


def _reported() -> dict[str, dict[str, Any]]:
    """The rows of the accuracy on the reporting data, without those in which nothing was slowed."""
    found = _accuracy("cpu.json")["results"]["tables"]["reporting"]

    def is_repeated(method: str) -> bool:
        slowed = found[method.removesuffix(methods.UNSLOWED)]
        return slowed is not found[method] and slowed["p95"] == found[method]["p95"]

    return {method: row for method, row in found.items() if not is_repeated(method)}


def _skills(row: dict[str, Any]) -> list[str]:
    skills = (row[f"skill over {of}"] for of in ("constant", "extrapolation, equal cost"))
    return ["" if skill is None else f"{skill:.2f}" for skill in skills]


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _accuracy(name: str) -> dict[str, Any]:
    return json.loads(result_path("accuracy", "cpu").with_name(name).read_text())


def _outcome(experiment: Experiment[Any]) -> tuple[str, str]:
    return experiment.summarize(json.loads(experiment.result_path("cpu").read_text())["results"])


def _docstring(experiment: Experiment[Any]) -> str:
    """The first sentence of an experiment's module, such as "Figure 5: seconds to …"."""
    found = sys.modules[experiment.compute.__module__].__doc__ or experiment.name
    return " ".join(found.strip().partition("\n\n")[0].split())


def _title(experiment: Experiment[Any]) -> str:
    """That sentence without the number of the figure."""
    title = _docstring(experiment).rpartition(": ")[2].removesuffix(".")
    return title[0].upper() + title[1:]


def _shortened(title: str) -> str:
    """At most TITLE_WIDTH characters, cut after a clause where there is one."""
    if len(title) <= TITLE_WIDTH:
        return title
    clause = re.match(rf".{{30,{TITLE_WIDTH - 3}}}(?=[,;?] )", title)
    if clause is None:
        return textwrap.shorten(title, TITLE_WIDTH, placeholder=" …")
    return clause[0] + ("?" if title[clause.end()] == "?" else " …")


def _listed(outcome: str) -> str:
    """A list, an item for each part that a semicolon or full stop outside parentheses ends; a part
    without a name belongs to the named one before it.
    """
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(outcome):
        depth += (character == "(") - (character == ")")
        if depth == 0 and re.match(r"[;.] ", outcome[place:]):
            parts.append(outcome[begin:place])
            begin = place + 2
    items: list[str] = []
    for part in (*parts, outcome[begin:]):
        if items and ": " in items[-1] and ": " not in part:
            items[-1] += f"; {part.strip()}"
        else:
            items.append(part.strip())
    return "".join(_wrapped(f"- {item}", "  ") for item in items)


def _wrapped(text: str, indent: str = "") -> str:
    return (
        textwrap.fill(
            " ".join(text.split()).replace(" %", "\N{NO-BREAK SPACE}%"),
            WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("\N{NO-BREAK SPACE}", " ")
        + "\n"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"

    return "".join([line(header), "|---" * len(header) + "|\n", *map(line, rows)])


Write = Callable[[], str]

# Which document has which sections, each between its marks; an empty name is a whole document.
DOCUMENTS: dict[Path, dict[str, Write]] = {
    ROOT / "README.md": {"summary": summary},
    ROOT / "docs" / "results.md": {"accuracy": accuracy, "trust": trust},
    ROOT / "docs" / "costs.md": {"costs": costs},
    ROOT / "docs" / "paper.md": {
        "overview": partial(overview, "experiments"),
        "claims": claims,
    },
    ROOT / "experiments" / "README.md": {"overview": partial(overview, "../docs/experiments")},
    **{
        PAGES / f"{name}.md": {"": partial(page, experiment)}
        for name, experiment in EXPERIMENTS.items()
        if experiment.result_path("cpu").exists()
    },
}


def text(path: Path) -> str:
    """A document as it should be: its own prose, and what is written between the marks."""
    sections = DOCUMENTS[path]
    if "" in sections:
        return sections[""]()
    document = path.read_text()
    for name, write in sections.items():
        before, mark, rest = document.partition(START.format(name))
        if not mark or END not in rest:
            sys.exit(
                f"{path}: has no section between {START.format(name).strip()} and {END.strip()}"
            )
        document = before + mark + write() + END + rest.partition(END)[2]
    return document


def main(arguments: Arguments) -> None:
    PAGES.mkdir(exist_ok=True)
    for path in DOCUMENTS:
        if not arguments.check:
            path.write_text(text(path))
        elif not path.exists() or path.read_text() != text(path):
            sys.exit(f"{path}: is not what the results say; run python -m tools.readme")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
