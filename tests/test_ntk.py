"""Θ and features against an independent dense computation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.features.compute import _writer, jacobian_features
from ntk_tt.features.plan import plan_features
from ntk_tt.jacobian.network import logits_and_tangent, ntk_vector_product
from ntk_tt.kernels.empirical import ntk_from_features
from tests.networks import CASES, dense_jacobian, dense_ntk, mlp


def relative_error(value, truth) -> float:
    return float(np.linalg.norm(np.asarray(value, np.float64) - truth) / np.linalg.norm(truth))


@pytest.mark.slow_but("convolution-2-plain", "mlp-1-plain")
@pytest.mark.parametrize("path", ["structured", "plain"])
@pytest.mark.parametrize("num_outputs", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_exact_ntk_equals_dense(name, num_outputs, path):
    case = CASES[name](num_outputs)
    x1, x2 = case.inputs(5, 0), case.inputs(3, 1)
    square = ntk_tt.kernels.empirical_ntk(case.apply, case.params, x1, block_size=2, path=path)
    assert square.shape == (5, num_outputs, 5, num_outputs)
    assert square.dtype == jnp.float32
    assert relative_error(square, dense_ntk(case, x1, x1)) < 1e-5
    assert (
        relative_error(
            ntk_tt.kernels.empirical_ntk(case.apply, case.params, x1, x2, block_size=2, path=path),
            dense_ntk(case, x1, x2),
        )
        < 1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_exact_ntk_in_double_precision(name):
    with jax.enable_x64(True):
        case = CASES[name](2, dtype=jnp.float64)
        x1, x2 = case.inputs(5, 0), case.inputs(4, 1)
        result = ntk_tt.kernels.empirical_ntk(case.apply, case.params, x1, x2, block_size=3)
        assert result.dtype == jnp.float64
        assert relative_error(result, dense_ntk(case, x1, x2)) < 1e-12
        assert (
            relative_error(
                ntk_tt.kernels.empirical_ntk(case.apply, case.params, x1), dense_ntk(case, x1, x1)
            )
            < 1e-12
        )


@pytest.mark.slow_but("7")
@pytest.mark.parametrize("block_size", [1, 2, 3, 7, None])
def test_blocks_do_not_change_the_result(block_size):
    case = mlp(2)
    x = case.inputs(7, 0)
    expected = dense_jacobian(case, x)
    assert (
        relative_error(
            jacobian_features(
                case.apply,
                case.params,
                x,
                options=ntk_tt.FeatureOptions(num_projections="exact", block_size=block_size),
            ),
            expected,
        )
        < 1e-5
    )
    assert (
        relative_error(
            ntk_tt.kernels.empirical_ntk(case.apply, case.params, x, block_size=block_size),
            dense_ntk(case, x, x),
        )
        < 1e-5
    )


def test_ntk_is_symmetric_positive_semidefinite_and_follows_permutations():
    case = CASES["batch-norm"](2)
    x = case.inputs(6, 0)
    ntk = np.asarray(ntk_tt.kernels.empirical_ntk(case.apply, case.params, x))
    matrix = ntk.reshape(12, 12)
    assert np.abs(matrix - matrix.T).max() < 1e-5 * np.abs(matrix).max()
    assert np.linalg.eigvalsh(matrix).min() > -1e-5 * np.linalg.eigvalsh(matrix).max()
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(
        ntk_tt.kernels.empirical_ntk(case.apply, case.params, x[order]),
        ntk[order][:, :, order],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow
def test_exact_features_give_the_ntk_and_products_agree():
    case = CASES["convolution"](2)
    x = case.inputs(4, 0)
    truth = dense_ntk(case, x, x)
    features = jacobian_features(
        case.apply, case.params, x, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    assert relative_error(ntk_from_features(features), truth.reshape(8, 8)) < 1e-5
    vector = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    assert (
        relative_error(
            ntk_vector_product(case.apply, case.params, x)(vector),
            np.einsum("iajb,jb->ia", truth, vector),
        )
        < 1e-5
    )


def test_kernel_from_features_over_several_strips():
    features = np.random.default_rng(0).standard_normal((350, 3, 7)).astype(np.float32)
    rows = features.reshape(1050, 7)
    result = np.asarray(ntk_from_features(jnp.asarray(features)))
    assert relative_error(result, rows.astype(np.float64) @ rows.T) < 1e-6
    np.testing.assert_array_equal(result, result.T)


def test_logits_and_tangent():
    case = CASES["batch-norm"](2)
    x = case.inputs(7, 0)
    tangent = jax.tree.map(lambda leaf: jnp.cos(leaf + 1), case.params)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tangent)])
    logits, change = logits_and_tangent(case.apply, case.params, x, tangent, block_size=3)
    assert relative_error(logits, np.asarray(case.apply(case.params, x))) < 1e-6
    assert relative_error(change, dense_jacobian(case, x) @ flat) < 1e-5


def test_peak_memory_is_linear_in_the_number_of_samples():
    """The compiled block needs the same memory whatever N is, and is written into the result in
    place.
    """
    case = mlp(2, width=32)
    small, large = (
        plan_features(
            case.apply,
            case.params,
            case.inputs(number, 0),
            options=ntk_tt.FeatureOptions(num_projections=64, block_size=4),
        )
        for number in (64, 4096)
    )
    assert large.block_bytes == small.block_bytes
    assert large.feature_bytes == 64 * small.feature_bytes
    writer: Any = _writer(None)
    write = (
        writer.lower(jnp.zeros((4096, 2, 64)), jnp.zeros((4, 2, 64)), 0).compile().memory_analysis()
    )
    assert write.alias_size_in_bytes == large.feature_bytes
    assert write.temp_size_in_bytes < small.block_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda case, x: (case.apply, case.params, x.at[2, 1].set(jnp.nan)),
            "inputs: 1 of 4 samples .* sample 2",
        ),
        (
            lambda case, x: (
                case.apply,
                [{**case.params[0], "bias": case.params[0]["bias"] * jnp.nan}, *case.params[1:]],
                x,
            ),
            "params: '0.bias' holds NaN",
        ),
        (
            lambda case, x: (lambda params, x: case.apply(params, x)[0], case.params, x),
            "apply: must map",
        ),
        (lambda case, x: (case.apply, case.params, x[:0]), "no samples"),
        (lambda case, x: (case.apply, {}, x), "nothing to train"),
    ],
)
def test_bad_networks_and_inputs_are_named(change, message):
    case = mlp(2)
    apply, params, x = change(case, case.inputs(4, 0))
    with pytest.raises(ValueError, match=message):
        jacobian_features(apply, params, x)
    with pytest.raises(ValueError, match=message):
        ntk_tt.kernels.empirical_ntk(apply, params, x)
