"""What a sweep found, in order: rows, a table, CSV, JSON, a figure and a page."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ntk_tt.prediction.by_method import interval_of, is_calibrated
from ntk_tt.prediction.passes import Pass
from ntk_tt.prediction.prepared import Outcome
from ntk_tt.prediction.setting_space import NAMES, Space, SweptSetting, settings_of
from ntk_tt.prediction.sweep import Swept, sweep
from ntk_tt.report.document import environment, finite, write_json
from ntk_tt.report.page import notebook_cell, sweep_page, write_page
from ntk_tt.report.parts import steps_until
from ntk_tt.report.plan_report import PlanReport
from ntk_tt.report.sweep_text import sweep_sentence, sweep_text
from ntk_tt.runtime.files import write_whole
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.times.levels import Level

_SHARE = 0.25  # of the loss at the start: the level that is asked for where none is given
Row = dict[str, Any]


class PricedPass(NamedTuple):
    """A sweep over one network, and what it is called where there are several.

    Attributes:
        labels: such as `{"model": "resnet8"}`; empty for one network alone.
        swept: what was found.
        seconds_per_step: by batch size, of the machine that will train; None prices this one.
    """

    labels: Mapping[str, str]
    swept: Swept
    seconds_per_step: Mapping[int, float] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class SweepReport:
    """Every setting with its time, price and trust, the best first.

    Attributes:
        target: the level that is waited for.
        rows: plain values, one dict a setting, as `pandas.DataFrame(report.rows)` takes them; see
            docs/json.md.
        document: all of it, as `write_json` writes it.
        passes: of each network.
        outcomes: of each row, in the same order.
    """

    target: Level
    rows: list[Row]
    document: dict[str, Any]
    passes: tuple[PricedPass, ...]
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of(
        cls,
        passes: Sequence[PricedPass],
        *,
        target: Level | None = None,
        deadline: int | float | None = None,
        price_per_hour: int | float | None = None,
    ) -> "SweepReport":
        """The report of sweeps over one network or several.

        Args:
            target: the level to wait for; None takes a quarter of the loss at the start.
            deadline: seconds of training after which nothing counts.
            price_per_hour: of the machine that will train.
        """
        level = target or _quarter(passes[0].swept.outcomes[0])
        found: list[tuple[Row, Outcome]] = []
        for each in passes:
            for setting, outcome in zip(each.swept.settings, each.swept.outcomes, strict=True):
                row = _row(each, setting, outcome, level, deadline, price_per_hour)
                found.append((row, outcome))
        found.sort(key=lambda pair: _order(pair[0]))
        rows = [{"rank": rank + 1, **row} for rank, (row, _) in enumerate(found)]
        document = {
            "sweep": {
                "target": {"of": level.of, "level": level.value, "is_target": target is not None},
                "deadline_seconds": deadline,
                "price_per_hour": price_per_hour,
                "num_asked": sum(each.swept.num_asked for each in passes),
                "num_priced": len(rows),
                "passes": [_pass_part(each) for each in passes],
            },
            "rows": rows,
            "environment": environment(passes[0].swept.outcomes[0].what.seed),
        }
        return cls(level, rows, document, tuple(passes), tuple(outcome for _, outcome in found))

    @property
    def best(self) -> Row | None:
        """The first row that is trusted and reaches the target in time; None where none does."""
        first = self.rows[0] if self.rows else None
        return (
            first if first is not None and first["in_time"] and first["trust"] != "none" else None
        )

    @property
    def is_whole(self) -> bool:
        """Whether all settings that were asked for are in it: not where it was interrupted."""
        return self.document["sweep"]["num_asked"] == len(self.rows)

    def plan(self, budget: str | int | float) -> PlanReport:
        """Which of these to run with a budget (seconds, `2h`, or `20EUR` where the sweep has a
        price), which first, and when to stop each.

        Raises:
            ValueError: a budget that is none, or in which no run can reach the target.
        """
        return PlanReport.of(self, budget)

    def to_csv(self) -> str:
        """The rows as CSV, lists as they print; what is not known is empty."""
        import csv

        names = list(dict.fromkeys(name for row in self.rows for name in row))
        written = io.StringIO()
        writer = csv.DictWriter(written, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: _cell(name, value) for name, value in row.items()})
        return written.getvalue()

    def write_csv(self, path: str | Path) -> None:
        """`to_csv`, as a file that is replaced as a whole."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), self.to_csv().encode())

    def write_json(self, path: str | Path) -> None:
        """The whole report as strict JSON (docs/json.md)."""
        write_json(Path(path), self.document)

    def plot(self, path: str | Path | None = None) -> Any:
        """Time to the target over the learning rate: written to a .png, .pdf or .svg, else a
        matplotlib figure.
        """
        from ntk_tt.report.figure import write_figure
        from ntk_tt.report.sweep_figure import draw_sweep

        figure = draw_sweep(self.document)
        return figure if path is None else write_figure(figure, Path(path))

    def write_html(self, path: str | Path) -> None:
        """One page with all of it, that needs nothing else."""
        write_page(Path(path), sweep_page(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {sweep_sentence(self.document)}>"

    def __str__(self) -> str:
        return sweep_text(self.document).strip()

    def _repr_html_(self) -> str:
        """For notebooks: the sentence, the table and the picture."""
        return notebook_cell(str(self), self.plot())

    def __len__(self) -> int:
        return len(self.rows)


def sweep_of(
    prepared: Pass,
    settings: Space,
    num_steps: int | None = None,
    *,
    draws: int | None = None,
    seed: int = 0,
    target: Level | None = None,
    deadline: int | float | None = None,
    price_per_hour: int | float | None = None,
    seconds_per_step: Mapping[int, float] | None = None,
    num_seeds: int = 1,
    record_every: int | None = None,
    smoothing: int | None = None,
    memory: int | None = None,
) -> SweepReport:
    """The report of a space of settings on one pass; see `Prepared.sweep`."""
    found = settings_of(
        settings,
        num_samples=prepared.what.num_samples,
        num_steps=num_steps,
        draws=draws,
        seed=seed,
    )
    with progress_bar("settings") as progress:
        swept = sweep(
            prepared,
            found,
            num_seeds=num_seeds,
            record_every=record_every,
            smoothing=smoothing,
            memory=memory,
            progress=progress,
        )
    return SweepReport.of(
        [PricedPass({}, swept, seconds_per_step)],
        target=target,
        deadline=deadline,
        price_per_hour=price_per_hour,
    )


def _quarter(outcome: Outcome) -> Level:
    start = float(outcome.predicted.prediction.loss[0])
    return Level("loss", float(f"{_SHARE * start:.2g}"))


def _row(
    of: PricedPass,
    setting: SweptSetting,
    outcome: Outcome,
    level: Level,
    deadline: int | float | None,
    price_per_hour: int | float | None,
) -> Row:
    size = setting.optimizer.checked_batch_size(outcome.what.num_samples)
    pace = _pace(of, outcome, size)
    last = setting.num_steps if deadline is None else min(setting.num_steps, int(deadline / pace))
    steps = steps_until(outcome, level)
    found: dict[str, Any] = {"low": None, "high": None, "probability": None}
    if is_calibrated(outcome.method, outcome.predicted, outcome.verdict) and last >= 1:
        found = interval_of(
            outcome.method,
            outcome.predicted,
            last,
            outcome.recording.smoothing,
            outcome.verdict,
            "loss_below" if level.of == "loss" else "error_below",
            level.value,
            steps,
        )
    seconds = None if steps is None else steps * pace
    prediction, verdict = outcome.predicted.prediction, outcome.verdict
    values = {name: _plain(setting.values.get(name)) for name in NAMES if name in setting.values}
    return {
        **of.labels,
        **values,
        "steps": steps,
        **found,
        "seconds": seconds,
        "price": _priced(seconds, price_per_hour),
        "in_time": steps is not None and steps <= last,
        "final_loss": float(prediction.loss[-1]),
        "final_error": float(prediction.error[-1]),
        "seconds_per_step": pace,
        "whole_seconds": setting.num_steps * pace,
        "whole_price": _priced(setting.num_steps * pace, price_per_hour),
        "stability_margin": verdict.stability_margin,
        "trust": verdict.trust,
        "reason": verdict.reason,
    }


def _pace(of: PricedPass, outcome: Outcome, size: int) -> float:
    """Seconds a step; in proportion to its samples where that batch was not timed."""
    if of.seconds_per_step is None:
        return outcome.train_seconds / outcome.recording.num_steps
    if size in of.seconds_per_step:
        return float(of.seconds_per_step[size])
    near = min(of.seconds_per_step, key=lambda known: abs(math.log(known / size)))
    return float(of.seconds_per_step[near]) * size / near


def _order(row: Row) -> tuple:
    """The best first: what is refused last, then what is not reached in time, then by time."""
    is_refused, seconds = row["trust"] == "none", row["seconds"]
    if row["in_time"]:
        return is_refused, False, seconds, 0.0
    chance = row["probability"] or 0.0
    loss = row["final_loss"] if math.isfinite(row["final_loss"]) else math.inf
    return is_refused, True, -chance, loss


def _pass_part(each: PricedPass) -> dict[str, Any]:
    first, watches = each.swept.outcomes[0], each.swept.watches
    return {
        **each.labels,
        "network": first.what.model.name,
        "method": first.method,
        "num_samples": first.what.num_samples,
        "num_priced": len(each.swept.outcomes),
        "seconds": sum(watch.seconds for watch in watches.values()),
        "processor_seconds": sum(watch.processor_seconds for watch in watches.values()),
        "compile_seconds": sum(watch.compile_seconds for watch in watches.values()),
    }


def _priced(seconds: float | None, price_per_hour: int | float | None) -> float | None:
    return None if seconds is None or price_per_hour is None else price_per_hour * seconds / 3600


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(name: str, value: Any) -> Any:
    if name == "batch_size" and value is None:
        return "full"
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else finite(value)
