"""Names of parameters: a leaf's path in its tree, dotted."""

from typing import Any

import jax
from jaxtyping import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """`block1.conv1.kernel` for a leaf of a nested container: the name under which a checkpoint
    stores it.
    """
    return ".".join(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
        for entry in path
    )


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """A tree as `{dotted name: leaf}`, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
