"""Wall time with compilation kept apart."""

import time
from typing import ClassVar

import jax.monitoring


class Stopwatch:
    """`with Stopwatch() as watch: …` then `watch.seconds` (without compilation) and
    `watch.compile_seconds`; `watch.processor_seconds` is processor time in the same proportion.

    JAX reports how long each tracing, lowering and compilation took; their union is taken out of
    the wall time, so nested traces count once. Block on the results inside.
    """

    _running: ClassVar["list[Stopwatch]"] = []
    _listening = False

    def __enter__(self) -> "Stopwatch":
        if not Stopwatch._listening:
            jax.monitoring.register_event_duration_secs_listener(Stopwatch._hear)
            Stopwatch._listening = True
        self._intervals: list[tuple[float, float]] = []
        self._start, self._processor = time.perf_counter(), time.process_time()
        Stopwatch._running.append(self)
        return self

    def __exit__(self, *_) -> None:
        wall = time.perf_counter() - self._start
        Stopwatch._running.remove(self)
        self.compile_seconds = min(wall, _union(self._intervals))
        self.seconds = wall - self.compile_seconds
        processor = time.process_time() - self._processor
        self.processor_seconds = processor * self.seconds / max(wall, 1e-9)

    @staticmethod
    def _hear(event: str, duration_secs: float, **_) -> None:
        if event.startswith("/jax/core/compile"):
            now = time.perf_counter()
            for watch in Stopwatch._running:
                watch._intervals.append((max(now - duration_secs, watch._start), now))


def _union(intervals: list[tuple[float, float]]) -> float:
    total, end = 0.0, 0.0
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
