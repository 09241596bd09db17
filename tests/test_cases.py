"""Exact kernels and features of every network of `tests/cases.py` against `jax.jacrev`, in double
precision, to rounding.
"""

import jax
import numpy as np
import pytest

import ntk_tt
from tests import oracles
from tests.cases import CASES, network

TOLERANCE = 1e-11
# `jax.nn.dot_product_attention` takes its softmax in single precision, whatever it is given
SINGLE = {"attention of grouped queries": 1e-6}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def close(name, found, truth) -> None:
    assert np.linalg.norm(np.asarray(found) - truth) <= SINGLE.get(
        name, TOLERANCE
    ) * np.linalg.norm(truth)


# what tests/test_structured.py hasn't among its quick ones
QUICK = (
    "convolution causal in one dimension",
    "einsum with a kernel a position",
    "parameter in different roles",
    "one output",
    "parameters without influence",
)


@pytest.mark.slow_but(*QUICK)
@pytest.mark.parametrize("name", CASES)
def test_kernel_and_features_are_those_of_the_dense_jacobian(name):
    apply, params, inputs = network(name)
    jacobian = oracles.dense(apply, params, inputs).jacobian
    close(
        name,
        ntk_tt.features.jacobian_features(
            apply, params, inputs, options=ntk_tt.FeatureOptions(num_projections="exact")
        ),
        jacobian,
    )
    close(
        name,
        ntk_tt.kernels.empirical_ntk(apply, params, inputs),
        np.einsum("iad,jbd->iajb", jacobian, jacobian),
    )
    assert (np.linalg.norm(jacobian) > 0) == (name != "parameters without influence")


ODD = (
    "convolution transposed",
    "attention of grouped queries",
    "gated recurrent unit",
    "embedding tied to the head",
    "mixture of experts",
    "fourier layer",
    "one output",
    "unused parameter",
    "parameters without influence",
    "parameter without numbers",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_one_sample_and_the_kernel_between_two_sets(name):
    apply, params, inputs = network(name, 1)
    others = network(name, 4, seed=1).inputs
    one, other = (oracles.dense(apply, params, x).jacobian for x in (inputs, others))
    close(
        name,
        ntk_tt.features.jacobian_features(
            apply, params, inputs, options=ntk_tt.FeatureOptions(num_projections="exact")
        ),
        one,
    )
    close(
        name,
        ntk_tt.kernels.empirical_ntk(apply, params, inputs, others, block_size=3),
        np.einsum("iad,jbd->iajb", one, other),
    )


@pytest.mark.parametrize(
    "name",
    [
        "rounded weights with a straight gradient",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ODD),
    ],
)
def test_replay_of_one_step_is_a_step_of_the_weights(name):
    """f₀ − η J Jᵀ g/N from the features, and the same from moving the weights along the gradient,
    to second order.
    """
    apply, params, inputs = network(name)
    network_at_start = oracles.dense(apply, params, inputs)
    targets = np.random.default_rng(2).normal(size=network_at_start.logits.shape)
    problem = ntk_tt.surrogate.linearize(
        ntk_tt.from_function(apply, params),
        inputs,
        targets,
        loss="mse",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    found = ntk_tt.dynamics.replay(
        problem, ntk_tt.OptimizerConfig(0.1, weight_decay=0.3), 1, save_logits=True
    ).logits[-1]
    close(
        name,
        found,
        oracles.train_linear(
            network_at_start, targets, "mse", [np.arange(3)], rate=0.1, weight_decay=0.3
        )[-1],
    )
