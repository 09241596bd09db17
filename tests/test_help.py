"""`--help` in groups."""

import dataclasses
import io

import pytest

from ntk_tt.cli.entry import COMMANDS, main
from ntk_tt.cli.help import GROUPS, OTHER, asked_for, descriptions, grouped, print_help

LARGE = [name for name, kind in COMMANDS.items() if asked_for([name, "--help"], COMMANDS) is kind]


def test_only_what_has_many_flags_is_in_groups():
    assert LARGE == ["predict", "verify", "sweep", "plan", "features", "speed"]
    assert asked_for(["predict"], COMMANDS) is None
    assert asked_for(["--help"], COMMANDS) is None
    assert asked_for(["nothing", "-h"], COMMANDS) is None


@pytest.mark.parametrize("name", LARGE)
def test_every_flag_is_in_one_group_and_has_a_text(name):
    groups = grouped(COMMANDS[name])
    listed = [flag for flags in groups.values() for flag in flags]
    assert sorted(listed) == sorted(each.name for each in dataclasses.fields(COMMANDS[name]))
    assert next(iter(groups)) == "most used"
    assert groups[OTHER] == ["config"]
    assert all(descriptions(COMMANDS[name]).get(flag) for flag in listed)


def test_what_is_most_used_is_a_dozen():
    assert len(GROUPS["most used"].split()) == 12


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", LARGE)
def test_nothing_is_cut(name, width):
    written = io.StringIO()
    print_help(name, COMMANDS[name], file=written, width=width)
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for each in dataclasses.fields(COMMANDS[name]):
        if each.name != "file":
            assert f"--{each.name.replace('_', '-')}" in words
    assert "…" not in text.replace("`sde`, …", "").replace("`sde`, \n", "").replace("… freeze", "")


def test_the_command_prints_it(capsys):
    main(["speed", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: ntk-tt speed [FLAGS]")
    assert "[FILE]" in out
    assert "One of constant, cosine" in " ".join(out.split())
