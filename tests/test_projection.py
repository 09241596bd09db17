"""Random projections: unbiased, of the stated error, rebuildable from the key."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.dimension import (
    choose_num_projections,
    default_num_projections,
    expected_relative_error,
    projection_advice,
)
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.one_block import projected_jacobian
from ntk_tt.features.projection_by_name import make_projection
from ntk_tt.features.projections import Identity
from tests.networks import mlp, normal

KINDS = ["fold", "achlioptas", "gaussian"]
SHAPES = {"a": (3, 5), "b": (40,), "c": (7, 2, 3)}
SIZE = 97


def tree(rows: int, seed: int = 0) -> dict:
    return {
        name: normal(1000 * seed + index, rows, *shape)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def flat(gradients: dict) -> np.ndarray:
    return np.concatenate(
        [np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)], 1
    )


@pytest.mark.slow_but("fold")
@pytest.mark.parametrize("kind", KINDS)
def test_gram_matrix_is_unbiased_with_the_expected_error(kind):
    """Over 400 keys the mean of ΦΦᵀ is Θ within five standard errors, and the relative error is
    what the formula says.
    """
    gradients = tree(6)
    truth = flat(gradients) @ flat(gradients).T
    project = jax.jit(lambda key: make_projection(kind, SIZE, 24, key)(gradients))
    samples = np.stack(
        [np.asarray(project(key)) for key in jax.random.split(jax.random.key(1), 400)]
    )
    grams = np.einsum("kid,kjd->kij", samples, samples)
    standard_error = grams.std(0, ddof=1) / np.sqrt(len(grams))
    assert (np.abs(grams.mean(0) - truth) < 5 * standard_error + 1e-4).all()
    errors = np.linalg.norm(grams - truth, axis=(1, 2)) / np.linalg.norm(truth)
    expected = float(expected_relative_error(jnp.asarray(truth), 24))
    assert np.sqrt((errors**2).mean()) == pytest.approx(expected, rel=0.2)


@pytest.mark.slow_but("fold")
@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_linear_and_a_function_of_its_key(kind):
    one, two = tree(4, 1), tree(4, 2)
    key = jax.random.key(3)
    project = make_projection(kind, SIZE, 16, key)
    both = jax.tree.map(lambda a, b: 2 * a - b, one, two)
    np.testing.assert_allclose(project(both), 2 * project(one) - project(two), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        project(one), make_projection(kind, SIZE, 16, jax.random.key(3))(one)
    )
    # a key that is not known while tracing draws the same numbers
    traced = jax.jit(lambda key: make_projection(kind, SIZE, 16, key)(one))(key)
    np.testing.assert_allclose(traced, project(one), rtol=1e-5, atol=1e-5)
    assert (
        np.abs(
            np.asarray(project(one) - make_projection(kind, SIZE, 16, jax.random.key(4))(one))
        ).max()
        > 0.1
    )


def test_fold_keeps_every_coordinate_with_a_sign():
    """Projecting the unit vectors gives rows of one ±1: a signed fold loses nothing and mixes no
    scales.
    """
    eye = np.eye(SIZE, dtype=np.float32)
    gradients, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        gradients[name] = jnp.asarray(eye[:, start : start + size].reshape(SIZE, *shape))
        start += size
    matrix = np.asarray(make_projection("fold", SIZE, 30, jax.random.key(0))(gradients))
    assert (np.abs(matrix).sum(1) == 1).all()
    assert ((matrix == 0) | (np.abs(matrix) == 1)).all()
    assert (np.abs(matrix).sum(0) > 0).sum() > 20  # and uses the space it has


def test_identity_from_d_on_and_exactness():
    assert isinstance(make_projection("fold", SIZE, SIZE, jax.random.key(0)), Identity)
    np.testing.assert_array_equal(
        make_projection("gaussian", SIZE, SIZE + 1, jax.random.key(0))(tree(3)), flat(tree(3))
    )


def test_default_dimension():
    assert default_num_projections(500, 10**7) == 8000
    assert default_num_projections(3750, 10**8) == 60_000
    assert default_num_projections(10, 10**7) == 4096
    assert default_num_projections(3750, 50_000) == 50_000
    assert default_num_projections(500_000, 10**8, max_bytes=1 << 30) == (1 << 30) // (4 * 500_000)


def test_dimension_for_a_budget():
    assert choose_num_projections(50_000, 10, 10**8, 40 << 30) == (40 << 30) // (4 * 500_000)
    assert choose_num_projections(50_000, 10, 10**8, 40 << 30, itemsize=2) == (40 << 30) // (
        2 * 500_000
    )
    assert choose_num_projections(50, 10, 10**8, 40 << 30) == 16 * 500  # no more than is of use
    assert choose_num_projections(50, 10, 3000, 40 << 30) == 3000  # exact
    assert choose_num_projections(50, 10, 10**8, 2000) == 1
    with pytest.raises(
        ValueError,
        match="memory_bytes: 1999 do not hold one number for each of 50 samples × 10 outputs; give "
        "at least 2000",
    ):
        choose_num_projections(50, 10, 10**8, 1999)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((1000, 4000, 10**6), None),
        (
            (1000, 3999, 10**6),
            r"3999 is few for a kernel of rank 1000 \(rank/D' = 0\.25, above 1/4\): the small "
            r"eigenvalues .* take num_projections=4000 if 0\.016 GB",
        ),
        ((1000, 500, 10**6), r"only 500 of 1000 eigenvalues .* take num_projections=4000"),
        (
            (500_000, 4096, 80_000),
            r"rank 80000 .*only 4096 of 80000 .* take the exact features, num_projections=80000 if "
            r"160 GB",
        ),
        ((500_000, 80_000, 80_000), None),
    ],
)
def test_advice_on_a_small_dimension(arguments, advice):
    said = projection_advice(*arguments)
    assert (said is None) == (advice is None)
    if advice is not None:
        assert re.search(advice, said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_network_approximate_its_kernel(kind):
    case = mlp(2, inputs=20, width=48, depth=2)
    x = case.inputs(6, 0)
    exact = jacobian_features(
        case.apply, case.params, x, options=FeatureOptions(num_projections="exact")
    ).reshape(12, -1)
    ntk = exact @ exact.T
    size = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    compute = jax.jit(
        lambda key: projected_jacobian(
            case.apply, "structured", make_projection(kind, size, 512, key), case.params, x
        ).reshape(12, -1)
    )
    squares = []
    for seed in range(8):
        features = compute(jax.random.key(seed))
        squares.append(
            float(jnp.linalg.norm(features @ features.T - ntk) / jnp.linalg.norm(ntk)) ** 2
        )
    assert np.sqrt(np.mean(squares)) == pytest.approx(
        float(expected_relative_error(ntk, 512)), rel=0.6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projection": "hadamard", "num_projections": 8}, "projection: unknown 'hadamard'"),
        ({"num_projections": 0}, "num_projections: must be at least 1"),
        ({"num_projections": "many"}, "num_projections: give 'auto'"),
    ],
)
def test_bad_arguments(unchecked, arguments, message):
    case = mlp(2)
    with pytest.raises(ValueError, match=message):
        jacobian_features(
            case.apply, case.params, case.inputs(3, 0), options=FeatureOptions(**arguments)
        )
