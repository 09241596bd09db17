"""Times read off curves whose times are known."""

import numpy as np
import pytest

from ntk_tt.times.crossing import (
    combine_times,
    continued_time,
    epsilon_time,
    late_slope,
    level_name,
    plateau_time,
    smooth,
    threshold_time,
    training_times,
)

STEPS = np.arange(0, 101)
DECAY = np.exp(-STEPS / 20)  # from 1 to e^{-5}


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.4])
def test_epsilon_times_of_an_exponential(epsilon):
    final = np.exp(-5)
    absolute = -20 * np.log(final + epsilon)
    relative = -20 * np.log(final + epsilon * (1 - final))
    assert epsilon_time(STEPS, DECAY, epsilon, relative=False) == int(np.floor(absolute)) + 1
    assert epsilon_time(STEPS, DECAY, epsilon, relative=True) == int(np.floor(relative)) + 1


def test_relative_epsilon_time_is_free_of_scale_and_offset():
    for epsilon in (0.05, 0.3):
        assert epsilon_time(STEPS, 7 * DECAY + 3, epsilon, relative=True) == epsilon_time(
            STEPS, DECAY, epsilon, relative=True
        )
        assert epsilon_time(STEPS, 7 * DECAY + 3, epsilon, relative=False) != epsilon_time(
            STEPS, DECAY, epsilon, relative=False
        )


def test_first_crossing_counts():
    curve = np.array([1.0, 0.4, 0.9, 0.3, 0.2])
    assert threshold_time(np.array([0, 10, 20, 30, 40]), curve, 0.5) == 10
    assert threshold_time(np.array([0, 10, 20, 30, 40]), curve, 0.2) is None  # strictly below
    assert threshold_time(STEPS, DECAY, 1.5) == 0


def test_not_reached_is_a_value():
    assert threshold_time(STEPS, DECAY, 1e-3) is None
    assert epsilon_time(STEPS, 1 + STEPS / 10, 0.1, relative=True) is None  # it rose
    # it diverged
    assert epsilon_time(STEPS, np.where(STEPS > 50, np.nan, DECAY), 0.1, relative=True) is None
    # but it was there before
    assert threshold_time(STEPS, np.where(STEPS > 50, np.nan, DECAY), 0.5) == 14


def test_plateau():
    error = np.maximum(0.5 - 0.01 * STEPS, 0.1)  # falls 1 % a step until step 40
    assert plateau_time(STEPS, error, drop=0.045, window=10) == 46  # over 36 … 46 it falls by 0.04
    assert plateau_time(STEPS, error, drop=0.045, window=100) is None
    assert plateau_time(STEPS, np.full(101, 0.5), drop=0.01, window=10) == 10
    # between records: interpolated
    assert plateau_time(STEPS[::4], error[::4], drop=0.045, window=10) == 48


def test_smoothing_keeps_lines_and_ends_and_removes_noise():
    np.testing.assert_allclose(smooth(2.0 * STEPS, 9), 2.0 * STEPS)
    noisy = DECAY + 0.1 * np.random.default_rng(0).standard_normal(101)
    smoothed = smooth(noisy, 9)
    np.testing.assert_allclose(smoothed[[0, -1]], noisy[[0, -1]])
    assert (smoothed - DECAY)[10:-10].std() < 0.5 * (noisy - DECAY)[10:-10].std()
    np.testing.assert_allclose(smooth(noisy, 5)[50], noisy[48:53].mean())


@pytest.mark.parametrize("window", [2, 3, 4, 9, 64, 1000])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_smoothed_value_is_the_mean_of_its_window(window, count):
    curve = np.random.default_rng(1).lognormal(size=count)
    reach = [min(window // 2, index, count - 1 - index) for index in range(count)]
    np.testing.assert_allclose(
        smooth(curve, window),
        [curve[index - r : index + r + 1].mean() for index, r in enumerate(reach)],
        rtol=1e-12,
    )


@pytest.mark.parametrize("bad", [1e20, 1e300, np.inf, -np.inf, np.nan])
def test_one_record_spoils_only_the_windows_that_hold_it(bad):
    spoilt = DECAY.copy()
    spoilt[40] = bad
    smoothed, clean = smooth(spoilt, 9), smooth(DECAY, 9)
    away = np.abs(STEPS - 40) > 4
    np.testing.assert_allclose(smoothed[away], clean[away], rtol=1e-12)
    assert not np.isclose(smoothed[~away], clean[~away]).any()
    times = training_times(STEPS, spoilt, spoilt, thresholds=(0.1,), smoothing=9)
    # as without it: neither 0 after it, nor never
    assert times["loss_below"] == {"0.1": 36 if bad == -np.inf else 47}


def test_a_single_record_is_not_continued():
    assert continued_time(np.array([0]), np.array([1.0]), 0.5) is None
    assert continued_time(np.array([0]), np.array([0.4]), 0.5) == 0
    assert continued_time(np.array([]), np.array([]), 0.5) is None
    assert late_slope(np.array([3, 3]), np.array([1.0, 0.5])) == 0.0
    assert continued_time(np.array([0, 10]), np.array([1.0, 0.5]), 0.25) == pytest.approx(20)


def test_errors_that_rest_on_a_stair_are_continued_by_what_came_before():
    steps = np.arange(0, 101)
    half_of_it = np.where(steps < 60, 0.4, 0.2)  # halved within the last half, then flat
    assert continued_time(steps, half_of_it, 0.1) is None
    assert continued_time(steps, half_of_it, 0.1, in_stairs=True) == pytest.approx(150)
    early = np.where(steps < 20, 0.4, 0.2)
    assert continued_time(steps, early, 0.1, in_stairs=True) is None
    falling = 0.4 * 2.0 ** (-steps / 50)
    assert continued_time(steps, falling, 0.05, in_stairs=True) == continued_time(
        steps, falling, 0.05
    )
    assert continued_time(steps, np.full(101, 0.5), 0.1, in_stairs=True) is None
    assert smooth(np.array([]), 3).shape == (0,)


def test_thresholds_that_agree_to_six_digits_keep_their_keys():
    near = 0.1 + 1e-9
    times = training_times(
        STEPS, DECAY, DECAY, thresholds=(0.1, near), loss_thresholds=(1.23456789, 1.23456788, 1e-9)
    )
    assert set(times["error_below"]) == {"0.1", "0.100000001"}
    assert len(times["loss_below"]) == 5
    for family in ("epsilon_relative", "loss_below", "error_below"):
        assert {float(name) for name in times[family]} >= {0.1, near}
    assert [level_name(value) for value in (0.1, 2.0, 1 / 3, 1e-9, 0.5)] == [
        "0.1",
        "2",
        repr(1 / 3),
        "1e-09",
        "0.5",
    ]


def test_all_definitions_at_once():
    times = training_times(
        STEPS, DECAY, DECAY / 2, thresholds=(0.1, 0.4), loss_thresholds=(2.0,), plateau_window=5
    )
    assert times["loss_below"] == {"0.1": 47, "0.4": 19, "2": 0}
    assert times["error_below"] == {"0.1": 33, "0.4": 5}
    assert set(times) == {
        "epsilon_relative",
        "epsilon_absolute",
        "loss_below",
        "error_below",
        "plateau",
    }


def test_combination_over_seeds_counts_not_reached_as_later():
    times = [{"a": {"x": value}, "plateau": value} for value in (10, None, 20)]
    assert combine_times(times, 0.5) == {"a": {"x": 20}, "plateau": 20}
    assert combine_times(times, 0.0)["plateau"] == 10
    assert combine_times(times, 1.0)["plateau"] is None
    assert combine_times(times[:1], 0.5)["plateau"] == 10


@pytest.mark.parametrize(
    ("times", "median"),
    [
        ((10, 20), 15),
        ((10, 11), 10.5),
        ((40, 10, 30, 20), 25),
        ((10, None), None),
        ((10, 20, None, None), None),
        ((10, 20, 30, None), 25),
        ((7, 7), 7),
        ((None, None), None),
    ],
)
def test_median_of_an_even_number_is_between_the_middle_two(times, median):
    found = combine_times([{"plateau": time} for time in times], 0.5)["plateau"]
    assert found == median
    assert isinstance(found, type(median))
    assert combine_times([{"plateau": time} for time in times], 0.0)["plateau"] == min(
        (time for time in times if time is not None), default=None
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": (0.0,)}, "thresholds: .* got 0"),
        ({"thresholds": (1.0,)}, "thresholds: .* got 1"),
        ({"thresholds": (-0.1,)}, "got -0.1"),
        ({"thresholds": ()}, "give at least one"),
        ({"loss_thresholds": (-1.0,)}, "loss_thresholds"),
        ({"loss_thresholds": (float("nan"),)}, "loss_thresholds"),
        ({"smoothing": 0}, "smoothing"),
        ({"plateau_window": 0}, "window"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_times(STEPS, DECAY, DECAY, **arguments)
