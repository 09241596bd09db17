"""What is called safe, and what is refused: safe rates that are fixed points, and verdicts on
broken, coarse and saturated predictions.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.kernels.operators import DualKernel
from ntk_tt.optimizer import OptimizerConfig, scaled
from ntk_tt.prediction import safe_rate
from ntk_tt.prediction.by_method import (
    Predicted,
    diverged_at,
    intervals,
    is_hopeless,
    without_times,
)
from ntk_tt.prediction.margin import margin_on_the_way
from ntk_tt.prediction.one_setting import summarize_runs
from ntk_tt.prediction.one_shot import check_beginning, predict_after
from ntk_tt.prediction.residual import Residual
from ntk_tt.prediction.safe_rate import SafeRate, safe_learning_rate
from ntk_tt.prediction.verdict import judge
from ntk_tt.schedules import named_schedule
from ntk_tt.training import TrainingRun
from tests import test_small_network
from tests.test_learning_rate import make
from tests.test_small_network import network

data = test_small_network.data  # the fixture

STEPS = 60
SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "batch_size": 3},
    {"batch_size": 4, "weight_decay": 0.01},
]


def problem_with(kernel, network_data):
    return (
        make("ce")[2]
        if kernel == "frozen"
        else ntk_tt.surrogate.expand(
            network(), *network_data, options=ntk_tt.FeatureOptions(num_projections="exact")
        )
    )


def ends_soon(problem, optimizer):
    """Whether some rate at most 15 % larger is not stable: stable rates may be several stretches,
    and the margin jumps where one ends.
    """
    return any(
        margin_on_the_way(problem, scaled(optimizer, factor), STEPS) < 1
        for factor in np.linspace(safe_rate.NARROW, 1.03, 6)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["frozen", "head"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_safe_rate_is_a_fixed_point_from_wherever_it_is_asked_for(kernel, setting, data):
    problem, rates = problem_with(kernel, data), []
    for rate in (1e-6, 0.1, 30.0):
        optimizer = OptimizerConfig(rate, **setting)
        safe = safe_learning_rate(problem, optimizer, STEPS)
        there = scaled(optimizer, safe.rate / rate)
        assert safe.is_largest
        margin = margin_on_the_way(problem, there, STEPS)
        assert margin >= 1
        assert margin <= safe_rate.CLOSE_TO_ONE or ends_soon(problem, there)
        assert margin_on_the_way(problem, scaled(there, 0.93), STEPS) >= 1
        rates.append(safe.rate)
    if kernel == "frozen":  # else the stable rates may be several stretches: each has its largest
        assert max(rates) < 1.25 * min(rates)


@pytest.mark.slow
def test_a_verdict_just_below_the_rate_that_it_called_safe_does_not_take_that_back(data):
    model = network()
    problem = ntk_tt.surrogate.expand(
        model, *data, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    verdicts, rate = [], 0.05
    for _ in range(2):
        verdicts.append(
            ntk_tt.prediction.assess(problem, model, *data, OptimizerConfig(rate, 0.9), STEPS)
        )
        rate = 0.97 * verdicts[-1].largest_safe_learning_rate
    first, second = verdicts
    assert second.trust != "none"
    assert second.stability_margin >= 1
    there = OptimizerConfig(second.largest_safe_learning_rate, 0.9)
    assert second.stability_margin <= safe_rate.CLOSE_TO_ONE or ends_soon(problem, there)
    assert second.largest_safe_learning_rate > 0.75 * first.largest_safe_learning_rate
    assert first.safe_rate_by == "kernel on its way"


@pytest.mark.slow
def test_the_shape_of_a_schedule_is_kept():
    _, _, problem, _ = make("ce")
    cosine = safe_learning_rate(
        problem, OptimizerConfig(named_schedule("cosine", 0.01, STEPS)), STEPS
    )
    assert cosine.rate == pytest.approx(
        safe_learning_rate(problem, OptimizerConfig(0.01), STEPS).rate, rel=0.5
    )
    assert safe_learning_rate(problem, OptimizerConfig(lambda step: 0.0), STEPS) == SafeRate(
        0.0, False
    )


@pytest.mark.slow
def test_few_further_ways_are_followed(monkeypatch):
    _, _, problem, _ = make("ce")
    calls, real = [], safe_rate.margin_on_the_way
    monkeypatch.setattr(
        safe_rate,
        "margin_on_the_way",
        lambda *given, **more: calls.append(given) or real(*given, **more),
    )
    safe_learning_rate(
        problem,
        OptimizerConfig(1e-3),
        STEPS,
        margin=ntk_tt.prediction.stability(problem, OptimizerConfig(1e-3), STEPS)[0],
    )
    assert len(calls) <= safe_rate.EVALUATIONS
    calls.clear()
    _, _, constant, _ = make("mse")
    safe_learning_rate(constant, OptimizerConfig(1e-3), STEPS, margin=100.0)
    assert calls == []  # the curvature is the same on every way


def test_saturated_softmaxes_are_no_evidence():
    """All samples on the wrong class with certainty: flat, but what moves them is as large as
    ever.
    """
    _, _, problem, _ = make("ce")
    wrong = 1e3 * jnp.roll(problem.targets, 1, axis=1)
    stuck = dataclasses.replace(problem, initial_logits=wrong)
    margin, safe = ntk_tt.prediction.stability(
        stuck, OptimizerConfig(10.0), 5, np.asarray(wrong)[None]
    )
    _, sane = ntk_tt.prediction.stability(
        problem, OptimizerConfig(10.0), 5, np.asarray(problem.initial_logits)[None]
    )
    assert margin < 1
    assert 0.1 * sane < safe < sane
    # learnt: flat for good
    right = dataclasses.replace(problem, initial_logits=1e3 * problem.targets)
    assert ntk_tt.prediction.stability(right, OptimizerConfig(10.0), 5)[0] > 1e3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_way_that_leaves_the_finite_numbers_has_no_margin(bad):
    _, _, problem, _ = make("ce")
    path = np.stack(
        [np.asarray(problem.initial_logits), np.full(problem.initial_logits.shape, bad, np.float32)]
    )
    assert ntk_tt.prediction.stability(problem, OptimizerConfig(1e-3), 5, path)[0] == 0
    assert ntk_tt.prediction.stability(problem, OptimizerConfig(1e-3), 5, path[1:]) == (0, 0)


def test_reasons_of_what_is_not_trusted():
    sane = Residual(0.01, 0.05, 1e-3)
    assert judge(10.0, 0.1, sane).trust == "high"
    for follows in (False, True):
        blown = judge(10.0, 0.1, Residual(np.inf, np.inf, 1e-3), follows_kernel=follows)
        assert (blown.trust, "NaN or infinity" in blown.reason) == ("none", True)
        assert judge(np.nan, 0.1, sane, follows_kernel=follows).trust == "none"
        assert judge(0.0, 0.0, sane, follows_kernel=follows).trust == "none"
        flat = judge(np.inf, np.inf, sane, follows_kernel=follows)
        assert (flat.trust, "no curvature" in flat.reason) == ("low", True)
        doubted = judge(
            10.0,
            SafeRate(0.1, True),
            sane,
            follows_kernel=follows,
            doubts=(("medium", "first"), ("low", "second")),
        )
        assert (doubted.trust, "first" in doubted.reason, "second" in doubted.reason) == (
            "low",
            True,
            True,
        )
    assert "at most 0.0769" in judge(0.5, 0.07699, sane).reason  # not more than it is
    assert "safe" not in judge(10.0, 0.1, sane).reason  # a frozen kernel does not know
    assert "largest safe learning rate 0.1," in judge(
        10.0, 0.1, sane, follows_kernel=True
    ).reason.replace(")", ",")
    assert "largest" not in judge(10.0, SafeRate(0.1, False), sane, follows_kernel=True).reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "projections", "trust"),
    [
        ("ce", 1, "low"),
        ("mse", 1, "low"),
        ("ce", 20, "medium"),
        ("ce", 400, None),
        ("ce", "exact", None),
    ],
)
def test_a_coarse_sketch_lowers_trust(loss, projections, trust):
    case, x, _, _ = make(loss)
    labels = np.arange(len(x)) % 3
    problem = ntk_tt.surrogate.linearize(
        case.model,
        x,
        labels,
        loss=loss,
        options=ntk_tt.FeatureOptions(num_projections=projections),
    )
    verdict = ntk_tt.prediction.assess(problem, case.model, x, labels, OptimizerConfig(1e-3), 10)
    assert ("D' =" in verdict.reason) == (trust is not None)
    if trust is not None:
        assert verdict.trust == trust
        assert (
            f"D' = {projections} projections are few for a kernel of rank "
            f"{18 if loss == 'ce' else 27}" in verdict.reason
        )


@pytest.mark.slow
def test_a_predicted_curve_that_breaks_is_refused():
    case, x, problem, _ = make("ce")
    labels = np.arange(len(x)) % 3
    for curve in (np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.array([1.0, 50.0])):
        verdict = ntk_tt.prediction.assess(
            problem, case.model, x, labels, OptimizerConfig(1e-3), 10, curve=curve
        )
        assert verdict.trust == "none"
        assert verdict.largest_safe_learning_rate < 1e-3 * verdict.stability_margin


def predicted(loss):
    steps = np.arange(len(loss))
    return Predicted(
        make("ce")[2],
        summarize_runs(
            [ntk_tt.dynamics.Trajectory(steps, np.asarray(loss), np.asarray(loss) / 2)],
            1,
            thresholds=(0.1, 0.4),
        ),
        None,
        0,
        {},
    )


def test_a_refused_prediction_has_no_chances_and_a_hopeless_one_no_times():
    found = predicted(np.exp(-np.arange(11) / 2))
    trusted = intervals("curvature", found, 10, 1, judge(2.0, 0.1, follows_kernel=True))
    assert trusted is not None
    assert all(each["probability"] > 0 for family in trusted.values() for each in family.values())
    assert intervals("curvature", found, 10, 1, judge(0.9, 0.1, follows_kernel=True)) is None
    hopeless = without_times(found)
    assert hopeless.prediction.times["loss_below"] == {"0.1": None, "0.4": None}
    assert hopeless.prediction.times["plateau"] is None
    assert [is_hopeless(judge(margin, 0.1)) for margin in (0.05, 0.0, 0.5, 3.0)] == [
        True,
        True,
        False,
        False,
    ]
    assert diverged_at(found.prediction) is None
    assert diverged_at(predicted([1.0, 0.9, np.inf, np.nan]).prediction) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diverged_at": 2}, "diverged at step 2"),
        ({"loss": np.array([1.0, 1e4])}, "raised the loss from 1 to 1e"),
        ({"collapsed_at": 1}, "died within"),
    ],
)
def test_real_steps_that_led_nowhere_are_not_gone_on_from(changes, message):
    run = TrainingRun(
        **{
            "steps": np.array([0, 3]),
            "loss": np.array([1.0, 0.9]),
            "error": np.zeros(2),
            "params": {},
            "seconds": 1.0,
            "evaluation_seconds": 0.0,
            "compile_seconds": 0.0,
        }
        | changes
    )
    with pytest.raises(ValueError, match=f"learning_rate: .*{message}.*take a smaller one"):
        check_beginning(run, "first", "ce", np.arange(6) % 3)


@pytest.mark.slow_but("4")
@pytest.mark.parametrize("batch_size", [None, 4])
def test_one_shot_stops_at_a_blown_up_start(batch_size, data):
    for rate in (1e5, 1e30):
        with pytest.raises(ValueError, match=r"learning_rate: .*take a smaller one"):
            predict_after(
                network(jax.nn.relu),
                *data,
                OptimizerConfig(rate, batch_size=batch_size),
                20,
                first_steps=3,
            )
    with pytest.raises(ValueError, match="num_steps: must be a whole number of at least 2, got 1"):
        predict_after(network(), *data, OptimizerConfig(0.1), 1)


def test_a_kernel_of_zeros_is_not_trusted():
    problem = ntk_tt.surrogate.LinearizedProblem(
        DualKernel(jnp.zeros((3, 2, 3, 2))),
        jnp.zeros((3, 2)),
        jnp.zeros((3, 2)),
        jnp.eye(3, 2),
        "ce",
    )
    margin, _ = ntk_tt.prediction.stability(problem, OptimizerConfig(0.1), 5)
    assert judge(margin, np.inf).trust == "low"


@pytest.mark.parametrize("rate", [1e30, 1e300])
def test_an_absurd_rate_is_one_line_or_no_sane_loss(rate):
    _, _, problem, _ = make("ce")
    with pytest.raises(
        ValueError, match=r"learning_rate: the SDE takes .* past the stability bound"
    ):
        ntk_tt.dynamics.simulate(problem, OptimizerConfig(rate), 5, method="sde")
    curve = ntk_tt.dynamics.simulate(problem, OptimizerConfig(rate), 5).loss
    assert not np.isfinite(curve).all() or curve.max() > 1e10


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay", pytest.param("one-shot", marks=pytest.mark.nightly)])
def test_predictions_in_double_precision(method, tmp_path):
    """JAX_ENABLE_X64 in the environment, as users set it; the same numbers to single precision."""
    losses = []
    for wide in ("0", "1"):
        report = tmp_path / f"{wide}.json"
        command = [
            sys.executable,
            "-m",
            "ntk_tt.cli",
            "predict",
            "--model",
            "mlp",
            "--weights",
            "random",
            "--image-size",
            "8",
            "--classes",
            "2",
            "--per-class",
            "3",
            "--steps",
            "6",
            "--seeds",
            "1",
            "--projections",
            "1000",
            "--method",
            method,
            "--learning-rate",
            "1e-4",
            "--json",
            str(report),
        ]
        subprocess.run(
            command,
            env={**os.environ, "JAX_ENABLE_X64": wide, "NTK_TT_CACHE": str(tmp_path)},
            check=True,
            capture_output=True,
        )
        losses.append(json.loads(report.read_text())["prediction"]["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
