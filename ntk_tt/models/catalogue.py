"""The networks by name: how each is built, and what a checkpoint tells about it."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from ntk_tt.models.zoo.alexnet import AlexNet
from ntk_tt.models.zoo.cifar_resnet import CifarResNet
from ntk_tt.models.zoo.densenet import DenseNet
from ntk_tt.models.zoo.mlp import MLP
from ntk_tt.models.zoo.resnet import BasicBlock, Bottleneck, ResNet
from ntk_tt.models.zoo.resnet8 import ResNet8
from ntk_tt.models.zoo.squeezenet import FIRES, SqueezeNet
from ntk_tt.models.zoo.vision_transformer import VisionTransformer, resize_positions

Arrays = dict[str, np.ndarray]


class Reading(NamedTuple):
    """A checkpoint as a network takes it.

    Attributes:
        arrays: resized where the network needs it.
        options: what they decide of the network, as keyword arguments of `Architecture.build`.
        note: that in words; empty for a whole network.
    """

    arrays: Arrays
    options: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    note: str = ""


def _same(name: str) -> str:
    return name


def _whole(arrays: Arrays, image_size: int) -> Reading:
    return Reading(arrays)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that `load_model` knows.

    Attributes:
        build: `(num_classes, *, rngs, **options) -> module`, with `num_classes` None for a network
            without head.
        head: dotted name of the last linear layer.
        image_size: side of the images it is usually given [pixels].
        minimum_size: the smallest side that leaves a map to pool [pixels].
        own_name: a name in published checkpoints as ours, where more than the last part differs.
        read: `(arrays, image_size) -> Reading` of a checkpoint in our names and layouts; the arrays
            are empty for random weights, and without the head where a new one was asked for.
        bundled: name of the file that ships with the package, if one does.
        num_params: of the network without its head.
        num_features: inputs of the head, F.
        paper: where the network was published.
        published: which published files fit.
    """

    build: Callable[..., nnx.Module]
    head: str = "head"
    image_size: int = 32
    minimum_size: int = 1
    own_name: Callable[[str], str] = _same
    read: Callable[[Arrays, int], Reading] = _whole
    bundled: str | None = None
    num_params: int = 0
    num_features: int = 0
    paper: str = ""
    published: str = ""


def _deepest(names: Iterable[str], pattern: str) -> int | None:
    """The largest number that `pattern` captures at the beginning of a name; None where no name
    matches.
    """
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=None)


def _cut(name: str) -> str:
    return f"cut after {name}, where the checkpoint ends"


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    *,
    stride_first: bool = False,
) -> Architecture:
    """A ResNet of these blocks in each stage, which a checkpoint may cut after any of them."""

    def build(num_classes: int | None, *, num_stages: int = len(depths), rngs: nnx.Rngs) -> ResNet:
        return ResNet(num_classes, block, depths[:num_stages], stride_first=stride_first, rngs=rngs)

    def read(arrays: Arrays, image_size: int) -> Reading:
        stages = _deepest(arrays, r"layer(\d+)\.")
        if stages is None or stages >= len(depths):
            return Reading(arrays)
        return Reading(arrays, {"num_stages": stages}, _cut(f"layer{stages}"))

    return Architecture(build, head="fc", image_size=224, read=read, paper="He et al. 2016")


def densenet(depths: tuple[int, ...], **sizes: int) -> Architecture:
    """A DenseNet of these layers in each block, which a checkpoint may cut after a transition;
    other sizes as of `DenseNet`.
    """

    def build(
        num_classes: int | None, *, num_blocks: int = len(depths), rngs: nnx.Rngs
    ) -> DenseNet:
        return DenseNet(
            num_classes, depths[:num_blocks], cut=num_blocks < len(depths), **sizes, rngs=rngs
        )

    def own_name(name: str) -> str:
        # torchvision's published files still say norm.1 where its modules say norm1.
        return re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", name.removeprefix("features."))

    def read(arrays: Arrays, image_size: int) -> Reading:
        blocks = _deepest(arrays, r"denseblock(\d+)\.")
        if blocks is None or blocks >= len(depths):
            return Reading(arrays)
        return Reading(arrays, {"num_blocks": blocks}, _cut(f"transition{blocks}"))

    return Architecture(
        build,
        head="classifier",
        image_size=224,
        minimum_size=29,
        own_name=own_name,
        read=read,
        paper="Huang et al. 2017",
    )


def _layers_for_features(name: str) -> str:
    return re.sub(r"^features\.", "layers.", name)


def _read_squeezenet(arrays: Arrays, image_size: int) -> Reading:
    last = _deepest(arrays, r"layers\.(\d+)\.")
    if last is not None and last < max(FIRES):
        return Reading(arrays, {"num_layers": last + 1}, _cut(f"features.{last}"))
    return Reading(arrays, {"rectified": True} if "classifier.1.kernel" in arrays else {})


def _read_alexnet(arrays: Arrays, image_size: int) -> Reading:
    if arrays and not any(name.startswith("classifier.1.") for name in arrays):
        return Reading(arrays, {"hidden": None}, _cut("the convolutions"))
    return Reading(arrays)


# timm's names of a vision transformer, as torchvision's
# the last: torchvision's published files
_TIMM = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.kernel$", ".self_attention.in_proj_kernel"),
    (r"\.attn\.qkv\.bias$", ".self_attention.in_proj_bias"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"\.mlp\.linear_([12])\.", lambda match: f".mlp.{3 * int(match[1]) - 3}."),
)


def vision_transformer(width: int, depth: int, patch: int, **sizes: int) -> Architecture:
    """A vision transformer with torchvision's or timm's names, which a checkpoint may cut after any
    block.
    """

    def own_name(name: str) -> str:
        for pattern, replacement in _TIMM:
            name = re.sub(pattern, replacement, name)
        return name

    def read(arrays: Arrays, image_size: int) -> Reading:
        if image_size % patch:
            raise ValueError(
                f"image_size: must be a multiple of the patches' {patch} pixels, got {image_size}; "
                f"give {max(1, round(image_size / patch)) * patch}"
            )
        options: dict[str, Any] = {"image_size": image_size}
        notes, positions = [], "encoder.pos_embedding"
        if positions in arrays:
            before, grid = arrays[positions].shape[1], image_size // patch
            arrays = {**arrays, positions: resize_positions(arrays[positions], grid)}
            if arrays[positions].shape[1] != before:
                notes.append(
                    f"position embedding resized from {before - 1} to {grid * grid} patches"
                )
        last = _deepest(arrays, r"encoder\.layers\.encoder_layer_(\d+)\.")
        if last is not None and last + 1 < depth:
            options["depth"] = last + 1
            notes.append(_cut(f"encoder_layer_{last}"))
        return Reading(arrays, options, "; ".join(notes))

    return Architecture(
        partial(VisionTransformer, patch=patch, width=width, depth=depth, **sizes),
        head="heads.head",
        image_size=224,
        minimum_size=patch,
        own_name=own_name,
        read=read,
        paper="Dosovitskiy et al. 2021",
    )


def _read_mlp(arrays: Arrays, image_size: int) -> Reading:
    widths = tuple(
        int(array.shape[-1])
        for name, array in sorted(arrays.items())
        if re.fullmatch(r"layers\.\d+\.kernel", name)
    )
    return Reading(arrays, {"inputs": 3 * image_size**2, **({"widths": widths} if arrays else {})})


def _sized(
    architecture: Architecture,
    num_params: int,
    num_features: int,
    published: str = "torchvision, timm",
) -> Architecture:
    return dataclasses.replace(
        architecture, num_params=num_params, num_features=num_features, published=published
    )


_CIFAR_PARAMS = {3: 269_072, 5: 463_504, 7: 657_936, 9: 852_368}
_KERAS = "Keras (converted to PyTorch's names)"

MODELS: dict[str, Architecture] = {
    "resnet8": _sized(
        Architecture(
            ResNet8, bundled="resnet8_tiny_imagenet32.safetensors", paper="after He et al. 2016"
        ),
        163_440,
        96,
        "ours",
    ),
    **{
        f"resnet{6 * depth + 2}": _sized(
            Architecture(partial(CifarResNet, depth=depth), head="linear", paper="He et al. 2016"),
            count,
            64,
            "akamaster/pytorch_resnet_cifar10",
        )
        for depth, count in _CIFAR_PARAMS.items()
    },
    "resnet18": _sized(resnet(BasicBlock, (2, 2, 2, 2)), 11_176_512, 512),
    "resnet34": _sized(resnet(BasicBlock, (3, 4, 6, 3)), 21_284_672, 512),
    "resnet50": _sized(resnet(Bottleneck, (3, 4, 6, 3)), 23_508_032, 2048),
    "resnet101": _sized(resnet(Bottleneck, (3, 4, 23, 3)), 42_500_160, 2048),
    "resnet50v1": _sized(
        resnet(Bottleneck, (3, 4, 6, 3), stride_first=True), 23_508_032, 2048, _KERAS
    ),
    "resnet101v1": _sized(
        resnet(Bottleneck, (3, 4, 23, 3), stride_first=True), 42_500_160, 2048, _KERAS
    ),
    "densenet121": _sized(densenet((6, 12, 24, 16)), 6_953_856, 1024),
    "densenet169": _sized(densenet((6, 12, 32, 32)), 12_484_480, 1664),
    "alexnet": _sized(
        Architecture(
            AlexNet,
            head="classifier.6",
            image_size=224,
            minimum_size=63,
            own_name=_layers_for_features,
            read=_read_alexnet,
            paper="Krizhevsky 2014",
        ),
        57_003_840,
        4096,
        "torchvision",
    ),
    "squeezenet1_0": _sized(
        Architecture(
            SqueezeNet,
            head="classifier.1",
            image_size=224,
            minimum_size=29,
            own_name=_layers_for_features,
            read=_read_squeezenet,
            paper="Iandola et al. 2016",
        ),
        735_424,
        512,
        "torchvision",
    ),
    "vit_s_16": _sized(vision_transformer(384, 12, 16), 21_665_664, 384, "timm"),
    "vit_b_16": _sized(vision_transformer(768, 12, 16), 85_798_656, 768),
    "mlp": _sized(Architecture(MLP, read=_read_mlp), 852_480, 256, "none"),
}


class ModelRow(NamedTuple):
    """A line of what `load_model` knows.

    Attributes:
        num_params: without the head, which adds (num_features + 1)·K.
        image_size, minimum_size: usual and smallest side of the images [pixels].
        weights: what ships with the package, and whose files fit.
        licence: of the weights.
    """

    name: str
    num_params: int
    num_features: int
    image_size: int
    minimum_size: int
    weights: str
    licence: str
    paper: str


def list_models() -> list[ModelRow]:
    """Every network by name, in the order of `MODELS`; nothing is built or read."""
    return [
        ModelRow(
            name,
            each.num_params,
            each.num_features,
            each.image_size,
            each.minimum_size,
            _weights(each),
            _licence(each),
            each.paper,
        )
        for name, each in MODELS.items()
    ]


def _weights(architecture: Architecture) -> str:
    return (
        "bundled (Tiny-ImageNet, 32×32)"
        if architecture.bundled
        else "none published"
        if architecture.published == "none"
        else f"files of {architecture.published}"
    )


def _licence(architecture: Architecture) -> str:
    """A note, not advice: weights may also carry the terms of the data they were trained on."""
    return (
        "Apache-2.0, as this package"
        if architecture.bundled
        else "-"
        if architecture.published == "none"
        else "the publisher's, and the data's terms"
    )
