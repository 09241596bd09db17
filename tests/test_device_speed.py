"""How fast another machine trains."""

import json

import numpy as np
import pytest

import ntk_tt
from ntk_tt import Level, OptimizerConfig
from ntk_tt.cli import commands
from ntk_tt.cli.entry import main
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.report.device_speed import DeviceSpeed
from ntk_tt.report.text import report_text, sentence

LABELS = np.arange(12) % 3
INPUTS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def linear_model(width: int = 5) -> ntk_tt.Model:
    weights = np.random.default_rng(1).normal(size=(width, 3)).astype(np.float32)
    return ntk_tt.from_function(lambda params, x: x @ params["w"], {"w": weights})


WHAT = Finetuning(linear_model(), INPUTS, LABELS)
SPEED = DeviceSpeed(0.5, 3.0, 6, WHAT.model.name, 15, ((5,),), "sgd", "a card", "0.10")


def test_a_speed_is_measured_written_and_read(tmp_path):
    speed = DeviceSpeed.measure(WHAT, OptimizerConfig(0.1, batch_size=4), num_steps=3)
    assert speed.batch_size == 4
    assert (speed.num_params, speed.input_shapes) == (15, ((5,),))
    assert speed.seconds_per_step > 0
    speed.write(tmp_path / "speed.json")
    assert DeviceSpeed.read(tmp_path / "speed.json") == speed
    assert speed.seconds(WHAT, 8) == pytest.approx(2 * speed.seconds_per_step)


def test_a_speed_of_another_network_is_refused():
    assert SPEED.seconds(WHAT, 6) == 0.5
    wider = Finetuning(linear_model(6), np.zeros((12, 6), np.float32), LABELS)
    with pytest.raises(ValueError, match="device-speed: it was measured with num_params 15"):
        SPEED.seconds(wider, 6)


@pytest.mark.parametrize("text", ["[]", "{", '{"seconds_per_step": 1}'])
def test_what_is_no_file_of_speed_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"device-speed: .* is no file of `ntk-tt speed`"):
        DeviceSpeed.read(tmp_path / "a.json")


def test_a_speed_that_is_none_is_refused(tmp_path):
    SPEED.write(tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text()) | {"seconds_per_step": -1}
    (tmp_path / "a.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"device-speed: .* says -1 s for a step of 6 samples"):
        DeviceSpeed.read(tmp_path / "a.json")


@pytest.fixture(scope="module")
def report() -> ntk_tt.TrainingTimeReport:
    return ntk_tt.predict_training_time(
        linear_model(),
        INPUTS,
        LABELS,
        OptimizerConfig(0.1, momentum=0.5),
        20,
        method="head",
        targets=[Level("loss", 1.0, True)],
        price_per_hour=36,
        seconds_per_step=2,
    )


def test_times_and_price_are_those_of_the_other_machine(report):
    steps = report.steps_until(loss=1.0)
    assert steps is not None
    assert report.seconds_until(loss=1.0) == 2 * steps
    cost = report.document["cost"]
    assert (cost["machine"], cost["train_seconds"], cost["price"]) == ("another", 40, 0.4)
    assert "at 2 s a step" in sentence(report.document)
    text = " ".join(report_text(report.document).split())
    assert "this machine" not in text
    assert "training would take about 40.0 s on the other machine" in text


def test_no_pace_is_refused(report):
    with pytest.raises(ValueError, match="seconds-per-step: must be positive and finite, got 0"):
        ntk_tt.prepare(linear_model(), INPUTS, LABELS, method="head").predict(
            OptimizerConfig(0.1), 5, seconds_per_step=0
        )


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("speed", ["--epochs", "3"], "epochs: belongs to predict and verify"),
        ("speed", ["--timed-steps", "1"], "timed-steps: must be at least 2"),
        ("speed", ["/proc/none/speed.json"], "file: cannot write '/proc/none/speed.json'"),
        ("predict", ["--seconds-per-step", "nan"], "seconds-per-step: must be positive"),
        (
            "predict",
            ["--seconds-per-step", "1", "--device-speed", "a.json"],
            "seconds-per-step: give that or device-speed",
        ),
    ],
)
def test_bad_flags(command, given, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, *given])
    assert exit_.value.code == 2
    assert f"ntk-tt: {message}" in capsys.readouterr().err


def test_flags_become_the_pace_with_a_note_for_another_batch(tmp_path):
    SPEED.write(tmp_path / "a.json")
    options = commands.Predict(device_speed=tmp_path / "a.json")
    pace, notes = commands._pace(options, WHAT, OptimizerConfig(0.1, batch_size=6))
    assert (pace, notes) == (0.5, [])
    pace, notes = commands._pace(options, WHAT, OptimizerConfig(0.1, batch_size=3))
    assert pace == 0.25
    assert notes[0].startswith("device-speed: measured with batches of 6")
    own = commands.Predict(seconds_per_step=0.1)
    assert commands._pace(own, WHAT, OptimizerConfig(0.1)) == (0.1, [])
    assert commands._pace(commands.Predict(), WHAT, OptimizerConfig(0.1)) == (None, [])
