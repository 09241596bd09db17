"""Logs as trainers write them, and as files that are appended to, written anew, replaced, cut and
damaged.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntk_tt.times.log_columns import number, seconds
from ntk_tt.times.loss_log import LossLog

ROWS = [(10, 1.5), (20, 1.25), (30, 1.0), (40, 0.5)]
CSV = "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in ROWS)
JSONL = "".join(
    json.dumps({"step": step, "loss": loss, "epoch": step / 40}) + "\n" for step, loss in ROWS
)


def read(tmp_path, text, *, name="log", last=False, **names):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return LossLog(path, **names).read(last=last)


def board(rows):
    return "Wall time,Step,Value\n" + "".join(
        f"{1.7e9 + step},{step},{loss}\n" for step, loss in rows
    )


def wandb(rows):
    header = '"Step","run-1 - train/loss","run-1 - train/loss__MIN","run-1 - train/loss__MAX"\n'
    return header + "".join(
        f'"{step}","{loss}","{loss - 0.1}","{loss + 0.1}"\n' for step, loss in rows
    )


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        JSONL,
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        JSONL.replace("\n", "\r\n"),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", " | "),
        CSV.replace(",", ";").replace(".", ","),
        "\ufeff" + CSV,
        "\ufeff" + JSONL,
        "\n\n" + CSV.replace("\n", "\n\n"),
        "# a comment\n" + CSV,
        "# " + CSV,
        CSV.replace("step,loss", '"step", "loss"'),
        CSV.replace("step,loss", " Step , Loss "),
        CSV.replace("loss", "Training Loss"),
        CSV.replace("loss", "train_loss"),
        CSV.replace("step", "iteration"),
        CSV.replace("step", "_step"),
        CSV.replace("step", "epoch"),
        CSV.replace("step", "trainer/global_step"),
        JSONL.replace('"step"', '"current_steps"'),
        JSONL.replace('"loss"', '"train/loss"'),
        JSONL.replace('"step": ', '"step": "').replace(', "loss"', '", "loss"'),
        "".join(
            f"{{'loss': {loss}, 'grad_norm': nan, 'learning_rate': 1e-05, 'step': {step}}}\n"
            for step, loss in ROWS
        ),
        "".join(
            f"{{'loss': '{loss}', 'note': \"it's\", 'best': None, 'step': {step}}}\n"
            for step, loss in ROWS
        ),
        "".join(
            f"  {step}%|▏ | {step}/100 [00:01<00:02]\r{{'loss': {loss}, 'step': {step}}}\n"
            for step, loss in ROWS
        ),
        "".join(
            f"INFO:train: {json.dumps({'step': step, 'loss': loss})} (ok)\n" for step, loss in ROWS
        ),
        "Loading weights…\nwarning: {x}\n" + JSONL,
        "Loading, please wait\n" + CSV,
        "".join(
            json.dumps({"step": step, "train": {"loss": loss, "lr": 0.1}, "val": {"loss": 9.0}})
            + "\n"
            for step, loss in ROWS
        ),
        "".join(
            json.dumps({"loss": loss, "step": step, "betas": [0.9, 0.999]}) + "\n"
            for step, loss in ROWS
        ),
        "".join(
            f"{{'loss': np.float64({loss}), 'step': tensor({step}, device='cuda:0'), 'a': 1}}\n"
            for step, loss in ROWS
        ),
        "".join(json.dumps({"step": step, "loss": loss}) for step, loss in ROWS) + "\n",
        JSONL.replace("}\n", "} ", 1),
        JSONL.replace("loss", "total_loss").replace("epoch", "loss_cls"),
        "step,loss\n" + "".join(f"\x1b[32m{step},{loss}\x1b[0m\n" for step, loss in ROWS),
        json.dumps([{"step": step, "loss": loss} for step, loss in ROWS]),
        json.dumps([{"step": step, "loss": loss} for step, loss in ROWS], indent=2),
        json.dumps({"step": [step for step, _ in ROWS], "loss": [loss for _, loss in ROWS]}),
        board(ROWS),
        wandb(ROWS),
        "epoch,step,train_loss_step,val_loss,train_loss_epoch\n"
        + "".join(f"0,{step},{loss},,\n" for step, loss in ROWS)
        + "0,40,,0.9,\n0,40,,,1.1\n",
        "epoch,step,train_loss_step,train_loss,train_loss_epoch\n"
        + "".join(f"0,{step},,{loss},\n" for step, loss in ROWS)
        + "0,40,,,1.1\n",
    ],
    ids=lambda text: text[:40],
)
def test_what_trainers_write_is_read_without_flags(tmp_path, text):
    assert read(tmp_path, text) == ROWS


def test_the_state_of_a_trainer_is_one_json_document(tmp_path):
    history = [
        {"epoch": step / 40, "grad_norm": 1.0, "learning_rate": 1e-4, "loss": loss, "step": step}
        for step, loss in ROWS
    ]
    history.insert(2, {"epoch": 0.5, "eval_loss": 9.0, "eval_runtime": 1.0, "step": 20})
    history.append(
        {"epoch": 1.0, "step": 40, "total_flos": 1e15, "train_loss": 3.4, "train_runtime": 75.0}
    )
    for indent in (2, None):
        state = {
            "best_metric": None,
            "epoch": 1.0,
            "global_step": 40,
            "log_history": history,
            "stateful_callbacks": {"a": {"args": {}}},
            "trial_params": None,
        }
        log = LossLog(tmp_path / "trainer_state.json")
        log.path.write_text(json.dumps(state, indent=indent))
        assert log.read() == ROWS
        assert log.read() == []
        state["log_history"] = [*history, {"epoch": 1.25, "loss": 0.25, "step": 50}]
        log.path.write_text(json.dumps(state, indent=indent))
        assert log.read() == [(50, 0.25)]


def test_a_document_that_is_half_written_is_waited_for(tmp_path):
    log = LossLog(tmp_path / "trainer_state.json")
    text = json.dumps(
        {"log_history": [{"step": step, "loss": loss} for step, loss in ROWS]}, indent=1
    )
    log.path.write_text(text[:60])
    with pytest.raises(ValueError, match=r"as JSON"):
        log.read()
    log.path.write_text(text)
    assert log.read() == ROWS


@pytest.mark.parametrize(
    "text",
    [
        '{"loss": 1.5, "step": 10}\n{"eval_loss": 3.0, "step": 10}\n{"loss": 1.25, "step": '
        '20}\n{"loss": 1.0, "step": 30}\n{"loss": 0.5, "step": 40}\n{"train_loss": 9.0, "step": '
        "40}\n",
        '{"train_loss": 9.0, "step": 400}\n' + JSONL,
        '{"config": {"lr": 0.1}}\n' + JSONL,
        "epoch,step,loss,train_loss\n"
        + "".join(f"0,{step},{loss},\n" for step, loss in ROWS)
        + "1,40,,9.0\n",
        JSONL.replace(
            '{"step": 30',
            'Saving checkpoint\n[1, 2]\n3\n"x"\nnull\n{}\n{"step": true, "loss": 3}\n{"step": 25, '
            '"loss": [1]}\n{"step": 30',
        ),
        CSV.replace(
            "30,", "25,NA\n26,\n27,n/a\n28,null\n29,None\n29,-\n29\n,0.3\nabc\nEpoch 1: done\n30,"
        ),
        CSV.replace("30,", "step,loss\n30,"),
        CSV.replace("30,", "-5,0.1\ninf,0.1\n1e400,0.1\nnan,0.1\nabc,0.1\nTrue,0.1\n30,"),
        JSONL.replace('{"step": 30', '{"step": 1e400, "loss": 0.1}\n{"step": 30'),
        JSONL.replace(
            '{"step": 30',
            f'{{"step": {"9" * 400}, "loss": 0.1}}\n{{"step": {"9" * 5000}, "loss": '
            f'1}}\n{"[" * 100_000}\n{{"a": {"[" * 100_000}\n{{"step": 30',
        ),
        CSV.replace("30,", f'25,"{"x" * 200_000}"\n26,"unclosed\n30,'),
        CSV.replace("30,", "25,0.3,0.2,0.1\n26\0\n30,"),
        CSV.encode().replace(b"30,", b"\xff\xfe\x00\x80,\xc3\n30,"),
        b"\0" * 5000 + CSV.encode(),
        CSV.encode().replace(b"30,", b"\0" * 5000 + b"30,"),
        JSONL.replace('{"step": 30', '{"step": 30, "lo{"step": 30'),
    ],
    ids=lambda text: str(len(text)),
)
def test_one_odd_line_ends_nothing(tmp_path, text):
    assert read(tmp_path, text) == ROWS


def test_a_loss_that_is_not_finite_is_a_record(tmp_path):
    found = read(tmp_path, "step,loss\n1,2.0\n2,nan\n3,-inf\n4,1.0\n")
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert str(found[1:3]) == "[(2, nan), (3, -inf)]"
    assert (
        str(read(tmp_path, "{'loss': nan, 'step': 1}\n{'loss': inf, 'step': 2}\n"))
        == "[(1, nan), (2, inf)]"
    )


def test_fractional_epochs_are_taken_as_they_are(tmp_path):
    assert read(
        tmp_path, "".join(f'{{"loss": {1 / (1 + e)}, "epoch": {e}}}\n' for e in (0.0, 0.05, 0.1))
    ) == [(0, 1.0), (0.05, 1 / 1.05), (0.1, 1 / 1.1)]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "step,accuracy\n1,0.5\n",
            {},
            r"no column loss or train_loss.*there are step, accuracy; name it with --loss-column",
        ),
        (
            "loss,accuracy\n1,0.5\n",
            {},
            r"no column step or global_step.*there are loss, accuracy; name it with --step-column",
        ),
        (
            CSV,
            {"loss": "cost"},
            r"no column cost in .*there are step, loss; name it with --loss-column",
        ),
        (
            "step;loss\n1,000;0.5\n2,000;0.25\n",  # no decimal comma beside a decimal point
            {},
            r"step is '2,000' in the line '2,000;0.25'",
        ),
        ("step,loss\n1,high\n", {}, r"loss is 'high' in the line '1,high'"),
        ('{"step": 1, "loss": 1\n', {}, r"cannot read the line .* as JSON"),
        ('{"step": 1, "eval_loss": 1}\n', {}, r"no column loss .* there are step, eval_loss"),
        (
            '{"step": true, "loss": [1]}\n',
            {},
            r"no line of .* has a number for the step and one for the loss",
        ),
        ("st\u200bep,loss\n1,2\n", {}, r"there are st\\u200bep, loss"),
        (
            "step,run-1 - train/loss,run-2 - train/loss\n1,2,3\n",
            {},
            r"run-1 - train/loss, run-2 - train/loss could each be the loss in .*--loss-column",
        ),
        (
            '{"step": 1, "actor/loss": 1, "critic/loss": 2}\n',
            {},
            r"actor/loss, critic/loss could each be the loss",
        ),
        ("step,loss,loss\n1,2,3\n", {}, r"has 2 columns 'loss'"),
        ("Hello\nworld\n", {}, r"there are Hello"),
        (CSV.encode("utf-16"), {}, r"log' is UTF-16, not UTF-8 text"),
        (CSV.encode("utf-16-le"), {}, r"log' is UTF-16 or binary"),
        (b"\x1f\x8b\x08\x00abc", {}, r"is compressed"),
        (bytes(range(256)) * 20, {}, r"is UTF-16 or binary"),
    ],
)
def test_only_a_log_without_any_record_is_an_error_and_says_what_there_is(
    tmp_path, text, names, message
):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text, **names)
    assert str(error.value).startswith("log: ")
    assert str(tmp_path / "log") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names", [{"loss": "cost"}, {"loss": "Cost"}, {"step": "batch", "loss": "cost"}]
)
def test_columns_of_the_users_own(tmp_path, names):
    assert (
        read(
            tmp_path,
            "batch,step,loss,cost\n" + "".join(f"{step},{step},9,{loss}\n" for step, loss in ROWS),
            **names,
        )
        == ROWS
    )
    two_runs = "Step,a - train/loss,b - train/loss\n" + "".join(
        f"{step},9,{loss}\n" for step, loss in ROWS
    )
    assert read(tmp_path, two_runs, loss="b - train/loss") == ROWS


def test_the_last_line_without_its_end(tmp_path):
    assert read(tmp_path, CSV.rstrip()) == ROWS[:3]
    assert read(tmp_path, CSV.rstrip(), last=True) == ROWS
    assert read(tmp_path, CSV.rstrip()[:-4], last=True) == ROWS[:3]
    assert read(tmp_path, "step,loss,lr\n10,1.5,0.1\n20,1.2", last=True) == [(10, 1.5)]
    assert read(tmp_path, JSONL.rstrip()) == ROWS
    for cut in range(1, 25):
        assert read(tmp_path, JSONL.rstrip()[:-cut], last=True) == ROWS[:3]


@pytest.mark.slow_but("text1")
@pytest.mark.parametrize(
    "text",
    [
        CSV,
        JSONL,
        CSV.replace("\n", "\r\n"),
        "".join(f'{{"step": {step}, "loss": {loss}, "note": "Größe"}}\n' for step, loss in ROWS),
    ],
)
def test_every_way_of_cutting_a_growing_file_gives_each_record_once(tmp_path, text):
    data = text.encode()
    for cut in range(len(data)):
        log = LossLog(tmp_path / "log")
        log.path.write_bytes(data[:cut])
        found = [pair for batch in log.batches() for pair in batch]
        with log.path.open("ab") as file:
            file.write(data[cut:])
        found += [pair for batch in log.batches() for pair in batch]
        assert [pair[:2] for pair in found] == ROWS


def rewritten(tmp_path, first, second, *, replace=False):
    log = LossLog(tmp_path / "log")
    log.path.write_text(first)
    before = log.read()
    if replace:
        (tmp_path / "other").write_text(second)
        os.replace(tmp_path / "other", log.path)
    else:
        log.path.write_text(second)
    return before, log.read(), log.new_notes()


MORE = [*ROWS, (50, 0.25), (60, 0.2)]
WIDE = {
    "added at the end": ("epoch,step,loss,val", "0,{},{},"),
    "added before": ("val,epoch,step,loss", ",0,{},{}"),
    "reordered": ("loss,step", "{1},{0}"),
    "other delimiter": ("step;loss", "{};{}"),
    "the same": ("step,loss", "{},{}"),
}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", WIDE)
def test_a_file_that_is_written_anew_with_other_columns_gives_only_what_is_new(
    tmp_path, kind, replace
):
    header, row = WIDE[kind]
    before, after, notes = rewritten(
        tmp_path,
        CSV,
        header + "\n" + "".join(row.format(*pair) + "\n" for pair in MORE),
        replace=replace,
    )
    assert (before, after, notes) == (ROWS, MORE[4:], [])


@pytest.mark.parametrize("replace", [False, True])
def test_another_run_under_the_same_name_is_read_from_its_beginning(tmp_path, replace):
    other = [(step, loss + 1) for step, loss in MORE]
    for text in (
        "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in other),
        "step,train_loss\n" + "".join(f"{step},{loss}\n" for step, loss in other),
        "".join(f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in other),
    ):
        before, after, notes = rewritten(tmp_path, CSV, text, replace=replace)
        assert (before, after) == (ROWS, other)
        assert "was written anew" in notes[0]
    assert rewritten(tmp_path, CSV, CSV[:20], replace=replace)[1] == [(10, 1.5)]
    assert rewritten(tmp_path, CSV, "step,loss\n", replace=replace)[1] == []


def test_a_file_that_differs_only_far_behind_its_beginning_is_known_as_another(tmp_path):
    rows = [(step, 1.0) for step in range(2000)]
    first, second = (
        "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in each)
        for each in (rows, [*rows[:1990], *((step, 2.0) for step in range(1990, 2000))])
    )
    assert len(first) == len(second)
    _, after, _ = rewritten(tmp_path, first, second)
    assert after[-1] == (1999, 2.0)


def test_a_log_that_is_cut_behind_its_header_goes_on_with_its_columns(tmp_path):
    _, after, _ = rewritten(
        tmp_path, "epoch,step,loss\n0,10,1.5\n0,20,1.25\n", "0,30,1.0\n0,40,0.5\n"
    )
    assert after == [(30, 1.0), (40, 0.5)]


def test_a_header_in_between_with_other_columns_is_the_header_from_there_on(tmp_path):
    assert read(tmp_path, CSV + "epoch,loss,step\n1,0.25,50\n1,0.2,60\n") == MORE
    assert read(tmp_path, CSV + "epoch,train_loss,step\n1,0.25,50\n1,0.2,60\n") == MORE


def test_the_column_once_found_is_read_on(tmp_path):
    log = LossLog(tmp_path / "log")
    log.path.write_text('{"step": 10, "train_loss": 1.5}\n')
    assert log.read() == [(10, 1.5)]
    with log.path.open("a") as file:
        file.write('{"step": 20, "train_loss": 1.25, "loss": 9}\n{"step": 20, "loss": 9}\n')
    assert log.read() == [(20, 1.25)]


@pytest.mark.parametrize("first", [0, 10])
def test_steps_that_begin_again_with_each_epoch_are_counted_on(tmp_path, first):
    rows = [(epoch, step) for epoch in range(3) for step in range(first, 50 + first, 10)]
    found = read(
        tmp_path, "epoch,step,loss\n" + "".join(f"{epoch},{step},1.0\n" for epoch, step in rows)
    )
    assert [step for step, _ in found] == list(range(first, 150 + first, 10))
    resumed = read(
        tmp_path,
        "epoch,step,loss\n"
        + "".join(
            f"{epoch},{step},1.0\n"
            for epoch, step in [*rows, (1, 20 + first), (1, 30 + first), (0, first)]
        ),
    )
    assert [step for step, _ in resumed][-3:] == [70 + first, 80 + first, first]


@pytest.mark.parametrize("name", ["batch", "batch_idx"])
def test_batches_of_an_epoch_are_steps(tmp_path, name):
    rows = [(0, 0, 1.5), (0, 1, 1.25), (1, 0, 1.0), (1, 1, 0.5)]
    text = f"epoch,{name},loss\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    assert read(tmp_path, text) == [(0, 1.5), (1, 1.25), (2, 1.0), (3, 0.5)]


def test_one_stray_step_of_zero_does_not_shift_those_after_it(tmp_path):
    found = read(tmp_path, "epoch,step,loss\n0,10,1\n0,20,1\n1,30,1\n2,0,9\n2,40,1\n2,50,1\n")
    assert [step for step, _ in found][-2:] == [40, 50]


def test_the_clock_of_a_log(tmp_path):
    (tmp_path / "log").write_text(board(ROWS))
    assert [clock for batch in LossLog(tmp_path / "log").batches() for _, _, clock in batch] == [
        1.7e9 + step for step, _ in ROWS
    ]
    (tmp_path / "log").write_text(
        '{"current_steps": 5, "loss": 1.0, "elapsed_time": "0:00:10"}\n{"current_steps": 10, '
        '"loss": 0.9, "elapsed_time": "1 day, 0:00:20"}\n'
    )
    assert [clock for batch in LossLog(tmp_path / "log").batches() for _, _, clock in batch] == [
        10,
        86420,
    ]
    assert seconds("2026-01-01 00:00:10+00:00") - seconds("2026-01-01T00:00:00+00:00") == 10
    assert seconds(1_700_000_000_500) == 1_700_000_000.5
    # a clock of computers in each of its units
    for unit in (1, 1e3, 1e6, 1e9):
        assert seconds(int(1_700_000_000 * unit)) == pytest.approx(1_700_000_000, abs=1e-3)
    for value in (None, True, "soon", float("nan"), [1], "9999999:00:00" * 9):
        assert seconds(value) is None


@pytest.mark.parametrize("name", ["split", "phase"])
def test_lines_of_validation_with_the_same_keys_are_passed_over(tmp_path, name):
    assert (
        read(
            tmp_path,
            "".join(
                f'{{"step": {step}, "{name}": "{each}", "loss": {loss + (each != "train")}}}\n'
                for step, loss in ROWS
                for each in ("train", "val")
            ),
        )
        == ROWS
    )
    assert (
        read(
            tmp_path,
            f"{name},step,loss\n"
            + "".join(
                f"{each},{step},{loss + (each != 'train')}\n"
                for step, loss in ROWS
                for each in ("test", "train", "valid_1")
            ),
        )
        == ROWS
    )
    assert (
        read(
            tmp_path, f"{name},step,loss\n" + "".join(f"val,{step},{loss}\n" for step, loss in ROWS)
        )
        == ROWS
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12", 12.0),
        (" 1e-3 ", 0.001),
        (True, None),
        ("", None),
        ("x", None),
        ([1], None),
        ({}, None),
        (None, None),
        (10**400, float("inf")),
        (-(10**400), -float("inf")),
        ("1,5", None),
    ],
)
def test_numbers_of_cells(value, expected):
    assert number(value) == expected
    assert number("1,5", comma=True) == 1.5
    assert number("1.234,5", comma=True) is None


def test_only_plain_files_are_logs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=r"is no plain file"):
            LossLog(path).read()
    with pytest.raises(ValueError, match=r"'/dev/zero' is no plain file"):
        LossLog(Path("/dev/zero")).read()
    with pytest.raises(ValueError, match=r"standard input cannot be read"):
        LossLog(Path("-")).read()
    assert LossLog(tmp_path / "none").read() == []
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"loop"):
        LossLog(tmp_path / "loop").read()


def test_a_line_without_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("ntk_tt.times.loss_log._MAX_LINE", 2 << 20)
    log = LossLog(tmp_path / "log")
    log.path.write_bytes(
        CSV.encode() + b"x" * (10 << 20) + b"\n50,0.25\n" + b"\0" * (5 << 20) + b"60,0.2\n"
    )
    assert log.read() == MORE
    assert "more than 2 MiB" in log.new_notes()[0]


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = rng.choice(
                    [
                        b"\n",
                        b"\r",
                        b"\0",
                        b'"',
                        b"{",
                        b"}",
                        b"[",
                        b",",
                        b"nan",
                        b"1e999",
                        b"-",
                        b"\xff",
                        b"'",
                        b"step,loss\n",
                        b"\xef\xbb\xbf",
                        b"9" * 500,
                    ]
                )
            case 3:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:60]
            case 4:
                data = data[:at]
            case 5:
                data[at:at] = bytes(rng.randrange(256) for _ in range(20))
        data = data or bytearray(b"\n")
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_mutated_logs_raise_nothing_but_errors_with_the_name_of_the_file(tmp_path, seed):
    sources = [
        CSV,
        JSONL,
        wandb(ROWS),
        board(ROWS),
        json.dumps(
            {"log_history": [{"step": step, "loss": loss} for step, loss in ROWS]}, indent=2
        ),
        "".join(f"{{'loss': {loss}, 'epoch': {step / 10}}}\n" for step, loss in ROWS),
    ]
    rng, log = random.Random(seed), LossLog(tmp_path / "log")
    started = time.process_time()
    for _ in range(100):
        log.path.write_bytes(mutated(sources[seed].encode(), rng))
        for each in (log, LossLog(log.path)):
            said = ""
            try:
                assert all(0 <= step <= 2**53 for step, _ in each.read(last=True))
            except ValueError as error:
                said = str(error)
            assert not said or (str(log.path) in said and "\n" not in said)
    assert time.process_time() - started < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks", [4, pytest.param(40, marks=pytest.mark.nightly)], ids=["20 MB", "200 MB"]
)
def test_a_large_log_is_read_in_bounded_memory(tmp_path, blocks):
    path = tmp_path / "log.csv"
    with path.open("w") as file:
        file.write("epoch,step,train_loss,lr\n")
        for block in range(blocks):
            file.write(
                "".join(
                    f"{block},{step},{2 / (1 + step / 50_000):.6f},0.00100000000\n"
                    for step in range(block * 150_000, (block + 1) * 150_000)
                )
            )
    assert path.stat().st_size > 4.7e6 * blocks
    child = f"""
import resource, time
from pathlib import Path
from ntk_tt.times.watcher import LossLog, Watcher
log, watcher = LossLog(Path({str(path)!r})), Watcher(target=0.001)
before, started, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), 0
for batch in log.batches(last=True):
    watcher.add(batch)
    count += len(batch)
status = watcher.status(0.0)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(count, status.step, grown, time.process_time() - started)
"""
    out = subprocess.run(
        [sys.executable, "-c", child],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    count, step, megabytes, processor_seconds = map(float, out.stdout.split())
    assert (count, step) == (blocks * 150_000, blocks * 150_000 - 1)
    assert megabytes < 100
    assert processor_seconds < 3 * blocks


@pytest.mark.slow
def test_reading_takes_memory_that_does_not_grow_with_the_log(tmp_path):
    """Pieces are bounded: the largest piece of a log twice as long is as large."""
    sizes = []
    for megabytes in (2, 4):
        path = tmp_path / f"{megabytes}.csv"
        path.write_text(
            "step,loss\n" + "".join(f"{step},1.0\n" for step in range(megabytes * 80_000))
        )
        sizes.append(max(len(batch) for batch in LossLog(path).batches()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3)
