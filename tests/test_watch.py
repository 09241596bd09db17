"""A loss log as it grows: CSV and JSON lines, partial lines, wrong columns; with and without a prediction."""

import json

import numpy as np
import pytest

from ntk_tt import cli
from ntk_tt.closed_loop import Predictor
from ntk_tt.watch import LossLog, Watcher, follow, predictor_of

STEPS = np.arange(0, 201, 2)


def curve(steps):
    return 1.5 / (1 + np.asarray(steps) / 20) ** 1.3


def write_log(path, steps, header="step,loss"):
    path.write_text(header + "\n" + "".join(f"{step},{curve(step)}\n" for step in steps))
    return path


def write_report(path):
    path.write_text(json.dumps({"prediction": {"steps": STEPS.tolist(), "loss": curve(STEPS).tolist(), "method": "curvature"}, "cost": {"seconds_per_step": 0.5},
                                "verdict": {"stability_margin": 4.0}}))
    return path


def test_lines_are_read_once_and_only_when_whole(tmp_path):
    log = LossLog(tmp_path / "log.csv")
    assert log.read() == []
    (tmp_path / "log.csv").write_text("epoch,global_step,train_loss\n0,1,1.5\n0,2,1.")
    assert log.read() == [(1, 1.5)]
    with (tmp_path / "log.csv").open("a") as file:
        file.write("25\n1,3,1.0\n")
    assert log.read() == [(2, 1.25), (3, 1.0)]
    assert log.read() == []
    (tmp_path / "log.csv").write_text("step,loss\n")
    with pytest.raises(ValueError, match=r"become shorter"):
        log.read()


def test_json_lines_with_other_records_between(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.5}\n{"step": 1, "loss": null, "validation": 1.7}\n\n{"step": 2, "loss": "1.25"}\n')
    assert LossLog(tmp_path / "log.jsonl").read() == [(1, 1.5), (2, 1.25)]


@pytest.mark.parametrize(("text", "message"), [
    ("step,accuracy\n1,0.5\n", r"no column loss or train_loss.*there are step, accuracy.*--loss-column"), ("step,loss\n1,high\n", r"loss is 'high'"),
    ('{"step": 1, "loss": 1\n', r"as JSON")])
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match=message):
        LossLog(tmp_path / "log").read()


def test_prediction_and_log_together_know_the_remaining_steps(tmp_path):
    watcher = Watcher(target=0.2, predictor=predictor_of(write_report(tmp_path / "report.json"))[0], seconds_per_step=2.0)
    status = watcher.take([(step, float(curve(step))) for step in range(0, 21, 2)], 0.0)
    truth = 20 * ((1.5 / 0.2) ** (1 / 1.3) - 1) - 20
    assert status.remaining_steps == pytest.approx(truth, rel=0.1)
    assert status.seconds == pytest.approx(2 * status.remaining_steps)
    assert status.low <= status.remaining_steps <= (np.inf if status.high is None else status.high)
    assert "below 0.2 in" in str(status)
    assert "probability" in str(status)


def test_without_prediction_the_log_is_continued():
    watcher = Watcher()
    assert watcher.take([], 0.0) is None
    status = watcher.take([(step, float(curve(step))) for step in range(0, 41, 2)], 0.0)
    assert status.target == pytest.approx(0.15)
    assert status.probability is None
    assert status.remaining_steps == pytest.approx(20 * (10 ** (1 / 1.3) - 1) - 40, rel=0.2)
    status = watcher.take([(60, float(curve(60)))], 10.0)
    assert status.seconds == pytest.approx(0.5 * status.remaining_steps)  # 20 steps in 10 seconds


def test_following_ends_at_the_target(tmp_path):
    seen = []
    follow(LossLog(write_log(tmp_path / "log.csv", range(0, 200, 4))), Watcher(target=0.3, predictor=Predictor(STEPS, curve(STEPS))), seen.append, poll_seconds=0.01)
    assert len(seen) == 1
    assert "reached" in str(seen[0])


def test_command_line(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv", range(0, 21, 2))
    cli.main(["watch", str(log), "--once", "--prediction", str(write_report(tmp_path / "report.json")), "--target", "0.2"])
    assert "step 20: loss" in capsys.readouterr().out
    for arguments, message in (
            ([str(tmp_path / "none.csv"), "--once"], "no records yet"), ([str(log), "--once", "--target", "-1"], "target: must be a positive loss"),
            ([str(log), "--once", "--prediction", str(log)], "is no report"), ([str(log), "--once", "--poll", "0"], "poll: must be positive")):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["watch", *arguments])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
