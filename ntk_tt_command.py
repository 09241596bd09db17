"""The command `ntk-tt`, apart from the package: it answers to Ctrl-C while what it runs is still
being imported.
"""

import contextlib
import os
import signal
import sys
import warnings
from types import FrameType


def main() -> None:
    """The entry point: import the command line and run it."""
    # a closed one would be the next file's number, and what is printed would go there
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    warnings.formatwarning = _one_line
    try:
        from ntk_tt import cli
    except Exception as error:  # a broken installation, or a variable that JAX cannot read
        if os.environ.get("NTK_TT_TRACEBACK"):
            raise
        _say(
            f"cannot start: {type(error).__name__}: {' '.join(str(error).split())}; check the "
            "environment variables of JAX, or install anew (NTK_TT_TRACEBACK=1 shows where)"
        )
        sys.exit(1)
    signal.signal(signal.SIGINT, handler)
    cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    """At once: an exception in the midst of an import is turned into others, by C code above
    all.
    """
    _say("interrupted")
    os._exit(128 + number)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as a user wants it: without the line of code that gave it."""
    return f"ntk-tt: {' '.join(str(message).split()).removeprefix('ntk_tt: ')}\n"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"ntk-tt: {line}\n".encode("ascii", "replace"))


if __name__ == "__main__":
    main()
