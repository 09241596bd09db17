"""Files of a feature store: its manifest, its blocks' headers, and what can be wrong with them."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ntk_tt.features.manifest import DTYPES, identity
from ntk_tt.runtime.files import open_plain

MANIFEST = "manifest.json"
_LEFTOVER_SECONDS = 3600.0  # a partial file this old belongs to a writer that was killed
_MAX_MANIFEST_BYTES = 64 << 20  # of a network with 500,000 parameter arrays
_MAX_NUMBER = 2**40  # of samples, outputs or coordinates: beyond is damage


def read_manifest(file: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is no such file.

    Raises:
        ValueError: it is damaged: no manifest of features that can be.
    """
    try:
        with open_plain(file) as opened:
            data = opened.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {megabytes(_MAX_MANIFEST_BYTES)}")
        manifest = json.loads(data)
        if not isinstance(manifest, dict):
            raise ValueError("it is not a JSON object")
        for name in ("num_samples", "num_outputs", "num_projections", "block_size"):
            if type(manifest.get(name)) is not int or not 1 <= manifest[name] < _MAX_NUMBER:
                raise ValueError(f"its {name!r} is {shortened(manifest.get(name))}")
        if manifest.get("dtype") not in DTYPES:
            raise ValueError(f"its 'dtype' is {shortened(manifest.get('dtype'))}")
        identity(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, RecursionError) as error:
        reason = (
            "its JSON is nested too deeply"
            if isinstance(error, RecursionError)
            else (isinstance(error, OSError) and error.strerror) or error
        )
        raise ValueError(
            f"store: {file} is damaged ({reason}); delete its folder or give another"
        ) from error
    return manifest


def fault_of_manifest(file: Path, wanted: Mapping[str, Any]) -> str:
    """Why the file is not the manifest it must be; empty where it is, or where there is none."""
    try:
        held = read_manifest(file)
    except ValueError as error:
        return str(error).removeprefix("store: ").partition("; ")[0]
    difference = "" if held is None else first_difference(held, wanted)
    return difference and f"{file} is damaged ({difference})"


def metadata_of(header: bytes) -> dict[str, Any] | None:
    """A safetensors header's own record, or None where it is not whole."""
    try:
        record = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@contextlib.contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Turns an OSError inside into one that says what failed, where, and what to do."""
    try:
        yield
    except OSError as error:
        remedy = "check the folder and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            existing = next(
                path for path in (folder, *folder.absolute().parents) if os.path.exists(path)
            )
            remedy = (
                f"the disk is full ({megabytes(shutil.disk_usage(existing).free)} free): "
                "make room and run again, what was written stays"
            )
        raise OSError(
            error.errno, f"store: {what}: {error.strerror}; {remedy}", str(folder)
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Partial files of killed writers. Only old ones: a young one may be at work."""
    for partial in folder.glob(".*.partial"):
        try:
            if time.time() - partial.stat().st_mtime > _LEFTOVER_SECONDS:
                partial.unlink()
        except OSError:  # another process removed it, or the folder is read-only
            continue


def first_difference(held: Any, wanted: Any, name: str = "") -> str:
    """`'name' is … there and … here` for the first entry that differs; empty where none does."""
    if not (isinstance(held, Mapping) and isinstance(wanted, Mapping)):
        return (
            ""
            if held == wanted
            else f"{name!r} is {shortened(held)} there and {shortened(wanted)} here"
        )
    for key in [*held, *(key for key in wanted if key not in held)]:
        if difference := first_difference(
            held.get(key, "absent"),
            wanted.get(key, "absent"),
            f"{name}/{key}" if name else str(key),
        ):
            return difference
    return ""


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
