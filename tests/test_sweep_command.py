"""`ntk-tt sweep` and `ntk-tt plan`: what they print, write, and refuse."""

import csv
import json

import pytest

from ntk_tt.cli import main
from ntk_tt.cli import sweep_command as commands
from ntk_tt.cli.sweep_command import Sweep, space_settings

TINY = (
    *("--model", "examples/plain_function.py:factory", "--image-size", "16"),
    *("--data", "digits", "--classes", "2", "--per-class", "8", "--method", "head"),
    *("--steps", "30", "--target", "loss=0.65"),
)
GRID = ("--learning-rate", "0.01:1:log:3", "--batch-size", "8", "full", "--price-per-hour", "2")


@pytest.mark.slow
def test_a_sweep_prints_and_writes(tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "html")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    main(["sweep", *TINY, *GRID, "--top", "4", *written])
    out = capsys.readouterr().out
    assert "Loss 0.65 first with" in out
    assert "2 more settings are in --csv" in out
    rows = list(csv.DictReader(files["csv"].open()))
    assert len(rows) == 6
    assert {row["momentum"] for row in rows} == {"0.9"}
    document = json.loads(files["json"].read_text())
    assert [row["rank"] for row in document["rows"]] == [1, 2, 3, 4, 5, 6]
    assert files["html"].read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_a_plan_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "plan.json"
    main(["plan", *TINY, *GRID, "--budget", "3EUR", "--json", str(path)])
    assert "With 3EUR" in capsys.readouterr().out
    plan = json.loads(path.read_text())
    assert plan["plan"]["budget_seconds"] == 5400
    assert plan["runs"][0]["order"] == 1


@pytest.mark.slow
def test_parts_that_train_have_a_pass_each(capsys):
    main(["sweep", *TINY, "--batch-size", "8", "--trainable", "all,head"])
    out = capsys.readouterr().out
    assert "trainable" in out
    assert "head" in out


def test_what_is_priced_is_kept_when_interrupted(monkeypatch, capsys, tmp_path):
    made, calls = commands.sweep_settings, []

    def interrupted(prepared, settings, **options):
        calls.append(len(settings))
        found = made(prepared, settings[:1], **options)
        return found.__class__(found.settings, found.outcomes, 3, found.paces, found.watches)

    monkeypatch.setattr(commands, "sweep_settings", interrupted)
    path = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *TINY, *GRID[:2], "--batch-size", "8", "--csv", str(path)])
    assert ended.value.code == 130
    assert calls == [3]
    told = capsys.readouterr()
    assert "1 of 3 settings are priced" in " ".join(told.out.split())
    assert "what was priced until then is above" in told.err
    assert len(path.read_text().splitlines()) == 2


def test_flags_as_a_space():
    options = Sweep(
        optimizer=("sgd", "adamw"),
        learning_rate=("1e-3:1e-1:log:3",),
        batch_size=("8,16",),
        weight_decay=("0", "0.1"),
        steps=("10",),
    )
    found = space_settings(options, num_samples=32)
    assert len(found) == 2 * 3 * 2 * 2
    momenta = {each.optimizer.name: each.optimizer.momentum for each in found}
    assert momenta == {"sgd": 0.9, "adamw": 0.0}
    given = space_settings(Sweep(momentum=("0", "0.5"), learning_rate=("0.1",)), num_samples=32)
    assert sorted(each.optimizer.momentum for each in given) == [0.0, 0.5]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--learning-rate", "1e-1:1e-4:log:12"), "range: its ends must be finite and rise"),
        (("--learning-rate", "nothing"), "learning_rate: must be a number or a range"),
        (("--batch-size", "0"), "batch_size: must be a whole number of at least 1"),
        (("--optimizer", "sgdd"), "optimizer: unknown 'sgdd'"),
        (("--schedule", "round"), "schedule: unknown 'round'"),
        (("--target", "loss"), "target: give loss=0.3"),
        (("--deadline", "soon"), "deadline: give a time such as"),
        (("--seeds", "0"), "seeds: must be at least 1"),
        (("--plot", "x.txt"), "plot: cannot write"),
        (("--price-per-hour", "-1"), "price-per-hour: must be 0 or more"),
        (("--learning-rate", "1e-3:1:log"), "does not say how many"),
        (("--model", "nothing"), "nothing"),
    ],
)
def test_what_is_wrong_is_one_line(flags, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *flags])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("budget", "says"),
    [("20EUR", "needs the price of an hour"), ("-1h", "budget: give a time"), ("", "budget: ")],
)
def test_a_wrong_budget_is_one_line(budget, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--budget", budget])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
