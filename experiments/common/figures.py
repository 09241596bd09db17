"""Pieces of figures that experiments share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.common.statistics import pairs

PREDICTED, REAL, OTHER = "#c1440e", "#1f5673", "#6b8e23"


def subplots(
    rows: int, columns: int, *, side: float = 3.4, aspect: float = 1.0
) -> tuple[Any, np.ndarray]:
    """A figure that is drawn without a display, and its axes (rows, columns); nothing stays open in
    pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * aspect * columns, side * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.grid(alpha=0.25)
    return figure, axes


def scatter(
    axis: Any,
    records: Sequence[dict[str, Any]],
    family: str,
    limit: float,
    *,
    title: str,
    method: str = "replay",
    labels: Iterable[str] = (),
) -> None:
    """Predicted against real times, with a band of ± `limit` around the diagonal; `labels` where
    the times' names are not fractions.
    """
    last = max((record["num_steps"] for record in records), default=1)
    diagonal = np.asarray([0, last])
    axis.plot(diagonal, diagonal, color="0.5", linewidth=1)
    axis.fill_between(
        diagonal,
        diagonal * (1 - limit),
        diagonal * (1 + limit),
        color="0.5",
        alpha=0.15,
        linewidth=0,
    )
    names = list(labels) or (list(records[0]["times"]["real"][family]) if records else [])
    for name, marker in zip(names, "os^", strict=False):
        points = [pair for pair in pairs(records, method, family, [name]) if None not in pair]
        if points:
            predicted, real, _ = zip(*points, strict=True)
            axis.scatter(
                real,
                predicted,
                s=16,
                marker=marker,
                alpha=0.7,
                label=name if labels else f"{100 * float(name):g} %",
            )
    axis.set(
        xlabel="real [steps]",
        ylabel="predicted [steps]",
        xlim=(0, last),
        ylim=(0, last),
        aspect="equal",
    )
    axis.set_title(title, fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=7)
