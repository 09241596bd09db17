"""A few real steps, then the prediction: exact where the network is linear in its backbone."""

import functools

import jax
import numpy as np
import pytest

import ntk_tt
from ntk_tt.prediction.one_shot import affordable_steps, predict_after
from ntk_tt.schedules import named_schedule
from ntk_tt.surrogate.expansion import expand
from tests.test_small_network import SAMPLES, data, network  # noqa: F401


@pytest.mark.slow_but("optimizer1")
@pytest.mark.parametrize(
    "optimizer",
    [
        ntk_tt.OptimizerConfig(0.2, 0.9),
        ntk_tt.OptimizerConfig(
            named_schedule("cosine", 0.3, 30), 0.8, nesterov=True, weight_decay=0.05
        ),
    ],
)
def test_goes_on_as_real_training_does_where_the_backbone_is_linear(
    data,  # noqa: F811
    optimizer,
    monkeypatch,
):
    # along all F directions: with few, what they leave out grows as momentum carries it on
    monkeypatch.setattr(
        "ntk_tt.prediction.one_shot.expand", functools.partial(expand, num_directions="all")
    )
    model = network(activation=lambda x: x)
    real = ntk_tt.finetune(model, *data, optimizer, 30)
    found = predict_after(model, *data, optimizer, 30, first_steps=8, curvature=False)
    (curve,) = found.trajectories
    np.testing.assert_array_equal(curve.steps, real.steps)
    np.testing.assert_allclose(curve.loss, real.loss, rtol=1e-4)  # the first nine are real
    np.testing.assert_allclose(curve.error, real.error, atol=1e-6)


@pytest.mark.slow
def test_records_join_without_a_gap_and_seeds_differ_only_later(data):  # noqa: F811
    model = network()
    found = predict_after(
        model,
        *data,
        ntk_tt.OptimizerConfig(0.2, batch_size=4),
        20,
        first_steps=7,
        num_seeds=2,
        record_every=3,
    )
    one, other = found.trajectories
    np.testing.assert_array_equal(one.steps, [0, 3, 6, 9, 12, 15, 18, 20])
    assert (one.loss[:3] == other.loss[:3]).all()
    assert one.loss[-1] != other.loss[-1]
    assert np.isfinite(one.loss).all()


def test_affordable_steps_are_those_of_the_feature_pass():
    assert affordable_steps(200, 200, 8) == 3  # nine passes of a sample against three
    assert affordable_steps(200, 32, 8) == 18
    assert affordable_steps(10, 10, 1) == 1


def test_wrong_first_steps(data):  # noqa: F811
    with pytest.raises(ValueError, match=r"first_steps: must lie in 1 … 9"):
        predict_after(network(), *data, ntk_tt.OptimizerConfig(0.1), 10, first_steps=10)


@pytest.mark.slow
def test_default_is_at_most_a_quarter(data):  # noqa: F811
    found = predict_after(
        network(),
        *data,
        ntk_tt.OptimizerConfig(0.1, batch_size=2),
        20,
        num_seeds=1,
        key=jax.random.key(1),
    )
    assert found.run.steps[-1] == 5
    assert len(data[0]) == SAMPLES
