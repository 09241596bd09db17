"""The closed loop on curves of which the truth is known; intervals from censored times; power
laws.
"""

import itertools

import numpy as np
import pytest

from ntk_tt.times.calibration import (
    Slowdown,
    from_quantiles,
    interval,
    kaplan_meier,
    slowdown,
    slowed,
)
from ntk_tt.times.crossing import crossing_time
from ntk_tt.times.loss_law import LossLaw, fit_loss_law
from ntk_tt.times.online import Predictor, loss_callback, remaining

STEPS = np.arange(0, 301, 3)


def curve(steps, speed=1.0):
    return 1.5 / (1 + speed * np.asarray(steps) / 20) ** 1.3 + 0.01


def watched(speed, until, noise=0.0):
    predictor, rng = (
        Predictor(STEPS, curve(STEPS), margin=4.0, horizon=150),
        np.random.default_rng(0),
    )
    for step in range(0, until + 1, 3):
        predictor.observe(step, curve(step, speed) * np.exp(noise * rng.standard_normal()))
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
        wrong.observe(step, curve(step))
    forecast = wrong.forecast()
    assert forecast.weight < 0.3
    np.testing.assert_allclose(forecast.loss[STEPS == 150], curve(150), rtol=0.25)


def test_steps_that_repeat_or_go_back_are_those_of_a_resumed_run():
    resumed, plain = Predictor(STEPS, curve(STEPS)), Predictor(STEPS, curve(STEPS))
    for step in [*range(0, 60, 3), 57, *range(39, 61, 3)]:
        resumed.observe(step, curve(step))
    for step in range(0, 61, 3):
        plain.observe(step, curve(step))
    np.testing.assert_array_equal(resumed.forecast().loss, plain.forecast().loss)


def test_a_loss_that_is_not_finite_is_left_out_until_it_is_the_second_in_a_row():
    predictor, plain = Predictor(STEPS, curve(STEPS)), Predictor(STEPS, curve(STEPS))
    for step in range(0, 31, 3):
        predictor.observe(step, curve(step) if step != 15 else np.nan)
        if step != 15:
            plain.observe(step, curve(step))
    np.testing.assert_array_equal(predictor.update(33, np.inf).loss, plain.forecast().loss)
    with pytest.raises(ValueError, match=r"not finite since step 33; the run has diverged"):
        predictor.update(36, np.nan)
    assert predictor.update(39, curve(39)).observed == 39


@pytest.mark.parametrize("step", [-1, np.nan, np.inf])
def test_a_step_that_is_none_is_an_error(step):
    with pytest.raises(ValueError, match=r"step: must be a number"):
        Predictor(STEPS, curve(STEPS)).observe(step, 1.0)


@pytest.mark.parametrize(
    ("steps", "loss", "message"),
    [
        (STEPS, np.full(len(STEPS), np.nan), "unstable"),
        (STEPS[:1], curve(STEPS[:1]), "two records"),
        (STEPS[::-1], curve(STEPS), "begins at step 0"),
        (np.zeros(3), np.ones(3), "must rise"),
        (np.asarray([0, 5, 3]), np.ones(3), "must rise"),
        (np.asarray([0, np.nan]), np.ones(2), "must rise"),
    ],
)
def test_a_curve_that_is_none_is_refused(steps, loss, message):
    with pytest.raises(ValueError, match=message):
        Predictor(steps, loss)


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


@pytest.mark.slow
def test_callback_reports_as_often_as_asked():
    seen = []
    callback = loss_callback(Predictor(STEPS, curve(STEPS)), seen.append, every=10)
    for step in range(1, 31):
        callback(step, curve(step))
    assert [forecast.observed for forecast in seen] == [10, 20, 30]


@pytest.mark.slow
def test_the_callback_ends_no_loop_for_a_loss_that_is_not_finite_and_forecasts_what_it_reports(
    monkeypatch,
):
    predictor, seen, calls = Predictor(STEPS, curve(STEPS)), [], []
    forecast = predictor.forecast
    monkeypatch.setattr(predictor, "forecast", lambda: calls.append(1) or forecast())
    callback = loss_callback(predictor, seen.append, every=10)
    for step in range(1, 41):
        callback(np.int32(step), np.float32(np.nan if 15 <= step <= 30 else curve(step)))
    for step in (20, 30, 30, 40):
        callback(step, float(curve(step)))
    assert [each.observed for each in seen] == [10, 40, 20, 30, 30, 40]
    assert len(calls) == 6
    with pytest.raises(ValueError, match=r"every: must be at least 1"):
        loss_callback(predictor, seen.append, every=0)


SPREAD = from_quantiles([-0.4, -0.1, 0.0, 0.2], [0.2, 0.5, 0.7, 0.9], 0.5)


# T has passed without it
@pytest.mark.parametrize(
    ("time", "observed", "steps", "probability"),
    [
        (100.0, 0, 100.0, 0.9),  # long before T
        (300.0, 0, 300.0, 0.7),  # at T: what the tuning tasks say
        (301.0, 0, None, 0.5),  # later than T: never more than one half
        (600.0, 0, None, 0.0),  # much later
        (None, 0, None, 0.0),  # never
        (50.0, 60, 0.0, 1.0),  # seen
        (None, 300, None, 0.0),
        (400.0, 300, None, 0.0),
        (400.0, 500, None, 0.0),
    ],
)
def test_the_probability_of_what_is_not_reached(time, observed, steps, probability):
    found = remaining(time, observed, 300, 300.0, SPREAD)
    assert found.steps == steps
    assert found.probability == pytest.approx(probability)
    if steps is None:
        assert found.high is None
        assert found.low is None or found.low <= 300 - observed
    assert SPREAD.reached_within(300, time) == pytest.approx(found.probability) or observed


@pytest.mark.parametrize("until", [0, 30, 150, 300, 330])
def test_no_level_that_is_not_reached_is_called_likely(until, monkeypatch):
    predictor = Predictor(STEPS, curve(STEPS))
    for step in range(0, until + 1, 10):
        predictor.observe(step, curve(step))
    forecast = predictor.forecast()  # the same for every level and method
    monkeypatch.setattr(predictor, "forecast", lambda: forecast)
    for method, target in itertools.product(
        ("replay", "curvature", "one-shot"), (1e-6, 1e-3, 0.02, 0.05, 0.2)
    ):
        predictor.method = method
        found = predictor.remaining(target)
        assert 0 <= found.probability <= (0.5 if found.steps is None else 1)
        if target <= 1e-3 or (until >= 300 and found.steps is None):
            assert found.probability <= 0.02
        if found.steps is not None and found.low is not None and found.high is not None:
            assert found.low <= found.steps <= found.high


def test_a_prediction_that_is_refused_has_no_chances():
    found = Predictor(STEPS, curve(STEPS), chances=False).remaining(0.2)
    assert found.steps is not None
    assert (found.low, found.high, found.probability) == (None, None, None)


def test_kaplan_meier_without_censoring_is_the_empirical_distribution():
    values, share = kaplan_meier(np.asarray([3.0, 1.0, 2.0, 4.0]), np.zeros(4, bool))
    np.testing.assert_array_equal(values, [1, 2, 3, 4])
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0])


def test_kaplan_meier_by_hand():
    # 1 at 6 at risk; 2 censored; 3 at 4; 4 censored; 5 at 2; 6 censored: S = 5/6, 5/6·3/4,
    # 5/6·3/4·1/2.
    values, share = kaplan_meier(
        np.asarray([1.0, 2, 3, 4, 5, 6]), np.asarray([False, True, False, True, False, True])
    )
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
    np.testing.assert_allclose(
        after[later], np.exp(-(20 + (STEPS[later] - 20) / 2) / 30), rtol=2e-3
    )


@pytest.mark.parametrize("law", [LossLaw(0.1, 1.4, 0.8, 10.0), LossLaw(0.01, 2.0, 2.0, 60.0)])
def test_a_power_law_is_found_again(law):
    found = fit_loss_law(STEPS[:30], law(STEPS[:30]))
    np.testing.assert_allclose(found(STEPS), law(STEPS), rtol=0.05)


def test_too_little_or_broken_curves_are_refused():
    with pytest.raises(ValueError, match=r"at least 4 records"):
        fit_loss_law(STEPS[:3], curve(STEPS[:3]))
    with pytest.raises(ValueError, match=r"positive and finite"):
        fit_loss_law(STEPS[:5], np.asarray([1.0, 0.5, np.nan, 0.2, 0.1]))


def test_crossing_between_records():
    assert crossing_time(
        np.asarray([0, 10, 20]), np.asarray([1.0, 0.5, 0.1]), 0.75
    ) == pytest.approx(5.0)
    assert crossing_time(np.asarray([0, 10]), np.asarray([1.0, 0.9]), 0.5) is None
    assert crossing_time(np.asarray([0, 10]), np.asarray([0.4, 0.9]), 0.5) == 0.0
