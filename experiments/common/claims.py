"""What the paper claims, in numbers that a program can read: what its own method gives, and ours.

Each experiment's JSON has `results.claims`, a list of what `Claim.record` gives. They are computed
from `results.runs` alone, so that whoever reads them can do it again: `python -m tools.claims
--check`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from experiments.common.tasks import REPORTING

Record = dict[str, Any]
COMPARED = ("paper", "replay", "ours", "another_run")
"""The paper's Algorithm 1; the optimiser itself on the same frozen kernel; `auto`; a second real
run.
"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about some runs, and what each method gives.

    Attributes:
        claim: a sentence.
        family: what is compared: a family of times (`loss_below`, …) or another quantity.
        count: of what the numbers are over: times, runs or data sets.
        paper_claims: the number that the paper gives, or that we ask for where it gives none.
        found: by method (`COMPARED`); None where it was not measured or makes no sense.
        sense: whether the number should be at least or at most `paper_claims`.
        unit: of all the numbers; a `share` lies in 0 … 1.
    """

    claim: str
    family: str
    count: int
    paper_claims: float
    found: Mapping[str, float | None]
    sense: Literal["at least", "at most"] = "at least"
    unit: Literal["share", "steps", "ratio"] = "share"

    def holds_with(self, method: str) -> bool | None:
        """Whether it holds; None where nothing was measured."""
        value = self.found.get(method)
        if value is None or not self.count:
            return None
        return (
            value >= self.paper_claims if self.sense == "at least" else value <= self.paper_claims
        )

    @property
    def record(self) -> Record:
        """As plain values."""
        return {
            "claim": self.claim,
            "family": self.family,
            "count": self.count,
            "unit": self.unit,
            "sense": self.sense,
            "paper_claims": self.paper_claims,
            **{method: self.found.get(method) for method in COMPARED},
            "holds_with_paper": self.holds_with("paper"),
            "holds_with_ours": self.holds_with("ours"),
        }


def within(
    claim: str,
    records: Sequence[Record],
    family: str,
    limit: float,
    share: float,
    names: Sequence[str] | None = None,
) -> Claim:
    """The share of times that are predicted within a relative error of `limit`.

    Of all times of the family that the real run reaches within T; one that a method does not reach
    counts as 2 T.
    """
    errors = {
        method: _of_method(
            records, family, method, names, lambda real, found: abs(found / real - 1)
        )
        for method in COMPARED
    }
    return Claim(
        claim,
        family,
        len(errors["paper"] or ()),
        share,
        {
            method: None if not each else float(np.mean(np.asarray(each) <= limit))
            for method, each in errors.items()
        },
    )


def mean_error(
    claim: str,
    records: Sequence[Record],
    family: str,
    limit: float,
    names: Sequence[str] | None = None,
    unit: Literal["share", "steps"] = "share",
) -> Claim:
    """The mean error of the same times, relative or in steps, which should be small."""
    if unit == "steps":
        error: Callable[[float, float], float] = lambda real, found: abs(found - real)  # noqa: E731
    else:
        error = lambda real, found: abs(found / real - 1)  # noqa: E731
    errors = {method: _of_method(records, family, method, names, error) for method in COMPARED}
    return Claim(
        claim,
        family,
        len(errors["paper"] or ()),
        limit,
        {method: None if not each else float(np.mean(each)) for method, each in errors.items()},
        "at most",
        unit,
    )


def _of_method(
    records: Sequence[Record],
    family: str,
    method: str,
    names: Sequence[str] | None,
    error: Callable[[float, float], float],
) -> list[float] | None:
    """The error of each time that the real run reaches; None where a record lacks the method."""
    found = []
    for record in records:
        if method not in record["times"]:
            return None
        real, predicted = record["times"]["real"][family], record["times"][method][family]
        for name in names or real:
            if real[name] is not None:
                time = 2 * record["num_steps"] if predicted[name] is None else predicted[name]
                found.append(error(max(real[name], 1), max(time, 1)))
    return found


def counted(
    claim: str,
    family: str,
    holds: Mapping[str, Sequence[bool] | None],
    share: float = 1.0,
) -> Claim:
    """The share of cases in which something is so, by method."""
    count = max((len(each) for each in holds.values() if each is not None), default=0)
    found = {method: None if not each else float(np.mean(each)) for method, each in holds.items()}
    return Claim(claim, family, count, share, found)


def trusted(records: Iterable[Record]) -> list[Record]:
    """Those whose verdict, before anything was trained, was high or medium trust."""
    return [each for each in records if each.get("verdict", {}).get("trust") in ("high", "medium")]


def reported(records: Iterable[Record]) -> list[Record]:
    """Those of data that no constant was chosen on."""
    return [each for each in records if each["task"]["data"] in REPORTING]


def markdown(claims: Sequence[Record]) -> list[list[str]]:
    """Rows of a table: claim, count, paper claims, and what each method gives."""
    return [
        [
            each["claim"],
            str(each["count"]),
            ("≥ " if each["sense"] == "at least" else "≤ ") + number(each, "paper_claims"),
            *(number(each, method) for method in COMPARED),
            {True: "yes", False: "no", None: "–"}[each["holds_with_ours"]],
        ]
        for each in claims
    ]


def number(claim: Record, name: str) -> str:
    """A number of a claim in its unit."""
    value = claim[name]
    if value is None:
        return "–"
    if claim["unit"] == "share":
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if claim["unit"] == "steps" else f"{value:.2g}"
