"""Intervals and chances beside predicted times: none that contradicts them."""

import types

import numpy as np
import pytest

from ntk_tt.prediction.by_method import Predicted, intervals
from ntk_tt.prediction.verdict import Verdict
from ntk_tt.times.crossing import training_times

STEPS = np.arange(0, 461, 10)


def predicted(loss, error, real_steps=0, times=None):
    curve = types.SimpleNamespace(
        steps=STEPS,
        loss=loss,
        error=error,
        times=times
        or training_times(STEPS, loss, error, thresholds=(0.01, 0.1, 0.4), loss_thresholds=(1e-6,)),
    )
    found = object.__new__(Predicted)
    for name, value in (("prediction", curve), ("real_steps", real_steps)):
        object.__setattr__(found, name, value)
    return found


def verdict(trust="high"):
    return Verdict(4.0, 0.1, None, None, trust, "", None)


CURVES = {
    "falls": 1.5 * np.exp(-STEPS / 200),
    "flat": np.full(len(STEPS), 1.5),
    "ends flat": np.maximum(1.5 * np.exp(-STEPS / 50), 0.11),
    "nearly there": 1.5 * np.exp(-STEPS / 172),
}


@pytest.mark.parametrize("loss", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("method", ["replay", "curvature", "one-shot"])
def test_what_is_not_reached_has_no_likely_interval(loss, method):
    run = predicted(loss, 0.9 * loss / 1.5)
    found = intervals(method, run, 460, 1, verdict())
    for family, levels in found.items():
        for level, each in levels.items():
            step = run.prediction.times[family][level]
            assert 0 <= each["probability"] <= (0.5 if step is None else 1)
            if step is None:
                assert each["high"] is None
            if float(level) <= 1e-6:
                assert each["probability"] < 0.02
            if step is None and loss[-1] == loss[-2]:
                assert each["probability"] == 0
    assert intervals(method, run, 460, 1, verdict("none")) is None
    assert intervals("ode", run, 460, 1, verdict()) is None
    object.__setattr__(run, "is_calibrated", False)
    assert intervals(method, run, 460, 1, verdict()) is None


def test_a_level_that_the_mean_reaches_and_the_median_run_does_not_is_not_likely():
    loss = CURVES["falls"]
    times = training_times(STEPS, loss, loss, thresholds=(0.4,))
    times["loss_below"]["0.4"] = None
    found = intervals("curvature", predicted(loss, loss, times=times), 460, 1, verdict())[
        "loss_below"
    ]["0.4"]
    assert found["probability"] <= 0.5
    assert found["high"] is None


def test_what_was_seen_is_certain():
    loss = CURVES["falls"]
    found = intervals("curvature", predicted(loss, loss, real_steps=400), 460, 1, verdict())[
        "loss_below"
    ]["0.4"]
    assert found == {"low": 270, "high": 270, "probability": 1.0}
