"""Computes the claims of the committed results anew from their runs.

python -m tools.claims             # seconds; writes `results.claims`
python -m tools.claims --check     # fails where a result's claims are not what its runs say
"""

import dataclasses
import json
import math
import sys
from typing import Any

import tyro

from experiments.common.experiment import Experiment
from experiments.registry import EXPERIMENTS
from ntk_tt.report.document import write_json

TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Arguments:
    check: bool = False
    """Change nothing; exit with 1 where a result differs."""


def claims_of(experiment: Experiment[Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runs say, as plain values."""
    if experiment.claims is None:
        return []
    return [each.record for each in experiment.claims(results)]


def differing(found: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[str]:
    """Sentences of claims that are not the same, to rounding."""
    if [each["claim"] for each in found] != [each["claim"] for each in kept]:
        return ["not the same statements"]
    return [
        one["claim"]
        for one, other in zip(found, kept, strict=True)
        if set(one) != set(other) or not all(_alike(one[name], other[name]) for name in one)
    ]


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return one == other


def main(arguments: Arguments) -> None:
    for name, experiment in EXPERIMENTS.items():
        path = experiment.result_path("cpu")
        if experiment.claims is None or not path.exists():
            continue
        document = json.loads(path.read_text())
        found = claims_of(experiment, document["results"])
        kept = document["results"].get("claims", [])
        if not arguments.check:
            document["results"]["claims"] = found
            write_json(path, document)
        elif wrong := differing(found, kept):
            sys.exit(f"{path}: {name}: {wrong[0]}: run python -m tools.claims")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
