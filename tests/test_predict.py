"""The whole of Algorithm 1: one pass prices every setting; seeds give an interval; small steps
agree with the truth.
"""

import jax
import numpy as np
import pytest

import ntk_tt
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.times.crossing import training_times
from tests.networks import mlp


@pytest.fixture(scope="module")
def task():
    case = mlp(3, width=64)
    x = case.inputs(30, 0)
    labels = np.asarray(jax.numpy.argmax(x[:, :3], axis=1))
    return case, x, labels, ntk_tt.surrogate.linearize(case.model, x, labels)


@pytest.mark.slow
def test_space_is_the_smaller_one(task):
    case, x, labels, _ = task
    few = ntk_tt.surrogate.linearize(
        case.model, x, labels, options=ntk_tt.FeatureOptions(num_projections=89)
    )
    many = ntk_tt.surrogate.linearize(
        case.model, x, labels, options=ntk_tt.FeatureOptions(num_projections=91)
    )
    assert isinstance(few.kernel, PrimalKernel)
    assert isinstance(many.kernel, DualKernel)


def test_seeds_give_an_interval_that_holds_the_median(task):
    *_, problem = task
    optimizer = ntk_tt.OptimizerConfig(0.5, batch_size=3)
    prediction = ntk_tt.prediction.predict(
        problem, optimizer, 100, num_seeds=7, loss_thresholds=(0.6,)
    )
    assert len(prediction.runs) == 7
    single = [
        training_times(run.steps, run.loss, run.error, loss_thresholds=(0.6,))["loss_below"]["0.6"]
        for run in prediction.runs
    ]
    assert prediction.times["loss_below"]["0.6"] == sorted(single)[3]
    assert (
        prediction.times_low["loss_below"]["0.6"]
        == min(single)
        < max(single)
        == prediction.times_high["loss_below"]["0.6"]
    )
    np.testing.assert_allclose(prediction.loss, np.mean([run.loss for run in prediction.runs], 0))


@pytest.mark.slow
def test_no_noise_means_one_run(task):
    *_, problem = task
    assert len(ntk_tt.prediction.predict(problem, ntk_tt.OptimizerConfig(0.1), 10).runs) == 1
    assert (
        len(
            ntk_tt.prediction.predict(
                problem, ntk_tt.OptimizerConfig(0.1, batch_size=5), 10, method="ode"
            ).runs
        )
        == 1
    )
    assert (
        len(
            ntk_tt.prediction.predict(
                problem, ntk_tt.OptimizerConfig(0.1, batch_size=5), 10, method="sde", num_seeds=2
            ).runs
        )
        == 2
    )


@pytest.mark.slow
def test_one_pass_prices_every_setting(task):
    """Curves from one linearisation stay close to real training over settings it has not seen."""
    case, x, labels, problem = task
    for optimizer in (
        ntk_tt.OptimizerConfig(0.05),
        ntk_tt.OptimizerConfig(0.01, 0.9),
        ntk_tt.OptimizerConfig(0.05, batch_size=10, weight_decay=0.01),
        ntk_tt.OptimizerConfig(lambda step: 0.1 / (1 + step / 20), 0.5, nesterov=True),
    ):
        prediction = ntk_tt.prediction.predict(problem, optimizer, 60)
        real = ntk_tt.finetune(case.model, x, labels, optimizer, 60)
        assert np.abs(prediction.loss - real.loss).max() < 0.05 * (real.loss[0] - real.loss[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(29) % 3}, "labels: there are 29 for 30 inputs"),
        ({"labels": np.arange(30) % 4}, r"labels: must lie in 0 … 2 .* got 0 … 3"),
        ({"labels": np.full((30, 3), np.nan), "loss": "mse"}, "labels: the targets hold NaN"),
        (
            {"labels": np.zeros((30, 2)), "loss": "mse"},
            r"labels: real targets must have shape \(N, 3\)",
        ),
        ({"loss": "hinge"}, "loss: unknown 'hinge'"),
        ({"space": "outer"}, "space: unknown 'outer'"),
    ],
)
def test_bad_problems(unchecked, task, change, message):
    case, x, labels, _ = task
    with pytest.raises(ValueError, match=message):
        ntk_tt.surrogate.linearize(case.model, x, **({"labels": labels} | change))


def test_network_that_gives_nan_is_named(task):
    case, x, labels, _ = task
    with pytest.raises(
        ValueError, match="logits: the network gives NaN or infinity on 30 of 30 samples"
    ):
        ntk_tt.surrogate.linearize(
            ntk_tt.from_function(lambda params, x: case.apply(params, x) / 0.0, case.params),
            x,
            labels,
        )


@pytest.fixture(scope="module")
def bundled():
    task = ntk_tt.load_task("digits", per_class=6)
    model = ntk_tt.load_model(num_classes=5, key=jax.random.key(0))
    images = model.preprocess(task.images)
    problem = ntk_tt.surrogate.linearize(model, images, task.labels, outputs="contrasts")
    return task, model, images, problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "families"),
    [
        ({"learning_rate": 1e-5}, ("epsilon_relative", "epsilon_absolute")),
        ({"learning_rate": 1e-4}, ("epsilon_relative",)),
        ({"learning_rate": 1e-4, "batch_size": 10}, ("epsilon_relative",)),
    ],
    ids=["smallest", "small", "batches"],
)
def test_small_steps_of_the_bundled_network_agree_within_three_steps(bundled, setting, families):
    """Where the linearisation holds the ε-times of 60 steps are within 3 of real training."""
    task, model, images, problem = bundled
    optimizer = ntk_tt.OptimizerConfig(**setting)
    prediction = ntk_tt.prediction.predict(problem, optimizer, 60)
    real = ntk_tt.finetune(model, images, task.labels, optimizer, 60)
    times = training_times(real.steps, real.loss, real.error)
    for family in families:
        for name, time in times[family].items():
            assert abs(prediction.times[family][name] - time) <= 3, (family, name)


@pytest.mark.slow
def test_contrasts_give_the_same_curves_as_logits():
    """Cross-entropy does not see the sum of a sample's logits: C−1 outputs carry the same dynamics,
    weight decay and curvature.
    """
    case = mlp(4, width=32)
    x = case.inputs(16, 0)
    labels = np.arange(16) % 4
    whole, contrasts = (
        ntk_tt.surrogate.linearize(
            case.model,
            x,
            labels,
            outputs=outputs,
            options=ntk_tt.FeatureOptions(num_projections="exact"),
        )
        for outputs in ("logits", "contrasts")
    )
    assert contrasts.kernel.inner.diagonal_blocks().shape == (16, 3, 3)
    optimizer = ntk_tt.OptimizerConfig(0.3, 0.8, nesterov=True, weight_decay=0.02, batch_size=5)
    one, two = (
        ntk_tt.dynamics.simulate(problem, optimizer, 80, save_logits=True)
        for problem in (whole, contrasts)
    )
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-4)
    np.testing.assert_array_equal(two.error, one.error)
    centred = [run.logits - run.logits.mean(-1, keepdims=True) for run in (one, two)]
    np.testing.assert_allclose(centred[1], centred[0], atol=2e-3)
    assert ntk_tt.prediction.stability(contrasts, optimizer, 20)[1] == pytest.approx(
        ntk_tt.prediction.stability(whole, optimizer, 20)[1], rel=1e-3
    )
    with pytest.raises(ValueError, match="outputs: give 'logits', or 'contrasts' with loss='ce'"):
        ntk_tt.surrogate.linearize(case.model, x, labels, outputs="contrasts", loss="mse")
