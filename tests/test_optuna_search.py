"""An Optuna study that begins with a sweep, with the real package."""

import math

import pytest

from ntk_tt.report.optuna_search import sweep_pruner, sweep_sampler
from tests.test_sweep import swept

optuna = pytest.importorskip(
    "optuna", reason="optuna is not installed: pip install 'ntk-tt[optuna]'"
)


def study(**options):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="minimize", **options)


def test_the_first_trials_are_the_best_settings():
    asked = study(sampler=sweep_sampler(swept(), names={"lr": "learning_rate"}, first=3))

    def objective(trial):
        trial.suggest_categorical("batch_size", [8, 16])
        trial.suggest_float("own", 0, 1)
        return trial.suggest_float("lr", 1e-4, 1e2, log=True)

    asked.optimize(objective, n_trials=14)
    rows = [row for row in swept().rows if row["trust"] != "none"]
    found = [trial.params["lr"] for trial in asked.trials]
    assert found[:3] == [row["learning_rate"] for row in rows[:3]]
    assert len({*found[3:]}) > 5


def test_a_run_that_falls_behind_is_pruned():
    asked = study(pruner=sweep_pruner(swept()), sampler=sweep_sampler(swept(), first=4))
    row = swept().rows[0]
    curve = swept().outcomes[0].predicted.prediction
    trained = []

    def objective(trial, losses):
        trial.suggest_float("learning_rate", 1e-4, 1e2, log=True)
        trial.suggest_categorical("batch_size", [row["batch_size"]])
        for step, loss in losses:
            trial.report(loss, step)
            trained.append(step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.0

    asked.enqueue_trial({"learning_rate": row["learning_rate"], "batch_size": row["batch_size"]})
    good = list(zip(curve.steps[1:].tolist(), curve.loss[1:].tolist(), strict=True))
    asked.optimize(lambda trial: objective(trial, good), n_trials=1)
    assert asked.trials[-1].state == optuna.trial.TrialState.COMPLETE
    asked.enqueue_trial({"learning_rate": row["learning_rate"], "batch_size": row["batch_size"]})
    stuck = [(step, float(curve.loss[0])) for step, _ in good]
    asked.optimize(lambda trial: objective(trial, stuck), n_trials=1)
    assert asked.trials[-1].state == optuna.trial.TrialState.PRUNED
    asked.enqueue_trial({"learning_rate": 0.0123, "batch_size": row["batch_size"]})
    lost = [(1, math.nan), (2, math.nan), (3, 1.0)]
    trained.clear()
    asked.optimize(lambda trial: objective(trial, lost), n_trials=1)
    assert trained == [1, 2]
