"""What counts of the records of a run: repeated steps, steps that go back, losses that are not
finite, and memory that is bounded.
"""

import math

import numpy as np
import pytest

from ntk_tt.times.observations import Observations
from ntk_tt.times.online import Predictor

NAN = math.nan


def loss(step):
    return 2 / (1 + step / 50) ** 1.2


def seen(steps, limit=1024, run=loss):
    found = Observations(limit)
    for step in steps:
        found.add(step, run(step))
    return found


def kept(observations):
    return observations.points()[0].tolist()


def test_rising_steps_are_kept_as_they_are():
    found = seen(range(0, 50, 5))
    steps, logs = found.points()
    assert steps.tolist() == list(range(0, 50, 5))
    np.testing.assert_allclose(np.exp(logs), [loss(step) for step in range(0, 50, 5)], rtol=1e-12)
    assert (found.first, found.last, found.whole, found.turns) == (
        (0, 2.0),
        (45, loss(45)),
        True,
        0,
    )


def test_a_log_that_begins_with_its_newest_record_gets_a_word():
    found = seen(range(45, -1, -5))
    assert "the steps fall from record to record" in found.note
    found = seen([0, 5, 10, 5, 10, 15, 10, 15, 20, 10, 15])  # resumed again and again
    assert "fall" not in found.note


def test_a_repeated_step_takes_the_later_value():
    found = seen([0, 5, 10])
    found.add(10, 7.0)
    found.add(15, 1.0)
    assert kept(found) == [0, 5, 10, 15]
    assert math.exp(found.points()[1][2]) == pytest.approx(7.0)
    assert found.turns == 0


@pytest.mark.parametrize("back", [15, 40, 50])
def test_a_resumed_run_goes_on_from_where_it_came_back_to(back):
    found = seen(range(0, 60, 5))
    for step in range(back, 80, 5):
        found.add(step, 9.0)
    steps, logs = found.points()
    assert steps.tolist() == list(range(0, 80, 5))
    assert (np.exp(logs[steps >= back]) > 8.9).all()
    assert (np.exp(logs[steps < back]) < 2.1).all()
    assert "was resumed" in found.note


def test_a_run_that_is_resumed_and_has_less_than_before_forgets_what_it_left():
    found = seen([*range(0, 400, 5), 200, 205])
    assert found.last[0] == 205
    assert max(kept(found)) == 205


@pytest.mark.parametrize("again", [[0, 5, 10], [5, 10], [2, 4], [8, 16]])
def test_a_run_that_begins_again_drops_the_one_before(again):
    found = seen(range(0, 1000, 5))
    for step in again:
        found.add(step, 5.0)
    assert kept(found) == again
    assert found.first == (again[0], 5.0)
    assert "a new run" in found.note


def test_runs_that_begin_late_begin_again_where_they_began():
    assert kept(seen([*range(500, 1000, 10), 500, 510])) == [500, 510]


@pytest.mark.parametrize("stray", [0, 1, 40, 395])
def test_one_stray_step_does_not_drop_what_was_before_it(stray):
    found = seen(range(0, 400, 5))
    found.add(stray, 3.0)
    for step in (400, 405):
        found.add(step, loss(step))
    assert kept(found) in ([*range(0, 410, 5)], [*range(0, 395, 5), 395, 400, 405])
    assert found.first == (0, 2.0)


def test_records_of_two_processes_interleaved_are_those_of_the_one_ahead():
    found = Observations()
    for step in range(10, 500, 10):
        found.add(step, loss(step))
        found.add(step - 5, 1.0)
    assert kept(found)[:3] == [10, 20, 30]
    assert len(found) == 49


def test_one_loss_that_is_not_finite_is_left_out_and_two_at_the_end_are_a_divergence():
    found = seen([0, 5, 10])
    found.add(15, NAN)
    assert (found.diverged, found.num_bad, found.bad_since, found.last_step) == (False, 1, 15, 15)
    found.add(20, math.inf)
    assert found.diverged
    assert (found.bad_since, found.last_step) == (15, 20)
    found.add(25, 0.5)
    assert (found.diverged, found.num_bad, found.last) == (False, 0, (25, 0.5))
    assert kept(found) == [0, 5, 10, 25]


@pytest.mark.parametrize("at", [0, 3])
def test_an_overflow_that_was_logged_as_zero_is_left_out_and_a_true_zero_is_not(at):
    losses = [1.5, 1.2, 1.0, 0.9, 0.8, 0.7]
    losses[at] = 0.0
    found = Observations()
    for step, value in enumerate(losses):
        found.add(step, value)
    assert kept(found) == [step for step in range(6) if step != at]
    assert found.first[1] > 0
    for step, value in ((6, 0.0005), (7, 0.0), (8, 0.0001)):
        found.add(step, value)
    assert kept(found)[-3:] == [6, 7, 8]


def test_fractions_of_epochs_are_steps():
    found = seen([0.0, 0.05, 0.1])
    assert (found.whole, found.last[0]) == (False, 0.1)


@pytest.mark.parametrize("step", [-1, NAN, math.inf, 1e300])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ValueError, match=r"step: must be a number from 0 to 2\^53"):
        Observations().add(step, 1.0)


def test_memory_is_bounded_and_what_is_kept_are_means_of_equally_many():
    found = seen(range(20_000), limit=64)
    steps, logs = found.points()
    assert 64 <= len(steps) <= 130
    assert steps[-1] == 19_999
    assert found.first == (0, 2.0)
    np.testing.assert_allclose(np.exp(logs[1:]), loss(steps[1:]), rtol=0.02)
    assert np.unique(np.round(np.diff(steps[:-2]), 6)).size == 1


def test_a_run_resumed_after_its_records_were_joined_goes_on():
    found = seen([*range(10_000), *range(5_000, 6_000)], limit=64)
    steps, _ = found.points()
    assert steps[-1] == 5_999
    assert (np.diff(steps) > 0).all()
    assert steps[0] < 200


@pytest.mark.parametrize("count", [5_000])
def test_a_forecast_from_joined_records_is_that_from_all(count):
    steps = np.arange(0, 4 * count, count // 50)
    few, all_ = (Predictor(steps, 2 / (1 + steps / 2000) ** 1.0) for _ in range(2))
    all_.observations.limit = 10**9
    noise = np.random.default_rng(0).normal(0, 0.2, count)
    for step in range(count):
        for each in (few, all_):
            each.observe(step, 2 / (1 + step / 1500) ** 1.1 * np.exp(noise[step]))
    assert len(few.observations) < 2100
    np.testing.assert_allclose(few.forecast().loss[50:], all_.forecast().loss[50:], rtol=0.03)
