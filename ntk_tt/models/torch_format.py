"""PyTorch's names and layouts in ours: only a name's last part changes, because our modules are
named as torchvision's.
"""

import numpy as np

_RENAMED = {"running_mean": "mean", "running_var": "var", "in_proj_weight": "in_proj_kernel"}
_COUNTERS = ("num_batches_tracked", "n_averaged")
_TORCH_ONLY = ("weight", "running_mean", "running_var", *_COUNTERS)


def is_torch_format(names: list[str]) -> bool:
    """Whether the names are PyTorch's: it says `weight` where Flax says `kernel` or `scale`."""
    return any(_last(name) in _TORCH_ONLY for name in names)


def is_counter(name: str) -> bool:
    """Whether it counts batches or averaged networks, which nothing here needs."""
    return _last(name) in _COUNTERS


def our_name(name: str, num_axes: int) -> str:
    """A name of PyTorch's as ours; what is ours stays as it is.

    `weight` is the `scale` of a norm where it has one axis, else a `kernel`; `running_mean` and
    `running_var` are `mean` and `var`.
    """
    last = _last(name)
    ours = (
        ("scale" if num_axes == 1 else "kernel") if last == "weight" else _RENAMED.get(last, last)
    )
    return name.removesuffix(last) + ours


def our_layout(name: str, array: np.ndarray) -> np.ndarray:
    """An array under a name of PyTorch's as ours: convolutions (out, in, h, w) become (h, w, in,
    out), matrices (out, in) become (in, out).
    """
    is_kernel = _last(name) == "in_proj_weight" or (_last(name) == "weight" and array.ndim > 1)
    return np.moveaxis(array, (1, 0), (-2, -1)) if is_kernel else array


def _last(name: str) -> str:
    return name.rpartition(".")[2]
