"""Files of flags."""

import re

import pytest

from ntk_tt.cli import commands
from ntk_tt.cli.config import with_config
from ntk_tt.cli.entry import COMMANDS, main


def flags(tmp_path, text: str, *typed: str, command: str = "predict", name: str = "a.toml"):
    file = tmp_path / name
    file.write_text(text)
    return with_config([command, *typed, "--config", str(file)], COMMANDS)[1:]


TOML = """
steps = 300
per_class = "all"
betas = [0.9, 0.99]
nesterov = true
target = ["loss=0.3", "error=5%"]
[predict]
steps = 200
[features]
contrasts = false
"""
YAML = """
steps: 300
per_class: all
betas: [0.9, 0.99]
nesterov: true
weights:
target: [loss=0.3, error=5%]
predict: {steps: 200}
features: {contrasts: false}
"""


@pytest.mark.parametrize(("text", "name"), [(TOML, "a.toml"), (YAML, "a.yml"), (YAML, "a.yaml")])
def test_keys_are_as_if_they_were_typed(text, name, tmp_path):
    if name != "a.toml":
        pytest.importorskip("yaml")
    file = ["--config", str(tmp_path / name)]
    every = "--per-class all --betas 0.9 0.99 --nesterov --target loss=0.3 --target error=5%"
    first = ["--steps", "200", *every.split()]
    assert flags(tmp_path, text, name=name) == [*first, *file]
    # a table is for one command, and other keys for those that have such a flag
    own = flags(tmp_path, text, name=name, command="features")
    assert own == ["--per-class", "all", "--no-contrasts", *file]


def test_what_is_typed_counts_more(tmp_path):
    typed = ["--no-nesterov", "--steps=7", "--target", "loss=1", "--per_class", "3"]
    found = flags(tmp_path, TOML, *typed)
    assert found == ["--betas", "0.9", "0.99", *typed, "--config", str(tmp_path / "a.toml")]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("stepz = 3", "a.toml", "stepz in .* is no flag; did you mean steps?"),
        ("[predict]\ncontrasts = true", "a.toml", "contrasts in .* is no flag of predict"),
        ("[predct]\nsteps = 3", "a.toml", "predct in .* is the name of no command"),
        ("steps = {a = 1}", "a.toml", "steps in .* is the name of no command"),
        ("steps = [true]", "a.toml", "steps in .* must be a number"),
        ('nesterov = "yes"', "a.toml", "nesterov in .* must be true or false, got 'yes'"),
        ("steps = ", "a.toml", "cannot be read .*; correct it"),
        ("steps: 3", "a.txt", "cannot tell what .*a.txt' is; give a .toml"),
        ("- steps", "a.yaml", "has no keys"),
        ("a: [", "a.yaml", "cannot be read .*; correct it"),
        ("!!python/object/apply:os.getcwd []", "a.yaml", "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(text, name, message, tmp_path, capsys):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--config", str(tmp_path / name)])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"ntk-tt: config: .*{message}", err)


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["predict", f"--config={tmp_path}/none.toml"])
    assert exit_.value.code == 1
    assert "none.toml" in capsys.readouterr().err


def test_commands_are_given_what_the_file_says(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "run", seen.append)
    file = tmp_path / "a.toml"
    file.write_text('steps = 30\nbatch-size = 8\ntarget = ["loss=0.3"]\nloss-thresholds = [2, 1]\n')
    main(["verify", "--steps", "20", "--config", str(file)])
    options = seen[0]
    assert (options.steps, options.batch_size, options.target) == (20, 8, ("loss=0.3",))
    assert options.loss_thresholds == (2.0, 1.0)
    main(["verify"])
    assert seen[1].steps != 20
