"""Sweeps: each setting as `predict` alone prices it, spaces of settings, and what a report says."""

import csv
import functools
import io
import json

import jax
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt.dynamics.many_on_the_way import replay_blocks
from ntk_tt.prediction import sweep as sweeps
from ntk_tt.prediction.ranges import Range, read_range
from ntk_tt.prediction.setting_space import settings_of
from ntk_tt.surrogate import largest_safe_learning_rate
from ntk_tt.surrogate.safe_rates import largest_safe_learning_rates
from ntk_tt.times.amounts import read_budget, read_seconds
from tests.networks import normal
from tests.oracles import moment_radius

SAMPLES, CLASSES, STEPS = 24, 3, 40
TARGET = ntk_tt.Level("loss", 0.7, True)


def _features(params, x):
    import jax.numpy as jnp

    return jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"])


@functools.cache
def prepared() -> ntk_tt.Prepared:
    params = {
        "first": 0.5 * normal(1, 6, 12),
        "second": 0.3 * normal(2, 12, 8),
        "head": {"kernel": 0.4 * normal(3, 8, CLASSES), "bias": 0.1 * normal(4, CLASSES)},
    }
    model = ntk_tt.from_function(
        lambda params, x: _features(params, x) @ params["head"]["kernel"] + params["head"]["bias"],
        params,
        features=_features,
        head="head",
        num_classes=CLASSES,
    )
    options = ntk_tt.FeatureOptions(num_projections=60)
    labels = np.arange(SAMPLES) % CLASSES
    inputs = np.asarray(normal(5, SAMPLES, 6)) + 1.5 * np.eye(6)[labels]
    return ntk_tt.prepare(model, inputs.astype(np.float32), labels, options=options)


@functools.cache
def swept() -> ntk_tt.report.sweep_report.SweepReport:
    space = {"learning_rate": [0.003, 0.1, 0.6, 30.0], "batch_size": [8, None], "momentum": [0.8]}
    return prepared().sweep(space, STEPS, target=TARGET, price_per_hour=3.6)


def check_alone(setting, outcome, **options):
    alone = prepared().predict(setting.optimizer, setting.num_steps, **options)
    theirs, mine = alone.outcome.predicted.prediction, outcome.predicted.prediction
    assert outcome.verdict.trust == alone.trust
    if outcome.verdict.stability_margin < 0.5:
        assert alone.outcome.verdict.stability_margin < 0.6
        return
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=2e-3)
    np.testing.assert_array_equal(mine.steps, theirs.steps)
    margin = alone.outcome.verdict.stability_margin
    assert outcome.verdict.stability_margin == pytest.approx(margin, rel=0.03 if margin < 8 else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "seeds"),
    [
        ({"learning_rate": [0.01, 0.2], "batch_size": [8], "momentum": [0.8]}, 2),
        ({"learning_rate": [0.1, 3.0], "schedule": ["cosine"], "weight_decay": [0.0, 0.1]}, 1),
        ({"optimizer": ["adamw", "lion"], "learning_rate": [0.003, 0.1], "batch_size": [8]}, 1),
    ],
    ids=["sgd", "full", "others"],
)
def test_each_is_its_own_prediction(space, seeds):
    settings = settings_of(space, num_samples=SAMPLES, num_steps=STEPS)
    found = sweeps.sweep(prepared().found, settings, num_seeds=seeds)
    assert found.settings == settings
    losses = {round(float(each.predicted.prediction.loss.mean()), 6) for each in found.outcomes}
    assert len(losses) == len(settings)  # each was replayed with its own numbers
    for setting, outcome in zip(settings, found.outcomes, strict=True):
        check_alone(setting, outcome, num_seeds=seeds)


def test_rows_say_what_predict_says():
    report = swept()
    assert len(report) == 8
    for row, outcome in zip(report.rows, report.outcomes, strict=True):
        if row["learning_rate"] != 0.1:
            continue
        alone = prepared().predict(outcome.optimizer, STEPS, num_seeds=1)
        assert row["steps"] == alone.steps_until(loss=0.7)
        assert (row["low"], row["high"]) == alone.interval(loss=0.7)
        assert row["probability"] == pytest.approx(alone.probability(loss=0.7))
        assert row["price"] == pytest.approx(3.6 * row["seconds"] / 3600)


def test_the_best_is_first_and_the_unstable_are_last():
    rows = swept().rows
    assert [row["rank"] for row in rows] == list(range(1, 9))
    refused = [row["trust"] == "none" for row in rows]
    assert refused == sorted(refused)
    assert {row["learning_rate"] for row in rows if row["trust"] == "none"} >= {30.0}
    good = [row["seconds"] for row in rows if row["in_time"] and row["trust"] != "none"]
    assert len(good) > 1
    assert good == sorted(good)
    assert swept().best == rows[0]
    assert swept().is_whole


@pytest.mark.slow
def test_a_deadline_counts():
    space = {"learning_rate": [0.1], "batch_size": [8], "momentum": [0.8]}
    pace = {8: 2.0}
    whole = prepared().sweep(space, STEPS, target=TARGET, seconds_per_step=pace)
    steps = whole.rows[0]["steps"]
    assert whole.rows[0]["seconds"] == 2.0 * steps
    early = prepared().sweep(
        space, STEPS, target=TARGET, seconds_per_step=pace, deadline=2.0 * (steps - 1)
    )
    assert not early.rows[0]["in_time"]
    assert early.best is None
    assert early.rows[0]["probability"] < whole.rows[0]["probability"]
    assert "not reached within" in str(early)


@pytest.mark.slow
def test_blocks_that_memory_makes_change_nothing():
    settings = settings_of(
        {"learning_rate": [0.02, 0.05, 0.1]}, num_samples=SAMPLES, num_steps=STEPS
    )
    paces = {SAMPLES: sweeps.Pace(1.0, 0.0)}
    curves = []
    for memory in (1, None):
        found = sweeps.sweep(prepared().found, settings, paces=paces, memory=memory)
        curves.append([each.predicted.prediction.loss for each in found.outcomes])
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_a_block_that_leaves_the_finite_numbers_is_left():
    problem = prepared().found.problem
    wild = [ntk_tt.OptimizerConfig(rate, 0.9) for rate in (1e12, 1e13)]
    (block,) = replay_blocks(problem, wild, 600, record_every=100, keep=[0, 256, 600])
    assert set(block.states) == {0}  # lost before step 256
    assert np.isnan(block.trajectories[0].loss[-1])
    assert np.isfinite(block.trajectories[0].loss[0])


@pytest.mark.slow
def test_what_is_there_is_kept_when_interrupted(monkeypatch):
    made = sweeps.margins_of
    calls = []

    def interrupted(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return made(*arguments)

    monkeypatch.setattr(sweeps, "margins_of", interrupted)
    space = {"learning_rate": [0.05, 0.1], "batch_size": [None, 8]}
    report = prepared().sweep(space, STEPS, target=TARGET)
    assert len(report) == 2
    assert not report.is_whole
    assert "2 of 4 settings are priced" in " ".join(str(report).split())
    with pytest.raises(KeyboardInterrupt):
        prepared().sweep(space, STEPS)


@pytest.mark.slow
def test_other_methods_go_one_by_one():
    what = prepared().found.what
    frozen = ntk_tt.prepare(what.model, what.inputs, what.labels, method="replay")
    report = frozen.sweep({"learning_rate": [0.01, 0.05]}, 10, target=TARGET)
    assert [row["learning_rate"] for row in report.rows] == [0.05, 0.01]
    assert {each.method for each in report.outcomes} == {"replay"}


def test_what_is_written(tmp_path):
    report = swept()
    report.write_json(tmp_path / "deep" / "sweep.json")
    document = json.loads((tmp_path / "deep" / "sweep.json").read_text())
    assert document["rows"][0]["rank"] == 1
    assert document["sweep"]["target"] == {"of": "loss", "level": 0.7, "is_target": True}
    report.write_csv(tmp_path / "sweep.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    assert len(rows) == 8
    assert {row["batch_size"] for row in rows} == {"8", "full"}
    assert float(rows[0]["learning_rate"]) == report.rows[0]["learning_rate"]
    report.plot(tmp_path / "sweep.svg")
    drawn = (tmp_path / "sweep.svg").read_text()
    assert "not stable" in drawn
    assert "batch 8" in drawn


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut(width):
    from ntk_tt.report.sweep_text import print_sweep

    written = io.StringIO()
    print_sweep(swept().document, file=written, width=width)
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in written.getvalue()


def test_the_bound_is_that_of_one_setting():
    rng = np.random.default_rng(0)
    curvature = 10 ** rng.uniform(-3, 4, 30)
    variance = curvature**2 * 10 ** rng.uniform(-3, 2, 30) * (rng.random(30) > 0.3)
    momentum, decay = rng.uniform(0, 0.99, 30), 10 ** rng.uniform(-5, 0, 30)
    for nesterov in (False, True):
        found = largest_safe_learning_rates(
            curvature, variance, momentum=momentum, nesterov=nesterov, weight_decay=decay
        )
        for index, bound in enumerate(found):
            alone = largest_safe_learning_rate(
                curvature[index],
                variance[index],
                momentum=momentum[index],
                nesterov=nesterov,
                weight_decay=decay[index],
            )
            assert bound == pytest.approx(alone, rel=1e-9)
            mean = curvature[index] + decay[index]
            for side in (0.99, 1.01):  # of the 4×4 map of the second moments
                about = side * bound, mean, variance[index], momentum[index], nesterov
                assert (moment_radius(*about) < 1) == (side < 1)
    edges = largest_safe_learning_rates(np.array([0, np.inf, 1.0]), np.zeros(3), momentum=0.0)
    np.testing.assert_allclose(edges, [np.inf, 0, 2])


def test_ranges():
    assert read_range("1e-4:1e-1:log:4").numbers() == [1e-4, 1e-3, 1e-2, 1e-1]
    assert read_range("0:0.9:4").numbers() == [0, 0.3, 0.6, 0.9]
    assert read_range("1e-4:1e-1:log") == Range(1e-4, 1e-1, True)
    drawn = [Range(1e-4, 1e-1, True).draw(np.random.default_rng(i)) for i in range(200)]
    assert 1e-4 <= min(drawn) < 2e-4
    assert np.median(np.log10(drawn)) == pytest.approx(-2.5, abs=0.3)


def test_a_grid_has_each_setting_once():
    space = {
        "optimizer": "sgd,adamw",
        "learning_rate": "1e-3:1e-1:log:3",
        "momentum": [0.0, 0.9],
        "batch_size": "8,full",
        "epochs": 2,
    }
    found = settings_of(space, num_samples=SAMPLES)
    assert len(found) == 3 * 2 * (2 + 1)
    assert {each.num_steps for each in found} == {2, 6}
    assert {each.optimizer.batch_size for each in found} == {8, None}


def test_spaces_as_optuna_has_them():
    class Float:
        low, high, log, step = 1e-4, 1e-1, True, None

    class Categorical:
        choices = ("sgd", "adam")

    space = {"learning_rate": Float(), "optimizer": Categorical()}
    found = settings_of(space, num_samples=SAMPLES, num_steps=5, draws=30)
    assert {each.values["optimizer"] for each in found} == {"sgd", "adam"}
    assert all(1e-4 <= each.values["learning_rate"] <= 1e-1 for each in found)

    def drawn(trial):
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        size = trial.suggest_categorical("size", [8, 24])
        return ntk_tt.OptimizerConfig(rate, batch_size=size * trial.suggest_int("one", 1, 1))

    found = settings_of(drawn, num_samples=SAMPLES, num_steps=5, draws=20, seed=3)
    again = settings_of(drawn, num_samples=SAMPLES, num_steps=5, draws=20, seed=3)
    assert found == again
    assert {each.optimizer.batch_size for each in found} == {8, 24}


def test_settings_as_they_are():
    chain = optax.adamw(1e-3)
    found = settings_of(
        [chain, ntk_tt.OptimizerConfig(0.1, batch_size=8), {"learning_rate": 0.2}],
        num_samples=SAMPLES,
        num_steps=7,
    )
    assert found[0].optimizer.transformation is chain
    assert [each.values["learning_rate"] for each in found] == [1.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("space", "options", "says"),
    [
        ({"learning_rate": "1:2:3:4"}, {}, "range: '1:2:3:4' is none"),
        ({"learning_rate": "0:1:log:5"}, {}, "logarithmic one lies above 0"),
        ({"learning_rate": "2:1:5"}, {}, "must be finite and rise"),
        ({"learning_rate": "1:2"}, {}, "does not say how many"),
        ({"learning_rate": []}, {}, "learning_rate: there is no value"),
        ({"rate": [1]}, {}, "'rate' is none of optimizer, learning_rate"),
        ({"learning_rate": ["x"]}, {}, "learning_rate: must be a number or a range, got 'x'"),
        ([], {}, "settings: there are none"),
        ({"learning_rate": "1e-3:1:log:500", "momentum": "0:0.9:300"}, {}, "150,000"),
        ({"learning_rate": 0.1}, {"draws": 0}, "draws: must lie in"),
        (lambda trial: {}, {}, "draws: a space that is a function"),
        ({"batch_size": 99}, {}, "batch_size: 99 is larger than the 24 samples"),
        ({"learning_rate": [-1.0]}, {}, "learning_rate: must be positive"),
        ({"optimizer": "sgdd"}, {}, "optimizer: unknown 'sgdd'"),
        ({"betas": "0.9"}, {}, "betas: write two as 0.9/0.999"),
        ([3], {}, "int is no setting"),
        ({"epochs": [0.0]}, {}, "epochs: must be positive"),
    ],
)
def test_what_is_wrong_is_said(space, options, says):
    with pytest.raises(ValueError, match=r".") as told:
        settings_of(space, num_samples=SAMPLES, num_steps=5, **options)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_a_sweep_needs_steps():
    with pytest.raises(ValueError, match="num_steps: not given"):
        settings_of({"learning_rate": 0.1}, num_samples=SAMPLES)


def test_amounts():
    assert read_seconds("2h", "deadline") == 7200
    assert read_seconds("1h30min", "deadline") == 5400
    assert read_seconds("90", "deadline") == 90
    assert read_budget("20EUR", 4.0) == (5 * 3600.0, "EUR")
    assert read_budget("€20", 4.0) == (5 * 3600.0, "€")
    assert read_budget("15min", None) == (900.0, "")
    for text in ("-2h", "soon", "0s", "2x"):
        with pytest.raises(ValueError, match="budget: "):
            read_budget(text, None)
    with pytest.raises(ValueError, match="needs the price of an hour"):
        read_budget("20EUR", None)


def test_the_largest_eigenvalue_is_that_of_numpy():
    from ntk_tt.surrogate.many_sharpnesses import largest_eigenvalue

    rng = np.random.default_rng(1)
    root = rng.normal(size=(30, 30)) / np.linspace(1, 9, 30)
    matrix = (root.T @ root).astype(np.float32)
    start = rng.normal(size=(3, 30)).astype(np.float32)
    value, vector = jax.jit(jax.vmap(lambda s: largest_eigenvalue(lambda v: matrix @ v, s, 1e-3)))(
        start
    )
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    np.testing.assert_allclose(value, values[-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(vector @ vectors[:, -1]), 1, rtol=1e-3)


def check_page(text):
    """Well-formed, and nothing in it is loaded from elsewhere."""
    from html.parser import HTMLParser

    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
            for name, value in attrs:
                assert name not in ("src", "href") or (value or "").startswith(("#", "data:"))

    Reader().feed(text)
    assert "script" not in seen
    assert "link" not in seen
    assert text.count("<section>") == text.count("</section>") >= 4
    return seen


def test_the_page_of_a_sweep_needs_nothing_else(tmp_path):
    swept().write_html(tmp_path / "sweep.html")
    text = (tmp_path / "sweep.html").read_text()
    seen = check_page(text)
    assert "svg" in seen
    assert text.count("<tr title=") == 8
    assert "unstable" in text


@pytest.mark.slow
def test_the_page_of_a_prediction(tmp_path):
    report = prepared().predict(ntk_tt.OptimizerConfig(0.1), STEPS, targets=[TARGET])
    report.write_html(tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert "svg" in check_page(text)
    assert "after about" in text
    assert "largest safe learning rate" in text


def test_a_plan_stays_within_its_budget(tmp_path):
    plan = swept().plan("20EUR")
    about = plan.document["plan"]
    assert about["budget_seconds"] == pytest.approx(20 / 3.6 * 3600)
    assert plan.runs[0]["chance"] > 0.5
    assert about["chance"] >= max(run["chance"] for run in plan.runs)
    assert about["expected_seconds"] <= about["most_seconds"] <= about["budget_seconds"]
    assert {run["trust"] for run in plan.runs} <= {"high", "medium", "low"}
    ratios = [run["chance"] / run["expected_seconds"] for run in plan.runs]
    assert ratios == sorted(ratios, reverse=True)
    plan.write_html(tmp_path / "plan.html")
    check_page((tmp_path / "plan.html").read_text())
    assert "20EUR" in str(plan)
    small = swept().plan(0.9 * plan.runs[0]["seconds"])
    assert sum(run["seconds"] for run in small.runs) <= 0.9 * plan.runs[0]["seconds"]
    assert small.document["plan"]["chance"] < about["chance"]


@pytest.mark.slow
def test_impossible_budgets_are_one_line():
    for budget, says in (("1e-9", "is too little for any run"), ("-3h", "budget: give a time")):
        with pytest.raises(ValueError, match=says):
            swept().plan(budget)
    space = {"learning_rate": [1e-6, 40.0]}
    hopeless = prepared().sweep(space, 4, target=ntk_tt.Level("loss", 0.01, True))
    with pytest.raises(ValueError, match="no chance with any of these"):
        hopeless.plan("2h")


def test_what_has_more_chance_a_second_is_first():
    from ntk_tt.times.budget import Candidate, plan_runs
    from ntk_tt.times.calibration import Interval

    spread = Interval(0.5, 2.0, np.log([0.5, 1.0, 2.0]), np.array([0.1, 0.6, 1.0]))
    runs = plan_runs(
        [
            Candidate(100.0, 1000, 1.0, spread),
            Candidate(40.0, 1000, 1.0, spread),
            Candidate(None, 1000, 1.0, spread),
            Candidate(400.0, 300, 1.0, spread),
        ],
        1e6,
    )
    assert runs[0].candidate == 1
    assert all(run.candidate != 2 for run in runs)
    # by hand: stops of 20, 40 and 80 have chances 0.1, 0.6 and 1
    assert runs[0].stop in (40, 80)
    assert runs[0].chance == pytest.approx({40: 0.6, 80: 1.0}[runs[0].stop])
    assert all(run.expected_seconds <= run.seconds for run in runs)
