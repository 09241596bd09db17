"""A tensor of a file before it is read, and what a file is: by its content, never by its suffix."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_NAME_LENGTH = 120  # of what a file says of itself, in messages


class Stored(NamedTuple):
    """A tensor of a file, not read yet.

    Attributes:
        shape: its sizes.
        dtype: as the file calls it.
        floating: whether it holds floating-point numbers that are read; None for a type that is not
            read at all (float8).
        read: gives the numbers; a view where the file keeps several tensors in one storage.
    """

    shape: tuple[int, ...]
    dtype: str
    floating: bool | None
    read: Callable[[], np.ndarray]


def quoted(text: Any) -> str:
    """A name from a file for a message: quoted, control characters escaped, and not longer than a
    line.
    """
    text = str(text)
    return repr(text if len(text) <= _NAME_LENGTH else f"{text[: _NAME_LENGTH - 20]}…{text[-19:]}")


def reason(error: BaseException) -> str:
    """What an exception says, in a line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def regular_file(path: str | Path) -> Path:
    """The path of weights, checked to be a file of some length: a pipe or a device may never end.

    Raises:
        ValueError: nothing there, a folder, no regular file, or an empty one.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"weights: there is no file {str(path)!r}; give a .safetensors or .pth file, "
            "'bundled', 'random' or 'hf:owner/name'"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights: there is no file {quoted(path)} "
            f"({getattr(error, 'strerror', None) or reason(error)}); give another path"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        held = sorted(
            entry.name
            for entry in os.scandir(path)
            if entry.name.endswith((".safetensors", ".pth", ".pt", ".bin", ".ckpt"))
        )
        raise ValueError(
            f"weights: {str(path)!r} is a folder; give a file of weights"
            + (f", such as {quoted(Path(path) / held[0])}" if held else "")
        )
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"weights: {str(path)!r} is a pipe or a device, not a file; copy its content into one"
        )
    if status.st_size == 0:
        raise ValueError(f"weights: {str(path)!r} is empty; download it again")
    return Path(path)


# the first thing in a file of torch.save before 1.6
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_GIVE = "give a .safetensors file, or one that torch.save wrote"
# How other files begin, what they look like, and what to do.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a pointer of git LFS and not the weights themselves",
        "run git lfs pull, or download the file from its page",
    ),
    (
        b"/annex/objects/",
        "a pointer of git-annex and not the weights themselves",
        "run git annex get",
    ),
    (b"\x1f\x8b", "a file compressed by gzip", "unpack it with gunzip"),
    (b"BZh", "a file compressed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "a file compressed by xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (
        b"\x89HDF\r\n\x1a\n",
        "HDF5, as Keras writes (.h5)",
        "convert it to PyTorch's names and save it as .safetensors",
    ),
    (b"GGUF", "GGUF, quantised for llama.cpp", "take the original .safetensors file"),
    (b"\x93NUMPY", "an array of NumPy (.npy)", _GIVE),
    (b"\x89PNG", "an image", _GIVE),
    (b"\xff\xd8\xff", "an image", _GIVE),
    (b"%PDF", "a PDF", _GIVE),
    (b"\x7fELF", "a program", _GIVE),
)
# members of such an archive, of which one comes first
_TORCH_TAR = (b"sys_info\0", b"storages\0", b"tensors\0", b"pickle\0")
# a map whose first key is text
_MSGPACK = re.compile(rb"(?:[\x81-\x8f]|\xde..|\xdf....)[\xa0-\xbf\xd9-\xdb]", re.DOTALL)


def kind_of(file: Path) -> str:
    """`safetensors`, `zip` or `legacy` (both of torch.save), or `index` (of several files), from
    how a file begins.

    Raises:
        ValueError: anything else; the message says what it looks like.
    """
    with open(file, "rb") as opened:
        head = opened.read(1024)
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if _TORCH_MAGIC in head[:64] or (
        head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and len(head) > 1
    ):
        return "legacy"
    if head.lstrip().startswith(b"{") and _names_files(file):
        return "index"
    looks, remedy = _looks(head)
    raise ValueError(
        f"weights: {str(file)!r} is no checkpoint that can be read: it looks like {looks}; {remedy}"
    )


def _names_files(file: Path) -> bool:
    """Whether JSON is the index of weights in several files."""
    with open(file, "rb") as opened:
        return b'"weight_map"' in opened.read(1 << 16)


def _looks(head: bytes) -> tuple[str, str]:
    """What a file looks like, and what to do."""
    for magic, looks, remedy in _OTHERS:
        if head.startswith(magic):
            return looks, remedy
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        return (
            "a web page, as a failed download leaves",
            "download it again, and log in first if its page asks for that",
        )
    if start.startswith((b"{", b"[")):
        return (
            "text in JSON: a configuration",
            "give the file with the weights, or the index of several (…index.json)",
        )
    if head[257:262] == b"ustar":
        if any(head.startswith(name) for name in _TORCH_TAR):
            return (
                "a tar archive, as the first releases of PyTorch (before 0.2) wrote",
                "torch.load(file, weights_only=False) still reads it, if you trust its writer; "
                "save what it gives by torch.save",
            )
        return "a tar archive", "unpack it and give the file inside"
    if head[4:8] == b"TFL3":
        return "TensorFlow Lite", _GIVE
    if not head.strip(b"\0"):
        return "nothing but zeros, as an interrupted download leaves", "download it again"
    if (
        head[:1] == b"\x08"
        and len(head) > 2
        and head[1] < 32
        and head[2] in b"\x12\x1a\x22\x28\x32\x3a"
    ):
        return (
            "TensorFlow's SavedModel" if head[1] == 1 else "ONNX"
        ), "export the weights of the original network as .safetensors"
    if _MSGPACK.match(head):
        return (
            "msgpack, as flax.serialization writes",
            "restore it with Flax and pass the network to ntk_tt.from_linen or ntk_tt.from_nnx",
        )
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return (
                "neither safetensors nor a file of torch.save, or is damaged at its beginning",
                f"download it again, or {_GIVE}",
            )
    return (
        f"text that begins with {quoted(head[:40].decode('utf-8', 'replace'))}",
        f"download it again, or {_GIVE}",
    )
