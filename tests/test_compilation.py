"""Compiled programs on disk: found by the next process, and never in the way."""

import os
import subprocess
import sys
import time
import zlib

import pytest

from ntk_tt.runtime import compilation
from ntk_tt.runtime.compilation import remove_damaged, remove_oldest

PROGRAM = """
import pathlib, resource, sys, jax
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
from ntk_tt.runtime.compilation import keep_compiled
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
keep_compiled(pathlib.Path(sys.argv[1]))
result = float(jax.jit(lambda x: x + 1)(2.0))
hits = sum(event.endswith("/cache_hits") for event in found)
print(result, hits, jax.config.jax_compilation_cache_dir)
"""


def run(folder, largest_file=-1, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            PROGRAM,
            str(folder),
            str(largest_file),
        ],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_next_process_finds_what_the_first_compiled(tmp_path):
    folder = tmp_path / "cache" / "compiled"
    assert run(folder) == ["3.0", "0", str(folder)]
    assert run(folder) == ["3.0", "1", str(folder)]


@pytest.mark.slow
def test_a_folder_of_the_users_own_stays(tmp_path):
    assert run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))[2] == str(
        tmp_path / "theirs"
    )
    assert run(tmp_path / "ours", JAX_ENABLE_COMPILATION_CACHE="false")[2] == "None"
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a file in the way", "no such device", "bytes that are no text"])
def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path, what):
    (tmp_path / "file").write_text("")
    folders = {
        "a file in the way": tmp_path / "file" / "compiled",
        "no such device": "/proc/compiled",
        "bytes that are no text": tmp_path / "\udcff",
    }
    assert run(folders[what]) == ["3.0", "0", "None"]


@pytest.mark.slow
@pytest.mark.nightly_but("truncated", "a pipe")
@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "zeros", "a bit flipped", "a folder", "a pipe"]
)
def test_damaged_programs_are_compiled_anew(tmp_path, damage):
    assert run(tmp_path) == ["3.0", "0", str(tmp_path)]
    for file in list(tmp_path.glob("*-cache")):
        good = bytearray(file.read_bytes())
        file.unlink()
        match damage:
            case "a folder":
                file.mkdir()
            case "a pipe":
                os.mkfifo(file)
            case "a bit flipped":
                good[len(good) // 2] ^= 4
                file.write_bytes(good)
            case _:
                file.write_bytes(
                    {"empty": b"", "truncated": good[: len(good) // 2], "zeros": bytes(len(good))}[
                        damage
                    ]
                )
    assert run(tmp_path) == ["3.0", "0", str(tmp_path)]
    if damage in ("empty", "truncated", "zeros", "a bit flipped"):
        assert run(tmp_path) == ["3.0", "1", str(tmp_path)]


def _program(folder, name: str, *, written: float | None = None, part: float = 1.0):
    """A file as JAX writes them, or the beginning of one."""
    packed = zlib.compress(bytes(range(256)) * 64)
    file = folder / f"jit_{name}-0123abcd-cache"
    file.write_bytes(packed[: int(part * len(packed))])
    if written is not None:
        os.utime(file, (written, written))
    return file


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_programs_that_were_cut_are_removed_once(tmp_path, part):
    whole, cut = _program(tmp_path, "whole"), _program(tmp_path, "cut", part=part)
    other = tmp_path / "notes.txt"
    other.write_text("no program")
    (tmp_path / "a-cache").mkdir()
    remove_damaged(tmp_path)
    assert [each.exists() for each in (whole, other, cut)] == [True, True, False]
    # those that were there at the last look are not read again
    old = _program(tmp_path, "old", written=time.time() - 1000, part=0.5)
    new = _program(tmp_path, "new", part=0.5)
    remove_damaged(tmp_path)
    assert [each.exists() for each in (old, new)] == [True, False]


def test_programs_packed_by_zstandard_are_looked_at_where_it_is_there(tmp_path, monkeypatch):
    class Unpacker:
        class ZstdError(Exception):
            pass

        @staticmethod
        def decompress(packed: bytes) -> bytes:
            if not packed.endswith(b"end"):
                raise Unpacker.ZstdError
            return packed

    def left_of_two() -> list[str]:
        for name, content in (("whole", b"...end"), ("cut", b"...")):
            (tmp_path / f"{name}-cache").write_bytes(b"\x28\xb5\x2f\xfd" + content)
        remove_damaged(tmp_path)
        return sorted(file.name for file in tmp_path.glob("*-cache"))

    monkeypatch.setattr(compilation, "_zstd", lambda: None)
    assert left_of_two() == ["cut-cache", "whole-cache"]
    monkeypatch.setattr(compilation, "_zstd", lambda: Unpacker)
    assert left_of_two() == ["whole-cache"]


@pytest.mark.slow
def test_a_full_disk_ends_nothing(tmp_path):
    assert run(tmp_path, largest_file=100) == ["3.0", "0", str(tmp_path)]
    assert all(file.stat().st_size <= 100 for file in tmp_path.iterdir())
    assert run(tmp_path) == ["3.0", "0", str(tmp_path)]
    assert run(tmp_path) == ["3.0", "1", str(tmp_path)]


def test_the_oldest_programs_go_first(tmp_path):
    for age, name in enumerate(("new", "old", "older", "oldest")):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path, 20)
    assert len(list(tmp_path.iterdir())) == 4
    remove_oldest(tmp_path, 14)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
