"""Times read off curves whose times are known."""

import numpy as np
import pytest

from ntk_tt.training_time import combine_times, epsilon_time, plateau_time, smooth, threshold_time, training_times

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
        assert epsilon_time(STEPS, 7 * DECAY + 3, epsilon, relative=True) == epsilon_time(STEPS, DECAY, epsilon, relative=True)
        assert epsilon_time(STEPS, 7 * DECAY + 3, epsilon, relative=False) != epsilon_time(STEPS, DECAY, epsilon, relative=False)


def test_first_crossing_counts():
    curve = np.array([1.0, 0.4, 0.9, 0.3, 0.2])
    assert threshold_time(np.array([0, 10, 20, 30, 40]), curve, 0.5) == 10
    assert threshold_time(np.array([0, 10, 20, 30, 40]), curve, 0.2) is None  # strictly below
    assert threshold_time(STEPS, DECAY, 1.5) == 0


def test_not_reached_is_a_value():
    assert threshold_time(STEPS, DECAY, 1e-3) is None
    assert epsilon_time(STEPS, 1 + STEPS / 10, 0.1, relative=True) is None  # it rose
    assert epsilon_time(STEPS, np.where(STEPS > 50, np.nan, DECAY), 0.1, relative=True) is None  # it diverged
    assert threshold_time(STEPS, np.where(STEPS > 50, np.nan, DECAY), 0.5) == 14  # but it was there before


def test_plateau():
    error = np.maximum(0.5 - 0.01 * STEPS, 0.1)  # falls 1 % a step until step 40
    assert plateau_time(STEPS, error, drop=0.045, window=10) == 46  # over 36 … 46 it falls by 0.04
    assert plateau_time(STEPS, error, drop=0.045, window=100) is None
    assert plateau_time(STEPS, np.full(101, 0.5), drop=0.01, window=10) == 10
    assert plateau_time(STEPS[::4], error[::4], drop=0.045, window=10) == 48  # between records: interpolated


def test_smoothing_keeps_lines_and_ends_and_removes_noise():
    np.testing.assert_allclose(smooth(2.0 * STEPS, 9), 2.0 * STEPS)
    noisy = DECAY + 0.1 * np.random.default_rng(0).standard_normal(101)
    smoothed = smooth(noisy, 9)
    np.testing.assert_allclose(smoothed[[0, -1]], noisy[[0, -1]])
    assert (smoothed - DECAY)[10:-10].std() < 0.5 * (noisy - DECAY)[10:-10].std()
    np.testing.assert_allclose(smooth(noisy, 5)[50], noisy[48:53].mean())


def test_all_definitions_at_once():
    times = training_times(STEPS, DECAY, DECAY / 2, thresholds=(0.1, 0.4), loss_thresholds=(2.0,), plateau_window=5)
    assert times["loss_below"] == {"0.1": 47, "0.4": 19, "2": 0}
    assert times["error_below"] == {"0.1": 33, "0.4": 5}
    assert set(times) == {"epsilon_relative", "epsilon_absolute", "loss_below", "error_below", "plateau"}


def test_combination_over_seeds_counts_not_reached_as_later():
    times = [{"a": {"x": value}, "plateau": value} for value in (10, None, 20)]
    assert combine_times(times, 0.5) == {"a": {"x": 20}, "plateau": 20}
    assert combine_times(times, 0.0)["plateau"] == 10
    assert combine_times(times, 1.0)["plateau"] is None
    assert combine_times(times[:1], 0.5)["plateau"] == 10


@pytest.mark.parametrize(("arguments", "message"), [
    ({"thresholds": (0.0,)}, "thresholds: .* got 0"), ({"thresholds": (1.0,)}, "thresholds: .* got 1"), ({"thresholds": (-0.1,)}, "got -0.1"),
    ({"thresholds": ()}, "give at least one"), ({"loss_thresholds": (-1.0,)}, "loss_thresholds"), ({"loss_thresholds": (float("nan"),)}, "loss_thresholds"),
    ({"smoothing": 0}, "smoothing"), ({"plateau_window": 0}, "window"),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_times(STEPS, DECAY, DECAY, **arguments)
