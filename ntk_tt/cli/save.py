"""Files that were asked for: each is tried, and what could not be written is said."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CannotSave(Exception):
    """The work is done and printed, but a file that was asked for could not be written."""


def failures_of(path: Path | None, write: Callable[[Path], Any], what: str = "") -> list[str]:
    """Writes a file where one is asked for, and says so; why it could not be, instead of an
    exception: the others are still to be written.
    """
    if path is None:
        return []
    try:
        write(path)
    except Exception as error:  # of a file system, or of a library that draws
        if os.environ.get("NTK_TT_TRACEBACK") and not isinstance(error, OSError):
            raise
        reason = error.strerror if isinstance(error, OSError) else None
        return [f"cannot write {str(path)!r} ({reason or f'{type(error).__name__}: {error}'})"]
    if what:
        print(f"{what}: {path}")
    return []
