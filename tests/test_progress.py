"""What is said of work that goes on: in a terminal, in a notebook, and where there is neither."""

import io
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from ntk_tt.runtime import progress as module
from ntk_tt.runtime.progress import Work, part_of, progress_bar


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hear(monkeypatch):
    """Hears standard error, no terminal, with hardly any wait between two lines; called in a test,
    since pytest puts its own there between set-up and call.
    """

    def begin() -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        return written

    monkeypatch.setattr(module, "FIRST_LINE", 0.01)
    monkeypatch.setattr(module, "NEXT_LINE", 0.01)
    monkeypatch.delenv(module.OFF, raising=False)
    return begin


def wait_for(written: io.StringIO, text: str) -> None:
    until = time.monotonic() + 20
    while text not in written.getvalue():
        assert time.monotonic() < until, written.getvalue()
        time.sleep(0.01)


def test_the_time_left_is_that_of_the_pace_after_the_first_report():
    clock = Clock()
    work = Work("features", clock=clock)
    clock.now = 8.0
    assert work.words == "compiling, 8 s so far"
    work(10, 100)  # 40 s of compilation and the first block
    clock.now = 40.0
    assert work.seconds_left is None
    work(10, 100)
    clock.now = 50.0
    work(30, 100)  # 20 in 42 s
    assert work.seconds_left == pytest.approx(70 * 42 / 20)
    clock.now = 57.0
    assert work.seconds_left == pytest.approx(70 * 42 / 20 - 7)
    assert work.words == "30 of 100, about 2 min left"
    assert Work("images", compiles=False, clock=clock).words == "0 s so far"


def test_where_there_is_no_terminal_lines_come_without_any_report(hear):
    errors = hear()
    with progress_bar("verdict") as progress:
        wait_for(errors, "ntk-tt: verdict: compiling, ")
        progress(3, 12)
        wait_for(errors, "ntk-tt: verdict: 3 of 12, ")
    said = errors.getvalue()
    time.sleep(0.05)
    assert errors.getvalue() == said  # the end is the end


def test_short_work_and_one_that_is_told_off_say_nothing(hear, monkeypatch):
    errors = hear()
    monkeypatch.setattr(module, "FIRST_LINE", 60.0)
    with progress_bar("features") as progress:
        progress(1, 2)
    monkeypatch.setattr(module, "FIRST_LINE", 0.0)
    monkeypatch.setenv(module.OFF, "off")
    with progress_bar("features"):
        time.sleep(0.05)
    assert errors.getvalue() == ""


def test_what_fails_inside_is_raised_and_ends_the_lines(hear):
    errors = hear()
    with pytest.raises(KeyError), progress_bar("features"):
        raise KeyError
    said = errors.getvalue()
    time.sleep(0.05)
    assert errors.getvalue() == said


def test_a_notebook_has_one_line_that_is_written_anew(hear, monkeypatch, capsys):
    errors = hear()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(module, "_NOTEBOOK", 0.01)
    with progress_bar("dynamics") as progress:
        progress(40, 300)
        time.sleep(0.2)
    said = capsys.readouterr().out
    assert "\rdynamics: 40 of 300, 0 s so far" in said
    assert "\n" not in said
    assert said.rpartition("\r")[0].endswith(" " * 72)  # nothing is left there
    assert errors.getvalue() == ""


def test_a_terminal_has_a_bar_and_a_second_one_does_no_harm(hear, monkeypatch):
    errors = hear()
    monkeypatch.setattr(errors, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar("features") as progress:
        progress(5, 20)
        wait_for(errors, "5 of 20, ")
        with progress_bar("first real steps"):
            wait_for(errors, "first real steps")  # a bar too, where rich can draw two
    assert "\x1b[" in errors.getvalue()


def test_parts_make_one_progress():
    seen = []
    for part in range(2):
        part_of(lambda *given: seen.append(given), part, 2)(3, 10)
    assert seen == [(3, 20), (13, 20)]


def test_a_line_after_five_seconds_and_every_thirty_from_then_on(monkeypatch):
    """By a clock that goes as far as it is asked to wait; the work makes no report at all."""
    clock, said = Clock(), []

    class Event:
        def __init__(self):
            self.over = threading.Event()

        def wait(self, seconds: float) -> bool:
            if clock.now + seconds > 100:  # the work goes on no longer than that
                return self.over.wait(20)
            clock.now += seconds
            return False

        def set(self) -> None:
            self.over.set()

    monkeypatch.delenv(module.OFF, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(module, "Work", partial(Work, clock=clock))
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=Event, Thread=threading.Thread))
    monkeypatch.setattr(module.terminal, "say", lambda line: said.append((clock.now, line)))
    with progress_bar("verdict"):
        until = time.monotonic() + 20
        while len(said) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    assert [now for now, _ in said] == [5, 35, 65, 95]
    assert said[0][1] == "verdict: compiling, 5 s so far"
    assert said[3][1] == "verdict: compiling, 95 s so far"
