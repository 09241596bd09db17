"""Θ by `torch.func`: `vmap(jacrev)`, then one einsum a parameter, as PyTorch's tutorial does.

    benchmarks/.environments/torch/bin/python -m benchmarks.peers.torch_func \\
        --network resnet20 --num-samples 100
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import jacrev, vmap

from benchmarks.peers.common import BATCH_NORM_EPSILON, arguments, images, read_checkpoint, run


def network(name: str, num_outputs: int | None, seed: int = 0):
    """`apply(params, images (N, 3, H, W)) -> logits (N, C)` and its parameters; batch norm in
    evaluation mode.
    """
    arrays, statistics = read_checkpoint(name, num_outputs, seed)
    params = {key: torch.from_numpy(array) for key, array in arrays.items()}
    constants = {key: torch.from_numpy(array) for key, array in statistics.items()}

    def norm(params, layer, x):
        mean, variance = constants[f"{layer}.running_mean"], constants[f"{layer}.running_var"]
        return F.batch_norm(
            x,
            mean,
            variance,
            params[f"{layer}.weight"],
            params[f"{layer}.bias"],
            training=False,
            eps=BATCH_NORM_EPSILON,
        )

    def shortcut(params, layer, x, stride):
        if f"{layer}.downsample.0.weight" in params:
            return norm(
                params,
                f"{layer}.downsample.1",
                F.conv2d(x, params[f"{layer}.downsample.0.weight"], stride=stride),
            )
        return (
            x
            if stride == 1
            else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
        )

    def block(params, layer, x, stride):
        y = F.relu(
            norm(
                params,
                f"{layer}.bn1",
                F.conv2d(x, params[f"{layer}.conv1.weight"], stride=stride, padding=1),
            )
        )
        y = norm(params, f"{layer}.bn2", F.conv2d(y, params[f"{layer}.conv2.weight"], padding=1))
        return F.relu(y + shortcut(params, layer, x, stride))

    def apply(params, x):
        if name == "resnet20":
            x, depths, head = (
                F.relu(norm(params, "bn1", F.conv2d(x, params["conv1.weight"], padding=1))),
                (3, 3, 3),
                "linear",
            )
        else:
            x = F.relu(
                norm(params, "bn1", F.conv2d(x, params["conv1.weight"], stride=2, padding=3))
            )
            x, depths, head = F.max_pool2d(x, 3, 2, 1), (2, 2, 2, 2), "fc"
        for layer, depth in enumerate(depths, 1):
            for index in range(depth):
                x = block(params, f"layer{layer}.{index}", x, 2 if layer > 1 and index == 0 else 1)
        return F.linear(x.mean((2, 3)), params[f"{head}.weight"], params[f"{head}.bias"])

    return apply, params


def main() -> None:
    given = arguments(__doc__)
    apply, params = network(given.network, given.num_outputs, given.seed)
    x = torch.from_numpy(
        np.ascontiguousarray(
            images(given.network, given.num_samples, given.seed).transpose(0, 3, 1, 2)
        )
    )

    def ntk() -> np.ndarray:
        with torch.no_grad():
            jacobian = vmap(jacrev(lambda params, x: apply(params, x[None])[0]), (None, 0))(
                params, x
            )
            rows = [leaf.flatten(2) for leaf in jacobian.values()]
            total = torch.zeros(
                given.num_samples, given.num_outputs, given.num_samples, given.num_outputs
            )
            for leaf in rows:
                total += torch.einsum("iad,jbd->iajb", leaf, leaf)
            return total.numpy()

    run("torch_func", given, ntk, "torch")


if __name__ == "__main__":
    main()
