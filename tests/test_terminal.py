"""What is printed arrives in any encoding, and a stream that takes no more does not end the
work.
"""

import io
import sys

import pytest
from rich.console import Console
from rich.table import Table

from ntk_tt.runtime.terminal import (
    check_output,
    is_closed_by_reader,
    plain,
    print_table,
    safe_output,
    say,
)

TEXT = "θ of 5×3 images – 1…4, ‖f‖² = ½, é, Θ, ─│┼, 中, \udcff"
PLAIN = "theta of 5x3 images - 1...4, ||f||2 = 1/2, e, Theta, -|+, ?, ?"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "koi8-r"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_every_encoding_takes_every_text(monkeypatch, encoding, errors):
    streams = {
        name: io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        for name in ("stdout", "stderr")
    }
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with safe_output() as output:
        print(TEXT)
        say(TEXT)
    assert output.error is None
    for name, stream in streams.items():
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding)
        assert plain(written).removeprefix("ntk-tt: ") == PLAIN + "\n", name
        assert "θ" in written or encoding != "utf-8"


def test_plain_text_is_ascii():
    assert plain(TEXT) == PLAIN
    assert plain("as it is") == "as it is"


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.raised = error

    def flush(self):
        raise self.raised


@pytest.mark.parametrize(
    ("error", "by_reader"),
    [(BrokenPipeError(32, "Broken pipe"), True), (OSError(28, "No space left on device"), False)],
)
def test_a_stream_that_fails_is_remembered_and_left_alone(monkeypatch, error, by_reader):
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with safe_output() as output:
        check_output()
        print("first", flush=True)
        print("second", flush=True)
        with pytest.raises(type(error)):
            check_output()
    assert output.error is error
    assert is_closed_by_reader(error) == by_reader


def test_closed_streams(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with safe_output() as output:
        print("nobody sees it")
        say("nor that")
    assert output.error is None


def test_tables_are_never_cut():
    table = Table()
    for column in ("a long name of a column", "another one, longer still"):
        table.add_column(column, no_wrap=True)
    table.add_row("x" * 60, "y" * 60)
    console = Console(width=20, file=io.StringIO())
    print_table(console, table)
    assert "x" * 60 in console.file.getvalue()
    assert "y" * 60 in console.file.getvalue()
