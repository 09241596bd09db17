"""The paper's statements in numbers: what is counted, and that committed ones are what runs say."""

import json

import pytest

from experiments.common.claims import (
    COMPARED,
    Claim,
    counted,
    mean_error,
    number,
    reported,
    trusted,
    within,
)
from experiments.registry import EXPERIMENTS
from tools.claims import claims_of, differing

KEYS = {
    *("claim", "family", "count", "unit", "sense", "paper_claims", *COMPARED),
    *("holds_with_paper", "holds_with_ours"),
}


def _run(real, trust="high", data="cifar10", **predicted):
    methods = {"real": real, **predicted}
    return {
        "task": {"data": data},
        "num_steps": 100,
        "verdict": {"trust": trust},
        "times": {
            name: {"loss_below": dict(zip("abc", times, strict=True))}
            for name, times in methods.items()
        },
    }


RUNS = [
    _run((50, 80, None), paper=(60, 100, 90), ours=(50, None, None)),
    _run((10, 0, None), "low", "dtd", paper=(13, 1, None), ours=(11, 0, None)),
]


def test_a_time_counts_where_the_real_run_reaches_it_and_2_t_where_a_method_does_not():
    found = within("c", RUNS, "loss_below", 0.2, 0.5)
    assert found.count == 4
    assert found.found["paper"] == 0.5  # 20 %, 25 %, 30 %, and 1 step for none
    assert found.found["ours"] == 0.75  # all but the second, which counts as 200 steps
    assert found.found["another_run"] is None
    assert found.record["holds_with_ours"]
    assert set(found.record) == KEYS
    only = within("c", RUNS, "loss_below", 0.2, 0.5, ["a"])
    assert (only.count, only.found["paper"]) == (2, 0.5)


def test_mean_errors_are_relative_or_in_steps():
    relative = mean_error("c", RUNS, "loss_below", 0.2)
    assert relative.found["paper"] == pytest.approx((0.2 + 0.25 + 0.3 + 0) / 4)
    assert relative.holds_with("paper")
    assert not relative.holds_with("ours")
    steps = mean_error("c", RUNS, "loss_below", 10, unit="steps")
    assert steps.found["paper"] == pytest.approx((10 + 20 + 3 + 0) / 4)
    assert number(steps.record, "paper") == "8.2"


def test_groups_of_runs():
    assert trusted(RUNS) == RUNS[:1]
    assert reported(RUNS) == RUNS[:1]
    assert within("c", [], "loss_below", 0.2, 0.5).holds_with("ours") is None


def test_shares_of_cases_and_claims_that_nothing_was_measured_of():
    found = counted("c", "f", {"paper": [True, False, True], "ours": None})
    assert found.count == 3
    assert found.found["paper"] == pytest.approx(2 / 3)
    assert found.record["ours"] is None
    assert found.record["holds_with_ours"] is None
    assert not found.holds_with("paper")
    assert Claim("c", "f", 1, 0.1, {"ours": 0.1}, "at most").holds_with("ours")


@pytest.mark.parametrize(
    "name", [name for name, each in EXPERIMENTS.items() if each.claims is not None]
)
def test_committed_claims_are_what_the_runs_say(name):
    experiment = EXPERIMENTS[name]
    path = experiment.result_path("cpu")
    if not path.exists():
        pytest.skip("no committed result")
    results = json.loads(path.read_text())["results"]
    assert results["claims"]
    assert differing(claims_of(experiment, results), results["claims"]) == []
    assert all(set(each) == KEYS for each in results["claims"])
    changed = [each | {"count": each["count"] + 1} for each in results["claims"]]
    assert len(differing(changed, results["claims"])) == len(changed)
