"""Ctrl-C and SIGTERM: one line and the shell's exit status, at every moment."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The module alone: importing the package would take seconds.
PROGRAM = """
import hashlib, importlib.util, sys, time
spec = importlib.util.spec_from_file_location("interruption", {path!r})
interruption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)
interruption.GRACE = {grace}
interruption.answer()
interruption.answer()
print("ready", flush=True)
try:
    {work}
except KeyboardInterrupt as stopped:
    line, status = interruption.describe(stopped)
    print(line, file=sys.stderr, flush=True)
    {after}
    sys.exit(status)
"""
ENDS = [
    (signal.SIGINT, "interrupted", 130),
    (signal.SIGTERM, "ended by SIGTERM", 143),
    (signal.SIGHUP, "ended by SIGHUP", 129),
]
COMPILED = (
    "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)"  # takes no step of Python for half an hour
)


@pytest.fixture(autouse=True)
def heard():
    """A child inherits what its parent ignores, as under `nohup`; here signals are to be heard."""
    before = {number: signal.getsignal(number) for number, _, _ in ENDS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(work, number, grace=30.0, after="", times=1):
    program = PROGRAM.format(
        path=str(ROOT / "ntk_tt" / "runtime" / "interruption.py"),
        work=work,
        grace=grace,
        after=after,
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(times):
            time.sleep(0.2)
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("number", "line", "status"), ENDS)
def test_where_python_runs_an_exception_is_raised(number, line, status):
    assert run("while True: time.sleep(0.01)", number) == (status, line + "\n")


@pytest.mark.parametrize(("number", "line", "status"), ENDS)
def test_a_compiled_program_is_left_after_a_while(number, line, status):
    assert run(COMPILED, number, grace=0.3) == (status, f"ntk-tt: {line}\n")


def test_a_second_signal_does_not_wait():
    assert run(COMPILED, signal.SIGINT, times=2) == (130, "ntk-tt: interrupted\n")


def test_an_exception_that_is_lost_in_a_callback_ends_the_program_all_the_same():
    work = (
        "import gc; gc.callbacks.append(lambda *_: time.sleep(1.0)); [gc.collect() for _ in "
        "range(10**6)]"
    )
    assert run(work, signal.SIGTERM, grace=0.3) == (143, "ntk-tt: ended by SIGTERM\n")


def test_an_end_that_hangs_is_cut_short_and_says_nothing_twice():
    assert run("time.sleep(60)", signal.SIGTERM, grace=0.3, after=COMPILED) == (
        143,
        "ended by SIGTERM\n",
    )


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_during_the_imports_it_is_one_line(delay, tmp_path):
    """The module that is imported says when: before, and in the midst of it."""
    (tmp_path / "ntk_tt").mkdir()
    (tmp_path / "ntk_tt" / "__init__.py").write_text(
        "import sys, time\nprint('ready', flush=True)\nfor _ in range(6000): "
        f"time.sleep({delay or 0.01})\n"
    )
    (tmp_path / "ntk_tt_command.py").write_bytes((ROOT / "ntk_tt_command.py").read_bytes())
    with subprocess.Popen(
        [sys.executable, "-m", "ntk_tt_command"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "ntk-tt: interrupted\n")


def test_an_installation_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "ntk_tt").mkdir()
    (tmp_path / "ntk_tt" / "__init__.py").write_text("raise ImportError('no jaxlib\\nhere')")
    (tmp_path / "ntk_tt_command.py").write_bytes((ROOT / "ntk_tt_command.py").read_bytes())
    command = [sys.executable, "-m", "ntk_tt_command"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "NTK_TT_TRACEBACK": ""},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ntk-tt: cannot start: ImportError: no jaxlib here;")
    assert done.stderr.count("\n") == 1
    traced = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "NTK_TT_TRACEBACK": "1"},
    )
    assert "Traceback" in traced.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("delay", "number", "line", "status"),
    [(delay, *end) for delay, end in zip((1.5, 8.0, 16.0), ENDS, strict=True)],
)
def test_the_whole_command(delay, number, line, status, tmp_path):
    command = [
        sys.executable,
        "-m",
        "ntk_tt_command",
        "predict",
        "--steps",
        "3000000",
        "--record-every",
        "30000",
        "--batch-size",
        "4",
        "--seeds",
        "50",
        "--json",
        str(tmp_path / "report.json"),
        "--plot",
        str(tmp_path / "figure.png"),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(delay)
        process.send_signal(number)
        before = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - before < 20
    if process.returncode == -number:  # before it was imported
        assert number != signal.SIGINT
    else:
        assert (process.returncode, err) == (status, f"ntk-tt: {line}\n")
    assert not list(Path(tmp_path).iterdir())
