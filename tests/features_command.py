"""`ntk-tt features` on a tiny network, in a process of its own that tests kill. It says when it
begins to compute.
"""

import os
from multiprocessing.connection import Connection
from pathlib import Path

from ntk_tt import cli
from ntk_tt.cli import commands

NETWORK = """
import jax, jax.numpy as jnp

def factory(num_classes, key):
    first, second = jax.random.split(key)
    params = {
        "hidden": {"kernel": 0.1 * jax.random.normal(first, (48, 6))},
        "head": {"kernel": 0.1 * jax.random.normal(second, (6, num_classes))},
    }
    def apply(params, images):
        pixels = images[:, ::2, ::2].reshape(len(images), -1)[:, :48]
        return jnp.tanh(pixels @ params["hidden"]["kernel"]) @ params["head"]["kernel"]
    return apply, params
"""


def main(folder: str, ready: Connection | None = None) -> None:
    """Args:
    folder: has the network, and gets the store.
    ready: a message is sent when the network is loaded, and again when the work is done.
    """
    root = Path(folder)
    os.environ["NTK_TT_CACHE"] = str(root / "cache")
    build = commands.build_features

    def announced(*arguments):
        if ready is not None:
            ready.send("computing")
        return build(*arguments)

    commands.build_features = announced
    cli.main(
        [
            "features",
            "--method",
            "replay",
            "--model",
            f"{root / 'network.py'}:factory",
            "--classes",
            "5",
            "--per-class",
            "120",
            "--image-size",
            "16",
            "--store",
            str(root / "store"),
        ]
    )
    if ready is not None:
        ready.send("done")
