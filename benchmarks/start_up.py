"""How long the package takes to start, beside the libraries that it stands on.

    python -m benchmarks.start_up [--repeats 7]

A minute. Each line is a new process; processor seconds (user and system), the median of the
repeats, which take turns.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

LIBRARIES = "import jax, flax.nnx, optax, diffrax"
COMMANDS = {
    "its libraries": [sys.executable, "-c", LIBRARIES],
    "import ntk_tt": [sys.executable, "-c", "import ntk_tt"],
    "ntk-tt --help": [sys.executable, "-m", "ntk_tt_command", "--help"],
}


def processor_seconds(command: list[str]) -> float:
    """Of one run of a command, with all its threads."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    found = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            found[name].append(processor_seconds(command))
    base = median(found["its libraries"])
    print(f"{'processor seconds':20}{'median':>8}{'ratio':>8}")
    for name, seconds in found.items():
        print(f"{name:20}{median(seconds):8.2f}{median(seconds) / base:8.2f}")


if __name__ == "__main__":
    main()
