"""What may be opened: regular files. A pipe or a device would be read for ever."""

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular_file(path: str | Path) -> os.stat_result:
    """What the system knows of a file; links are followed.

    Raises:
        OSError: it is not there, or a link leads nowhere or round in a circle.
        ValueError: it is something else than a regular file.
    """
    found = os.stat(path)
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            raise ValueError(f"it is {kind}, not a file")
    return found


def require_source_file(path: str, remedy: str) -> None:
    """Check the file of a data source.

    Raises:
        ValueError: there is no such regular file; the message names it and ends in `remedy`.
    """
    try:
        if not path:
            raise FileNotFoundError
        require_regular_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"data: there is no file {path!r}; {remedy}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"data: {path!r} cannot be read ({reason}); {remedy}") from error
