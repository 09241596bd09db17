"""A plan for a budget: which runs, in which order, and when to stop each."""

import dataclasses
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntk_tt.prediction.by_method import is_calibrated
from ntk_tt.prediction.prepared import Outcome
from ntk_tt.report.document import write_json
from ntk_tt.report.page import plan_page, write_page
from ntk_tt.report.sweep_text import level_words, setting_words_of
from ntk_tt.report.text import COLOURS, duration
from ntk_tt.runtime.terminal import print_table
from ntk_tt.times.amounts import read_budget
from ntk_tt.times.budget import Candidate, PlannedRun, plan_runs, shortest
from ntk_tt.times.calibration import chance_words, has_interval, interval
from ntk_tt.times.crossing import continued_time, smooth
from ntk_tt.times.levels import Level

if TYPE_CHECKING:
    from ntk_tt.report.sweep_report import SweepReport


@dataclasses.dataclass(frozen=True, repr=False)
class PlanReport:
    """The runs to start with a budget.

    Attributes:
        runs: plain values, one dict a run, in their order (docs/json.md).
        document: all of it, as `write_json` writes it.
    """

    runs: list[dict[str, Any]]
    document: dict[str, Any]

    @classmethod
    def of(cls, report: "SweepReport", budget: str | int | float) -> "PlanReport":
        """The plan of a sweep.

        Args:
            budget: seconds, or a text such as `2h` or `20EUR`; money needs the sweep's
                `price_per_hour`.

        Raises:
            ValueError: a budget that is none, or in which no run can reach the target.
        """
        price = report.document["sweep"]["price_per_hour"]
        seconds, currency = read_budget(str(budget), price)
        candidates = [
            _candidate(row, outcome, report.target)
            for row, outcome in zip(report.rows, report.outcomes, strict=True)
        ]
        planned = plan_runs(candidates, seconds)
        if not planned:
            raise ValueError(_impossible(budget, candidates, level_words(report.document)))
        runs = [
            _run(number, each, report.rows[each.candidate], report.outcomes[each.candidate])
            for number, each in enumerate(planned)
        ]
        chances = [each.chance for each in planned]
        about = {
            "budget_seconds": seconds,
            "budget": str(budget),
            "currency": currency or None,
            "price_per_hour": price,
            "target": report.document["sweep"]["target"],
            "chance": 1 - math.prod(1 - each for each in chances),
            "expected_seconds": _expected(planned),
            "most_seconds": sum(each.seconds for each in planned),
            "num_settings": len(report.rows),
        }
        environment = report.document["environment"]
        document = {"plan": about, "runs": runs, "environment": environment}
        words = [setting_words_of(run["setting"], report.document) for run in runs]
        for run, each in zip(runs, words, strict=True):
            run["words"] = each
        return cls(runs, document)

    def write_json(self, path: str | Path) -> None:
        """The whole plan as strict JSON (docs/json.md)."""
        write_json(Path(path), self.document)

    def write_html(self, path: str | Path) -> None:
        """One page with all of it, that needs nothing else."""
        write_page(Path(path), plan_page(self.document, plan_sentence(self.document), _rows(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {plan_sentence(self.document)}>"

    def __str__(self) -> str:
        written = io.StringIO()
        print_plan(self, file=written, width=100)
        return written.getvalue().strip()

    def __len__(self) -> int:
        return len(self.runs)


def plan_sentence(document: dict[str, Any]) -> str:
    """The answer to "what can this money reach?"."""
    plan, runs = document["plan"], document["runs"]
    target = Level(plan["target"]["of"], plan["target"]["level"]).words
    count = "one run" if len(runs) == 1 else f"up to {len(runs)} runs"
    chance, average = chance_words(plan["chance"]), duration(plan["expected_seconds"])
    return (
        f"With {plan['budget']}, {count}: {target} is reached with a chance of {chance}, after "
        f"{average} on average, and at most {duration(plan['most_seconds'])}."
    )


def print_plan(report: PlanReport, *, file: Any = None, width: int | None = None) -> None:
    """The sentence and the table of runs."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=file, width=width)
    console.print(f"\n[bold]{escape(plan_sentence(report.document))}[/bold]", highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    rows = _rows(report)
    for name in rows[0]:
        is_word = name in ("setting", "trust", "leave it")
        table.add_column(name, justify="left" if is_word else "right", no_wrap=not is_word)
    for row in rows:
        colour = COLOURS[row["trust"]]
        cells = {name: escape(value) for name, value in row.items()}
        cells["trust"] = f"[{colour}]{row['trust']}[/{colour}]"
        table.add_row(*cells.values())
    print_table(console, table)
    for line in remarks(report.document):
        console.print(escape(line), highlight=False)


def remarks(document: dict[str, Any]) -> list[str]:
    """What the reader should know of a plan."""
    found = ["start them in this order, and stop all once one has reached the target"]
    if any(run["assumed"] for run in document["runs"]):
        found.append(
            "chances of other optimisers than SGD are those of SGD: their own are not known"
        )
    if len(document["runs"]) > 1:
        found.append(
            "chances count runs as independent; what makes one late may make the others late too"
        )
    return found


def _rows(report: PlanReport) -> list[dict[str, str]]:
    """Cells of the table, by column."""
    has_price = report.document["plan"]["price_per_hour"] is not None
    rows = []
    for run in report.runs:
        row = {
            "": str(run["order"]),
            "setting": run["words"],
            "starts by": duration(run["begins_seconds"]) if run["begins_seconds"] else "now",
            "stop at": f"{run['stop_step']:,}",
            "time": duration(run["seconds"]),
        }
        if has_price:
            row["price"] = f"{run['price']:.2g}"
        row |= {
            "chance": chance_words(run["chance"]),
            "leave it": f"at {run['check_step']:,} if loss > {run['check_loss']:.3g}"
            if run["check_loss"] is not None
            else "",
            "trust": run["trust"],
        }
        rows.append(row)
    return rows


def _candidate(row: dict[str, Any], outcome: Outcome, level: Level) -> Candidate:
    """A row as a run that could be started."""
    prediction, time = outcome.predicted.prediction, row["steps"]
    margin = outcome.verdict.stability_margin
    is_known = is_calibrated(outcome.method, outcome.predicted, outcome.verdict)
    method = outcome.method if has_interval(outcome.method) else "replay"
    spread = interval(method, 0.0, margin if is_known else None)
    if row["trust"] == "none":
        time = None
    elif time is None:
        in_stairs = level.of == "error"
        curve = smooth(getattr(prediction, level.of), outcome.recording.smoothing)
        later = continued_time(prediction.steps, curve, level.value, in_stairs=in_stairs)
        end = math.nextafter(row["num_steps"], math.inf)
        time = None if later is None else max(later, end)
    return Candidate(
        None if time is None else float(time), row["num_steps"], row["seconds_per_step"], spread
    )


def _run(number: int, planned: PlannedRun, row: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """A run of the plan as plain values."""
    names = list(row)
    setting = {name: row[name] for name in names[1 : names.index("steps")]}
    price = None if row["whole_price"] is None else row["whole_price"] / row["whole_seconds"]
    prediction = outcome.predicted.prediction
    check = None
    if math.isfinite(planned.late) and np.isfinite(prediction.loss).all():
        behind = np.interp(planned.check / planned.late, prediction.steps, prediction.loss)
        check = float(behind)
    return {
        "order": number + 1,
        "rank": row["rank"],
        "setting": setting,
        "begins_seconds": planned.begins,
        "stop_step": planned.stop,
        "seconds": planned.seconds,
        "price": None if price is None else price * planned.seconds,
        "expected_seconds": planned.expected_seconds,
        "chance": planned.chance,
        "assumed": row["probability"] is None,
        "expected_step": row["steps"],
        "check_step": planned.check,
        "check_loss": check,
        "trust": row["trust"],
    }


def _expected(planned: tuple[PlannedRun, ...]) -> float:
    """Seconds until something has reached the target, or all are stopped."""
    total, missed = 0.0, 1.0
    for run in planned:
        total += missed * run.expected_seconds
        missed *= 1 - run.chance
    return total


def _impossible(budget: Any, candidates: list[Candidate], level: str) -> str:
    least = shortest(candidates)
    if least is None:
        return (
            f"budget: {level.lower()} has no chance with any of these settings, whatever the "
            "budget; ask for more steps, other rates or a higher level"
        )
    return (
        f"budget: {budget!s} is too little for any run to reach {level.lower()}; the shortest with "
        f"a chance takes {duration(least)}"
    )
