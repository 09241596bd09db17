"""How `experiments.studies.accuracy` reads its runs, on curves of which the times are known."""

import numpy as np
import pytest

from experiments.common import methods
from tools.calibrate import later_times, ratios

STEPS = np.arange(0, 301, 3)


def curve(pace: float) -> dict[str, list]:
    """Loss e^(−t/pace) and error half of that: 50 % of the loss at pace·ln 2."""
    loss = np.exp(-STEPS / pace)
    return {"steps": STEPS.tolist(), "loss": loss.tolist(), "error": (loss / 2).tolist()}


def record(
    data: str, margin: float, real: float, *, batch_size: int | None = 32, predicted: float = 40.0
) -> dict:
    others = [curve(real * factor) for factor in ((1.1, 1.2) if batch_size else (1.02,))]
    return {
        "data": data,
        "role": "tuning",
        "num_steps": 150,
        "batch_size": batch_size,
        "margins": dict.fromkeys(methods.CURVES, margin),
        "real_steps_first": 9,
        "slowdowns": {},
        "curves": {"real": curve(real), **{name: curve(predicted) for name in methods.CURVES}},
        "other_reals": others,
    }


def test_each_order_of_the_data_is_true_once_and_another_run_once():
    run = record("a", 3.0, 40.0)
    views = methods.views(run)
    truths, others = (
        [view["curves"][name]["loss"] for view in views] for name in ("real", "another run")
    )
    assert len(views) == 3
    assert sorted(truths) == sorted(others)
    assert all(one != other for one, other in zip(truths, others, strict=True))
    assert len(methods.views(record("a", 3.0, 40.0, batch_size=None))) == 1


def test_errors_are_of_times_that_matter_within_the_run():
    run = record("a", 3.0, 60.0, batch_size=None)
    found = methods.pairs(run, "curvature")
    assert len(found) == 6  # 10 % of the loss: at 138 of 150 steps
    np.testing.assert_allclose([real / time for real, time in found], 1.5, rtol=0.03)
    np.testing.assert_allclose(methods.errors(run, "curvature"), 0.5, rtol=0.1)
    assert [
        pair
        for pair in methods.pairs(record("a", 3.0, 1e6, batch_size=None), "curvature")
        if pair[0] != 300.0
    ] == []
    assert methods.pairs(record("a", 3.0, 1e6, batch_size=None, predicted=1e6), "curvature") == []


def test_a_slowdown_that_holds_on_data_left_out_is_found_and_another_is_not():
    slower = {margin: max(1.0, 2.0 / margin) ** 0.5 for margin in (8.0, 1.0, 0.5)}
    runs = [
        record(data, margin, 40.0 * factor, batch_size=None)
        for data in "abc"
        for margin, factor in slower.items()
    ]
    found = methods.slowdowns(runs)
    for margin, factor in slower.items():
        assert found["curvature"].factor(margin) == pytest.approx(factor, rel=0.1)
    corrected = runs[-1] | {"slowdowns": {"curvature": found["curvature"].factor(0.5)}}
    assert (
        np.median(methods.errors(corrected, "curvature"))
        < 0.1
        < 0.9
        < np.median(methods.errors(corrected, "curvature as it is"))
    )
    alike = [record(data, margin, 40.0, batch_size=None) for data in "abc" for margin in slower]
    assert methods.slowdowns(alike) == {}


def test_ratios_of_calibration_are_of_times_not_yet_seen():
    run = record("a", 3.0, 60.0, batch_size=None)
    assert [censored for _, censored in ratios(run, "curvature", 0.0)] == [False] * 6
    np.testing.assert_allclose(
        [np.exp(value) for value, _ in ratios(run, "curvature", 0.0)], 1.5, rtol=0.03
    )
    assert all(
        censored for _, censored in ratios(record("a", 3.0, 1e6, batch_size=None), "curvature", 0.0)
    )
    assert all(real is None or real > 0.25 * 150 for real, _ in later_times(run, "curvature", 0.25))
