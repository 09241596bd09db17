"""Weights in several files, as large ones are published: an index in JSON says which file holds
which tensor.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ntk_tt.models.stored import Stored, quoted

_MOST_BYTES = 64 << 20  # of an index
_MOST_FILES = 4096


# Opens one file of weights: its tensors by name, and its metadata.
Opener = Callable[[Path], AbstractContextManager[tuple[dict[str, Stored], dict[str, str]]]]


def files_of(index: Path) -> dict[str, str]:
    """The file that holds each tensor, by the tensor's name; all lie beside the index.

    Raises:
        ValueError: it is no index, or names a file that does not lie beside it.
    """
    try:
        if index.stat().st_size > _MOST_BYTES:
            raise ValueError("it has more than 64 MiB")
        held = json.loads(index.read_bytes())["weight_map"]
        if not held:
            raise ValueError("it names no tensors")
        for file in held.values():
            if not isinstance(file, str) or not _is_beside(file):
                raise ValueError(f"it names the file {quoted(file)}, which is not beside it")
        if len(set(held.values())) > _MOST_FILES:
            raise ValueError(f"it names more than {_MOST_FILES} files")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"weights: {str(index)!r} is no index of weights in several files "
            f"({error or type(error).__name__}); download it again"
        ) from error
    return held


@contextmanager
def open_shards(index: Path, opener: Opener) -> Iterator[tuple[dict[str, Stored], dict[str, str]]]:
    """The tensors of all files of an index; metadata they have none in common.

    Raises:
        ValueError: the index, or a file, cannot be read, or a tensor is not where the index says.
    """
    held = files_of(index)
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(opener(index.parent / file))[0]
            for file in dict.fromkeys(held.values())
        }
        missing = [name for name, file in held.items() if name not in opened[file]]
        if missing:
            raise ValueError(
                f"weights: {quoted(missing[0])} is not in {str(index.parent / held[missing[0]])!r} "
                f"where {str(index)!r} says; download both again"
            )
        yield {name: opened[file][name] for name, file in held.items()}, {}


def _is_beside(name: str) -> bool:
    """Whether a name leads to no other folder, whatever the system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
