"""The figure of a sweep: time to the target over the learning rate."""

import math
from typing import Any

from ntk_tt.report.sweep_text import heading, level_words, setting_names, shown

_LINES = 8  # more cannot be told apart
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def draw_sweep(document: dict[str, Any]) -> Any:
    """Time to the target over the learning rate: a line for each batch size, and for each optimiser
    or network where there are several. At each rate it is the best of the other values. Where no
    setting of a rate is stable it is shaded.

    Args:
        document: of a `SweepReport`.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    rows = document["rows"]
    unit, size = _unit(rows)
    figure, axis = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
    for number, (label, group) in enumerate(_groups(document).items()):
        colour = plt.get_cmap("viridis")(number / max(1, min(_LINES, len(_groups(document))) - 1))
        points = _best(group)
        axis.plot(
            [rate for rate, _ in points],
            [seconds / size for _, seconds in points],
            marker="o",
            markersize=4,
            color=colour,
            label=label,
        )
        refused = [row for row in group if row["trust"] == "none" and row["seconds"] is not None]
        axis.scatter(
            [row["learning_rate"] for row in refused],
            [row["seconds"] / size for row in refused],
            marker="x",
            color=colour,
            alpha=0.5,
        )
    unstable = unstable_from(rows)
    if unstable is not None:
        axis.axvspan(unstable, _edge(rows), color="#c1440e", alpha=0.12, label="not stable")
    axis.set(
        xscale="log",
        xlabel="learning rate",
        ylabel=f"time to {level_words(document).lower()} [{unit}]",
    )
    if any(_best(group) for group in _groups(document).values()):
        axis.set_yscale("log")
    axis.grid(alpha=0.25, which="both")
    axis.legend(frameon=False, fontsize=8)
    return figure


def unstable_from(rows: list[dict[str, Any]]) -> float | None:
    """The rate from which on no setting is stable: the middle, in the logarithm, between the last
    rate that some setting stands and the next; None where the largest is stable.
    """
    rates = sorted({row["learning_rate"] for row in rows})
    stable = [row["learning_rate"] for row in rows if row["trust"] != "none"]
    beyond = [rate for rate in rates if not stable or rate > max(stable)]
    if not beyond:
        return None
    return beyond[0] if not stable else math.sqrt(beyond[0] * max(stable))


def _edge(rows: list[dict[str, Any]]) -> float:
    return 1.15 * max(row["learning_rate"] for row in rows)


def _groups(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what a line stands for, the first few."""
    differing = setting_names(document)
    names = [name for name in ("model", "trainable", "optimizer") if name in differing]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        parts = [shown(name, row.get(name)) for name in names]
        parts.append(f"{heading('batch_size')} {shown('batch_size', row.get('batch_size'))}")
        found.setdefault(", ".join(parts), []).append(row)
    return dict(list(found.items())[:_LINES])


def _best(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The least time of the settings of each rate that are trusted and reach the target."""
    best: dict[float, float] = {}
    for row in rows:
        if row["seconds"] is None or row["trust"] == "none":
            continue
        rate = row["learning_rate"]
        best[rate] = min(best.get(rate, math.inf), row["seconds"])
    return sorted(best.items())


def _unit(rows: list[dict[str, Any]]) -> tuple[str, float]:
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    longest = max(times, default=0.0)
    return next(((unit, size) for unit, size in _UNITS if longest >= 2 * size), _UNITS[-1])
