"""Losses of validation that stand under the name of the training's, among its lines."""

import json

import pytest

from ntk_tt.times.log_phases import is_validation
from ntk_tt.times.loss_log import LossLog

ROWS = [(10, 1.5), (20, 1.25), (30, 1.0), (40, 0.5)]


def read(tmp_path, text):
    """The records, and what was noted."""
    (tmp_path / "log").write_text(text)
    log = LossLog(tmp_path / "log")
    return log.read(), log.new_notes()


def lines(*phases, column="split", line=json.dumps, rows=ROWS):
    """Each record once a phase; all but the first phase with another loss."""
    return "".join(
        line({column: phase, "step": step, "loss": loss + (phase != phases[0])}) + "\n"
        for step, loss in rows
        for phase in phases
    )


def csv(row):
    return ",".join(map(str, row.values()))


@pytest.mark.parametrize(
    "word",
    [
        *("val", "valid", "validate", "VALIDATING", "evaluate", "testing", "test_1", "dev"),
        *("holdout", "held-out", "sanity_check", "on_validation_end", "predict", "inference"),
    ],
)
def test_words_for_other_phases(word, tmp_path):
    assert is_validation(word)
    found, notes = read(tmp_path, lines("train", word))
    assert found == ROWS
    assert len(notes) == 1
    assert f"split {word.lower()!r} are not of training; they are passed over" in notes[0]


@pytest.mark.parametrize(
    "word", ["train", "fit", "latest", "protest", "invalid", "contest", "device"]
)
def test_words_for_none_of_them(word):
    assert not is_validation(word)


@pytest.mark.parametrize("column", ["event", "type", "kind", "tag", "source", "what", "data"])
def test_any_column_may_name_the_phase(column, tmp_path):
    for form in (json.dumps, csv):
        header = f"{column},step,loss\n" if form is csv else ""
        text = header + lines("train_step", "eval", column=column, line=form)
        assert read(tmp_path, text)[0] == ROWS


@pytest.mark.parametrize(
    ("column", "phases"),
    [
        ("train", (True, False)),
        ("training", ("true", "False")),
        ("is_training", (1, 0)),
        ("eval", (False, True)),
        ("in_validation", (0, 1)),
        ("test_mode", (False, True)),
    ],
)
def test_flags_name_the_phase(column, phases, tmp_path):
    for form in (json.dumps, csv):
        header = f"{column},step,loss\n" if form is csv else ""
        text = header + lines(*phases, column=column, line=form)
        assert read(tmp_path, text)[0] == ROWS


@pytest.mark.parametrize("front", ["Eval: ", "| INFO | valid | ", "[test_2] ", "(validating) "])
@pytest.mark.parametrize("everywhere", ["", "10:00:00 run of test.py: "])
def test_what_stands_before_a_record_names_the_phase(front, everywhere, tmp_path):
    """But for words that stand before all."""
    text = "".join(
        f"{everywhere}{before}{json.dumps({'step': step, 'loss': loss + (before == front)})}\n"
        for step, loss in ROWS
        for before in ("", front)
    )
    if "test" in front and everywhere:
        assert len(read(tmp_path, text)[0]) == 2 * len(ROWS)
    else:
        assert read(tmp_path, text)[0] == ROWS


def test_a_progress_bar_says_nothing_of_the_record_behind_it(tmp_path):
    text = "".join(
        f"Evaluating: 50%|##   | 5/10{json.dumps({'step': step, 'loss': loss})}\n"
        if step == 20
        else json.dumps({"step": step, "loss": loss}) + "\n"
        for step, loss in ROWS
    )
    assert read(tmp_path, text) == (ROWS, [])


@pytest.mark.parametrize(
    "more", [{"run": "test-1"}, {"split": "val"}, {"is_eval": True}, {"message": "eval follows"}]
)
def test_what_all_lines_say_tells_nothing(more, tmp_path):
    text = "".join(json.dumps({"step": step, "loss": loss} | more) + "\n" for step, loss in ROWS)
    assert read(tmp_path, '{"config": 1}\n' + text) == (ROWS, [])


def test_a_loss_under_the_name_of_a_flag_is_none(tmp_path):
    text = "".join(
        json.dumps({"step": step, "loss": loss, "train": loss, "val": 1}) + "\n"
        for step, loss in ROWS
    )
    assert read(tmp_path, text) == (ROWS, [])


@pytest.mark.parametrize("form", ["json", "csv"])
def test_lines_of_validation_that_come_late_are_known(form, tmp_path):
    """The columns are long chosen by then."""
    path = tmp_path / "log"
    header, row, last = {
        "json": ("", '{{"step": {}, "loss": {}}}\n', '{"step": 4, "loss": 9, "split": "val"}\n'),
        "csv": ("split,step,loss\n", ",{},{}\n", "val,4,9\n"),
    }[form]
    path.write_text(header + "".join(row.format(step, 1 / step) for step in range(1, 4)))
    log = LossLog(path)
    assert len(log.read()) == 3
    with path.open("a") as file:
        file.write(last + row.format(5, 0.2))
    assert log.read() == [(5, 0.2)]


def test_a_log_that_begins_with_validation_is_known_from_the_first_other_line_on(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"step": 0, "loss": 9, "split": "val"}\n')
    log = LossLog(path)
    assert log.read() == [(0, 9)]  # nothing else to go by
    with path.open("a") as file:
        file.write(lines("train", "val"))
    assert log.read() == ROWS


def test_a_log_of_two_other_phases_is_an_error(tmp_path):
    text = lines("val", "test")
    with pytest.raises(
        ValueError, match=r"all lines with a loss are of other phases than training"
    ):
        read(tmp_path, text)
