"""How much memory there is, and what a request needs."""

import re
from pathlib import Path
from typing import Any

import jax
import psutil

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SHARE = 0.8  # of what is free may be planned with: allocators and other programs need some
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: Any = None) -> int:
    """Memory that may be planned with on a device (the first where none is given): four fifths of what is free there."""
    device = jax.local_devices()[0] if device is None else device
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return host_bytes()


def host_bytes() -> int:
    """Memory that may be planned with on the machine itself, whatever its devices are; starts no device."""
    return int(_SHARE * min(psutil.virtual_memory().available, _container_bytes()))


def _container_bytes() -> float:
    """What a Linux container may still take."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return float("inf") if limit == "max" else float(limit) - float(used)
    except (OSError, ValueError):
        return float("inf")


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
