"""Compiled programs kept on disk, so that the next run of the same shapes starts at once."""

import contextlib
import importlib
import os
import stat
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 256 << 20  # of programs; a run of a small network keeps about 2 MB
_SUFFIX = "-cache"  # of JAX's programs
_LOOKED = "looked-at"  # an empty file: programs older than it were looked at
_ZSTD = b"\x28\xb5\x2f\xfd"


def keep_compiled(folder: Path) -> None:
    """Have JAX keep what it compiles in a folder and look there first; programs are found by all
    that they depend on.

    Where the folder has grown past `MAX_BYTES` the oldest programs are removed first; programs that
    were cut while they were written are removed too. What the user has said of this themself
    (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE=false`) stays, and where the folder
    cannot be written, or the disk is full, everything is compiled anew as without it.
    """
    config: Any = jax.config  # its options are added when JAX is imported
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    try:
        str(folder).encode()  # JAX takes no name with bytes that are no text
        folder.mkdir(parents=True, exist_ok=True)
        remove_oldest(folder, MAX_BYTES)
        remove_damaged(folder)
    except (OSError, UnicodeEncodeError):
        return
    if not os.access(folder, os.W_OK):
        return
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # hundreds of programs of a few milliseconds are half of the time
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the files of a folder that were written first, until the rest holds no more than so
    many bytes.

    What is no plain file (a pipe, for which JAX would wait for ever) is removed too. Others may
    remove files meanwhile. JAX's own bound (`jax_compilation_cache_max_size`) reads all files for
    every program that is added.
    """
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            found = entry.stat()
            if stat.S_ISREG(found.st_mode):
                files.append((found.st_mtime, found.st_size, entry.path))
            elif not stat.S_ISDIR(found.st_mode):
                os.unlink(entry.path)
    excess = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
        excess -= size


def remove_damaged(folder: Path) -> None:
    """Remove programs that a killed process or a full disk cut short: JAX would compile them anew
    each time, as it never writes over one that is there.

    Only those are looked at that were written since the last look, which is kept as the time of an
    empty file.
    """
    marker = folder / _LOOKED
    since = marker.stat().st_mtime_ns if marker.exists() else 0
    marker.touch()  # before the look: what is written meanwhile is looked at next time
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if not entry.name.endswith(_SUFFIX) or not entry.is_file(follow_symlinks=False):
                continue
            if entry.stat().st_mtime_ns >= since and not _is_whole(Path(entry).read_bytes()):
                os.unlink(entry)


def _is_whole(program: bytes) -> bool:
    """Whether a compressed program can be unpacked, or cannot be looked at."""
    unpacker: Any = zlib
    if program.startswith(_ZSTD):
        unpacker = _zstd()
    if unpacker is None:
        return True
    try:
        unpacker.decompress(program)
    except (zlib.error, getattr(unpacker, "ZstdError", zlib.error)):
        return False
    return True


def _zstd() -> Any:
    """What JAX takes instead of zlib where it is there: Python 3.14 has it, else a package."""
    for name in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None
