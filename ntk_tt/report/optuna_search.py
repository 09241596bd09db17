"""An Optuna study that begins with a sweep: its settings first, and runs left that it gives up.

Optuna is imported where it is asked for (`pip install 'ntk-tt[optuna]'`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ntk_tt.report.sweep_report import SweepReport
from ntk_tt.times.calibration import has_interval
from ntk_tt.times.online import Predictor

_NEAR = 1e-6  # relative, between a parameter and a row's value, which six digits tell


def sweep_sampler(
    report: SweepReport,
    *,
    names: Mapping[str, str] | None = None,
    first: int = 10,
    then: Any = None,
) -> Any:
    """An Optuna sampler whose first trials are the best settings of a sweep.

    Args:
        report: of `Prepared.sweep`.
        names: the row's name of each of the study's parameters, where they differ, such as `{"lr":
            "learning_rate"}`.
        first: how many settings, of those that are not refused and each once.
        then: the sampler of later trials, and of parameters that a row has not; Optuna's own
            default where none is given.

    Returns:
        An `optuna.samplers.BaseSampler`. A value that a distribution does not hold is left to
        `then`.

    Raises:
        ValueError: no setting is stable, or Optuna is not installed.
    """
    optuna = _optuna()
    rows = [row for row in report.rows if row["trust"] != "none"][:first]
    if not rows:
        raise ValueError("report: no setting of the sweep is stable; sweep smaller rates")
    other = optuna.samplers.TPESampler() if then is None else then
    called = dict(names or {})

    class SweepSampler(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            if trial.number < len(rows):
                return {}
            return other.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return other.sample_relative(study, trial, search_space) if search_space else {}

        def sample_independent(
            self, study: Any, trial: Any, param_name: str, param_distribution: Any
        ) -> Any:
            if trial.number < len(rows):
                row = rows[trial.number]
                value = row.get(called.get(param_name, param_name))
                if value is not None and _holds(param_distribution, value):
                    return value
            return other.sample_independent(study, trial, param_name, param_distribution)

        def reseed_rng(self) -> None:
            other.reseed_rng()

        def before_trial(self, study: Any, trial: Any) -> None:
            other.before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            other.after_trial(study, trial, state, values)

    return SweepSampler()


def sweep_pruner(
    report: SweepReport,
    *,
    names: Mapping[str, str] | None = None,
    least_chance: float = 0.05,
    after: int = 1,
) -> Any:
    """An Optuna pruner that ends a trial whose loss, as it goes, no longer reaches the target.

    `trial.report(loss, step)` takes the training loss at an optimiser step. The predicted curve of
    the trial's setting is corrected by these losses; where the chance to reach the sweep's target
    within its steps falls below `least_chance`, the trial is pruned. One whose losses are not
    finite twice in a row is pruned too. Settings that the sweep has not are never pruned for their
    chance.

    Args:
        report: of `Prepared.sweep`, with a target that is a loss.
        names: as `sweep_sampler` takes them.
        least_chance: below which a trial ends.
        after: losses that are waited for.

    Returns:
        An `optuna.pruners.BasePruner`.

    Raises:
        ValueError: the target is an error, or Optuna is not installed.
    """
    optuna = _optuna()
    if report.target.of != "loss":
        raise ValueError("report: the pruner follows losses; sweep with a target that is a loss")
    called = dict(names or {})

    class SweepPruner(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            seen = sorted(trial.intermediate_values.items())
            if len(seen) < after:
                return False
            if len(seen) > 1 and not np.isfinite([loss for _, loss in seen[-2:]]).any():
                return True
            predictor = _predictor(report, trial.params, called)
            if predictor is None:
                return False
            for step, loss in seen:
                predictor.observe(step, loss)
            chance = predictor.remaining(report.target.value).probability
            return chance is not None and chance < least_chance

    return SweepPruner()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "optuna: is not installed; pip install 'ntk-tt[optuna]', or pip install optuna"
        ) from error
    return optuna


def _holds(distribution: Any, value: Any) -> bool:
    """Whether a distribution has a value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    if isinstance(value, bool | str | list):
        return False
    return distribution.low <= value <= distribution.high


def _predictor(
    report: SweepReport, params: Mapping[str, Any], called: Mapping[str, str]
) -> Predictor | None:
    """That of the row with these parameters; None where there is none, or it has no curve."""
    asked = {called.get(name, name): value for name, value in params.items()}
    for row, outcome in zip(report.rows, report.outcomes, strict=True):
        known = {name: value for name, value in asked.items() if name in row}
        if not known or not all(_is_near(row[name], value) for name, value in known.items()):
            continue
        prediction = outcome.predicted.prediction
        if not np.isfinite(prediction.loss).all():
            return None
        return Predictor(
            prediction.steps,
            prediction.loss,
            method=outcome.method if has_interval(outcome.method) else "replay",
            margin=outcome.verdict.stability_margin,
        )
    return None


def _is_near(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= _NEAR * max(abs(one), abs(other))
    return one == other
