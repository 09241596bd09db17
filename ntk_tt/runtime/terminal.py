"""Standard output and error that never end a run: any encoding, a reader that goes away, a full
disk behind them.
"""

import codecs
import contextlib
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "·": "*",
    "×": "x",
    "‖": "||",
    "∞": "inf",
    "≤": "<=",
    "≥": ">=",
    "•": "*",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}
_WIDEST_TABLE = 1000


def plain(text: str) -> str:
    """Text in ASCII, as near as letters come: `…` is `...`, `é` is `e`, `ε` is `epsilon`; `?` for
    what has no likeness.
    """
    return "".join(
        character if character.isascii() else _PLAIN.get(character) or _likeness(character)
        for character in text
    )


def _likeness(character: str) -> str:
    parts = (
        unicodedata.normalize("NFKD", character)
        .replace("\N{FRACTION SLASH}", "/")
        .encode("ascii", "ignore")
        .decode()
    )
    name = unicodedata.name(character, "")
    if not parts and (
        greek := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)( WITH .*)?", name)
    ):
        parts = greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()
    if not parts and name.startswith("BOX DRAWINGS"):
        parts = (
            "-"
            if "HORIZONTAL" in name and "VERTICAL" not in name
            else "|"
            if "VERTICAL" in name and "HORIZONTAL" not in name
            else "+"
        )
    return parts or "?"


def _encode_plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error("ntk-tt-plain", _encode_plainly)  # pyright: ignore[reportArgumentType]


class Output:
    """A stream that drops what can no longer be written and remembers why, so that the work behind
    it is finished.

    Attributes:
        error: the first failure; None where everything was written.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Any, *arguments: Any) -> None:
        if self.error is None:
            try:
                act(*arguments)
            except OSError as error:
                self.error = error
                # else Python would try once more at its end, and complain
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[Output]:
    """Standard output as an `Output` inside, and both streams write in ASCII what their encoding
    does not have.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the end of the program
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="ntk-tt-plain")
    output = Output(sys.stdout)
    with contextlib.redirect_stdout(output):  # pyright: ignore[reportArgumentType]
        try:
            yield output
        finally:
            output.flush()


def check_output() -> None:
    """Raises the OSError for which standard output takes no more: for what has no end but its
    reader's.
    """
    if isinstance(sys.stdout, Output) and sys.stdout.error is not None:
        raise sys.stdout.error


def is_closed_by_reader(error: OSError) -> bool:
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)


def say(line: str) -> None:
    """One line on standard error, where that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ntk-tt: {' '.join(line.split())}", file=sys.stderr, flush=True)


def print_table(console: Any, table: Any) -> None:
    """A `rich` table whose cells are never cut, however narrow the terminal says it is."""
    from rich.console import Console

    width = console.measure(table, options=console.options.update(max_width=_WIDEST_TABLE)).maximum
    (console if width <= console.width else Console(width=width, file=console.file)).print(table)
