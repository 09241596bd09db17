"""Is a sample of the parameters as good a sketch as a projection, on trained networks?

    python -m experiments.studies.sample_error

Takes about ten minutes on two cores and 6 GB; needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. Expected:
errors of half of the formula's at D' = 2048, and less above it; twice the formula's, and more,
where entries are drawn by the root of their mean square.

Exact Θ against ΦΦᵀ for several draws: relative Frobenius error, root mean square over the draws,
over √((tr²Θ + ‖Θ‖²_F)/D')/‖Θ‖_F, that of a projection with independent entries. The share of the
mean that every entry has (0.1) was chosen with the bundled network on cifar100, which is not here.
"""

import dataclasses
import json

import jax
import numpy as np
import tyro

import ntk_tt
from experiments.common.experiment import RESULTS as ALL_RESULTS
from experiments.common.tasks import TaskConfig, load
from ntk_tt.features.parameter_sample import Importance, sample_parameters
from ntk_tt.report.document import environment
from ntk_tt.runtime.parameter_names import named_leaves

RESULTS = ALL_RESULTS / "sample_error"
NETWORKS = {"resnet20": "cifar10", "resnet18": "cub200"}  # and their data
IMPORTANCES: tuple[Importance, ...] = ("square", "root")


@dataclasses.dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = ("resnet20", "resnet18")
    classes: int = 5
    per_class: int = 2
    dimensions: tuple[int, ...] = (1024, 2048, 8192)
    draws: int = 8
    seed: int = 0


def main(config: Config) -> None:
    rows = [row for name in config.networks for row in measure(name, config)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {
        "config": dataclasses.asdict(config),
        "rows": rows,
        "environment": environment(config.seed),
    }
    (RESULTS / "sample_error.json").write_text(json.dumps(document, indent=1) + "\n")


def measure(name: str, config: Config) -> list[dict]:
    """The errors of one network's samples, by D' and importance."""
    task = TaskConfig(name, NETWORKS[name], config.classes, config.per_class, config.seed)
    model, images, _ = load(task)
    whole = ntk_tt.FeatureOptions(num_projections="exact")
    jacobian = ntk_tt.features.jacobian_features(model.apply, model.params, images, options=whole)
    jacobian = np.asarray(jacobian).reshape(len(images) * config.classes, -1)
    exact = jacobian @ jacobian.T
    trace, norm = np.trace(exact), np.linalg.norm(exact)
    sizes = {name: leaf.size for name, leaf in named_leaves(model.params).items()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    rows = []
    for dimension in config.dimensions:
        expected = float(np.sqrt((trace**2 + norm**2) / dimension) / norm)
        for importance in IMPORTANCES:
            errors = []
            for key in jax.random.split(jax.random.key(config.seed + 1), config.draws):
                sample = sample_parameters(
                    model.apply, model.params, images, dimension, key=key, importance=importance
                )
                taken = np.concatenate(
                    [starts[name] + index for name, index in sample.entries.items()]
                )
                scale = np.sqrt(np.concatenate(list(sample.weights.values())))
                features = jacobian[:, taken] * scale
                errors.append(float(np.linalg.norm(features @ features.T - exact) / norm))
            measured = float(np.sqrt(np.mean(np.square(errors))))
            rows.append(
                {
                    "network": name,
                    "data": NETWORKS[name],
                    "importance": importance,
                    "dimension": dimension,
                    "errors": errors,
                    "measured": measured,
                    "expected": expected,
                    "ratio": measured / expected,
                }
            )
            print(
                f"{name:10} D' = {dimension:6} {importance:8} measured {measured:.4f}, a "
                f"projection's formula {expected:.4f}, ratio {measured / expected:.2f}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
