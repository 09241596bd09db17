"""What PyTorch and torchvision compute for weights given by formula, as the tests' reference.

    python -m venv .venv-torch && .venv-torch/bin/pip install torch torchvision numpy
    .venv-torch/bin/python -m tools.parity

Takes half a minute; writes tests/fixtures/, which `tests/test_models_parity.py` reads. Only this
script needs PyTorch. It stores, for a small network of each family, the names and shapes of its
state and the logits and pooled features of two images; and a few checkpoints as `torch.save` writes
them.
"""

import collections
import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests import parity

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
NUM_CLASSES = 3


def torchvision_models():
    """torchvision's models, also where its compiled operators do not match the installed PyTorch
    (they are not needed).
    """
    register_fake = torch.library.register_fake

    def skip_missing(name, *arguments, **options):
        return (
            (lambda function: function)
            if str(name).startswith("torchvision::")
            else register_fake(name, *arguments, **options)
        )

    torch.library.register_fake = skip_missing
    try:
        import torchvision.models
    finally:
        torch.library.register_fake = register_fake
    return torchvision.models


class CifarBlock(torch.nn.Module):
    """He et al. 2016, option A, written from the paper: the skip takes every other pixel and pads
    channels with zeros.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(
            y
            + torch.nn.functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)
            )
        )


class CifarResNet(torch.nn.Module):
    def __init__(self, depth: int):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = CifarBlock(inputs, outputs, 1 if stage == 1 else 2)
            setattr(
                self,
                f"layer{stage}",
                torch.nn.Sequential(
                    first, *(CifarBlock(outputs, outputs, 1) for _ in range(depth - 1))
                ),
            )
        self.linear = torch.nn.Linear(64, NUM_CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def with_first_stride(network: torch.nn.Module) -> torch.nn.Module:
    """torchvision's ResNet (v1.5) as the original (v1): each stage's stride in the first 1×1
    convolution.
    """
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network


def small_alexnet(models) -> torch.nn.Module:
    network = models.alexnet(num_classes=NUM_CLASSES)
    network.classifier[1], network.classifier[4] = (
        torch.nn.Linear(9216, 16),
        torch.nn.Linear(16, 16),
    )
    network.classifier[6] = torch.nn.Linear(16, NUM_CLASSES)
    return network


def networks(models) -> dict[str, tuple[Callable[[], torch.nn.Module], str, int, str | None]]:
    """For each case the network, the module whose input are the pooled features, the side of the
    images, and a module after which the network is cut as well.
    """
    resnet = models.resnet
    return {
        "resnet18": (lambda: models.resnet18(num_classes=NUM_CLASSES), "fc", 33, "layer2"),
        "resnet_bottleneck": (
            lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=NUM_CLASSES),
            "fc",
            33,
            "layer3",
        ),
        "resnet_bottleneck_v1": (
            lambda: with_first_stride(
                resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=NUM_CLASSES)
            ),
            "fc",
            33,
            None,
        ),
        "resnet20": (lambda: CifarResNet(3), "linear", 32, None),
        "densenet": (
            lambda: models.DenseNet(
                growth_rate=4,
                block_config=(2, 1, 2, 1),
                num_init_features=6,
                num_classes=NUM_CLASSES,
            ),
            "classifier",
            45,
            "features.transition2",
        ),
        "alexnet": (lambda: small_alexnet(models), "classifier.6", 95, "features"),
        "squeezenet1_0": (
            lambda: models.squeezenet1_0(num_classes=NUM_CLASSES),
            "classifier.1",
            47,
            "features.5",
        ),
        "vision_transformer": (
            lambda: models.VisionTransformer(32, 16, 2, 3, 24, 96, num_classes=NUM_CLASSES),
            "heads.head",
            32,
            None,
        ),
    }


def reference(build: Callable[[], torch.nn.Module], head: str, side: int, cut: str | None) -> dict:
    network = build().eval()
    shapes = {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in parity.parameters(shapes).items()},
        strict=False,
    )
    pooled, cut_maps = [], []
    network.get_submodule(head).register_forward_hook(
        lambda module, inputs, output: pooled.append(inputs[0])
    )
    if cut is not None:
        network.get_submodule(cut).register_forward_hook(
            lambda module, inputs, output: cut_maps.append(output)
        )
    images = (torch.from_numpy(parity.images(side)).float() / 255 - MEAN) / STD
    with torch.no_grad():
        logits = network(images.permute(0, 3, 1, 2))
    features = pooled[0].mean((2, 3)) if pooled[0].ndim == 4 else pooled[0]
    cut_features = cut_maps[0].mean((2, 3))[:, :8].tolist() if cut_maps else None
    return {
        "image_size": side,
        "shapes": shapes,
        "logits": logits.tolist(),
        "features": features[:, :8].tolist(),
        "cut_features": cut_features,
    }


def save_checkpoints() -> None:
    """One set of tensors as people save them: plain, in the format before PyTorch 1.6, and inside a
    training state.
    """
    shapes = {
        "layers.0.weight": (4, 12),
        "layers.0.bias": (4,),
        "head.weight": (2, 4),
        "head.bias": (2,),
    }
    tensors = {name: torch.from_numpy(value) for name, value in parity.parameters(shapes).items()}
    tensors["head.weight"] = torch.from_numpy(
        parity.parameter("head.weight", (2, 4)).T.copy()
    ).T  # strides that are not C order
    whole = torch.cat([tensors["layers.0.bias"], tensors["head.bias"]])
    # one storage, two offsets
    tensors["layers.0.bias"], tensors["head.bias"] = (
        whole[:4],
        whole[4:],
    )
    state = collections.OrderedDict(tensors)
    torch.save(state, FIXTURES / "plain.pth")
    torch.save(state, FIXTURES / "legacy.pth", _use_new_zipfile_serialization=False)
    wrapped = {
        f"module.{name}": torch.nn.Parameter(value.clone()) for name, value in tensors.items()
    }
    wrapped["module.layers.0.num_batches_tracked"] = torch.tensor(3)
    torch.save(
        {
            "state_dict": wrapped,
            "epoch": 7,
            "best": torch.tensor(0.5).half(),
            "optimizer": {"state": {}, "lr": 0.1},
        },
        FIXTURES / "training.pth",
    )
    torch.save(
        {name: value.to(torch.bfloat16) for name, value in tensors.items()},
        FIXTURES / "bfloat16.pth",
    )
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), FIXTURES / "module.pth")


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    references = {name: reference(*case) for name, case in networks(torchvision_models()).items()}
    lines = [f" {json.dumps(name)}: {json.dumps(values)}" for name, values in references.items()]
    (FIXTURES / "parity.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    save_checkpoints()
    for name, values in references.items():
        print(f"{name:24}{len(values['shapes']):5} tensors, logits {values['logits'][0]}")


if __name__ == "__main__":
    main()
