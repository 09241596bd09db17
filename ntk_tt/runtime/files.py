"""Files that are written whole or not at all, and read only where they are plain files."""

import errno
import io
import os
import stat
import uuid
from pathlib import Path
from typing import Any

_NO_PARTIAL = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_whole(target: Path, *parts: Any) -> None:
    """Replace a file: under its name it is there whole, and stays after a crash, or what was there
    before is.

    What is no plain file (a pipe, a terminal, /dev/null) is written into. So is a file in a folder
    where no other can be made.

    Args:
        target: in a folder that exists.
        parts: bytes-like, written one after the other.

    Raises:
        OSError: it cannot be written; nothing half-written stays, but in a file that could only be
            written in place.
    """
    if not _is_replaceable(target):
        return _write_into(target, *parts)
    target = Path(os.path.realpath(target))  # a link stays, and what it names is replaced
    try:
        replace(target, *parts)
    except OSError as error:
        if error.errno not in _NO_PARTIAL or not target.is_file():
            raise
        _write_into(target, *parts)


def replace(target: Path, *parts: Any) -> None:
    """The core of `write_whole`: whatever has the name, but a folder, gives way to a plain file."""
    partial = target.with_name(f".{target.name[:60]}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(target.parent)


def check_writable(target: Path) -> None:
    """Raises OSError where `write_whole` would fail, as far as that can be told before; makes the
    folder, leaves no file.

    A pipe is not opened, since that would end what its reader reads.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is_replaceable(target):
        kind = target.stat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind) or stat.S_ISREG(kind)):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", str(target))
        return
    existed = target.exists()
    with target.open("ab"):
        pass
    if not existed:
        target.unlink()


def is_folder(path: Path) -> bool:
    """Whether there is a folder. What the system refuses to tell (a name too long for it, a folder
    that may not be entered) is an OSError on every Python; `Path.is_dir` of 3.14 says False.
    """
    return stat.S_ISDIR(_mode(path))


def is_plain_file(path: Path) -> bool:
    """Whether there is a plain file, as `is_folder` for folders."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    """Of what is there, links followed; 0 where nothing is, or can be under such a name."""
    try:
        return os.stat(path).st_mode
    except ValueError:  # a null character
        return 0
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file to read bytes, and only a plain one: a pipe would keep its reader waiting and a
    device never ends.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = os.open(
        path,
        os.O_RDONLY
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
        | getattr(os, "O_CLOEXEC", 0),
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def flush_folder(folder: Path) -> None:
    """Brings new names in a folder to the disk, where its file system can."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def _is_replaceable(target: Path) -> bool:
    """Whether the name is free, or a plain file's that no running program was given by its number
    (/dev/stdout).
    """
    try:
        kind = target.stat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(kind) and not str(target.absolute()).startswith(("/dev/", "/proc/"))


def _write_into(target: Path, *parts: Any) -> None:
    # A pipe without a reader is refused instead of waited for.
    mode = os.O_TRUNC if _is_replaceable(target) else os.O_APPEND
    descriptor = os.open(
        target, os.O_WRONLY | mode | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(descriptor, "wb") as file:
        if os.name != "nt":
            os.set_blocking(descriptor, True)
        for part in parts:
            file.write(part)
