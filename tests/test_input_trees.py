"""Inputs that are trees of arrays, and texts, everywhere that a network is called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_tt import predict_training_time
from ntk_tt.features import manifest
from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.write import write_features
from ntk_tt.jacobian.network import check_network, logits_and_tangent
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.kernels.empirical import empirical_ntk
from ntk_tt.models.adapters import from_function
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.one_shot import predict_after
from ntk_tt.prediction.residual import linearization_residual
from ntk_tt.runtime import input_trees
from ntk_tt.runtime.input_trees import CutInputs, Tokens
from ntk_tt.runtime.sharding import sample_mesh
from ntk_tt.surrogate.expansion import expand
from ntk_tt.training import finetune
from tests.networks import normal

EXACT = FeatureOptions(num_projections="exact")
N, T = 14, 24


def params_of(seed: int = 0) -> dict:
    sizes = {"table": (9, 6), "gate": (4, 6), "hidden": (6, 6), "head": (6, 3)}
    return {
        name: 0.5 * normal(seed + index, *size) for index, (name, size) in enumerate(sizes.items())
    }


def apply_tree(params, inputs):
    """Of a tree {"words": whole numbers (N, 5), "seen": [real numbers (N, 4)]}."""
    words = jnp.take(params["table"], inputs["words"], axis=0, mode="clip")
    gate = jax.nn.sigmoid(inputs["seen"][0] @ params["gate"])
    x = jnp.tanh((words * gate[:, None]).mean(1) @ params["hidden"])
    return x @ params["head"]


def apply_array(params, inputs):
    """The same of one array that holds both."""
    words = inputs[:, :5].astype(jnp.int32)
    return apply_tree(params, {"words": words, "seen": [inputs[:, 5:]]})


@functools.cache
def data() -> tuple[dict, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    words, seen = rng.integers(0, 9, (N, 5)), rng.normal(size=(N, 4))
    tree = {"words": words.astype(np.int32), "seen": [seen.astype(np.float32)]}
    array = np.concatenate([words, seen], 1).astype(np.float32)
    return tree, array, rng.integers(0, 3, N)


def texts(rng=None, num: int = N, longest: int = T) -> Tokens:
    """Padded on the right, with other numbers where the mask is 0."""
    rng = rng or np.random.default_rng(1)
    lengths = np.sort(rng.integers(2, longest + 1, num))
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int32)
    return Tokens(input_ids=rng.integers(0, 9, mask.shape).astype(np.int32), attention_mask=mask)


def apply_text(params, inputs):
    words = jnp.take(params["table"], inputs["input_ids"], axis=0, mode="clip")
    words = jnp.tanh(words @ params["hidden"])
    mask = inputs["attention_mask"].astype(words.dtype)
    x = jnp.einsum("ntd,nt->nd", words, mask) / mask.sum(1, keepdims=True)
    return jnp.tanh(x @ params["gate"].T) @ params["head"][:4]


def both(function):
    """What a function of (apply, inputs) gives for the tree and for the array."""
    tree, array, _ = data()
    return function(apply_tree, tree), function(apply_array, array)


def assert_same(one, other, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()),
        one,
        other,
    )


def test_a_tree_has_the_logits_kernel_and_features_of_the_array_that_holds_the_same():
    params = params_of()
    direction = params_of(7)
    assert both(lambda apply, x: check_network(apply, params, x)) == (3, 3)
    both(lambda apply, x: check_pass(apply, params, x))
    assert_same(*both(lambda apply, x: logits_and_tangent(apply, params, x, direction)))
    assert_same(*both(lambda apply, x: empirical_ntk(apply, params, x)))
    folded = FeatureOptions(num_projections=10, block_size=4)
    assert_same(*both(lambda apply, x: jacobian_features(apply, params, x, options=EXACT)))
    assert_same(*both(lambda apply, x: jacobian_features(apply, params, x, options=folded)))


def test_a_tree_over_devices():
    params, mesh = params_of(), sample_mesh(jax.devices()[:1])
    assert_same(
        *both(lambda apply, x: jacobian_features(apply, params, x, options=EXACT, mesh=mesh))
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2)])
def test_a_tree_is_expanded_predicted_and_trained_as_the_array(optimizer):
    params, labels = params_of(), data()[2]

    def predicted(apply, inputs):
        model = from_function(apply, params, name="tree")
        report = predict_training_time(
            model, inputs, labels, optimizer, 12, batch_size=7, num_seeds=1, options=EXACT
        )
        run = finetune(from_function(apply, params), inputs, labels, optimizer, 12, batch_size=7)
        return report.outcome.predicted.prediction.loss, run.loss, run.params

    assert_same(*both(predicted), rtol=2e-4)


@pytest.mark.slow
def test_one_shot_and_residual_take_trees():
    params, labels = params_of(), data()[2]
    setting = OptimizerConfig(0.1, batch_size=7)

    def found(apply, inputs):
        model = from_function(apply, params, name="tree")
        shot = predict_after(model, inputs, labels, setting, 8, first_steps=2, options=EXACT)
        residual = linearization_residual(
            from_function(apply, params), inputs, labels, setting, num_samples=9
        )
        return shot.trajectories[0].loss, residual.value

    assert_same(*both(found), rtol=1e-4)


def test_a_store_of_a_tree_is_found_again_and_only_by_the_same_tree(tmp_path):
    tree, _, _ = data()
    params = params_of()
    written = write_features(apply_tree, params, tree, tmp_path, options=EXACT)
    again = write_features(apply_tree, params, tree, tmp_path, options=EXACT)
    assert again.identity == written.identity
    assert not again.missing()
    other = {**tree, "words": (tree["words"] + 1) % 9}
    elsewhere = write_features(apply_tree, params, other, tmp_path, options=EXACT)
    assert elsewhere.folder != again.folder
    features = jacobian_features(apply_tree, params, tree, options=EXACT)
    np.testing.assert_allclose(np.concatenate(list(written)), features, rtol=1e-6)


def test_the_manifest_of_an_array_is_as_it_was():
    _, array, _ = data()
    found = manifest.describe(
        apply_array,
        params_of(),
        array,
        num_projections=4,
        projection="fold",
        key=None,
        block_size=3,
    )
    assert found["inputs"].startswith("float32[14,9] ")


def test_what_is_wrong_with_a_tree_is_said():
    tree, _, _ = data()
    with pytest.raises(ValueError, match=r"one leading axis, the samples, got lengths \[13, 14\]"):
        check_network(apply_tree, params_of(), {**tree, "words": tree["words"][1:]})
    seen = tree["seen"][0].copy()
    seen[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 14 samples hold NaN or infinity, the first is samp"):
        check_network(apply_tree, params_of(), {**tree, "seen": [seen]})


def test_texts_are_cut_to_what_the_longest_of_a_block_needs():
    inputs = texts()
    np.testing.assert_array_equal(inputs.lengths, np.asarray(inputs["attention_mask"]).sum(1))
    assert inputs.lengths[0] < 16 < inputs.lengths[-1]
    short = input_trees.block_of({"text": inputs}, slice(2))
    assert isinstance(short["text"], Tokens)
    assert short["text"]["input_ids"].shape == (2, 16)
    # at most what is there
    assert input_trees.block_of(inputs, slice(N - 2, N))["input_ids"].shape == (2, T)
    assert input_trees.rounded_up(np.asarray([1, 16, 17, 100])).tolist() == [16, 16, 32, 128]
    copies = CutInputs(inputs)
    assert sorted(copies.by_length) == [16, 32]
    rows = np.asarray([N - 1, 0, N - 2, 1])
    assert copies.ordered(rows).tolist() == [0, 1, N - 1, N - 2]
    assert (copies.length(rows), copies.length(rows[[1, 3]])) == (32, 16)
    arrays = CutInputs(np.zeros((3, 2)))
    assert arrays.length(rows) == 0
    assert arrays.ordered(rows) is rows


@pytest.mark.slow
def test_a_cut_text_trains_and_is_expanded_as_a_whole_one():
    """Padding says nothing, so texts cut to their length give what a plain dict of all gives."""
    inputs, params, labels = texts(), params_of(), np.random.default_rng(2).integers(0, 3, N)
    plain = dict(inputs)
    model = from_function(apply_text, params, name="text")
    small, whole = (
        expand(model, each, labels, options=EXACT, num_directions="all") for each in (inputs, plain)
    )
    assert_same(small.initial_logits, whole.initial_logits)
    assert_same(small.jacobian, whole.jacobian)
    runs = [
        finetune(
            from_function(apply_text, params),
            each,
            labels,
            optax.adam(1e-2),
            6,
            batch_size=5,
            block_size=2,
        )
        for each in (inputs, plain)
    ]
    assert_same(runs[0].loss, runs[1].loss, rtol=1e-4)


@pytest.mark.slow
def test_the_order_of_texts_changes_no_prediction():
    inputs, params, labels = texts(), params_of(), np.random.default_rng(2).integers(0, 3, N)
    order = np.random.default_rng(3).permutation(N)
    sorted_inputs, sorted_labels = input_trees.in_order_of_length(
        input_trees.take(inputs, order), labels[order]
    )
    np.testing.assert_array_equal(sorted_inputs.lengths, inputs.lengths)
    model = from_function(apply_text, params, name="text")
    losses = [
        predict_training_time(
            model, *each, optax.sgd(0.1), 10, options=EXACT
        ).outcome.predicted.prediction.loss
        for each in (
            (inputs, labels),
            (input_trees.take(inputs, order), labels[order]),
        )
    ]
    assert_same(losses[0], losses[1], rtol=1e-4)
    assert sorted(sorted_labels) == sorted(labels)
