"""Fills a feature store, in a process of its own that tests kill. Nothing is computed on import:
processes are forked from here.
"""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntk_tt.features import store
from ntk_tt.features.manifest import describe

NUM_PROJECTIONS, BLOCK_SIZE = 200, 4
INPUTS = np.random.default_rng(0).normal(size=(19, 6)).astype(np.float32)
PARAMS = {
    "hidden": np.random.default_rng(1).normal(size=(6, 24)).astype(np.float32),
    "head": np.random.default_rng(2).normal(size=(24, 3)).astype(np.float32),
}
PROJECTION = (
    np.random.default_rng(3).normal(size=(6 * 24 + 24 * 3, NUM_PROJECTIONS)).astype(np.float32)
)


def apply(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


def features(inputs) -> jax.Array:
    """(n, C, D'), each sample on its own."""
    jacobian = jax.vmap(jax.jacrev(apply), (None, 0))(PARAMS, inputs)
    return (
        jnp.concatenate(
            [leaf.reshape(len(inputs), 3, -1) for leaf in jax.tree.leaves(jacobian)], -1
        )
        @ PROJECTION
    )


def manifest() -> dict:
    return describe(
        apply,
        PARAMS,
        INPUTS,
        num_projections=NUM_PROJECTIONS,
        projection="test",
        key=None,
        block_size=BLOCK_SIZE,
    )


def main(folder: str, when: str = "", block: int = 0) -> None:
    """Args:
    when: where the process kills itself in writing `block`: `half` of the data is written, all of
    it is but has not
        its name yet (`unnamed`), or it has its name (`named`). `everything` writes all blocks
        twenty times over, missing or not.
    """
    opened = store.FeatureStore.open(folder, manifest())
    if when not in ("", "everything"):
        die_in_writing(when, f"block-{block:06d}.safetensors")
    step = jax.jit(features)
    for index in [*range(len(opened))] * 20 if when == "everything" else opened.missing():
        opened.write(index, step(INPUTS[opened.samples(index)]))


def die_in_writing(when: str, target: str) -> None:
    """From now on the process kills itself while it writes the file `target`."""
    replace, open_ = os.replace, Path.open

    def killing_replace(source, destination):
        if Path(destination).name != target:
            return replace(source, destination)
        if when == "named":
            replace(source, destination)
        _die()

    def killing_open(path, mode="r", **more):
        file = open_(path, mode, **more)
        return HalfFile(file) if mode == "xb" and target in path.name else file

    os.replace = killing_replace
    if when == "half":
        Path.open = killing_open


class HalfFile:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if len(data) < 1000:  # the header
            return self.file.write(data)
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        _die()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
