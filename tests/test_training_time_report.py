"""The front door: one call, one report, one sentence."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt import Level, OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.price import price_of
from ntk_tt.report.text import duration, report_text, sentence
from ntk_tt.times.levels import levels_of, read_target

STEPS = 60


def linear_task():
    """A two-layer network and clouds of points around three centres."""
    rng = np.random.default_rng(0)
    labels = np.arange(18) % 3
    inputs = 1.5 * rng.normal(size=(3, 5))[labels] + 0.7 * rng.normal(size=(18, 5))
    params = {
        "body": jnp.asarray(rng.normal(size=(5, 8)) / 5**0.5, jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 3)) / 8**0.5, jnp.float32),
    }
    model = ntk_tt.from_function(
        lambda params, inputs: jnp.tanh(inputs @ params["body"]) @ params["head"], params
    )
    return model, inputs.astype(np.float32), labels


SETTING = OptimizerConfig(0.05, momentum=0.5, batch_size=6)


@pytest.fixture(scope="module")
def prepared():
    return ntk_tt.prepare(*linear_task(), seed=3)


@pytest.fixture(scope="module")
def report(prepared):
    return prepared.predict(SETTING, STEPS, targets=[Level("loss", 0.4, True)], price_per_hour=36)


@pytest.mark.slow
def test_the_best_method_is_the_default(report):
    assert report.method == "curvature"
    assert report.document["prediction"]["method_reason"].startswith("auto: ")


def test_one_call_is_the_pass_and_the_prediction(report):
    whole = ntk_tt.predict_training_time(*linear_task(), SETTING, STEPS, seed=3)
    for name, curve in report.curve.items():
        np.testing.assert_array_equal(whole.curve[name], curve)
    assert whole.steps_until(loss=0.4) == report.steps_until(loss=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["head", "replay", "one-shot"])
def test_label_smoothing_is_that_of_real_training(method):
    """A network that is linear in its parameters trains as every method says, to rounding."""
    _, inputs, labels = linear_task()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    model = ntk_tt.from_function(lambda params, x: x @ params["w"], {"w": weights})
    setting = OptimizerConfig(0.1, momentum=0.5)
    curves = {}
    for share in (0.0, 0.3):
        curves[share] = ntk_tt.predict_training_time(
            model,
            inputs,
            labels,
            setting,
            20,
            method=method,
            label_smoothing=share,
            options=ntk_tt.FeatureOptions(num_projections="exact"),
        )
        run = ntk_tt.finetune(model, inputs, labels, setting, 20, label_smoothing=share)
        for name in ("loss", "error"):
            predicted, real = curves[share].curve[name], getattr(run, name)
            np.testing.assert_allclose(predicted, real, rtol=2e-4, atol=2e-5)
    assert curves[0.3].curve["loss"][-1] > 1.2 * curves[0.0].curve["loss"][-1]
    assert curves[0.3].document["task"]["label_smoothing"] == 0.3
    assert curves[0.3].document["task"]["per_class"] == [6, 6, 6]


def test_times_are_where_the_curves_cross_the_level(report):
    runs = report.outcome.predicted.prediction.runs
    smoothing = report.outcome.recording.smoothing
    assert smoothing == 3  # of mini-batches
    for of, level in (("loss", 0.5), ("error", 0.2)):
        firsts = []
        for run in runs:
            curve = np.asarray(getattr(run, of), np.float64)
            inner = (curve[:-2] + curve[1:-1] + curve[2:]) / 3
            smooth = np.concatenate([curve[:1], inner, curve[-1:]])
            below = smooth < level
            firsts.append(run.steps[below.argmax()] if below.any() else math.inf)
        median = float(np.median(firsts))
        assert report.steps_until(**{of: level}) == (None if math.isinf(median) else median)


def test_seconds_and_price_follow_the_steps(report):
    steps = report.steps_until(loss=0.5)
    assert report.seconds_until(loss=0.5) == pytest.approx(steps * report.seconds_per_step)
    assert report.cost_until(36.0, loss=0.5) == pytest.approx(report.seconds_until(loss=0.5) / 100)
    low, high = report.interval(loss=0.5)
    assert low <= steps
    assert high is None or high >= steps
    assert 0.5 <= report.probability(loss=0.5) <= 1


def test_what_is_not_reached_is_none(report):
    assert report.steps_until(loss=1e-9) is None
    assert report.seconds_until(loss=1e-9) is None
    assert report.cost_until(1.0, error=1e-9) is None
    assert report.probability(loss=1e-9) <= 0.5


@pytest.mark.parametrize("level", [{}, {"loss": 0.1, "error": 0.1}, {"error": 1.0}, {"loss": -1.0}])
def test_a_level_that_is_none(report, level):
    with pytest.raises(ValueError, match=r"level|thresholds"):
        report.steps_until(**level)


def test_the_document_is_what_is_written(report, tmp_path):
    report.write_json(tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["prediction"]["loss"] == report.curve["loss"].tolist()
    first, *others = document["prediction"]["levels"]
    assert (first["of"], first["level"], first["is_target"]) == ("loss", 0.4, True)
    assert first["steps"] == report.steps_until(loss=0.4)
    assert not any(each["is_target"] for each in others)
    report.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert "<img" in report._repr_html_()


def test_the_first_words_are_the_answer(report):
    steps = report.steps_until(loss=0.4)
    text = sentence(report.document)
    assert text.startswith(f"Loss 0.4 after about {steps:,} steps (")
    assert f"trust: {report.trust}." in text
    assert " at 36/h" in text
    assert repr(report) == f"<TrainingTimeReport: {text}>"
    assert " ".join(str(report).split()).startswith(text)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("with_truth", [False, True])
def test_no_word_is_cut(report, width, with_truth):
    if with_truth:
        model, inputs, labels = linear_task()
        truth = ntk_tt.finetune(model, inputs, labels, SETTING, STEPS, record_every=1)
        report = report.with_truth(truth)
    text = report_text(report.document, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert sentence(report.document) in " ".join(text.split())
    for level in report.document["prediction"]["levels"]:
        words = Level(level["of"], level["level"]).words
        assert words in " ".join(text.split()), words
    if with_truth:
        assert any("off by" in line for line in lines)


def test_no_chance_is_certain(report):
    """No number that a few dozen runs cannot tell."""
    document = json.loads(json.dumps(report.document))
    levels = document["prediction"]["levels"]
    for each in levels:
        each["probability"] = 0.5
    assert len(levels) > 3
    levels[0] |= {"probability": 0.0, "steps": None}
    levels[1] |= {"probability": 1.0, "steps": 30}
    levels[2] |= {"probability": 0.994, "steps": 30}
    levels[3] |= {"probability": 0.4, "steps": 30}
    text = " ".join(report_text(document, width=100).split())
    assert "not reached (chance under 5%)" in text
    assert text.count("over 95%") == 2
    assert " 40% " in text
    assert "99%" not in text
    assert "100%" not in text


@pytest.mark.slow
def test_a_refused_prediction_has_no_answer(prepared):
    report = prepared.predict(OptimizerConfig(1e4), 10)
    assert report.trust == "none"
    assert sentence(report.document).startswith("No answer: unstable")
    assert report.steps_until(loss=0.5) is None
    assert report.interval(loss=0.5) is None
    assert "trust: none" in str(report)


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        ([2.0, 1.0, 0.1], [1.0, 0.5, 0.2]),
        ([2.0, 1.9, 1.8], [1.9, 1.0, 0.5, 0.2]),  # the middle of a fall that is no half
        ([2.0, np.inf, np.nan], [1.0, 0.5, 0.2]),
    ],
)
def test_levels_mean_something_for_the_run(loss, values):
    found = levels_of(np.asarray(loss), np.asarray([0.8, 0.4, 0.1]))
    assert [each.value for each in found if each.of == "loss"] == values
    assert [each.value for each in found if each.of == "error"] == [0.4, 0.2, 0.08]


def test_a_target_comes_first_and_once():
    target = read_target("error=20%")
    found = levels_of(np.asarray([2.0, 0.1]), np.asarray([0.8, 0.1]), (target,))
    assert found[0] == Level("error", 0.2, True)
    assert [each.value for each in found if each.of == "error"] == [0.2, 0.4, 0.08]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.042, "0.042 s"),
        (4.56, "4.6 s"),
        (36.4, "36 s"),
        (90, "1.5 min"),
        (720, "12 min"),
        (3 * 3600, "3 h"),
        (4.1 * 86400, "4.1 days"),
        (math.inf, "an unknown time"),
    ],
)
def test_durations_as_people_say_them(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("curvature", OptimizerConfig(0.1), "13 passes over 18 samples, as much as 4 of the 60"),
        ("curvature", OptimizerConfig(0.1, batch_size=3), "as much as 26 of the 60"),
        ("head", OptimizerConfig(0.1), "5 passes over 18 samples, as much as 2 of the 60"),
        ("replay", OptimizerConfig(0.1), "3 passes over 18 samples, as much as 1 of the 60"),
    ],
)
def test_what_a_prediction_costs_is_said_before(method, setting, words):
    price = price_of(Finetuning(*linear_task()), method, setting, 60)
    assert words in price.words
    assert ("dear" in price.words) == (setting.batch_size == 3)


def test_what_it_costs_in_seconds():
    """A step of training is three passes of a sample: 13 passes of 18 samples at 2 s a step are
    156 s, ten real steps 360, and 60 full batches 2,160 s: more than a tenth in all, although the
    passes alone are less.
    """
    what = Finetuning(*linear_task())
    price = price_of(what, "curvature", OptimizerConfig(0.1), 60)
    words = price.in_seconds(2.0)
    assert words.startswith(
        "predicting will take about 9 min (passes 3 min, replay 0 s, verdict 6 min), "
        "compiling up to 6 s, training about 36 min: that is dear"
    )
    long = price_of(what, "curvature", OptimizerConfig(0.1), 6000)
    assert "dear" not in long.words + long.in_seconds(2.0)
    assert price_of(what, "curvature").in_seconds(2.0) == "the passes will take about 3 min"
    assert price_of(what, "curvature").words.startswith("predicting takes 13 passes over 18")
    assert price_of(what, "one-shot", OptimizerConfig(0.1), 60) is None


def test_what_follows_the_passes_grows_with_what_it_does():
    """The replay with its steps and the rows of a batch, both with samples."""
    what = Finetuning(*linear_task())

    def later(steps, batch_size=3, what=what):
        return price_of(what, "curvature", OptimizerConfig(0.1, batch_size=batch_size), steps).later

    assert later(600).replay == pytest.approx(10 * later(60).replay, rel=0.05)
    assert later(60, None).replay < later(60).replay / 3  # one order of the data instead of five
    model, inputs, labels = linear_task()
    many = Finetuning(model, np.tile(inputs, (9, 1)), np.tile(labels, 9))
    assert later(60, what=many).verdict > later(60).verdict
    assert later(60, what=many).compiling == later(60).compiling > 5


@pytest.mark.slow
def test_the_pace_is_told_once_and_in_time(capsys):
    """Before the passes, by a look at a few samples, where not all parameters are sampled."""
    model, inputs, labels = linear_task()
    options = ntk_tt.FeatureOptions(num_projections=20)
    ntk_tt.prepare(
        model, inputs, labels, options=options, optimizer=SETTING, num_steps=STEPS, seed=3
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "will take" in line]
    assert len(lines) == 1
    assert lines[0].startswith("ntk-tt: predicting will take about ")
    assert ", training about " in lines[0]
