"""Ctrl-C, and being told to end: answered where Python runs, and soon after where it does not."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading

GRACE = (
    3.0  # seconds that a compiled program has to come back to Python, where the exception is raised
)
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_answering, _said = threading.Event(), threading.Event()


class Ended(KeyboardInterrupt):
    """Another program said that this one is to end (SIGTERM), or its terminal went away
    (SIGHUP).
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def answer() -> None:
    """From now on SIGTERM and SIGHUP raise `Ended`, as SIGINT does KeyboardInterrupt, and nothing
    holds the program for long.

    Python raises only between its own steps. Where it takes none for `GRACE` seconds (a
    compilation, a long compiled loop), or a second signal comes, the program ends as it is: files
    of ours are whole or absent at any moment.
    """
    if _answering.is_set() or threading.current_thread() is not threading.main_thread():
        return
    _answering.set()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        # what is ignored (nohup) stays so
        if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise_ended)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    told = sys.unraisablehook
    # Raised within a callback (of the garbage collector, say) it is lost; the thread then ends the
    # program.
    sys.unraisablehook = lambda lost: (
        None if isinstance(lost.exc_value, KeyboardInterrupt) else told(lost)
    )


def go_on_to_the_end() -> None:
    """After an interruption: what there is may be printed and written, however long that takes; a
    second signal ends the program at once.
    """
    _said.set()
    if _answering.is_set() and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def describe(interruption: KeyboardInterrupt) -> tuple[str, int]:
    """What to say of it, and the exit status: 128 + the number of the signal, as shells have it."""
    go_on_to_the_end()
    if isinstance(interruption, Ended):
        return f"ended by {signal.Signals(interruption.number).name}", 128 + interruption.number
    return "interrupted", 128 + signal.SIGINT


def leave(status: int) -> None:
    """Ends a program that was interrupted, where `answer` was called: a compiled loop may still
    run, and taking Python down around it crashes.
    """
    if _said.is_set() and _answering.is_set():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _raise_ended(number: int, frame: object) -> None:
    raise Ended(number)


def _watch(reader: socket.socket) -> None:
    while (number := reader.recv(1)[0]) not in _SIGNALS:
        pass
    select.select([reader], [], [], GRACE)
    if not _said.is_set():
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(
                2, f"ntk-tt: {'interrupted' if name == 'SIGINT' else f'ended by {name}'}\n".encode()
            )
    os._exit(128 + number)
