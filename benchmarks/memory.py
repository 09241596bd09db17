"""Peak memory of `ntk-tt predict` by method and number of classes, under a limit of addresses.

    python -m benchmarks.memory --data folder:PATH      # 20 and 40 classes × 50 images, 8 GiB
    python -m benchmarks.memory --data folder:PATH --label before --tree ../older
    python -m benchmarks.memory --table                 # what was measured, as a table

Each prediction is a process of its own; `--tree` is another checkout to measure instead.
What is in the report is not measured again, so a run that was stopped goes on. Memory is the
process's own account (VmHWM: most that was resident; VmPeak: most address space, which is what the
limit counts). Steps hardly matter for it, so few are taken.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import _environment as machine

METHODS = (
    "replay",
    "head",
    "curvature",
    "one-shot",
    "ode",
    "sde",
    "sde-diagonal",
    "sde-diagonal-constant",
)
# as a first run compiles: nothing is found that an earlier one kept
_COLD = {"NTK_TT_CACHE": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
_CHILD = """
import json, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import jax
from ntk_tt.cli import main
code = 0
try:
    main(sys.argv[2:])
except SystemExit as ended:
    code = ended.code
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
used = resource.getrusage(resource.RUSAGE_SELF)
print("\\n" + json.dumps({
    "exit": code,
    "resident_bytes": 1024 * int(status["VmHWM"].split()[0]),
    "address_bytes": 1024 * int(status["VmPeak"].split()[0]),
    "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
    "jax": jax.__version__,
    "python": sys.version.split()[0],
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder:PATH with at least as many classes as are asked for")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--classes", nargs="+", type=int, default=[20, 40])
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit-gib", type=float, default=8.0)
    parser.add_argument("--label", default="now")
    parser.add_argument(
        "--tree",
        type=Path,
        default=Path(__file__).parents[1],
        help="checkout whose package is measured",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "memory.json"
    )
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    if not given.table:
        if given.data is None:
            parser.error("give --data, or --table to see what was measured")
        for classes in given.classes:
            for method in given.methods:
                name = f"{given.label}/{method}/{classes}x{given.per_class}"
                if name not in rows:
                    rows[name] = measure(given, method, classes)
                    given.out.write_text(json.dumps(rows, indent=1) + "\n")
                    print(name, rows[name]["outcome"], file=sys.stderr, flush=True)
    print_table(rows)


def measure(given: argparse.Namespace, method: str, classes: int) -> dict[str, Any]:
    """One prediction; what it took, or how it ended."""
    # without mini-batches there is no noise
    batches = ["--batch-size", "64", "--seeds", "1"] if method.startswith("sde") else []
    command = [
        sys.executable,
        "-c",
        _CHILD,
        str(int(given.limit_gib * 2**30)),
        "predict",
        "--data",
        given.data,
        "--classes",
        str(classes),
        "--per-class",
        str(given.per_class),
        "--method",
        method,
        "--steps",
        str(given.steps),
        *batches,
    ]
    start = time.monotonic()
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **_COLD, "PYTHONPATH": str(given.tree)},
    )
    row: dict[str, Any] = {
        "limit_bytes": int(given.limit_gib * 2**30),
        "steps": given.steps,
        "seconds": round(time.monotonic() - start, 1),
        "environment": machine(),
    }
    if run.returncode == 0:
        row |= json.loads(run.stdout.splitlines()[-1])
        row["notes"] = [
            line.removeprefix("note: ")
            for line in run.stdout.splitlines()
            if line.startswith("note: memory")
        ]
    last = (run.stderr.strip().splitlines() or [""])[-1]
    row["outcome"] = (
        f"killed ({run.returncode})" if run.returncode else "done" if row["exit"] == 0 else last
    )
    return row


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("\n".join(table(rows)))


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Rows method × classes, columns by label (where there is more than one)."""
    labels = list(dict.fromkeys(name.split("/")[0] for name in rows))
    tasks = dict.fromkeys(name.split("/", 1)[1] for name in rows)
    columns = [
        f"{label}: {column}" if len(labels) > 1 else column
        for label in labels
        for column in ("resident [GiB]", "address space [GiB]", "CPU-s")
    ]
    lines = [
        f"| method | classes × images | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for task in tasks:
        method, size = task.split("/")
        cells = [cell for label in labels for cell in _cells(rows.get(f"{label}/{task}"))]
        lines.append(f"| {' | '.join([method, size.replace('x', ' × '), *cells])} |")
    return lines


def _cells(row: dict[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    if row["outcome"] != "done":
        return row["outcome"], "", ""
    return (
        f"{row['resident_bytes'] / 2**30:.1f}",
        f"{row['address_bytes'] / 2**30:.1f}",
        f"{row['processor_seconds']:.0f}",
    )


if __name__ == "__main__":
    main()
