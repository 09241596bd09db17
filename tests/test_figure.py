"""The figure of a report."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntk_tt.report.figure import axis_top, draw_report, interval_edges

PREDICTION = {
    "steps": [0, 50, 100],
    "loss": [2.0, 1.0, 0.5],
    "error": [0.8, 0.4, 0.2],
    "times": {},
    "levels": [
        {"of": "loss", "level": 1.0, "low": 40, "high": 70},
        {"of": "loss", "level": 0.5, "low": 80, "high": None},
        {"of": "loss", "level": 0.2, "low": None, "high": None},
        {"of": "error", "level": 0.4, "low": 30, "high": 60},
    ],
    "intervals": {"loss_below": {"1.5": {"low": 10, "high": 30}}, "error_below": {}},
}


def report(**cost):
    return {
        "prediction": PREDICTION,
        "truth": None,
        "task": {"model": "net", "data": "set"},
        "optimizer": {"batch_size": 8, "momentum": 0.9, "learning_rate": 0.1, "name": "sgd"},
        "cost": cost,
    }


def test_the_band_goes_through_the_levels_as_far_as_the_last_step():
    levels, low, high = interval_edges(PREDICTION, "loss")
    assert levels == [1.5, 1.0, 0.5]
    assert low == [10, 40, 80]
    assert high == [30, 70, 100]
    assert interval_edges({"steps": [0, 9], "intervals": None}, "loss") == ([], [], [])


def test_a_spike_is_cut_off_and_said():
    usual = [2.0, 1.5, 1.0]
    assert axis_top([usual, [2.0, 5.0, 1.0]]) == (None, None)
    top, highest = axis_top([usual, [2.0, 40.0, 1.5, 1.0, np.nan]])
    assert highest == 40.0
    assert 2.0 < top < 40.0
    assert axis_top([[np.nan], []]) == (None, None)
    assert axis_top([[0.0, 0.0, 3.0]]) == (None, None)


@pytest.mark.parametrize(
    ("pace", "machine", "label", "whole"),
    [
        (0.5, "this", "seconds of training here", 50),
        (6, "this", "minutes of training here", 10),
        (360, "another", "hours of training on the other machine", 10),
    ],
)
def test_the_axis_above_is_the_time_of_training(pace, machine, label, whole):
    figure = draw_report(report(seconds_per_step=pace, machine=machine), [])
    (above,) = figure.axes[0].child_axes
    figure.canvas.draw()
    assert above.get_xlabel() == label
    assert above.get_xlim()[1] == pytest.approx(whole)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["predicted, without training", "90 % interval"]
    plt.close(figure)


def test_a_report_without_a_pace_has_no_axis_above():
    figure = draw_report(report(seconds_per_step=None), [])
    assert not figure.axes[0].child_axes
    plt.close(figure)
