"""Progress of long work: one callback; a bar in a terminal, a line that is written anew in a
notebook, and a line now and then where there is neither.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ntk_tt.runtime import terminal

Progress = Callable[[int, int], None]

OFF = "NTK_TT_PROGRESS"  # of the environment: `off` says nothing
FIRST_LINE, NEXT_LINE = 5.0, 30.0  # seconds until a line is said, and between two
_NOTEBOOK = 1.0  # seconds until a line is written anew
_MINUTE, _HOUR = 60, 3600


def silent(done: int, total: int) -> None:
    """No report."""


def announce(line: str) -> None:
    """Something that is known only now, beside the bar; not where nothing is to be said."""
    if not _is_off():
        terminal.say(line)


def _is_off() -> bool:
    return os.environ.get(OFF, "").lower() in ("off", "0", "no")


def part_of(progress: Progress, part: int, parts: int) -> Progress:
    """The progress of one of several parts that take about equally long."""
    return lambda done, total: progress(part * total + done, parts * total)


class Work:
    """How far some work is, and how long the rest will take.

    What comes before the first report is mostly compilation, so the pace is that after it.
    """

    def __init__(
        self,
        description: str,
        *,
        compiles: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.description, self._compiles, self._clock = description, compiles, clock
        self._started, self._first = clock(), None
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first is None or done < self._first[1]:
            self._first = now, done
        self.done, self.total = done, total
        self._last = now

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None until two reports have told it."""
        if self._first is None or self.done <= self._first[1]:
            return None
        since, before = self._first
        pace = (self._last - since) / (self.done - before)
        return max(0.0, pace * (self.total - self.done) - (self._clock() - self._last))

    @property
    def words(self) -> str:
        """Such as `40 of 300, about 12 s left`, or `compiling, 8 s so far` before any report."""
        so_far = f"{span(self._clock() - self._started)} so far"
        if self._first is None:
            return f"compiling, {so_far}" if self._compiles else so_far
        left = self.seconds_left
        # what takes longer than it should has an unknown rest, not none
        rest = f"about {span(left)} left" if left else so_far
        return f"{self.done:,} of {self.total:,}, {rest}"


def span(seconds: int | float) -> str:
    """Such as `40 s`, `12 min` or `3.4 h`."""
    whole = round(seconds)
    if whole < 2 * _MINUTE:
        return f"{whole} s"
    return f"{whole / _MINUTE:.0f} min" if whole < 2 * _HOUR else f"{whole / _HOUR:.1f} h"


@contextlib.contextmanager
def progress_bar(description: str, *, compiles: bool = True) -> Iterator[Progress]:
    """How far the work inside is, with the time left; `compiles` is how it begins.

    A bar on standard error where that is a terminal, one line that is written anew in a notebook,
    else a line after 5 s and every 30 s. NTK_TT_PROGRESS=off says nothing. Where `rich`
    already draws and takes no second bar, this one comes as lines.
    """
    work = Work(description, compiles=compiles)
    if _is_off():
        yield work
    elif _in_notebook():
        with _told(lambda: _write_anew(work), _NOTEBOOK, _NOTEBOOK):
            yield work
        _write_anew(None)
    elif (bar := _bar(work)) is not None:
        try:
            yield work
        finally:
            bar.stop()
    else:
        with _told(lambda: terminal.say(f"{description}: {work.words}"), FIRST_LINE, NEXT_LINE):
            yield work


def _bar(work: Work) -> Any:
    """The bar, which runs; None where standard error is no terminal, or has a bar already."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Any) -> Text:
            bar.update(task.id, completed=work.done, total=work.total or None, refresh=False)
            return Text(work.words)

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        Words(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(work.description, total=None)
    try:
        bar.start()
    except LiveError:
        return None
    return bar


@contextlib.contextmanager
def _told(tell: Callable[[], None], first: float, following: float) -> Iterator[None]:
    """`tell` now and then while the work inside goes on, even where that makes no report."""
    is_done = threading.Event()

    def watch() -> None:
        wait = first
        while not is_done.wait(wait):
            tell()
            wait = following

    thread = threading.Thread(target=watch, name="ntk-tt progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


_WIDTH = 72  # of the line that is written anew


def _write_anew(work: Work | None) -> None:
    """Over what was written before; None leaves nothing there."""
    text = "" if work is None else f"{work.description}: {work.words}"
    with contextlib.suppress(OSError, ValueError):
        print(f"\r{text:<{_WIDTH}}" + ("\r" if work is None else ""), end="", flush=True)
