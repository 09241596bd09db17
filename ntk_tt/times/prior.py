"""What is expected of a run before it begins: the predicted curve in a report on disk."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntk_tt.times.calibration import has_interval
from ntk_tt.times.log_columns import number
from ntk_tt.times.observations import MAX_STEP
from ntk_tt.times.online import Predictor

_MAX_REPORT = 256 << 20  # bytes


def predictor_of(report: str | Path | Mapping[str, Any]) -> tuple[Predictor, float | None]:
    """The predictor of a report, or of the file that `ntk-tt predict --json` wrote, and the seconds
    a step takes, None where the report does not know.

    Raises:
        ValueError: a file that is no such report, with its name.
        OSError: it cannot be read.
    """

    name = "the document" if isinstance(report, Mapping) else repr(str(report))

    def no(why: str) -> ValueError:
        return ValueError(f"prediction: {name} is no report of `ntk-tt predict --json` ({why})")

    document = report if isinstance(report, Mapping) else _read(Path(report), no)
    return _of_document(document, name, no)


def _read(report: Path, no: Callable[[str], ValueError]) -> Any:
    """What a file holds."""
    if not report.is_file():
        report.stat()
        raise no("it is no plain file")
    if report.stat().st_size > _MAX_REPORT:
        raise no(f"it has more than {_MAX_REPORT >> 20} MiB")
    try:
        return json.loads(report.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise no(
            "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        ) from None


def _of_document(
    document: Any, name: str, no: Callable[[str], ValueError]
) -> tuple[Predictor, float | None]:
    """The predictor of a whole report."""

    def part(of: Any, *names: str) -> Any:
        for name in names:
            if not isinstance(of, dict) or name not in of:
                raise no(f"{'.'.join(names)} is not there")
            of = of[name]
        return of

    def numbers(name: str) -> np.ndarray:
        values = part(document, "prediction", name)
        if not isinstance(values, list):
            raise no(f"prediction.{name} is no list")
        found = [
            math.nan if value is None else None if isinstance(value, str) else number(value)
            for value in values
        ]
        if None in found:
            raise no(f"prediction.{name} has something else than numbers")
        return np.asarray(found, float)

    def one(value: Any, name: str) -> float | None:
        found = None if isinstance(value, str) else number(value)
        if value is not None and (found is None or not 0 <= found < math.inf):
            raise no(
                f"{name} is {type(value) if found is None else found!s}, it must be a number from "
                "0 on"
            )
        return found

    steps, loss, method = numbers("steps"), numbers("loss"), part(document, "prediction", "method")
    verdict = document.get("verdict")
    if len(steps) != len(loss):
        raise no(f"there are {len(steps)} steps and {len(loss)} losses")
    if not isinstance(method, str) or not isinstance(verdict, dict | None):
        raise no("prediction.method or verdict is of the wrong kind")
    verdict = verdict or {}
    pace = one(part(document, "cost", "seconds_per_step"), "cost.seconds_per_step")
    margin = one(verdict.get("stability_margin"), "verdict.stability_margin")
    if len(steps) and not ((steps == np.floor(steps)).all() and (steps <= MAX_STEP).all()):
        raise no("prediction.steps must be whole numbers, up to 2^53")
    try:
        predictor = Predictor(
            steps,
            loss,
            method=method if has_interval(method) else "replay",
            margin=margin,
            chances=verdict.get("trust") != "none",
        )
    except ValueError as error:
        raise ValueError(f"{error}: {name}") from None
    return predictor, pace or None
