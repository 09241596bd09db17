"""Makes notebooks/*.ipynb, with what their cells print and draw, from the scripts beside them.

    python -m tools.notebooks             # make notebooks
    python -m tools.notebooks NAME ...    # some of them

Takes about a minute. Needs no Jupyter: a cell is executed as Python, and its outputs are what it
prints and the figures it leaves open. The scripts are in the percent format, which jupytext pairs
with the notebooks: after a change in Jupyter, run this again.
"""

import base64
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "notebooks"
DPI = 80
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Cell(NamedTuple):
    kind: str
    """`code` or `markdown`."""
    source: str


def cells(script: str) -> list[Cell]:
    """Those of a script in the percent format, whose header is left out."""
    found: list[tuple[str, list[str]]] = []
    for line in script.splitlines():
        if line == "# %%" or line.startswith("# %% "):
            found.append(("markdown" if "[markdown]" in line else "code", []))
        elif found:
            kind, lines = found[-1]
            lines.append(line.removeprefix("#").removeprefix(" ") if kind == "markdown" else line)
    return [Cell(kind, "\n".join(lines).strip("\n")) for kind, lines in found]


def execute(source: str, names: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """Runs a cell among the names of those before it; its outputs as a notebook has them."""
    import matplotlib.pyplot as plt

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, label, "exec"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines(text)})
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        png = base64.b64encode(picture.getvalue()).decode()
        outputs.append({"data": {"image/png": png}, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def lines(text: str) -> list[str]:
    """As notebooks keep text."""
    return text.splitlines(keepends=True)


def notebook(script: str, label: str) -> dict[str, Any]:
    """The document, executed from top to bottom."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(cells(script)):
        made: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": lines(cell.source),
        }
        if cell.kind == "code":
            count = 1 + sum(each["cell_type"] == "code" for each in found)
            outputs = execute(cell.source, names, f"{label}, cell {number}")
            made |= {"execution_count": count, "outputs": outputs}
        found.append(made)
    return {"cells": found, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def main(wanted: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        sys.exit(f"there is no notebook {', '.join(unknown)}; known: {', '.join(known)}")
    for name in wanted or known:
        clock = time.perf_counter()
        document = notebook(known[name].read_text(), f"{name}.py")
        path = known[name].with_suffix(".ipynb")
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        size = path.stat().st_size / 1e3
        print(f"{path.name}: {size:.0f} kB, {time.perf_counter() - clock:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
