"""Trains the network that ships with the package: ResNet-8 on Tiny-ImageNet at 32×32.

    python -m tools.pretrain

Takes about 20 minutes on two cores.

Reads `$NTK_TT_DATA/tiny_imagenet32/{train,test}/<class>/*` and writes
ntk_tt/models/bundled/resnet8_tiny_imagenet32.safetensors with the record of the run (data, steps,
accuracy, seed, versions) in the file's metadata and beside it as JSON.
"""

import dataclasses
import datetime
import json
import os
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from experiments.common.tasks import data_folder
from ntk_tt.data import load_task
from ntk_tt.models import from_nnx, save_weights
from ntk_tt.models.model import set_values
from ntk_tt.models.zoo.resnet8 import ResNet8

BUNDLED = Path(__file__).parents[1] / "ntk_tt" / "models" / "bundled"


@dataclasses.dataclass(frozen=True)
class Config:
    epochs: int = 30
    batch_size: int = 128
    peak_learning_rate: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 2e-4
    seed: int = 0
    data: str = dataclasses.field(default_factory=lambda: str(data_folder() / "tiny_imagenet32"))
    output: str = str(BUNDLED / "resnet8_tiny_imagenet32.safetensors")


def augment(rng: np.random.Generator, images: np.ndarray, pad: int = 4) -> np.ndarray:
    """Random horizontal flips and shifts by up to `pad` pixels (reflected borders)."""
    count, height, width, _ = images.shape
    images = np.where(rng.random(count)[:, None, None, None] < 0.5, images[:, :, ::-1], images)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * pad + 1, (2, count))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    return np.moveaxis(windows[np.arange(count), top, left], 1, -1)


def main(config: Config) -> None:
    train = load_task(f"folder:{config.data}", num_classes=None, per_class=None, image_size=32)
    test = load_task(f"folder:{config.data}/test", num_classes=None, per_class=None, image_size=32)
    module = ResNet8(train.num_classes, rngs=nnx.Rngs(jax.random.key(config.seed)))
    model = from_nnx(module)
    statistics = model.batch_statistics
    assert statistics is not None
    steps_per_epoch = len(train.labels) // config.batch_size
    num_steps = config.epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.peak_learning_rate, steps_per_epoch, num_steps
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, config.momentum, nesterov=True),
    )

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, opt_state, images, labels):
        def loss(params):
            logits, new_state = statistics.apply_train(params, state, model.preprocess(images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, value

    def accuracy(task, batch=400):
        set_values(module, params)
        set_values(module, state)
        trained = from_nnx(module)
        correct = jax.jit(
            lambda images, labels: (
                trained.apply(trained.params, trained.preprocess(images)).argmax(-1) == labels
            ).sum()
        )
        blocks = [slice(i, i + batch) for i in range(0, len(task.labels), batch)]
        return float(
            sum(correct(task.images[block], task.labels[block]) for block in blocks)
            / len(task.labels)
        )

    rng = np.random.default_rng(config.seed)
    params, state = jax.tree.map(jnp.array, (model.params, statistics.state))
    opt_state, start = optimizer.init(params), time.time()
    for epoch in range(config.epochs):
        order = rng.permutation(len(train.labels))[: steps_per_epoch * config.batch_size].reshape(
            -1, config.batch_size
        )
        total = 0.0
        for batch in order:
            params, state, opt_state, value = step(
                params, state, opt_state, augment(rng, train.images[batch]), train.labels[batch]
            )
            total += float(value)
        print(
            f"epoch {epoch + 1}/{config.epochs}  loss {total / steps_per_epoch:.3f}  test accuracy "
            f"{accuracy(test):.3f}  {time.time() - start:.0f} s",
            flush=True,
        )

    record = {
        "network": "resnet8",
        "data": "tiny_imagenet32, split train",
        "classes": train.num_classes,
        "images": len(train.labels),
        "image_size": 32,
        **{
            field: value
            for field, value in dataclasses.asdict(config).items()
            if field not in ("data", "output")
        },
        "steps": num_steps,
        "train_accuracy": accuracy(train),
        "test_accuracy": accuracy(test),
        "seconds": round(time.time() - start),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        config.output, nnx.to_pure_dict(nnx.state(module)), dtype=np.float32, record=record
    )
    Path(config.output).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
