"""Labels, errors and the loss of chance: what prediction and truth share."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt import losses
from ntk_tt.targets import chance_loss, encode_targets, least_loss, smoothed, wrong
from tests.networks import mlp

BAD_LABELS = [
    (np.array([0, 1, 3]), "ce", "must lie in 0 … 2"),
    (np.array([0, -1, 2]), "ce", "must lie in 0 … 2"),
    (np.array([0.0, 1.0, 2.0]), "ce", r"shape \(N, 3\)"),
    (np.array([[0], [1], [2]]), "ce", r"shape \(N,\)"),
    (np.array([True, False, True]), "ce", r"shape \(N, 3\)"),
    (np.full((3, 3), np.nan), "mse", "NaN"),
    (np.ones((3, 2)), "mse", r"shape \(N, 3\)"),
    (np.ones((3, 3)), "ce", "probabilities"),
    (np.array([[1.5, -0.5, 0.0]] * 3), "ce", "probabilities"),
    (np.array(["a", "b", "c"]), "ce", r"shape \(N, 3\)"),
    (np.full((3, 3), "a"), "mse", "integers or real numbers"),
    (np.array([0, 1]), "ce", "there are 2 for 3"),
]


@pytest.mark.parametrize(("labels", "loss", "message"), BAD_LABELS)
def test_bad_labels(labels, loss, message):
    case = mlp(3, width=4)
    with pytest.raises(ValueError, match=f"labels: .*{message}"):
        ntk_tt.finetune(
            case.model,
            case.inputs(3, 0),
            labels,
            ntk_tt.OptimizerConfig(0.1),
            1,
            loss=loss,
        )
    if len(labels) == 3:  # what the prediction reads them with
        with pytest.raises(ValueError, match=f"labels: .*{message}"):
            encode_targets(labels, 3, loss=loss)


@pytest.mark.parametrize(
    ("outputs", "loss", "message"), [(3, "MSE", "unknown 'MSE'"), (1, "ce", "at least two outputs")]
)
def test_finetune_refuses_losses_that_mean_nothing(outputs, loss, message):
    case = mlp(outputs, width=4)
    with pytest.raises(ValueError, match=message):
        ntk_tt.finetune(
            case.model,
            case.inputs(3, 0),
            np.zeros(3, int),
            ntk_tt.OptimizerConfig(0.1),
            1,
            loss=loss,
        )


def test_soft_labels_are_targets():
    soft = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(encode_targets(soft, 3, loss="ce"), soft)


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        ([[0.0]], [[0.0]], False),
        ([[0.0]], [[1.0]], True),
        ([[2.0]], [[1.0]], False),
        ([[-2.0]], [[1.0]], True),
        ([[1.0]], [[0.0]], True),
        ([[1.0, 2.0]], [[0.0, 1.0]], False),
    ],
)
def test_one_definition_of_an_error(logits, targets, expected):
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    assert bool(wrong(logits, targets)[0]) == expected
    assert float(losses.error_rate(logits, targets)) == expected


@pytest.mark.slow
def test_prediction_and_truth_count_the_same_errors_with_one_output():
    case = mlp(1, width=4)
    x, zero = case.inputs(4, 0), [{**layer, "weight": 0 * layer["weight"]} for layer in case.params]
    targets = np.array([[0.0], [1.0], [-1.0], [0.0]], np.float32)
    problem = ntk_tt.surrogate.linearize(
        ntk_tt.from_function(case.apply, zero),
        x,
        targets,
        loss="mse",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    run = ntk_tt.finetune(
        ntk_tt.from_function(case.apply, zero),
        x,
        targets,
        ntk_tt.OptimizerConfig(1e-9),
        1,
        loss="mse",
    )
    assert run.error[0] == float(problem.metrics(problem.initial_logits)[1]) == 0.5


def test_the_error_of_what_is_not_finite_is_no_number():
    assert np.isnan(losses.error_rate(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]), jnp.eye(2)))


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_loss_of_chance_is_the_least_of_constant_outputs(loss):
    targets = encode_targets(np.array([0, 0, 1, 2, 2, 2]), 3)
    shares = np.asarray(targets).mean(0)
    best = np.log(shares) if loss == "ce" else shares
    at = [
        float(losses.mean_loss(loss, jnp.tile(best + shift, (6, 1)), targets))
        for shift in (np.zeros(3), np.array([0.1, 0, -0.1]), np.array([0, -0.2, 0.1]))
    ]
    assert chance_loss(np.asarray(targets), loss) == pytest.approx(at[0], rel=1e-5)
    assert at[0] < min(at[1:])
    assert chance_loss(np.eye(4), "ce") == pytest.approx(np.log(4))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_smoothed_labels_are_those_of_optax(share):
    labels = np.array([0, 2, 1, 2])
    expected = optax.smooth_labels(np.eye(3, dtype=np.float32)[labels], share)
    found = encode_targets(smoothed(labels, 3, share), 3, loss="ce")
    np.testing.assert_allclose(found, expected, atol=1e-7)
    soft = smoothed(np.asarray(expected), 3, share)  # soft ones are smoothed further
    np.testing.assert_allclose(soft, optax.smooth_labels(expected, share), atol=1e-7)


def test_the_least_loss_is_that_of_outputs_that_are_the_targets():
    shares = smoothed(np.array([0, 1, 2]), 3, 0.3)
    at_best = optax.softmax_cross_entropy(np.log(shares), shares).mean()
    assert least_loss(shares, "ce") == pytest.approx(float(at_best), rel=1e-6)
    assert least_loss(np.eye(3), "ce") == least_loss(shares, "mse") == 0


@pytest.mark.parametrize(
    ("share", "loss", "message"),
    [
        (1.0, "ce", r"must lie in \[0, 1\), got 1.0"),
        (-0.1, "ce", "must lie in"),
        (float("nan"), "ce", "must lie in"),
        (0.1, "mse", "belongs to cross-entropy"),
    ],
)
def test_bad_label_smoothing(share, loss, message):
    case = mlp(3, width=4)
    data = case.inputs(3, 0), np.arange(3)
    with pytest.raises(ValueError, match=f"label_smoothing: {message}"):
        smoothed(data[1], 3, share, loss=loss)
    with pytest.raises(ValueError, match=f"label_smoothing: {message}"):
        ntk_tt.finetune(
            case.model,
            *data,
            ntk_tt.OptimizerConfig(0.1),
            1,
            loss=loss,
            label_smoothing=share,
        )
