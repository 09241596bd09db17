"""Compiled programs kept on disk, so that the next run of the same shapes starts at once."""

import contextlib
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 256 << 20  # of programs; a run of a small network keeps about 2 MB


def keep_compiled(folder: Path) -> None:
    """Have JAX keep what it compiles in a folder and look there first; programs are found by all
    that they depend on.

    Where the folder has grown past `MAX_BYTES` the oldest programs are removed first. What the user
    has said of this themself (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE=false`)
    stays, and where the folder cannot be written, or the disk is full, everything is compiled anew
    as without it.
    """
    config: Any = jax.config  # its options are added when JAX is imported
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    try:
        str(folder).encode()  # JAX takes no name with bytes that are no text
        folder.mkdir(parents=True, exist_ok=True)
        remove_oldest(folder, MAX_BYTES)
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
