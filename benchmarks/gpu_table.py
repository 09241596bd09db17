"""What `benchmarks.gpu` measured, as a table for the terminal."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_records import Records


def table(records: Records, networks: Sequence[str]) -> str:
    """Seconds of everything, over C VJPs, of training, and of the card's peak."""
    top = records.get("peak")
    flops, speed = top.get("flops_per_second", {}), top.get("bytes_per_second", 0.0)
    peaks = [f"{value / 1e12:.3g} TFLOP/s {name}" for name, value in flops.items()]
    lines = [
        f"{records.card}: {', '.join([*peaks, f'{speed / 1e9:.3g} GB/s'])}",
        f"{'':34}{'seconds':>10}{'× C VJPs':>10}{'training/':>10}{'TFLOP/s':>9}{'of peak':>9}"
        f"{'GB/s':>8}{'of peak':>9}",
    ]
    for network in networks:
        of_passes, trained = (records.get(f"{network} {name}") for name in ("passes", "training"))
        floor, vjps = (of_passes.get(name, {}) for name in ("floor", "C VJPs"))
        rows = {
            f"{network} {name}": (each, "float32")
            for name, each in of_passes.items()
            if isinstance(each, dict)
        }
        for name in (name for name in records.names() if name.startswith(f"{network} ")):
            if " passes" not in name:
                row, precision = records.get(name), name.rpartition(" ")[2]
                if " features " in name:
                    row = {**row, "flops": floor.get("flops")}
                elif row is trained:
                    step = of_passes.get("forward and VJP", {}).get("flops")
                    row, precision = {**row, "flops": step and step * row["steps"][-1]}, "float32"
                rows[name] = (row, precision)
        for name, (row, precision) in rows.items():
            cells = [
                (row["seconds"], 10, ".4g"),
                (ratio(row["seconds"], vjps.get("seconds")), 10, ".2f"),
                (ratio(trained.get("seconds"), row["seconds"]), 10, ".1f"),
                (ratio(row.get("flops"), 1e12 * row["seconds"]), 9, ".3g"),
                (ratio(row.get("flops"), row["seconds"] * flops.get(precision, 0)), 9, ".0%"),
                (ratio(row.get("bytes"), 1e9 * row["seconds"]), 8, ".3g"),
                (ratio(row.get("bytes"), row["seconds"] * speed), 9, ".0%"),
            ]
            lines.append(
                f"{name:34}"
                + "".join(
                    f"{'–' if value is None else format(value, form):>{width}}"
                    for value, width, form in cells
                )
            )
        halved = {
            name.removeprefix(f"{network} "): half_time(row) for name, (row, _) in rows.items()
        }
        told = (f"{name} {steps}" for name, steps in halved.items() if steps)
        lines.append(f"{network}, steps until half of the loss: {', '.join(told) or 'none'}")
    return "\n".join(lines)


def half_time(row: dict[str, Any]) -> int | None:
    """The first step whose loss is below half of the initial one; None where there is none."""
    curve = zip(row.get("steps", ()), row.get("loss", ()), strict=True)
    return next((step for step, loss in curve if loss and loss < 0.5 * row["loss"][0]), None)


def ratio(value: float | None, over: float | None) -> float | None:
    return value / over if value is not None and over else None
