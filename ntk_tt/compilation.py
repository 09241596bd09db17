"""Compiled programs kept on disk, so that the next run of the same shapes starts at once."""

import os
import warnings
from pathlib import Path

import jax

MAX_BYTES = 1 << 30  # of programs, the least recently used go first; a run of a small network keeps about 2 MB


def keep_compiled(folder: Path) -> None:
    """Have JAX keep what it compiles in a folder and look there first; programs are found by all that they depend on.

    What the user has said of this themself (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE=false`) stays, and
    where the folder cannot be written, or the disk is full, everything is compiled anew as without it.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # hundreds of programs of a few milliseconds are half of the time
