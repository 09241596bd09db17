"""The closed loop on curves of which the truth is known; intervals from censored times; power laws."""

import numpy as np
import pytest

from ntk_tt.calibration import Slowdown, from_quantiles, interval, kaplan_meier, slowdown, slowed
from ntk_tt.closed_loop import Predictor, loss_callback, remaining
from ntk_tt.extrapolation import PowerLaw, fit_power_law
from ntk_tt.training_time import crossing_time

STEPS = np.arange(0, 301, 3)


def curve(steps, speed=1.0):
    return 1.5 / (1 + speed * np.asarray(steps) / 20) ** 1.3 + 0.01


def watched(speed, until, noise=0.0):
    predictor, rng = Predictor(STEPS, curve(STEPS), margin=4.0, horizon=150), np.random.default_rng(0)
    for step in range(0, until + 1, 3):
        predictor.update(step, curve(step, speed) * np.exp(noise * rng.standard_normal()))
    return predictor


def test_nothing_seen_is_the_prediction():
    predictor = Predictor(STEPS, curve(STEPS))
    np.testing.assert_array_equal(predictor.forecast().loss, curve(STEPS))
    assert predictor.update(0, 1.4).observed == 0


@pytest.mark.parametrize("speed", [0.6, 1.0, 1.7])
def test_a_run_that_is_faster_or_slower_is_followed(speed):
    target = 0.15
    truth = crossing_time(STEPS, curve(STEPS, speed), target)
    assert truth is not None
    predicted = crossing_time(STEPS, curve(STEPS), target)
    forecast = watched(speed, 45).forecast()
    corrected = crossing_time(forecast.steps, forecast.loss, target)
    assert abs(np.log(corrected / truth)) <= max(0.06, 0.5 * abs(np.log(predicted / truth)))
    if speed != 1.0:
        assert (forecast.time_scale > 1) == (speed > 1)


def test_noise_of_batches_does_not_throw_it_off():
    forecast = watched(1.5, 60, noise=0.2).forecast()
    truth = crossing_time(STEPS, curve(STEPS, 1.5), 0.2)
    corrected = crossing_time(forecast.steps, forecast.loss, 0.2)
    assert truth is not None
    assert corrected is not None
    assert abs(np.log(corrected / truth)) < 0.25


def test_power_law_takes_over_where_the_prediction_is_nonsense():
    wrong = Predictor(STEPS, np.full(len(STEPS), 1.5) - 1e-4 * STEPS)
    for step in range(0, 91, 3):
        wrong.update(step, curve(step))
    forecast = wrong.forecast()
    assert forecast.weight < 0.3
    np.testing.assert_allclose(forecast.loss[STEPS == 150], curve(150), rtol=0.25)


def test_observations_must_be_in_order_and_finite():
    predictor = Predictor(STEPS, curve(STEPS))
    predictor.update(3, 1.2)
    with pytest.raises(ValueError, match=r"step: 3 does not come after 3"):
        predictor.update(3, 1.1)
    with pytest.raises(ValueError, match=r"diverged"):
        predictor.update(4, float("nan"))
    with pytest.raises(ValueError, match=r"unstable"):
        Predictor(STEPS, np.full(len(STEPS), np.nan))


def test_remaining_steps_shrink_and_the_interval_does_not_widen():
    target, left, widths = 0.2, [], []
    for until in (0, 30, 60):
        found = watched(1.0, until).remaining(target)
        assert found.steps is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.steps <= found.high
        assert 0 < found.probability <= 1
        left.append(found.steps)
        widths.append((found.high + until) / (found.steps + until))
    assert left[0] > left[1] > left[2]
    assert widths[0] >= widths[1] - 1e-9 >= widths[2] - 2e-9
    assert watched(1.0, 60).remaining(0.005).steps is None


def test_callback_reports_as_often_as_asked():
    seen = []
    callback = loss_callback(Predictor(STEPS, curve(STEPS)), seen.append, every=10)
    for step in range(1, 31):
        callback(step, curve(step))
    assert [forecast.observed for forecast in seen] == [10, 20, 30]


def test_kaplan_meier_without_censoring_is_the_empirical_distribution():
    values, share = kaplan_meier(np.asarray([3.0, 1.0, 2.0, 4.0]), np.zeros(4, bool))
    np.testing.assert_array_equal(values, [1, 2, 3, 4])
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0])


def test_kaplan_meier_by_hand():
    # 1 at 6 at risk; 2 censored; 3 at 4; 4 censored; 5 at 2; 6 censored: S = 5/6, 5/6·3/4, 5/6·3/4·1/2.
    values, share = kaplan_meier(np.asarray([1.0, 2, 3, 4, 5, 6]), np.asarray([False, True, False, True, False, True]))
    np.testing.assert_array_equal(values, [1, 3, 5])
    np.testing.assert_allclose(1 - share, [5 / 6, 5 / 8, 5 / 16])


def test_intervals_of_a_known_distribution():
    share = np.linspace(0.001, 0.999, 999)
    spread = from_quantiles(np.log(share + 0.5).tolist(), share.tolist(), float(np.log(1.45)))
    assert spread.low == pytest.approx(1 / 1.45)
    assert spread.high == pytest.approx(1.45)
    assert spread.probability(1.0) == pytest.approx(0.5, abs=0.01)
    found = remaining(100.0, 20, 150, 300.0, spread)
    assert (found.steps, found.probability) == (80.0, pytest.approx(1.0, abs=0.01))
    assert found.low == pytest.approx(100 / 1.45 - 20)
    assert found.high == pytest.approx(125)
    unbounded = from_quantiles([-0.5, 0.1], [0.2, 0.4], None)
    assert (unbounded.low, unbounded.high) == (pytest.approx(np.exp(-0.5)), np.inf)
    assert remaining(None, 20, 150, 300.0, spread).steps is None


@pytest.mark.parametrize("margin", [None, 0.2, 1.0, 5.0])
def test_calibrated_intervals_do_not_widen_with_what_was_seen(margin):
    before, between, after = (interval("curvature", share, margin) for share in (0.0, 0.1, 0.3))
    assert before.low < 1 < before.high
    assert after.low >= between.low >= before.low
    assert after.high <= between.high <= before.high
    with pytest.raises(ValueError, match=r"'guess' has no calibrated intervals"):
        interval("guess")


def test_runs_near_the_bound_are_slower_than_predicted_and_others_are_not():
    factors = [slowdown("curvature", margin) for margin in (0.0, 0.5, 1.0, 10.0)]
    assert factors == sorted(factors, reverse=True)
    assert 1.0 == factors[-1] < factors[0] < 5
    assert slowdown("replay", 0.1) == 1.0
    assert Slowdown(2.0, 0.5).factor(0.5) == pytest.approx(2.0)


def test_a_slowed_curve_keeps_its_beginning_and_takes_longer_after_it():
    curve = np.exp(-STEPS / 30)
    np.testing.assert_allclose(slowed(STEPS, curve, 2.0), np.exp(-STEPS / 60), rtol=2e-3)
    after = slowed(STEPS, curve, 2.0, 20)
    np.testing.assert_array_equal(after[STEPS <= 20], curve[STEPS <= 20])
    later = STEPS > 20
    np.testing.assert_allclose(after[later], np.exp(-(20 + (STEPS[later] - 20) / 2) / 30), rtol=2e-3)


@pytest.mark.parametrize("law", [PowerLaw(0.1, 1.4, 0.8, 10.0), PowerLaw(0.01, 2.0, 2.0, 60.0)])
def test_a_power_law_is_found_again(law):
    found = fit_power_law(STEPS[:30], law(STEPS[:30]))
    np.testing.assert_allclose(found(STEPS), law(STEPS), rtol=0.05)


def test_too_little_or_broken_curves_are_refused():
    with pytest.raises(ValueError, match=r"at least 4 records"):
        fit_power_law(STEPS[:3], curve(STEPS[:3]))
    with pytest.raises(ValueError, match=r"positive and finite"):
        fit_power_law(STEPS[:5], np.asarray([1.0, 0.5, np.nan, 0.2, 0.1]))


def test_crossing_between_records():
    assert crossing_time(np.asarray([0, 10, 20]), np.asarray([1.0, 0.5, 0.1]), 0.75) == pytest.approx(5.0)
    assert crossing_time(np.asarray([0, 10]), np.asarray([1.0, 0.9]), 0.5) is None
    assert crossing_time(np.asarray([0, 10]), np.asarray([0.4, 0.9]), 0.5) == 0.0
