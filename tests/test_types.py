"""Parameters, logits and inputs of any types: the dynamics run in one, float32 at least, and say
what float32 says.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from tests.networks import mlp, normal

LABELS = np.arange(12) % 3
TYPES = {
    "bfloat16 parameters": (jnp.bfloat16, None, 0.03),
    "float16 parameters": (jnp.float16, None, 0.01),
    "both": (jnp.bfloat16, jnp.float16, 0.03),
}


def network(dtype, logits_dtype):
    case = mlp(3)
    # the same numbers in every type, nearly
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(dtype), case.params)

    def apply(params, x):
        logits = case.apply(params, x)
        return logits if logits_dtype is None else logits.astype(logits_dtype)

    return apply, params, case.inputs(12, 0)


@functools.cache
def curves(dtype, logits_dtype, **options) -> dict[str, np.ndarray]:
    apply, params, x = network(dtype, logits_dtype)
    found = {}
    for space in ("primal", "dual"):
        problem = ntk_tt.surrogate.linearize(
            ntk_tt.from_function(apply, params),
            x,
            LABELS,
            options=ntk_tt.FeatureOptions(num_projections="exact"),
            space=space,
            **options,
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(problem)} == {jnp.dtype(jnp.float32)}
        for method in ("replay", "ode", "sde") + (
            ("sde-diagonal",) if space == "primal" and options["outputs"] == "logits" else ()
        ):
            setting = ntk_tt.OptimizerConfig(
                0.1, momentum=0.5, weight_decay=0.01, batch_size=4 if method == "replay" else None
            )
            found[f"{space} {method}"] = ntk_tt.prediction.predict(
                problem, setting, 10, method=method, num_seeds=1
            ).loss
    found["real"] = ntk_tt.finetune(
        ntk_tt.from_function(apply, params),
        x,
        LABELS,
        ntk_tt.OptimizerConfig(0.1, momentum=0.5),
        10,
    ).loss
    return found


@pytest.mark.slow
@pytest.mark.nightly_but("both-*", "*-contrasts")
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("bfloat16 parameters", "logits"),
        ("both", "logits"),
        ("float16 parameters", "logits"),
        ("bfloat16 parameters", "contrasts"),
    ],
)
def test_every_method_gives_the_curve_of_single_precision(name, outputs):
    dtype, logits_dtype, tolerance = TYPES[name]
    reference = curves(jnp.float32, None, outputs=outputs)
    for method, loss in curves(dtype, logits_dtype, outputs=outputs).items():
        np.testing.assert_allclose(
            loss, reference[method], rtol=tolerance, atol=tolerance, err_msg=method
        )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_real_head_and_the_first_steps_too(dtype):
    def features(params, x):
        return jnp.tanh(x @ params["w"])

    def losses(dtype):
        params = {
            "w": 0.4 * normal(0, 6, 8),
            "head": {"kernel": 0.3 * normal(1, 8, 3), "bias": jnp.zeros(3)},
        }
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(dtype), params)
        model = dataclasses.replace(
            ntk_tt.from_function(
                lambda p, x: features(p, x) @ p["head"]["kernel"] + p["head"]["bias"],
                params,
                num_classes=3,
            ),
            apply_features=features,
            head="head",
        )
        x, setting = normal(2, 12, 6), ntk_tt.OptimizerConfig(0.1, momentum=0.5)
        problem = ntk_tt.surrogate.expand(
            model, x, LABELS, options=ntk_tt.FeatureOptions(num_projections="exact")
        )
        return ntk_tt.prediction.predict(
            problem, setting, 10
        ).loss, ntk_tt.prediction.predict_after(
            model, x, LABELS, setting, 10, first_steps=2
        ).trajectories[0].loss

    for loss, reference in zip(losses(dtype), losses(jnp.float32), strict=True):
        np.testing.assert_allclose(loss, reference, rtol=0.03)


@pytest.mark.slow_but("float16")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_kernels_and_features_of_half_precision_are_single(dtype):
    apply, params, x = network(dtype, None)
    features = ntk_tt.features.jacobian_features(
        apply, params, x, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    assert features.dtype == ntk_tt.kernels.empirical_ntk(apply, params, x).dtype == jnp.float32


@pytest.mark.slow
def test_double_precision_logits_of_single_precision_parameters():
    """Where the inputs are of double precision, NumPy's default, and JAX has it switched on."""
    with jax.enable_x64(True):
        apply, params, x = network(jnp.float32, jnp.float64)
        problem = ntk_tt.surrogate.linearize(
            ntk_tt.from_function(apply, params), np.asarray(x, np.float64), LABELS
        )
        assert problem.initial_logits.dtype == jnp.float32
        loss = ntk_tt.prediction.predict(problem, ntk_tt.OptimizerConfig(0.1), 10).loss
    single = network(jnp.float32, None)
    np.testing.assert_allclose(
        loss,
        ntk_tt.prediction.predict(
            ntk_tt.surrogate.linearize(ntk_tt.from_function(*single[:2]), single[2], LABELS),
            ntk_tt.OptimizerConfig(0.1),
            10,
        ).loss,
        rtol=1e-4,
    )
