"""Kills of `ntk-tt features` at random moments of its computation, resumed to the same bits.

As many as NTK_TT_KILLS says: `NTK_TT_KILLS=100 python -m pytest tests/test_store_killed.py` is what
docs/reliability.md counts.
"""

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ntk_tt.features.store import FeatureStore
from tests import features_command

KILLS = int(os.environ.get("NTK_TT_KILLS", "3"))


def start(folder: Path):
    # what is imported is imported once; every process has its own JAX
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.features_command"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=features_command.main, args=(str(folder), sender))
    process.start()
    sender.close()
    assert receiver.recv() == "computing"
    return process, receiver


def finish(folder: Path) -> float:
    """Runs to the end; returns the seconds of the computation."""
    process, receiver = start(folder)
    before = time.monotonic()
    assert receiver.recv() == "done"
    seconds = time.monotonic() - before
    process.join()
    assert process.exitcode == 0
    return seconds


def is_done(receiver: Connection) -> bool:
    try:
        return receiver.recv() == "done"
    except EOFError:  # it was killed before it could say so
        return False


def content(folder: Path) -> dict[str, bytes]:
    (store,) = (folder / "store").iterdir()
    return {
        path.name: path.read_bytes()
        for path in store.iterdir()
        if not path.name.endswith(".partial")
    }


def test_killed_at_random_and_resumed_gives_the_same_bits(tmp_path):
    (tmp_path / "network.py").write_text(features_command.NETWORK)
    finish(tmp_path)  # compiles what later runs find
    expected = content(tmp_path)
    assert len(expected) > 20
    shutil.rmtree(tmp_path / "store")
    seconds = finish(tmp_path)
    assert content(tmp_path) == expected
    times = [path.stat().st_mtime for path in (tmp_path / "store").glob("*/*")]
    writing = max(times) - min(times)
    shutil.rmtree(tmp_path / "store")
    rng = np.random.default_rng(0)
    kills, stages, finished = 0, set(), 0
    while kills < KILLS:
        process, receiver = start(tmp_path)
        if kills % 4:  # most while blocks are written, some while the pass is planned and compiled
            while not list((tmp_path / "store").glob("*/manifest.json")):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, writing))
        else:
            time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL and not is_done(receiver)
        held = content(tmp_path) if list((tmp_path / "store").glob("*")) else {}
        stages.add(len(held))
        # whole or absent at every moment
        assert all(expected[name] == data for name, data in held.items())
        if held.keys() == expected.keys():  # begin again, so that there is always something to lose
            finished += 1
            shutil.rmtree(tmp_path / "store")
    finish(tmp_path)
    assert content(tmp_path) == expected
    (store,) = (tmp_path / "store").iterdir()
    assert FeatureStore.open(store).complete
    print(
        f"{kills} kills, {len(stages)} different numbers of files there, {finished} sets completed "
        f"between them, a run takes {seconds:.2f} s"
    )
