"""Training times by a search in plain Python over thousands of awkward curves; identities of the
closed loop and of slowed curves.
"""

import itertools
import math
import random

import numpy as np
import pytest

import ntk_tt
from ntk_tt.times.crossing import (
    combine_times,
    continued_time,
    crossing_time,
    epsilon_time,
    plateau_time,
    smooth,
    threshold_time,
    training_times,
)
from ntk_tt.times.loss_law import fit_loss_law
from ntk_tt.times.online import Predictor

THRESHOLDS = (0.01, 0.05, 0.1, 0.4, 0.75)


def random_curve(rng: random.Random) -> tuple[list[int], list[float]]:
    """Records of a curve: falling, rising, flat, noisy, with ties, in steps, below the threshold
    from the start, ending in NaN or infinity.
    """
    gap, count = rng.choice([1, 1, 3, 10]), rng.choice([1, 2, 3, 7, 25, 60])
    steps = [gap * index for index in range(count)]
    if count > 2 and rng.random() < 0.4:
        steps[-1] -= rng.randrange(gap)  # the last record is not a whole gap away
    kind = rng.choice(["fall", "rise", "flat", "noise", "ties", "steps", "low", "spike"])
    values = []
    for index in range(count):
        share = index / max(count - 1, 1)
        values.append(
            {
                "fall": math.exp(-5 * share),
                "rise": 0.2 + share,
                "flat": 0.4,
                "noise": rng.random(),
                "ties": rng.choice([0.0, 0.1, 0.4, 0.75, 1.0]),
                "steps": round(1 - share, 1),
                "low": 1e-3 * rng.random(),
                "spike": math.exp(-3 * share) + (50.0 if rng.random() < 0.05 else 0.0),
            }[kind]
        )
    if rng.random() < 0.15:
        begin = rng.randrange(count)
        bad = rng.choice([math.nan, math.inf])
        values[begin:] = [bad] * (count - begin)
    return steps, values


CURVES = [random_curve(random.Random(seed)) for seed in range(800)]


def mean_of_window(values: list[float], index: int, window: int) -> float:
    reach = min(window // 2, index, len(values) - 1 - index)
    part = values[index - reach : index + reach + 1]
    return math.fsum(part) / len(part) if all(map(math.isfinite, part)) else sum(part)


def first(steps, holds) -> int | None:
    return next((step for step, yes in zip(steps, holds, strict=True) if yes), None)


def epsilon_by_search(steps, values, epsilon, relative):
    if not all(map(math.isfinite, values)):
        return None
    width = epsilon * (values[0] - values[-1]) if relative else epsilon
    return (
        None if width <= 0 else first(steps, [abs(value - values[-1]) < width for value in values])
    )


def plateau_by_search(steps, values, drop, window):
    """The time, or "tie" where some fall is `drop` to rounding."""

    def at(time):
        for index in range(len(steps) - 1):
            if steps[index] <= time <= steps[index + 1]:
                if time == steps[index]:
                    return values[index]
                if time == steps[index + 1]:
                    return values[index + 1]
                return values[index] + (values[index + 1] - values[index]) * (
                    time - steps[index]
                ) / (steps[index + 1] - steps[index])
        return values[0] if time <= steps[0] else values[-1]

    falls = [at(step - window) - value for step, value in zip(steps, values, strict=True)]
    if any(abs(fall - drop) < 1e-12 for fall in falls):
        return "tie"
    return first(
        steps, [step >= window and fall < drop for step, fall in zip(steps, falls, strict=True)]
    )


def test_threshold_and_epsilon_times():
    for steps, values in CURVES:
        curve, at = np.asarray(values), np.asarray(steps)
        for threshold in (*THRESHOLDS, 2.0):
            expected = first(steps, [value < threshold for value in values])
            assert threshold_time(at, curve, threshold) == expected, (values, threshold)
        for epsilon in THRESHOLDS:
            for relative in (True, False):
                assert epsilon_time(at, curve, epsilon, relative=relative) == epsilon_by_search(
                    steps, values, epsilon, relative
                ), (values, epsilon, relative)


def test_crossings_lie_on_the_straight_line_between_records():
    for steps, values in CURVES:
        for threshold in THRESHOLDS:
            found = crossing_time(np.asarray(steps), np.asarray(values), threshold)
            reached = first(steps, [value < threshold for value in values])
            assert (found is None) == (reached is None)
            if found is None or reached is None:
                continue
            index = steps.index(reached)
            if index == 0 or not math.isfinite(values[index - 1]):
                assert found == reached
                continue
            assert steps[index - 1] <= found <= steps[index]
            share = (found - steps[index - 1]) / (steps[index] - steps[index - 1])
            assert values[index - 1] + share * (values[index] - values[index - 1]) == pytest.approx(
                threshold, abs=1e-9 + 1e-12 * values[index - 1]
            )


@pytest.mark.parametrize("window", [1, 2, 5, 9, 1_000])
def test_running_means(window):
    for _, values in CURVES:
        expected = [mean_of_window(values, index, window) for index in range(len(values))]
        np.testing.assert_allclose(
            smooth(np.asarray(values), window), expected, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(("drop", "window"), [(0.01, 10), (0.05, 1), (0.2, 30)])
def test_plateaus(drop, window):
    for steps, values in CURVES:
        if all(map(math.isfinite, values)):
            found, expected = (
                plateau_time(np.asarray(steps), np.asarray(values), drop=drop, window=window),
                plateau_by_search(steps, values, drop, window),
            )
            assert expected in ("tie", found), (steps, values)


def test_all_definitions_at_once_are_those_alone():
    for (steps, loss), (_, error) in zip(CURVES[:200], CURVES[200:400], strict=True):
        error = (error * len(loss))[: len(loss)]
        times = training_times(
            np.asarray(steps),
            np.asarray(loss),
            np.asarray(error),
            thresholds=THRESHOLDS,
            loss_thresholds=(2.0,),
            smoothing=3,
        )
        loss, error = (
            [mean_of_window(values, index, 3) for index in range(len(values))]
            for values in (loss, error)
        )
        for threshold in THRESHOLDS:
            name = f"{threshold:g}"
            clear = [value for value in (*loss, *error) if abs(value - threshold) < 1e-12]
            if not clear:
                assert times["loss_below"][name] == first(
                    steps, [value < threshold for value in loss]
                )
                assert times["error_below"][name] == first(
                    steps, [value < threshold for value in error]
                )
        assert times["loss_below"]["2"] == first(steps, [value < 2 for value in loss])


def test_the_least_and_the_greatest_over_seeds_and_the_median_between():
    rng = random.Random(0)
    for _ in range(500):
        values = [rng.choice([None, *range(0, 100, 7)]) for _ in range(rng.randrange(1, 8))]
        runs = [{"a": {"x": value}, "plateau": value} for value in values]
        ordered = sorted(values, key=lambda value: math.inf if value is None else value)
        assert combine_times(runs, 0.0)["plateau"] == ordered[0]
        assert combine_times(runs, 1.0)["a"]["x"] == ordered[-1]
        middle, low, high = (
            combine_times(runs, 0.5)["plateau"],
            ordered[(len(ordered) - 1) // 2],
            ordered[len(ordered) // 2],
        )
        assert middle == low == high or (high is None and middle is None) or low <= middle <= high
        if len(ordered) % 2:
            assert middle == ordered[len(ordered) // 2]


def test_an_exponential_goes_on_as_it_ended():
    steps = np.arange(0, 101, 5)
    for rate in (0.001, 0.03, 0.2):
        curve = 3 * np.exp(-rate * steps)
        for threshold in (1.0, 1e-2, 1e-5):
            # a straight line between records
            assert continued_time(steps, curve, threshold) == pytest.approx(
                math.log(3 / threshold) / rate, rel=0.02, abs=0.7
            )
    assert continued_time(steps, np.full(21, 0.5), 0.1) is None
    assert continued_time(steps, 0.5 + 0.01 * steps, 0.1) is None


# Slowed curves and the closed loop


def test_a_factor_of_one_changes_nothing_and_a_factor_of_two_doubles_times():
    steps = np.arange(0, 401)
    for curve in (np.exp(-steps / 40), 1 / (1 + steps / 15), np.maximum(0.1, 1 - steps / 100)):
        np.testing.assert_array_equal(ntk_tt.times.calibration.slowed(steps, curve, 1.0), curve)
        np.testing.assert_array_equal(
            ntk_tt.times.calibration.slowed(steps, curve, 1.0, start=50), curve
        )
        for factor in (1.5, 2.0, 4.0):
            for start in (0, 13, 60):
                slow = ntk_tt.times.calibration.slowed(steps, curve, factor, start)
                np.testing.assert_array_equal(slow[: start + 1], curve[: start + 1])
                for level in (0.9, 0.5, 0.3):
                    before, after = (
                        crossing_time(steps, curve, level),
                        crossing_time(steps, slow, level),
                    )
                    if before is not None and start + (before - start) * factor < steps[-1]:
                        assert after == pytest.approx(
                            before if before <= start else start + (before - start) * factor,
                            abs=0.3 * factor,
                        )


def test_slowdown_is_at_least_one_and_does_not_fall_towards_the_bound():
    margins = np.geomspace(1e-3, 1e3, 200)
    for method in ("replay", "head", "curvature", "one-shot"):
        factors = [ntk_tt.times.calibration.slowdown(method, margin) for margin in margins]
        assert min(factors) == 1.0
        assert all(before >= after for before, after in itertools.pairwise(factors))
        assert ntk_tt.times.calibration.slowdown(method, math.inf) == 1.0


@pytest.mark.parametrize("speed", [1.0, 0.5, 2.0])
def test_a_run_that_is_the_prediction_at_another_speed_is_told(speed):
    """The correction of time alone: log L(t) = log L̂(e^α t), α held to 0, so the truth lies
    between the prediction and what is found.
    """
    steps = np.arange(0, 401, 4)
    predicted = 2 * np.exp(-steps / 60) + 0.02
    truth = 2 * np.exp(-speed * steps / 60) + 0.02
    predictor = Predictor(steps, predicted)
    for step, loss in zip(steps[:30], truth, strict=False):
        predictor.observe(int(step), float(loss))
    forecast = predictor.forecast()
    np.testing.assert_allclose(forecast.loss[:30], truth[:30], rtol=0.08)
    within = speed * steps <= steps[-1]  # past the prediction's end it goes on as that ended
    assert np.abs(np.log(forecast.loss / truth))[within].max() <= max(
        0.05, 0.5 * np.abs(np.log(predicted / truth))[within].max()
    )
    if speed == 1.0:
        assert forecast.time_scale == pytest.approx(1.0, abs=0.03)
        np.testing.assert_allclose(forecast.loss, truth, rtol=0.05)


# Curves continued by a power law


@pytest.mark.parametrize(
    "scale_of_loss",
    [1.0, pytest.param(1e-6, marks=pytest.mark.slow), pytest.param(1e4, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    ("offset", "amplitude", "exponent", "scale"),
    [
        (0.05, 1.0, 1.0, 10.0),
        (0.3, 2.0, 0.5, 30.0),
        (1e-3, 1.0, 2.0, 100.0),
        (0.2, 1.5, 4.0, 200.0),
    ],
)
def test_an_exact_power_law_is_continued_exactly(offset, amplitude, exponent, scale, scale_of_loss):
    def law(steps):
        return scale_of_loss * (offset + amplitude * (1 + steps / scale) ** -exponent)

    seen, later = np.arange(0, 201, 4.0), np.asarray([400.0, 1_000.0])
    np.testing.assert_allclose(fit_loss_law(seen, law(seen))(later), law(later), rtol=0.02)
    # in other units of time
    np.testing.assert_allclose(
        fit_loss_law(seen * 50, law(seen))(later * 50), law(later), rtol=0.02
    )


def test_a_constant_is_continued_as_itself_and_an_exponential_falls():
    steps = np.arange(0, 100, 5)
    np.testing.assert_allclose(
        fit_loss_law(steps, np.full(20, 0.7))(np.asarray([1_000])), 0.7, rtol=0.01
    )
    np.testing.assert_allclose(
        fit_loss_law(steps, np.exp(-steps / 30))(np.asarray([120])), np.exp(-4), rtol=0.25
    )
