"""Steps that begin again with each epoch, as steps of the whole run."""

from typing import Any

from ntk_tt.times.log_columns import number


class StepCounter:
    """Steps that begin again with each epoch, counted on."""

    def __init__(self, note: Any, path: str):
        self._note, self._path = note, path
        self._raw, self._epoch, self._first, self._spacing, self._base = -1.0, None, 0.0, 0.0, 0.0
        self._cell: Any = None
        # epoch and base from there on
        self._bases: list[tuple[float, float]] = [(-float("inf"), 0.0)]
        self._before: tuple[float, float] | None = (
            None  # last step and base of the epoch before, until this one has a second record
        )

    def count_on(self, raw: float, cell: Any) -> float:
        """The step since the run's beginning."""
        if cell == self._cell and raw > self._raw and self._before is None:
            self._spacing, self._raw = raw - self._raw, raw
            return raw + self._base
        self._cell, epoch = cell, number(cell)
        if epoch is None or epoch != epoch:
            return raw + self._base
        if self._epoch is None:
            self._first = raw
        elif epoch < self._epoch:  # a new run, or one that was resumed
            while self._bases[-1][0] > epoch:
                self._bases.pop()
            self._base, self._before = self._bases[-1][1], None
        # that was one stray record
        elif self._before is not None and epoch == self._epoch and raw > self._before[0]:
            self._base, self._before = self._before[1], None
            self._bases.pop()
        elif epoch > self._epoch and raw < self._raw and raw <= self._first and epoch == int(epoch):
            self._before = self._raw, self._base
            self._base += self._raw + self._spacing - raw
            self._bases.append((epoch, self._base))
            self._note(
                f"the steps of {self._path!r} begin again with each epoch; they are counted on"
            )
        else:
            self._before = None
            if raw > self._raw:
                self._spacing = raw - self._raw
        self._raw, self._epoch = raw, epoch
        return raw + self._base
