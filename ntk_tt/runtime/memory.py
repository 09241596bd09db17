"""How much memory there is, and what a request needs."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import psutil

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
# of what is free may be planned with: the compiler, allocators and other programs need the rest
_SHARE = 0.5
_BLOCK_PART = 8  # of what may be used, the part that is kept from the features
# D' below which a kernel says little: its relative error is above 6 % even where Θ has rank one
_LEAST_PROJECTIONS = 256
# What JAX takes to start and to compile the first programs: of data, and of addresses, where what
# its threads only reserve counts (a stack and an arena of the allocator each; NPROC=32 has 75
# threads).
_START_BYTES, _THREAD_BYTES, _THREADS, _THREADS_PER_CORE = 512 << 20, 72 << 20, 10, 2.25
_CGROUP, _PROC = Path("/sys/fs/cgroup"), Path("/proc/self")
# (limit, use, the entry of memory.stat with pages of files that the kernel takes back at once), for
# cgroup v2 and v1
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(device: Any = None) -> int:
    """Memory that may be planned with on a device (the first where none is given): half of what is
    free there.
    """
    device = jax.local_devices()[0] if device is None else device
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * max(0, stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return host_bytes()


def host_bytes() -> int:
    """Memory that may be planned with on the machine itself, whatever its devices are; starts no
    device.

    Half of what is free: of the machine, of the container (control groups of either version, the
    process's own and those it lies in), and of what `ulimit` leaves of address space (RLIMIT_AS,
    which counts what is only reserved) and data (RLIMIT_DATA).
    """
    return int(
        _SHARE * max(0.0, min(psutil.virtual_memory().available, _container_bytes(), *_limits()))
    )


def check_limits() -> None:
    """Raises ValueError where `ulimit` leaves too little to start JAX at all, which would end the
    process without a word. Starts no device.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    reserved = int((_THREADS + _THREADS_PER_CORE * cores) * _THREAD_BYTES)
    addresses, data = _limits()
    for flag, left, needed in (
        ("-v", addresses, _START_BYTES + reserved),
        ("-d", data, _START_BYTES),
    ):
        if left < needed:
            refuse(
                "JAX and its compiler",
                needed,
                max(0, int(left)),
                f"the limit of this process (ulimit {flag}) leaves no more: raise it by what is "
                "missing",
            )


def _container_bytes() -> float:
    """What a Linux container may still take: the least over the process's control group and all
    that hold it.
    """
    return min((_group_bytes(folder) for folder in _groups()), default=float("inf"))


def _groups() -> list[Path]:
    """Folders of the process's memory control groups, from its own to the root, as far as they can
    be seen from here.
    """
    try:
        lines = (_PROC / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    found = [_CGROUP, _CGROUP / "memory"]
    for line in lines:  # "0::/path" for version 2, "4:memory:/path" for version 1
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers == "":
            root = _CGROUP
        elif "memory" in controllers.split(","):
            root = _CGROUP / "memory"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return found


def _group_bytes(folder: Path) -> float:
    """What a control group may still take; infinity where it has no limit."""
    for limit_file, use_file, reclaimable in _CGROUP_FILES:
        try:
            limit, used = ((folder / name).read_text().strip() for name in (limit_file, use_file))
            if limit == "max":
                continue
            cached = re.search(
                rf"^{reclaimable} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE
            )
            return float(limit) - max(0.0, float(used) - (float(cached[1]) if cached else 0.0))
        except (OSError, ValueError):
            continue
    return float("inf")


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _limits() -> tuple[float, float]:
    """What `ulimit -v` and `ulimit -d` leave; infinity where there is no such limit, or the system
    does not hold to it.
    """
    if sys.platform != "linux":
        return float("inf"), float("inf")
    import resource

    used = psutil.Process().memory_info()
    addresses, data = (
        float("inf") if limit == resource.RLIM_INFINITY else float(limit)
        for limit in (
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        )
    )
    return addresses - used.vms, data - used.data


def affordable_projections(
    num_rows: int, wanted: int, itemsize: int, usable: int, *, most: int
) -> int:
    """The D' that memory pays for: `wanted`, or as many as so many rows of features may have.

    Seven eighths of what may be used go into the features, the rest is for blocks of samples and
    products.

    Args:
        num_rows: of all features that are held at a time: samples × outputs, of one pass or of
            several.
        usable: bytes that may be used.
        most: bytes that the features may take, however much is free.

    Raises:
        ValueError: less than the least that says anything about training.
    """
    for_features = min(most, usable - usable // _BLOCK_PART)
    least = min(wanted, _LEAST_PROJECTIONS)
    if num_rows * least * itemsize > for_features:
        refuse(
            f"features of {num_rows} rows (samples × outputs) with the least D' = {least}",
            num_rows * least * itemsize,
            for_features,
            "take fewer samples (--per-class) or fewer classes, or give the process more memory",
        )
    return min(wanted, for_features // (num_rows * itemsize))


def compiled_bytes(compiled: Any) -> int:
    """What a compiled program takes beside its arguments."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def compiled_blocks(
    compile_block: Callable[[int], Any], num_samples: int, most: int, least: int = 1
) -> tuple[Any, int]:
    """A pass over samples, compiled for blocks of one size, and that size: at most `most`, and as
    many as memory holds.

    Args:
        compile_block: the size to the compiled program (`jax.stages.Compiled`).
        least: samples that must be in one block.

    Raises:
        ValueError: not even so few fit.
    """
    size, usable = even_size(num_samples, most), available_bytes()
    while True:
        compiled = compile_block(size)
        needed = compiled_bytes(compiled)
        if needed <= usable:
            return compiled, size
        if size <= least:
            refuse(
                f"the activations of {'one sample' if least == 1 else f'a batch of {least}'}",
                needed,
                usable,
                "take smaller inputs (--image-size), a smaller network or batch",
            )
        size = even_size(num_samples, max(least, min(size - 1, size * usable // needed)))


def even_size(count: int, most: int) -> int:
    """The size of blocks, at most `most`, that cuts `count` samples most evenly."""
    return -(-count // -(-count // most))


def refuse(what: str, needed: int, usable: int, remedy: str) -> None:
    """Raises the one line that says how much is needed, how much may be used, and what to lower."""
    raise ValueError(
        f"memory: {what} need {format_bytes(needed)}, but {format_bytes(usable)} may be used; "
        f"{remedy}"
    )


def parse_bytes(text: str | int) -> int:
    """`4GiB`, `500 MB` or a number of bytes.

    Raises:
        ValueError: another form, or nothing at all.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", str(text).lower())
    if not found or found[2] not in _UNITS or found[1].count(".") > 1 or float(found[1]) <= 0:
        raise ValueError(f"memory: give an amount such as '4GiB' or '500MB', got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def format_bytes(count: int) -> str:
    """`3.2 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
