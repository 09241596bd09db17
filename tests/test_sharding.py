"""The same numbers on one and eight devices, and on two processes of two devices each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # each process compiles everything anew
ROOT = Path(__file__).parents[1]


def start(*arguments: int) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.sharded_program", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(
        next(line for line in out.splitlines() if line.startswith("RESULT ")).removeprefix(
            "RESULT "
        )
    )


@pytest.fixture(scope="module")
def alone() -> dict:
    return result(start(1))


def agree(one: dict, other: dict) -> None:
    for name in one:
        if name not in ("devices", "processes"):
            np.testing.assert_allclose(other[name], one[name], rtol=2e-5, err_msg=name)
    # something was learned, and not the same in every setting
    assert abs(one["primal full"][0] - one["primal full"][-1]) > 0.01
    assert one["primal full"] != one["dual batches"]
    assert abs(one["many 0"][0] - one["many 0"][-1]) > 0.01
    assert one["many 0"] != one["many 2"]
    assert one["small growth"][0] > 0.001


def test_eight_devices(alone):
    """13 samples over 8 devices: padded, one device even without a sample of its own."""
    spread = result(start(8))
    assert (alone["devices"], spread["devices"], spread["processes"]) == (1, 8, 1)
    agree(alone, spread)


def test_two_processes(alone):
    """Two processes with two devices each, joined by gloo: both get what one process alone gets."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = [result(process) for process in [start(2, index, 2, port) for index in range(2)]]
    for each in found:
        assert (each["devices"], each["processes"]) == (4, 2)
        agree(alone, each)
