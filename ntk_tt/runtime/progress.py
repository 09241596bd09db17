"""Progress of long work: one callback, a bar in the terminal where there is one."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """No report."""


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A bar on standard error with the time left; silent where that is not a terminal or `rich` is
    not installed.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
