"""A file is there whole or not at all, whatever has its name and however full the disk is."""

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from ntk_tt.runtime.files import (
    check_writable,
    is_folder,
    is_plain_file,
    open_plain,
    write_whole,
)
from tests.disks import full_disk

OLD, NEW = b"old" * 10, b"new" * 100_000


@pytest.fixture
def unprivileged():
    """Not root, whom no permission stops."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    yield
    if was_root:
        os.seteuid(0)


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    (tmp_path / "there").write_bytes(OLD)
    for name in ("there", "new"):
        check_writable(tmp_path / name)
        with full_disk(4096), pytest.raises(OSError, match="File too large"):
            write_whole(tmp_path / name, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_bytes() == OLD


@pytest.mark.parametrize("name", ["short", "n" * 255, "with\nline and \udcff"])
def test_any_name_that_the_system_takes(tmp_path, name):
    write_whole(tmp_path / name, OLD)
    write_whole(tmp_path / name, b"a", b"b")
    assert (tmp_path / name).read_bytes() == b"ab"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == NEW


def test_devices_and_pipes_are_written_into(tmp_path):
    check_writable(Path(os.devnull))
    write_whole(Path(os.devnull), NEW)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), NEW)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    with pytest.raises(OSError, match="No such device") as caught:  # nobody reads
        write_whole(pipe, NEW)
    assert caught.value.errno == errno.ENXIO
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    while not received:
        with contextlib.suppress(OSError):  # the reader is not there yet
            write_whole(pipe, NEW)
            reader.join()
    assert received == [NEW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_in_a_folder_that_takes_no_other_is_written_in_place(tmp_path, request):
    (tmp_path / "there").write_bytes(NEW)
    for path in (tmp_path / "there", tmp_path):
        path.chmod(0o777 if path.is_file() else 0o555)
        os.chown(path, 65534, -1) if os.geteuid() == 0 else None
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)
    request.getfixturevalue("unprivileged")
    check_writable(tmp_path / "there")
    write_whole(tmp_path / "there", OLD)
    assert (tmp_path / "there").read_bytes() == OLD
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o777)


@pytest.mark.parametrize("kind", ["folder", "socket", "loop", "below a file"])
def test_what_cannot_be_a_file_is_refused_before(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("target")
    if kind == "folder":
        target.mkdir()
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(str(target))
    elif kind == "loop":
        target.symlink_to(target)
    else:
        target.write_bytes(OLD)
        target = target / "file"
    with pytest.raises(OSError):  # noqa: PT011 - each has its own
        check_writable(target)


def test_only_plain_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_plain(tmp_path / name) as file:
            assert file.read() == OLD
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(OSError, match="no plain file"):
            open_plain(path)


def test_what_is_there_is_told_and_what_the_system_refuses_is_an_error(tmp_path):
    """On every Python: `Path.is_dir` of 3.14 takes a name that is too long for one that is free."""
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_bytes(b"")
    loop.symlink_to(loop)
    assert is_folder(tmp_path)
    assert is_plain_file(file)
    for other in (file, loop, file / "below", tmp_path / "no", Path("null\0")):
        assert not is_folder(other)
    for other in (tmp_path, loop, file / "below", tmp_path / "no", Path("null\0")):
        assert not is_plain_file(other)
    for ask in (is_folder, is_plain_file):
        with pytest.raises(OSError, match="too long"):
            ask(tmp_path / ("x" * 300))
