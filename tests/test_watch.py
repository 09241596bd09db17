"""Remaining steps of a run from its log, with and without a prediction; reports as predictions; the
command.
"""

import json
import math
import os
import random
import time

import numpy as np
import pytest

from ntk_tt.cli import main
from ntk_tt.times import online as closed_loop
from ntk_tt.times.online import Predictor
from ntk_tt.times.prior import predictor_of
from ntk_tt.times.watcher import LossLog, Watcher, follow

STEPS = np.arange(0, 201, 2)


def curve(steps):
    return 1.5 / (1 + np.asarray(steps) / 20) ** 1.3


def write_log(path, steps, header="step,loss"):
    path.write_text(header + "\n" + "".join(f"{step},{curve(step)}\n" for step in steps))
    return path


def write_report(path):
    path.write_text(
        json.dumps(
            {
                "prediction": {
                    "steps": STEPS.tolist(),
                    "loss": curve(STEPS).tolist(),
                    "method": "curvature",
                },
                "cost": {"seconds_per_step": 0.5},
                "verdict": {"stability_margin": 4.0},
            }
        )
    )
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
    assert log.read() == []


def test_prediction_and_log_together_know_the_remaining_steps(tmp_path):
    watcher = Watcher(
        target=0.2,
        predictor=predictor_of(write_report(tmp_path / "report.json"))[0],
        seconds_per_step=2.0,
    )
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
    follow(
        LossLog(write_log(tmp_path / "log.csv", range(0, 200, 4))),
        Watcher(target=0.3, predictor=Predictor(STEPS, curve(STEPS))),
        seen.append,
        poll_seconds=0.01,
    )
    assert len(seen) == 1
    assert "reached" in str(seen[0])


def test_command_line(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv", range(0, 21, 2))
    main(
        [
            "watch",
            str(log),
            "--once",
            "--prediction",
            str(write_report(tmp_path / "report.json")),
            "--target",
            "0.2",
        ]
    )
    assert "step 20: loss" in capsys.readouterr().out
    for arguments, message in (
        ([str(tmp_path / "none.csv"), "--once"], "no records yet"),
        ([str(log), "--once", "--target", "-1"], "target: must be a positive loss"),
        ([str(log), "--once", "--prediction", str(log)], "is no report"),
        ([str(log), "--once", "--poll", "0"], "poll: must be positive"),
        ([str(log), "--poll", "inf"], "poll: must be at most"),
        ([str(log), "--poll", "nan"], "poll: must be positive"),
        ([str(log), "--once", "--seconds-per-step", "nan"], "seconds-per-step: must be positive"),
        ([str(log), "--once", "--target", "nan"], "target: must be a positive"),
        ([str(log), "--once", "--target", "inf"], "target: must be a positive"),
        (["/dev/zero", "--once"], "'/dev/zero' is no plain file"),
        ([str(log), "--once", "--prediction", "/dev/zero"], "'/dev/zero' is no report"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["watch", *arguments])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


REPORT = {
    "prediction": {"steps": STEPS.tolist(), "loss": curve(STEPS).tolist(), "method": "curvature"},
    "cost": {"seconds_per_step": 0.5},
    "verdict": {"stability_margin": 4.0},
}


def changed(path, value):
    document = json.loads(json.dumps(REPORT))
    *parents, last = path
    of = document
    for name in parents:
        of = of[name]
    if value is KeyError:
        del of[last]
    else:
        of[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00",
        b"\x00" * 50,
        "{" + " " * 1000,
        *(
            changed(path, KeyError)
            for path in (
                ["prediction"],
                ["cost"],
                ["prediction", "steps"],
                ["prediction", "loss"],
                ["prediction", "method"],
                ["cost", "seconds_per_step"],
            )
        ),
        *(
            changed(["prediction", "steps"], value)
            for value in (
                [],
                [0],
                [0, 0],
                [2, 0, 1],
                [0, 10**400],
                [0, -1],
                ["0", "1"],
                [0, True],
                [[0], [1]],
                None,
                3,
                "01",
                {},
                [0, None],
                [0.5, 1],
                STEPS.tolist()[:-1],
                [*STEPS.tolist()[:-1], 1e300],
            )
        ),
        *(
            changed(["prediction", "loss"], value)
            for value in (
                [],
                None,
                "x",
                [None] * len(STEPS),
                [-1.0] * len(STEPS),
                [[1.0]] * len(STEPS),
                ["1"] * len(STEPS),
                [True] * len(STEPS),
                [math.nan] * len(STEPS),
                [10**400] * len(STEPS),
                {},
            )
        ),
        *(changed(["prediction", "method"], value) for value in (["curvature"], {}, None, 3)),
        *(changed(["verdict"], value) for value in ("high", [1], 3)),
        *(
            changed(["verdict", "stability_margin"], value)
            for value in ("4", [4], {}, True, math.nan, math.inf, -1, 10**400)
        ),
        *(
            changed(["cost", "seconds_per_step"], value)
            for value in ("1", [1], True, math.nan, -1.0, 10**400)
        ),
        changed(["cost"], []),
        changed(["prediction"], "curve"),
    ],
    ids=lambda text: str(text[:20]),
)
def test_what_is_no_report_is_an_error_of_one_line_with_its_name(tmp_path, text):
    (tmp_path / "report.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=r"^prediction: ") as error:
        predictor_of(tmp_path / "report.json")
    assert str(tmp_path / "report.json") in str(error.value)
    assert len(str(error.value)) < 500


def test_what_a_report_may_leave_open(tmp_path):
    for path, value in (
        (["verdict"], None),
        (["verdict"], KeyError),
        (["verdict", "stability_margin"], None),
        (["prediction", "method"], "sde"),
        (["cost", "seconds_per_step"], None),
    ):
        (tmp_path / "report.json").write_text("\ufeff" + changed(path, value))
        predictor, pace = predictor_of(tmp_path / "report.json")
        assert predictor.remaining(0.2).steps is not None
        assert pace == (None if path[0] == "cost" else 0.5)


def test_only_plain_files_are_reports(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=r"no plain file"):
            predictor_of(path)
    with pytest.raises(FileNotFoundError):
        predictor_of(tmp_path / "none")


def test_a_report_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"more than 256 MiB"):
        predictor_of(tmp_path / "report.json")


@pytest.mark.slow_but("1")
@pytest.mark.parametrize("seed", range(2))
def test_mutated_reports_raise_nothing_but_errors_with_their_name(tmp_path, seed):
    small = {
        **REPORT,
        "prediction": {
            "steps": [0, 10, 20, 30],
            "loss": [1.5, 0.9, 0.5, 0.3],
            "method": "curvature",
        },
    }
    rng, path, started = random.Random(seed), tmp_path / "report.json", time.process_time()
    for _ in range(300):
        data = bytearray(json.dumps(small).encode())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 8])] = rng.choice(
                [
                    b"",
                    b"9" * 400,
                    b"-",
                    b"null",
                    b'"x"',
                    b"[",
                    b"]",
                    b"{}",
                    b"true",
                    b"NaN",
                    b"1e999",
                    bytes([rng.randrange(256)]),
                ]
            )
        path.write_bytes(data)
        said, predictor = "", None
        try:
            predictor = predictor_of(path)[0]
        except ValueError as error:
            said = str(error)
        if predictor is None:
            assert str(path) in said
        else:
            predictor.observe(5, 1.0)
            assert 0 <= predictor.remaining(0.2).probability <= 1
    assert time.process_time() - started < 60


def once(tmp_path, text, watcher):
    seen, notes = [], []
    (tmp_path / "log").write_text(text)
    follow(LossLog(tmp_path / "log"), watcher, seen.append, once=True, note=notes.append)
    (status,) = seen
    return status, notes


def rows(steps, run=curve):
    return "step,loss\n" + "".join(f"{step},{run(step):.4f}\n" for step in steps)


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("predicted", [False, True])
def test_a_resumed_run_has_the_status_of_one_that_was_not(tmp_path, predicted):
    watchers = [
        Watcher(target=0.1, predictor=Predictor(STEPS, curve(STEPS)) if predicted else None)
        for _ in range(2)
    ]
    resumed, notes = once(tmp_path, rows([*range(0, 60, 5), *range(40, 80, 5)]), watchers[0])
    plain, _ = once(tmp_path, rows(range(0, 80, 5)), watchers[1])
    assert str(resumed) == str(plain)
    assert "go back from 55 to 40: the run was resumed" in notes[0]


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("predicted", [False, True])
def test_a_new_run_that_is_appended_is_the_status(tmp_path, predicted):
    watchers = [
        Watcher(predictor=Predictor(STEPS, curve(STEPS)) if predicted else None) for _ in range(2)
    ]
    appended, notes = once(
        tmp_path,
        rows(range(0, 400, 5), lambda step: 9 * curve(step)) + rows(range(0, 40, 5)),
        watchers[0],
    )
    plain, _ = once(tmp_path, rows(range(0, 40, 5)), watchers[1])
    assert str(appended) == str(plain)
    assert "a new run" in notes[0]


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("predicted", [False, True])
def test_one_loss_that_is_not_finite_is_no_divergence_and_more_at_the_end_are(tmp_path, predicted):
    def watcher():
        return Watcher(target=0.1, predictor=Predictor(STEPS, curve(STEPS)) if predicted else None)

    lines = rows(range(0, 90, 5)).splitlines(keepends=True)
    gap = once(tmp_path, "".join([*lines[:6], "27,nan\n", *lines[6:]]), watcher())[0]
    assert str(gap) == str(once(tmp_path, "".join(lines), watcher())[0])
    last = once(tmp_path, "".join(lines) + "90,nan\n", watcher())[0]
    assert (last.step, last.bad_since, last.diverged) == (85, 90, False)
    assert "not finite at step 90" in str(last)
    for tail in ("90,nan\n95,inf\n", "90,NaN\n95,-inf\n100,nan"):
        with pytest.raises(ValueError, match=r"not finite since step 90 .*the run has diverged"):
            once(tmp_path, "".join(lines) + tail, watcher())
    with pytest.raises(ValueError, match=r"since step 0 .*the run has diverged"):
        once(tmp_path, rows(range(3), lambda step: math.nan), watcher())


def test_a_diverged_run_is_watched_on():
    watcher = Watcher(target=0.1)
    status = watcher.take([(0, 1.0), (1, math.nan), (2, math.inf)], 0.0)
    assert status.diverged
    assert (
        str(status)
        == "step 2: loss not finite since step 1: the run has diverged; take a smaller learning "
        "rate"
    )
    assert str(watcher.take([(3, 0.05)], 1.0)) == "step 3: loss 0.05, below 0.1: reached"


@pytest.mark.parametrize("step", ["nan", "inf", "-inf", "1e400", "abc", "-1", "true"])
def test_a_last_step_that_is_no_number_is_an_error_and_one_in_between_is_not(tmp_path, step):
    with pytest.raises(ValueError, match=rf"step is '{step}' in the line '{step},0.5' of .*log'"):
        once(tmp_path, rows(range(0, 40, 5)) + f"{step},0.5\n", Watcher(target=0.1))
    status, notes = once(
        tmp_path, rows(range(0, 40, 5)) + f"{step},0.5\n40,0.4\n", Watcher(target=0.1)
    )
    assert status.step == 40
    assert f"step is '{step}'" in notes[0]


def test_what_is_not_reached_is_not_called_likely(tmp_path):
    path = write_report(tmp_path / "report.json")
    status, _ = once(
        tmp_path, rows(range(0, 100, 4)), Watcher(target=1e-6, predictor=predictor_of(path)[0])
    )
    assert str(status).endswith(
        "; not expected below 1e-06 within 200 steps; reached within 200 with probability under 5%"
    )
    path.write_text(json.dumps({**REPORT, "verdict": {"trust": "none", "stability_margin": 0.1}}))
    status, _ = once(
        tmp_path, rows(range(0, 100, 4)), Watcher(target=0.1, predictor=predictor_of(path)[0])
    )
    assert "probability" not in str(status)
    assert "90 %" not in str(status)


def test_epochs_are_numbers_and_no_steps_of_a_prediction(tmp_path):
    text = "".join(
        f'{{"loss": {1 / (1 + epoch)}, "epoch": {epoch}}}\n'
        for epoch in (0.0, 0.05, 0.1, 0.15, 0.2)
    )
    status, _ = once(tmp_path, text, Watcher(target=0.8))
    assert str(status).startswith("step 0.2: loss 0.8333; below 0.8 in 0.05 steps")
    for log in (text, "epoch,loss\n0,1.0\n1,0.9\n"):
        with pytest.raises(ValueError, match=r"has epochs and no steps|its steps are fractions"):
            once(tmp_path, log, Watcher(target=0.8, predictor=Predictor(STEPS, curve(STEPS))))


@pytest.mark.slow_but("*-0.1", "*-2.0_0")
@pytest.mark.parametrize(
    ("clock", "pace"),
    [
        (lambda step: 1.7e9 + 2 * step, 2.0),
        (lambda step: 2 * step + (86400 if step > 20 else 0), 2.0),
        (lambda step: step // 10, 0.1),
        (lambda step: 2 * step - (500 if step > 10 else 0), 2.0),
    ],
)
def test_seconds_per_step_by_the_logs_own_clock(tmp_path, clock, pace):
    text = "Wall time,Step,Value\n" + "".join(
        f"{clock(step)},{step},{curve(step)}\n" for step in range(0, 41, 2)
    )
    for watcher, seconds in (
        (Watcher(target=0.15, expected_seconds_per_step=7.0), pace),
        (Watcher(target=0.15, seconds_per_step=3.0), 3.0),
    ):
        status, _ = once(tmp_path, text, watcher)
        assert status.seconds / status.remaining_steps == pytest.approx(seconds, rel=0.01)


def test_seconds_per_step_without_a_clock_are_those_expected(tmp_path):
    status, _ = once(
        tmp_path, rows(range(0, 41, 2)), Watcher(target=0.15, expected_seconds_per_step=7.0)
    )
    assert status.seconds / status.remaining_steps == pytest.approx(7.0)


def test_a_first_loss_that_is_no_measure_asks_for_a_target():
    with pytest.raises(ValueError, match=r"the first loss is -1.5.*give --target"):
        Watcher().take([(0, -1.5), (1, -2.0)], 0.0)


def test_a_log_in_which_nothing_is_found_yet_is_waited_for(tmp_path, monkeypatch):
    log, seen, notes = tmp_path / "log", [], []
    contents = iter(
        [
            '{"config": {"lr": 0.1}}\n',
            '{"config": {"lr": 0.1}}\nstarting\n',
            '{"config": {"lr": 0.1}}\nstarting\n{"step": 1, "loss": 1.0}\n',
            '{"config": {"lr": 0.1}}\nstarting\n{"step": 1, "loss": 1.0}\n{"step": 2, "loss": '
            "0.01}\n",
        ]
    )
    monkeypatch.setattr(
        "ntk_tt.times.watcher.time.sleep", lambda seconds: log.write_text(next(contents))
    )
    follow(LossLog(log), Watcher(), seen.append, note=notes.append)
    assert [status.step for status in seen] == [1, 2]
    assert len(notes) == 2
    assert "is not there yet" in notes[0]
    assert "there are config/lr" in notes[1]


def test_a_watch_goes_on_whatever_becomes_of_the_file(tmp_path, monkeypatch):
    log, seen = tmp_path / "log", []
    contents = iter(
        [
            rows(range(0, 50, 5)),
            rows(range(0, 60, 5)).replace("step,loss", "step,loss,val").replace("\n", ",\n"),
            None,
            "",
            "step,lo",
            rows(range(0, 30, 5)),
            rows(range(0, 30, 5))
            + "\0\xff\n"
            + "".join(f"{step},{curve(step)}\n" for step in range(20, 201, 10)),
        ]
    )

    def next_content(_):
        text = next(contents)
        log.unlink(missing_ok=True) if text is None else log.write_text(text)

    monkeypatch.setattr("ntk_tt.times.watcher.time.sleep", next_content)
    follow(
        LossLog(log),
        Watcher(target=0.05, predictor=predictor_of(write_report(tmp_path / "report.json"))[0]),
        seen.append,
    )
    assert [status.step for status in seen] == [45, 55, 25, 200]


def test_a_status_of_many_records_takes_one_forecast_and_each_record_is_looked_at_once(
    tmp_path, monkeypatch
):
    fits = []
    monkeypatch.setattr(
        closed_loop,
        "fit_loss_law",
        lambda steps, loss: fits.append(len(steps)) or (lambda at: np.ones(len(at))),
    )
    predictor = Predictor(np.arange(0, 40_001, 400), curve(np.arange(0, 40_001, 400) / 200))
    status, _ = once(
        tmp_path,
        rows(range(20_000), lambda step: curve(step / 200)),
        Watcher(target=1e-9, predictor=predictor),
    )
    assert status.step == 19_999
    assert len(fits) == 2
    assert max(fits) <= 2 * predictor.observations.limit + 2
