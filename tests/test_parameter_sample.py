"""A sample of the parameters as a sketch: unbiased, exact where all are taken, no uniform one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features.one_block import projected_jacobian
from ntk_tt.features.parameter_sample import (
    ParameterSample,
    draw,
    inclusion_probabilities,
    mean_squares,
    sample_parameters,
)
from ntk_tt.runtime.parameter_names import named_leaves
from tests.networks import convolutional, dense_jacobian, mlp

CASE = mlp(3, width=12)
INPUTS = CASE.inputs(8, 0)
JACOBIAN = dense_jacobian(CASE, INPUTS)  # (N, C, D)
NTK = np.einsum("ncd,mkd->ncmk", JACOBIAN, JACOBIAN).reshape(24, 24)


def columns(sample: ParameterSample, params) -> np.ndarray:
    """Where the sampled entries are among all, and 1/π of each."""
    sizes = [leaf.size for leaf in named_leaves(params).values()]
    starts = dict(zip(named_leaves(params), np.cumsum([0, *sizes]), strict=False))
    return np.concatenate([starts[name] + index for name, index in sample.entries.items()])


def projected(case, path, sample: ParameterSample, inputs) -> np.ndarray:
    """One program, as where features are computed."""

    @jax.jit
    def of_block(params, inputs):
        return projected_jacobian(case.apply, path, sample, params, inputs)

    return np.asarray(of_block(case.params, inputs))


@pytest.mark.slow_but("*-dense")
@pytest.mark.parametrize("case", [CASE, convolutional(3, norm=True)], ids=["dense", "convolutions"])
@pytest.mark.parametrize("path", ["structured", "plain"])
def test_features_are_the_weighted_columns(case, path):
    inputs = case.inputs(3, 0)
    sample = sample_parameters(case.apply, case.params, inputs, 40, key=jax.random.key(1))
    found = projected(case, path, sample, inputs)
    weights = np.concatenate(list(sample.weights.values()))
    wanted = dense_jacobian(case, inputs)[..., columns(sample, case.params)] * np.sqrt(weights)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_all_parameters_are_the_jacobian_itself():
    sample = sample_parameters(CASE.apply, CASE.params, INPUTS, 10**6, key=jax.random.key(0))
    found = projected(CASE, "structured", sample, INPUTS)
    np.testing.assert_allclose(found, JACOBIAN, rtol=2e-5, atol=1e-6)


@pytest.mark.slow_but("square")
@pytest.mark.parametrize("importance", ["square", "root", "both"])
def test_the_kernel_is_unbiased(importance):
    """The mean over draws comes as near as its own standard error says."""
    estimates = []
    for seed in range(100):
        sample = sample_parameters(
            CASE.apply, CASE.params, INPUTS, 60, key=jax.random.key(seed), importance=importance
        )
        weights = np.concatenate(list(sample.weights.values()))
        rows = JACOBIAN.reshape(24, -1)[:, columns(sample, CASE.params)] * np.sqrt(weights)
        estimates.append(rows @ rows.T)
    error = np.mean(estimates, 0) - NTK
    standard = np.std(estimates, 0) / np.sqrt(len(estimates))
    assert np.abs(error).max() > 0
    assert np.sqrt(np.mean((error / standard) ** 2)) < 1.5
    # one that forgets a weight, or a parameter, is further away than that by far
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(NTK)


def test_a_parameter_of_huge_gradients_does_not_hide_the_others_or_spoil_them():
    """Heavy tails: importance keeps the error of 80 of 267 entries far below a uniform sample's."""
    scale = {"weight": jnp.full((6, 12), 30.0), "bias": jnp.ones(12)}
    inner = CASE.params[0]
    params = [jax.tree.map(jnp.divide, inner, scale), *CASE.params[1:]]

    def apply(params, x):
        return CASE.apply([jax.tree.map(jnp.multiply, params[0], scale), *params[1:]], x)

    jacobian = dense_jacobian(CASE._replace(apply=apply, params=params), INPUTS).reshape(24, -1)
    ntk = jacobian @ jacobian.T

    def error(sampled, weights):
        rows = jacobian[:, sampled] * np.sqrt(weights)
        return np.linalg.norm(rows @ rows.T - ntk) / np.linalg.norm(ntk)

    ours, uniform = [], []
    for seed in range(20):
        sample = sample_parameters(apply, params, INPUTS, 80, key=jax.random.key(seed))
        assert all(len(index) for index in sample.entries.values())
        weights = np.concatenate(list(sample.weights.values()))
        ours.append(error(columns(sample, params), weights))
        drawn = np.random.default_rng(seed).choice(jacobian.shape[1], 80, replace=False)
        uniform.append(error(drawn, np.full(80, jacobian.shape[1] / 80)))
    trace, norm = np.trace(ntk), np.linalg.norm(ntk)
    projection = np.sqrt((trace**2 + norm**2) / 80) / norm
    assert np.median(ours) < 0.5 * projection
    assert np.median(ours) < 0.5 * np.median(uniform)


def test_chances_add_up_and_leave_no_parameter_out():
    rng = np.random.default_rng(0)
    scores = {
        "large": np.exp(4 * rng.normal(size=500)),
        "small": 1e-12 * rng.random(50),
        "tiny": 1e-12 * np.ones(2),
    }
    chances = inclusion_probabilities(scores, 100)
    assert sum(chance.sum() for chance in chances.values()) == pytest.approx(100)
    assert all(chance.min() >= 0 and chance.max() <= 1 for chance in chances.values())
    assert chances["small"].sum() == pytest.approx(4)
    assert chances["tiny"].tolist() == [1, 1]
    below = chances["large"] < 1  # where it is not cut off, a chance is proportional to its score
    ratio = chances["large"][below] / scores["large"][below]
    np.testing.assert_allclose(ratio, ratio[0])
    assert scores["large"][~below].min() >= scores["large"][below].max()
    equal = inclusion_probabilities({"a": np.ones(10)}, 4)["a"]
    np.testing.assert_allclose(equal, 0.4)


def test_the_number_of_entries_is_coarse_and_the_draw_is_a_function_of_the_key():
    def of_network(seed, number):
        return sample_parameters(CASE.apply, CASE.params, INPUTS, number, key=jax.random.key(seed))

    for number in (6, 61, 200):
        sample = of_network(0, number)
        assert sample.num_projections == pytest.approx(number, rel=0.1)
        assert sample.num_projections == sum(map(len, sample.entries.values()))
        for name, index in sample.entries.items():  # eight numbers for each factor of two
            whole = len(index) == named_leaves(CASE.params)[name].size
            assert whole or len(index) % (1 << max(0, len(index).bit_length() - 4)) == 0
    one, two, other = of_network(3, 61), of_network(3, 61), of_network(4, 61)
    for name, index in one.entries.items():
        np.testing.assert_array_equal(index, two.entries[name])
        assert len(set(index.tolist())) == len(index)
    assert any(
        index.tolist() != other.entries[name].tolist() for name, index in one.entries.items()
    )
    with pytest.raises(ValueError, match=r"num_entries: 5 leave some of 6 parameters without"):
        of_network(0, 5)


def test_values_are_the_parameters_own():
    sample = sample_parameters(CASE.apply, CASE.params, INPUTS, 61, key=jax.random.key(0))
    flat = np.concatenate([np.ravel(leaf) for leaf in named_leaves(CASE.params).values()])
    found = np.concatenate([np.asarray(each) for each in sample.values(CASE.params).values()])
    np.testing.assert_array_equal(found, flat[columns(sample, CASE.params)])


def test_squares_are_those_of_the_jacobian_on_average_over_signs():
    exact = np.square(JACOBIAN).sum(1).mean(0)
    found = np.mean(
        [
            np.concatenate(
                list(mean_squares(CASE.apply, CASE.params, INPUTS, jax.random.key(seed)).values())
            )
            for seed in range(60)
        ],
        0,
    )
    np.testing.assert_allclose(found.sum(), exact.sum(), rtol=0.1)
    large = exact > np.median(exact)
    assert np.corrcoef(np.log(found[large]), np.log(exact[large]))[0, 1] > 0.95


def test_the_draw_of_a_parameter_depends_on_its_name_and_chances_alone():
    rng = np.random.default_rng(0)
    squares = {name: np.exp(2 * rng.normal(size=200)) for name in ("a", "b")}
    one = draw(squares, 100, key=jax.random.key(1))
    turned = draw(dict(reversed(squares.items())), 100, key=jax.random.key(1))
    for name in squares:
        np.testing.assert_array_equal(one.entries[name], turned.entries[name])
    alike = draw(dict.fromkeys(squares, squares["a"]), 100, key=jax.random.key(1))
    assert alike.entries["a"].tolist() != alike.entries["b"].tolist()


def test_both_importances_are_the_mean_of_the_two():
    """Chances of equal parts of what `square` and `root` go by, before the cut at 1."""
    squares = np.asarray([1.0, 4.0, 16.0, 64.0] * 50)
    found = {
        importance: draw({"a": squares}, 20, key=jax.random.key(0), importance=importance)
        for importance in ("square", "root", "both")
    }

    def chances(importance):  # of each of the four, from the weights of those that are drawn
        sample = found[importance]
        values = squares[sample.entries["a"]]
        return {value: 1 / sample.weights["a"][values == value][0] for value in set(values)}

    square, root, both = map(chances, ("square", "root", "both"))
    seen = set(square) & set(root) & set(both)
    assert len(seen) > 1
    for value in seen:
        assert both[value] == pytest.approx((square[value] + root[value]) / 2, rel=1e-5)
