"""Every experiment runs at its smallest size and keeps the contract; the README's table is what the
results say.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import registry
from experiments.common import comparison, statistics
from experiments.common.extrapolation import power_law, stretched_exponential
from experiments.paper import fig1
from experiments.registry import EXPERIMENTS, find
from tools import readme

# the dearest: two tasks, the runs of two others, or many feature passes or trainings to compile
NIGHTLY = (
    "fig1",
    "fig2",
    "fig4",
    "fig5",
    "fig7",
    "fig8",
    "accuracy",
    "curvature",
    "sharpening",
    "sweep",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else [])
        for name in EXPERIMENTS
    ],
)
def test_experiment_runs_at_its_smallest_size(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NTK_TT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NTK_TT_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("NTK_TT_WEIGHTS", str(tmp_path / "no weights"))
    experiment = find(name)
    experiment.run("tiny", tmp_path)
    path = experiment.result_path("tiny", tmp_path)
    document = json.loads(
        path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} in the JSON")
    )
    assert {"name", "scale", "config", "environment", "seconds", "results"} <= set(document)
    assert document["environment"]["jax"]
    assert isinstance(document["results"]["runs"], list)
    assert document["results"]["runs"]
    outcome, verdict = experiment.summarize(document["results"])
    assert outcome
    assert verdict.split(":")[0] in ("reproduced", "partly", "not reproduced")
    if experiment.draw is not None:
        assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_says_how_to_run_it_and_what_to_expect(name):
    experiment = find(name)
    module = sys.modules[experiment.compute.__module__]
    assert module.__name__.endswith(f".{name}")
    assert set(experiment.scales) == {"tiny", "cpu", "gpu"}
    assert experiment.claim
    assert experiment.paper_result
    opening = (module.__doc__ or "").split("\n\n")
    assert opening[1].strip().startswith(f"python -m experiments.run {name} --scale cpu")
    assert opening[2].startswith("Takes ")
    assert "Expected" in opening[2]


def test_every_experiment_is_registered():
    folder = Path(registry.__file__).parent
    files = [*(folder / "paper").glob("*.py"), *(folder / "studies").glob("*.py")]
    assert {path.stem for path in files if "Experiment(" in path.read_text()} == set(EXPERIMENTS)


@pytest.mark.parametrize("path", readme.DOCUMENTS, ids=lambda path: path.parent.name)
def test_readme_is_what_the_results_say(path):
    assert path.read_text() == readme.text(path), "run python -m tools.readme"


def test_unknown_experiment_names_the_known_ones():
    with pytest.raises(ValueError, match="fig1"):
        find("fig0")


def test_settings_are_the_same_each_time_and_share_tasks():
    config = fig1.SCALES["cpu"]
    first, second = fig1.settings(config), fig1.settings(config)
    assert first == second
    assert len({setting.task.data for setting in first}) == 9
    changes = sum(a.task != b.task for a, b in itertools.pairwise(first))
    assert changes + 1 == len({setting.task for setting in first}), (
        "settings of a task do not follow each other"
    )


def test_extrapolations_continue_curves_of_their_own_family():
    steps = np.arange(0, 151, 3)
    seen = steps <= 60
    for extrapolate, curve in (
        (power_law, 0.2 + 1.4 * (1 + steps / 20) ** -0.8),
        (stretched_exponential, 0.1 + 1.5 * np.exp(-((steps / 40) ** 0.8))),
    ):
        np.testing.assert_allclose(extrapolate(steps[seen], curve[seen], steps), curve, rtol=0.02)


@pytest.mark.slow
def test_guesses_see_only_the_first_real_steps():
    steps = np.arange(0, 151, 3)
    loss, error = 1.6 * np.exp(-steps / 40), np.linspace(0.8, 0, len(steps))
    changed = np.where(steps > 30, loss + 1.0, loss)
    real, other = (
        comparison.RealRun(steps, curve, error, 1.0, 1.0, None) for curve in (loss, changed)
    )
    for name, (_, predicted, _) in comparison.guesses(real, 30, 1 / 40).items():
        np.testing.assert_array_equal(
            predicted, comparison.guesses(other, 30, 1 / 40)[name][1], err_msg=name
        )


@pytest.mark.slow
def test_single_rate_is_the_slope_of_gradient_flow():
    """d log L/dt of the linear model at t = 0, by a small real step of replay."""
    setting = comparison.Setting()
    problem = comparison.prepare(setting.task).problem
    optimizer = {"learning_rate": 1e-5, "momentum": 0.0, "batch_size": None}
    from ntk_tt import OptimizerConfig
    from ntk_tt.dynamics import replay

    loss = replay(problem, OptimizerConfig(**optimizer), 20).loss.astype(float)
    assert comparison.initial_rate(problem, optimizer) == pytest.approx(
        -np.log(loss[-1] / loss[0]) / 20, rel=0.05
    )


def test_errors_of_times():
    record = {
        "num_steps": 100,
        "times": {
            "real": {"loss_below": {"a": 50, "b": None, "c": None, "d": 0}},
            "x": {"loss_below": {"a": 60, "b": 100, "c": None, "d": 2}},
        },
    }
    found = statistics.pairs([record], "x", "loss_below")
    assert len(found) == 3
    np.testing.assert_allclose(statistics.relative_errors(found), [0.2, 0.5, 2.0])
    np.testing.assert_allclose(statistics.step_errors(found), [10, 2])
    np.testing.assert_allclose(statistics.signed_errors(found), [0.1, 0.02])
    assert statistics.over_estimated(found) == pytest.approx(2 / 3)
    assert statistics.over_estimated([(None, 3, 10)]) == 1


def test_confidence_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = [
        abs(mean - 1) <= half
        for mean, half in (statistics.confidence_interval(rng.normal(1, 2, 8)) for _ in range(1000))
    ]
    assert abs(np.mean(covered) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_best_constant_minimises_the_error():
    from experiments.studies.baselines import best_constant

    times = [40, 50, 60, 150, None]
    chosen = best_constant(times, 150)
    assert chosen is not None
    errors = [
        statistics.relative_errors([(candidate, time, 150) for time in times]).mean()
        for candidate in range(1, 301)
    ]
    assert statistics.relative_errors(
        [(chosen, time, 150) for time in times]
    ).mean() == pytest.approx(min(errors), rel=0.02)
    assert best_constant([], 150) is None
