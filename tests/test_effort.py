"""A prediction that costs a share of training: from a subset, for all samples."""

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.dynamics import own_way
from ntk_tt.prediction.effort import capped, subset_for
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.price import price_of
from ntk_tt.surrogate.expansion import expand

MANY = 1500
SETTING = ntk_tt.OptimizerConfig(0.1, momentum=0.5, batch_size=25)
STEPS = 300


@pytest.fixture(scope="module")
def what():
    """Three overlapping clouds, one of them small, and a network that is linear in its weights."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, MANY, p=[0.6, 0.37, 0.03])
    inputs = (rng.normal(size=(3, 30))[labels] + 2 * rng.normal(size=(MANY, 30))).astype("float32")
    model = ntk_tt.from_function(
        lambda params, x: x @ params["w"], {"w": jnp.zeros((30, 3), jnp.float32)}
    )
    return Finetuning(model, inputs, labels)


def test_the_passes_cost_at_most_half_of_the_effort(what):
    for effort in (0.5, 0.3):
        found = subset_for(what, SETTING, STEPS, effort)
        assert found.share <= 0.5 * effort
        assert found.what.num_samples < MANY
        assert "as few as" not in found.words
    assert subset_for(what, SETTING, 100 * STEPS, 0.9).what.num_samples == MANY


@pytest.mark.slow_but("adamw")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_effort_and_price_count_the_passes_that_are_taken(name):
    """Twelve classes, of which an optimiser that divides by gradients needs more directions; the
    pilot's looks, which are no passes over all, are taken off.
    """
    rng = np.random.default_rng(0)
    labels, inputs = np.arange(360) % 12, rng.normal(size=(360, 20)).astype("float32")
    params = {"w": rng.normal(size=(20, 16)), "head": rng.normal(size=(16, 12))}
    model = ntk_tt.from_function(
        lambda params, x: jnp.tanh(x @ params["w"]) @ params["head"],
        {name: jnp.asarray(leaf / 4, jnp.float32) for name, leaf in params.items()},
    )
    what, optimizer = Finetuning(model, inputs, labels), ntk_tt.OptimizerConfig(1e-3, name=name)
    price = price_of(what, "curvature", optimizer, 200)
    small = expand(model, inputs, labels, way=own_way(optimizer, 200))
    assert price is not None
    assert price.passes == pytest.approx(small.passes - (2 * 200 + 256) / len(labels), abs=0.01)
    subset = subset_for(what, optimizer, 200, 0.04)
    of_subset = price_of(subset.what, "curvature", optimizer, 200)
    assert of_subset is not None
    assert subset.method == "curvature"
    taken = of_subset.passes * subset.what.num_samples
    assert 0.8 * 0.02 < taken / (3 * 200 * len(labels)) <= 0.02


def test_little_effort_takes_one_point_and_then_the_fewest_samples_and_says_so(what):
    counts = []
    for effort, method in ((0.9, "curvature"), (0.08, "head"), (0.001, "head")):
        found = subset_for(what, SETTING, STEPS, effort)
        assert found.method == method
        counts.append(found.what.num_samples)
    assert counts[2] <= 64 + 3
    assert "as few as say anything" in found.words
    assert "effort that was asked for is 0%" in found.words


def test_each_class_has_its_share(what):
    found = subset_for(what, SETTING, STEPS, 0.5).what
    there, taken = (np.bincount(each.labels, minlength=3) for each in (what, found))
    assert np.abs(taken - there * found.num_samples / MANY).max() <= 3
    assert taken.min() >= 1
    again = subset_for(what, SETTING, STEPS, 0.5).what
    np.testing.assert_array_equal(found.inputs, again.inputs)
    rows = {row.tobytes() for row in what.inputs}
    assert all(row.tobytes() in rows for row in found.inputs)


@pytest.mark.parametrize("effort", [0, 1, -0.1, float("nan")])
def test_no_effort(what, effort):
    with pytest.raises(ValueError, match="effort: must lie between 0 and 1"):
        subset_for(what, SETTING, STEPS, effort)


def test_effort_is_a_share_of_a_run(what):
    with pytest.raises(ValueError, match="effort: it is a share of a run"):
        ntk_tt.prepare(what.model, what.inputs, what.labels, effort=0.1)


def test_batches_are_no_larger_than_the_subset():
    assert capped(SETTING, 10).batch_size == 10
    assert capped(SETTING, 100) is SETTING


@pytest.mark.slow
def test_a_subset_tells_of_all_samples(what):
    setting = ntk_tt.OptimizerConfig(0.02, momentum=0.5, batch_size=25)
    data = what.model, what.inputs, what.labels
    real = ntk_tt.finetune(*data, setting, STEPS, record_every=30)
    prepared = ntk_tt.prepare(*data, optimizer=setting, num_steps=STEPS, effort=0.3)
    report = prepared.predict(setting, STEPS, record_every=30)
    few = report.document["prediction"]["subset"]["num_samples"]
    assert few < MANY / 4
    assert report.document["task"]["num_samples"] == MANY
    off = np.abs(np.log(report.curve["loss"] / real.loss))
    subset = prepared.found.what
    alone = ntk_tt.finetune(
        what.model, subset.inputs, subset.labels, setting, STEPS, record_every=30
    )
    assert off.max() < 0.2  # 0.16; the subset itself is off by 0.9
    assert np.abs(np.log(alone.loss / real.loss))[-3:].mean() > 0.5
    assert report.trust in ("medium", "low")
    assert f"from {few} of 1,500 samples" in report.reason
    assert "effort 0.3" in report.document["prediction"]["method_reason"]
    level = float(np.mean(report.curve["loss"][:3]))
    misfit = report.outcome.predicted.misfit
    assert misfit > 0
    low = (report.interval(loss=level) or [None])[0]
    margin = report.outcome.verdict.stability_margin
    whole = ntk_tt.times.calibration.interval(prepared.method, 0.0, margin)
    assert low == round(report.steps_until(loss=level) * whole.low / (1 + misfit))
    # where the subset is learned by heart it says so
    far = prepared.predict(SETTING, STEPS, record_every=30)
    assert far.trust == "low"
    assert "these are too few" in far.reason
