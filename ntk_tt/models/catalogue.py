"""The networks by name: how each is built, and what a checkpoint tells about it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from ntk_tt.models.cifar_resnet import CifarResNet
from ntk_tt.models.resnet import BasicBlock, Bottleneck, ResNet
from ntk_tt.models.resnet8 import ResNet8

Arrays = Mapping[str, np.ndarray]


def _nothing(arrays: Arrays) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that `load_model` knows.

    Attributes:
        build: `(num_classes, *, rngs, **options) -> module`, with `num_classes` None for a network without head.
        head: dotted name of the last linear layer.
        image_size: side of the images it is usually given [pixels].
        minimum_size: the smallest side that leaves a map to pool [pixels].
        options: what of the network a checkpoint's arrays (in our names) decide, as keyword arguments of `build`.
        bundled: name of the file that ships with the package, if one does.
    """

    build: Callable[..., nnx.Module]
    head: str = "head"
    image_size: int = 32
    minimum_size: int = 1
    options: Callable[[Arrays], dict[str, Any]] = _nothing
    bundled: str | None = None


def _resnet(block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], *, stride_first: bool = False) -> Architecture:
    def build(num_classes: int | None, *, num_stages: int = len(depths), rngs: nnx.Rngs) -> ResNet:
        return ResNet(num_classes, block, depths[:num_stages], stride_first=stride_first, rngs=rngs)

    def options(arrays: Arrays) -> dict[str, Any]:
        held = [stage for stage in range(1, len(depths) + 1) if any(name.startswith(f"layer{stage}.") for name in arrays)]
        return {"num_stages": max(held)} if held and max(held) < len(depths) else {}

    return Architecture(build, head="fc", image_size=224, options=options)


MODELS: dict[str, Architecture] = {
    "resnet8": Architecture(ResNet8, bundled="resnet8_tiny_imagenet32.safetensors"),
    **{f"resnet{6 * depth + 2}": Architecture(partial(CifarResNet, depth=depth), head="linear") for depth in (3, 5, 7, 9)},
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _resnet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet50v1": _resnet(Bottleneck, (3, 4, 6, 3), stride_first=True),
    "resnet101v1": _resnet(Bottleneck, (3, 4, 23, 3), stride_first=True),
}
