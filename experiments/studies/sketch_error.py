"""How far is the kernel of projected gradients from the exact one, on trained networks?

    python -m experiments.studies.sketch_error
    python -m experiments.studies.sketch_error --tuning      # where the fold's 512 rows come from

Takes about ten minutes on two cores; needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. Expected: errors as
the formula says, to a few per cent.

Exact Θ against ΦΦᵀ for several keys: relative Frobenius error, root mean square over the keys, over
√((tr²Θ + ‖Θ‖²_F)/D')/‖Θ‖_F, that of a projection with independent entries. `periods everywhere`
draws column signs for every period of a convolution's kernel too. Θ is dominated by a few
eigenvectors, so the error of one key varies much and many keys are taken.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ntk_tt
from experiments.common import tasks
from experiments.common.experiment import RESULTS as ALL_RESULTS
from experiments.common.tasks import TaskConfig
from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.dimension import expected_relative_error
from ntk_tt.features.one_block import projected_jacobian
from ntk_tt.report.document import environment

RESULTS = ALL_RESULTS / "sketch_error"
# The data that is reported on, and the data that the fold's 512 rows were chosen on.
NETWORKS = {"resnet20": ("cifar10", "cifar100"), "resnet18": ("cub200", "dtd")}
REPORTED = {"fold": 512, "periods everywhere": 1 << 30}
TUNED = {f"{rows} rows": rows for rows in (128, 256, 512)} | {"periods everywhere": 1 << 30}


@dataclasses.dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = ("resnet20", "resnet18")
    classes: int = 5
    per_class: int = 3
    dimensions: tuple[int, ...] = (4096, 16384)
    keys: int = 24
    tuning: bool = False
    """Compare numbers of rows that a convolution's fold keeps apart, on other data; writes
    tuning.json.
    """
    seed: int = 0


def load(name: str, config: Config) -> tuple[ntk_tt.Model, jax.Array, str]:
    """The network, its images and the name of the data set."""
    reported, tuned = NETWORKS[name]
    data = tuned if config.tuning else reported
    task = TaskConfig(name, data, config.classes, config.per_class, config.seed)
    loaded = tasks.load(task)
    return loaded.model, loaded.images, data


def errors_of(
    model: ntk_tt.Model,
    images: jax.Array,
    exact: jax.Array,
    dimension: int,
    kernel_rows: int,
    config: Config,
) -> list[float]:
    """Relative Frobenius error of ΦΦᵀ for each key."""

    @jax.jit
    def compute(key, block):
        sketch = CountSketch(key=key, num_projections=dimension, kernel_rows=kernel_rows)
        return projected_jacobian(model.apply, "structured", sketch, model.params, block)

    found = []
    for key in jax.random.split(jax.random.key(config.seed + 1), config.keys):
        features = jnp.concatenate(
            [compute(key, images[start : start + 5]) for start in range(0, len(images), 5)]
        ).reshape(len(exact), -1)
        found.append(float(jnp.linalg.norm(features @ features.T - exact) / jnp.linalg.norm(exact)))
    return found


def main(config: Config) -> None:
    rows = []
    for name in config.networks:
        model, images, data = load(name, config)
        exact = ntk_tt.kernels.empirical_ntk(model.apply, model.params, images).reshape(
            len(images) * config.classes, -1
        )
        for dimension in config.dimensions:
            expected = float(expected_relative_error(exact, dimension))
            for label, kernel_rows in (TUNED if config.tuning else REPORTED).items():
                errors = errors_of(model, images, exact, dimension, kernel_rows, config)
                measured = float(np.sqrt(np.mean(np.square(errors))))
                rows.append(
                    {
                        "network": name,
                        "data": data,
                        "projection": label,
                        "dimension": dimension,
                        "errors": errors,
                        "measured": measured,
                        "expected": expected,
                        "ratio": measured / expected,
                    }
                )
                print(
                    f"{name:10} D' = {dimension:6} {label:22} measured {measured:.4f}, expected "
                    f"{expected:.4f}, ratio {measured / expected:.2f}",
                    flush=True,
                )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / ("tuning.json" if config.tuning else "sketch_error.json")).write_text(
        json.dumps(
            {
                "config": dataclasses.asdict(config),
                "rows": rows,
                "environment": environment(config.seed),
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
