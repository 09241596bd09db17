"""Makes `benchmarks/gpu-data`: all that `benchmarks/gpu.sh` needs besides code, in one folder.

    python -m tools.gpu_data      # make gpu-data

Takes seconds; needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. Writes 750 images of five classes as they are
and ResNet-18's weights with kernels in float16, about 30 MB. The folder is not part of the
repository: it is carried to the machine with the GPU.
"""

import shutil
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from benchmarks.gpu import DATA, Size
from experiments.common.tasks import WEIGHTS, data_folder, weights_folder

IMAGES = "scene15"
NETWORK = "resnet18"
LARGEST = 45 << 20
"""Bytes of the whole folder."""


def write_weights(source: Path, target: Path) -> None:
    """The same tensors, kernels (and no statistics) in float16."""
    with safetensors.safe_open(source, "np") as file:
        arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        record = file.metadata()
    halves = {
        name: array.astype(np.float16) if array.ndim > 1 else array
        for name, array in arrays.items()
    }
    save_file(halves, target, record)


def copy_images(source: Path, target: Path, classes: int, per_class: int) -> None:
    """The first images of the first classes that have enough of them, by name."""
    chosen = 0
    for folder in sorted(each for each in source.iterdir() if each.is_dir()):
        files = sorted(folder.iterdir())[:per_class]
        if len(files) == per_class and chosen < classes:
            chosen += 1
            (target / folder.name).mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, target / folder.name / file.name)
    if chosen < classes:
        raise SystemExit(f"{source}: has {chosen} classes of {per_class} images, not {classes}")


def main(target: Path = DATA, size: Size | None = None) -> None:
    size = size or Size()
    shutil.rmtree(target, ignore_errors=True)
    copy_images(data_folder() / IMAGES / "train", target / "images", size.classes, size.per_class)
    file, _ = WEIGHTS[NETWORK]
    if file is None:
        raise SystemExit(f"{NETWORK}: has no weights of its own to carry")
    write_weights(weights_folder() / file, target / f"{NETWORK}.safetensors")
    total = sum(each.stat().st_size for each in target.rglob("*") if each.is_file())
    if total > LARGEST:
        raise SystemExit(f"{target}: {total / 2**20:.1f} MiB, more than {LARGEST >> 20}")
    print(f"{target}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
