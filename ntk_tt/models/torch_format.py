"""PyTorch's names and layouts in ours: only a name's last part changes, because our modules are named as torchvision's."""

import numpy as np

_RENAMED = {"running_mean": "mean", "running_var": "var"}
_IGNORED = ("num_batches_tracked",)
_WRAPPER = "module."  # of torch.nn.DataParallel


def is_torch_format(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the names are PyTorch's: it says `weight` where Flax says `kernel` or `scale`."""
    return any(name.rpartition(".")[2] in ("weight", *_RENAMED, *_IGNORED) for name in arrays)


def from_torch(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a PyTorch checkpoint under our names, in our layouts.

    Convolutions (out, in, h, w) become (h, w, in, out) and matrices (out, in) become (in, out), both named `kernel`;
    a norm's `weight`, `running_mean` and `running_var` become `scale`, `mean` and `var`.
    """
    if all(name.startswith(_WRAPPER) for name in arrays):
        arrays = {name.removeprefix(_WRAPPER): array for name, array in arrays.items()}
    converted = {}
    for name, array in arrays.items():
        parent, _, last = name.rpartition(".")
        if last in _IGNORED:
            continue
        if last == "weight":
            last, array = ("scale", array) if array.ndim == 1 else ("kernel", _channels_last(array))
        elif last == "in_proj_weight":
            last, array = "in_proj_kernel", _channels_last(array)
        converted[f"{parent}.{_RENAMED.get(last, last)}".removeprefix(".")] = array
    return converted


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (1, 0), (-2, -1))
