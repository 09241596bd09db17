"""A prediction over a mesh, run as a program of its own: the number of devices is fixed when JAX
starts.

    python -m tests.sharded_program DEVICES [PROCESS PROCESSES PORT]

Prints one JSON line: curves of several settings in both spaces.
"""

import json
import sys

import jax

DEVICES, *PROCESS = (int(argument) for argument in sys.argv[1:])
jax.config.update("jax_num_cpu_devices", DEVICES)
if PROCESS:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{PROCESS[2]}", PROCESS[1], PROCESS[0])

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402 (JAX is set up before anything uses it)

import ntk_tt  # noqa: E402
from ntk_tt.dynamics import replay_many  # noqa: E402
from ntk_tt.runtime.sharding import sample_mesh  # noqa: E402
from ntk_tt.surrogate.sharpness import largest_curvature  # noqa: E402
from tests.networks import convolutional, normal  # noqa: E402


def small_network(inputs, labels, mesh) -> dict:
    """Curves, the stability and the directions of the surrogate with a real head."""
    case = convolutional(5, norm=False)
    params = {"body": case.params, "head": {"kernel": normal(1, 5, 3), "bias": normal(2, 3)}}

    def features(params, x):
        return jnp.tanh(case.apply(params["body"], x))

    model = ntk_tt.from_function(
        lambda params, x: features(params, x) @ params["head"]["kernel"] + params["head"]["bias"],
        params,
        features=features,
        head="head",
        num_classes=3,
    )
    problem = ntk_tt.surrogate.expand(
        model, inputs, labels, options=ntk_tt.FeatureOptions(num_projections=60), mesh=mesh
    )
    sgd, adamw = (
        ntk_tt.OptimizerConfig(0.05, 0.9, weight_decay=0.01),
        ntk_tt.OptimizerConfig(0.01, name="adamw", batch_size=4),
    )
    found = {
        "small batches": ntk_tt.prediction.predict(problem, adamw, 12, num_seeds=2).loss.tolist()
    }
    together = replay_many(problem, [sgd, adamw, ntk_tt.OptimizerConfig(0.02, 0.5)], 12)
    found |= {f"many {index}": curve.loss.tolist() for index, curve in enumerate(together)}
    found["small stability"] = [
        ntk_tt.prediction.stability(problem, each, 12)[0] for each in (sgd, adamw)
    ]
    found["small growth"] = [float(problem.growth), float(problem.dropped)]
    if mesh is not None:
        rows = problem.jacobian.sharding.shard_shape(problem.jacobian.shape)[0]
        assert rows == -(-13 // jax.device_count()), rows  # a device holds its own samples alone
    return found


def main() -> None:
    case = convolutional(3, norm=True)
    inputs, labels = np.asarray(case.inputs(13, 0)), np.arange(13) % 3
    mesh = sample_mesh() if jax.device_count() > 1 else None
    found = {"devices": jax.device_count(), "processes": jax.process_count()}
    for space, name, optimizer in (
        ("primal", "full", ntk_tt.OptimizerConfig(0.05, 0.9, weight_decay=0.01)),
        ("dual", "batches", ntk_tt.OptimizerConfig(0.05, 0.5, weight_decay=0.01, batch_size=4)),
    ):
        problem = ntk_tt.surrogate.linearize(
            case.model,
            inputs,
            labels,
            outputs="contrasts",
            options=ntk_tt.FeatureOptions(num_projections=48),
            space=space,
            mesh=mesh,
        )
        found[f"{space} {name}"] = ntk_tt.prediction.predict(
            problem, optimizer, 12, num_seeds=2
        ).loss.tolist()
        found[f"{space} curvature"] = largest_curvature(problem, problem.initial_logits)[0]
    found |= small_network(inputs, labels, mesh)
    print("RESULT " + json.dumps(found), flush=True)


main()
