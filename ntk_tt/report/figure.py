"""The figure of a report: loss, error, and predicted against real times."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_tt.runtime.files import write_whole

_PREDICTED, _REAL = "#c1440e", "#1f5673"
_SPIKE, _ROOM = 3.0, 1.5  # times what curves begin with: what is cut off, and where
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def plot_report(report: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> None:
    """Draw a report and write it to `path` (PNG, PDF or SVG by its suffix); its folder is made, and
    the file replaced as a whole. Arguments as `draw_report`.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    write_figure(draw_report(report, runs), path)


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure (PNG, PDF or SVG by its suffix) and close it; its folder is made, and the
    file replaced as a whole.
    """
    import matplotlib.pyplot as plt

    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=150, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, drawn.getbuffer())


def draw_report(report: dict[str, Any], runs: list[dict[str, Any]]) -> Any:
    """The figure of a report.

    Args:
        report: the JSON document, with or without truth.
        runs: the curve of each predicted seed, `{"loss", "error"}`, for the band.
    """
    import matplotlib.pyplot as plt

    prediction, truth, task, optimizer = (
        report["prediction"],
        report["truth"],
        report["task"],
        report["optimizer"],
    )
    panels = 2 if truth is None else 3
    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.6), constrained_layout=True)
    for axis, quantity, label in zip(
        axes, ("loss", "error"), ("training loss", "training error"), strict=False
    ):
        if truth is not None:
            axis.plot(
                truth["steps"], truth[quantity], color=_REAL, label="real training", linewidth=2
            )
        _validation_curves(axis, quantity, prediction, truth)
        axis.plot(
            prediction["steps"],
            prediction[quantity],
            color=_PREDICTED,
            label="predicted, without training",
            linewidth=2,
            linestyle="--",
        )
        if len(runs) > 1:
            curves = np.asarray([run[quantity] for run in runs])
            axis.fill_between(
                prediction["steps"],
                curves.min(0),
                curves.max(0),
                color=_PREDICTED,
                alpha=0.2,
                linewidth=0,
            )
        _interval_band(axis, prediction, quantity)
        drawn = [each[quantity] for each in (prediction, truth) if each is not None]
        drawn += [
            each["validation"][quantity]
            for each in (prediction, truth)
            if each is not None and each.get("validation") is not None
        ]
        top, highest = axis_top(drawn)
        axis.set(
            xlabel="optimiser step",
            ylabel=label if highest is None else f"{label} (goes up to {highest:.3g})",
            ylim=(0, top),
            xlim=(0, prediction["steps"][-1]),
        )
        axis.grid(alpha=0.25)
        _seconds_axis(axis, report["cost"])
    axes[0].legend(frameon=False)
    if truth is not None:
        _times_panel(axes[2], prediction["times"], truth["times"], prediction["steps"][-1])
    batch = "full batch" if optimizer["batch_size"] is None else f"batch {optimizer['batch_size']}"
    refused = (
        "; refused: trust none" if (report.get("verdict") or {}).get("trust") == "none" else ""
    )
    name = optimizer.get("name", "sgd")  # reports of before have none
    kind = f"momentum {optimizer['momentum']:g}" if name == "sgd" else name
    title = (
        f"{task['model']} on {task['data']}: learning rate {optimizer['learning_rate']:g}, "
        f"{kind}, {batch}{refused}"
    )
    # Names of files are no formulas, whatever dollar signs they have, and may hold bytes that are
    # no text.
    figure.suptitle(title.encode(errors="replace").decode(), fontsize=10, parse_math=False)
    return figure


def _validation_curves(
    axis: Any, quantity: str, prediction: dict[str, Any], truth: dict[str, Any] | None
) -> None:
    """Of samples that are not trained on, thin and dotted."""
    for curve, colour, words in ((prediction, _PREDICTED, "predicted"), (truth, _REAL, "real")):
        found = None if curve is None else curve.get("validation")
        if curve is not None and found is not None:
            axis.plot(
                curve["steps"],
                found[quantity],
                color=colour,
                label=f"{words}, not trained on",
                linewidth=1.2,
                linestyle=":",
            )


def axis_top(curves: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Where an axis ends, and how high the curves go beyond; (None, None) where all of them fit.

    A spike of several times what the curves begin and end with would flatten all the rest.
    """
    numbers = [np.asarray(curve, np.float64) for curve in curves]
    numbers = [each[np.isfinite(each)] for each in numbers]
    numbers = [each for each in numbers if len(each)]
    if not numbers:
        return None, None
    highest = max(float(each.max()) for each in numbers)
    usual = max(float(max(each[0], np.median(each))) for each in numbers)
    if not 0 < _SPIKE * usual < highest:
        return None, None
    return _ROOM * usual, highest


def interval_edges(
    prediction: dict[str, Any], quantity: str
) -> tuple[list[float], list[float], list[float]]:
    """Levels of the loss or the error in falling order, and between which steps each is reached in
    90 of 100 runs; an end that lies later than the last step is the last step.
    """
    last = float(prediction["steps"][-1])
    found = {
        float(each["level"]): (each["low"], each["high"])
        for each in prediction.get("levels", ())
        if each["of"] == quantity and each["low"] is not None
    }
    family = (prediction.get("intervals") or {}).get(f"{quantity}_below", {})
    for name, each in family.items():
        if each["low"] is not None:
            found[float(name)] = (each["low"], each["high"])
    levels = sorted(found, reverse=True)
    low = [float(found[level][0]) for level in levels]
    high = [last if found[level][1] is None else float(found[level][1]) for level in levels]
    return levels, low, high


def _interval_band(axis: Any, prediction: dict[str, Any], quantity: str) -> None:
    levels, low, high = interval_edges(prediction, quantity)
    if len(levels) > 1:
        axis.fill_betweenx(
            levels, low, high, color="0.5", alpha=0.2, linewidth=0, label="90 % interval"
        )


def _seconds_axis(axis: Any, cost: dict[str, Any]) -> None:
    """The time of training above, in a unit that makes small numbers of it."""
    pace = cost.get("seconds_per_step")
    if not pace or not np.isfinite(pace):
        return
    whole = pace * axis.get_xlim()[1]
    unit, size = next(((unit, size) for unit, size in _UNITS if whole >= 2 * size), _UNITS[-1])
    machine = "here" if cost.get("machine", "this") == "this" else "on the other machine"
    above = axis.secondary_xaxis(
        "top", functions=(lambda step: step * pace / size, lambda time: time * size / pace)
    )
    above.set_xlabel(f"{unit} of training {machine}", fontsize=8)
    above.tick_params(labelsize=8)


def _times_panel(axis: Any, predicted: dict, real: dict, num_steps: int) -> None:
    families = {
        "epsilon_relative": ("o", "ε-time, relative"),
        "loss_below": ("s", "loss below"),
        "error_below": ("^", "error below"),
    }
    axis.plot([0, num_steps], [0, num_steps], color="0.6", linewidth=1)
    for family, (marker, label) in families.items():
        pairs = [(real[family][name], predicted[family][name]) for name in predicted[family]]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            axis.scatter(*zip(*pairs, strict=True), marker=marker, label=label, alpha=0.8)
    axis.set(
        xlabel="real time [steps]",
        ylabel="predicted time [steps]",
        xlim=(0, num_steps),
        ylim=(0, num_steps),
        aspect="equal",
    )
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
