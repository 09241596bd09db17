"""The figure of a report: loss, error, and predicted against real times."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ntk_tt.runtime.files import write_whole

_PREDICTED, _REAL = "#c1440e", "#1f5673"


def plot_report(report: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> None:
    """Draw a report and write it to `path` (PNG, PDF or SVG by its suffix); its folder is made, and
    the file replaced as a whole. Arguments as `draw_report`.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    figure, drawn = draw_report(report, runs), io.BytesIO()
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
        axis.set(
            xlabel="optimiser step", ylabel=label, ylim=(0, None), xlim=(0, prediction["steps"][-1])
        )
        axis.grid(alpha=0.25)
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
