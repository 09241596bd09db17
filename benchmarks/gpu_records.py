"""Measurements that are written as they are done, by card, so that an interrupted run goes on."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_tt.report.document import environment, write_json


class Records:
    """What is known of this card, from the first of some files that is there; kept in one file."""

    def __init__(self, *, read: Sequence[Path], write: Path, described: Mapping[str, Any]):
        device = jax.devices()[0]
        self.card, self.path = device.device_kind, write
        known = next((json.loads(path.read_text()) for path in read if path.exists()), {})
        self.document: dict[str, Any] = {"size": plain(described), "cards": known.get("cards", {})}
        if known.get("size", self.document["size"]) != self.document["size"]:
            self.document["cards"] = {}  # of other sizes: not comparable
        self.own = self.document["cards"].setdefault(self.card, {"measurements": {}})
        version = " ".join(device.client.platform_version.split())
        self.own["environment"] = environment(0) | {"platform": version}

    def names(self) -> list[str]:
        """Of what was measured."""
        return [name for name, each in self.own["measurements"].items() if "failed" not in each]

    def get(self, name: str) -> dict[str, Any]:
        """Nothing where it was not measured."""
        found = self.own["measurements"].get(name, {})
        return {} if "failed" in found else found

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        self.own["measurements"][name] = plain(values)
        write_json(self.path, self.document)


def run(
    measurements: Mapping[str, Callable[[], dict[str, Any]]], records: Records, *, seconds: float
) -> bool:
    """Makes those that are missing, until the time is over; whether all are there.

    One that fails (a small card's memory, for example) says so in its record and is tried again by
    the next call.
    """
    start = time.monotonic()
    for name, measure in measurements.items():
        if name in records.names():
            continue
        if time.monotonic() - start > seconds:
            break
        clock = time.monotonic()
        try:
            values = measure()
        except Exception as problem:  # what a card cannot do must not end the others
            values = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
        stats = jax.devices()[0].memory_stats() or {}
        took = {"wall_seconds": time.monotonic() - clock}
        if "peak_bytes_in_use" in stats:
            took["peak_bytes_so_far"] = stats["peak_bytes_in_use"]
        records.add(name, {**values, **took})
        told = values.get("failed") or f"{took['wall_seconds']:.1f} s"
        print(f"{name}: {told}", flush=True)
    return all(name in records.names() for name in measurements)


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    return value.item() if isinstance(value, np.generic) else value
