"""Programs written for version 0.1: they run, and are told what things are called now."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_tt
from ntk_tt.runtime import former_names


@pytest.mark.parametrize("name", former_names.MODULES)
def test_a_former_module_has_what_it_has_now(name):
    sys.modules.pop(f"ntk_tt.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"ntk_tt\.{name} is now ntk_tt\.\w+\.\w+"):
        former = importlib.import_module(f"ntk_tt.{name}")
    now = importlib.import_module(f"ntk_tt.{former_names.MODULES[name]}")
    public = [each for each in vars(now) if not each.startswith("_")]
    assert public
    assert all(getattr(former, each) is getattr(now, each) for each in public)
    with pytest.raises(AttributeError, match="nothing"):
        _ = former.nothing


def test_no_former_module_hides_what_is_there_today():
    for name in former_names.MODULES:
        assert name not in ntk_tt.__all__
        assert importlib.util.find_spec(f"ntk_tt.{name}").loader.__class__ is (
            former_names.FormerModules
        )
    with pytest.raises(ModuleNotFoundError, match=r"ntk_tt\.nothing"):
        importlib.import_module("ntk_tt.nothing")


def test_a_former_name_is_what_it_is_called_now():
    with pytest.warns(DeprecationWarning, match=r"linearize_head is now ntk_tt\.surrogate\.expand"):
        assert ntk_tt.linearize_head is ntk_tt.surrogate.expand
    with pytest.warns(DeprecationWarning, match="SmallNetwork"):
        assert ntk_tt.HeadProblem is ntk_tt.surrogate.SmallNetwork
    for name, (room, now) in former_names.NAMES.items():
        assert name not in ntk_tt.__all__
        with pytest.warns(DeprecationWarning, match=f"{name} is now {room}.{now}"):
            assert getattr(ntk_tt, name) is getattr(importlib.import_module(room), now)
    assert len(ntk_tt.__all__) <= 24
    with pytest.raises(AttributeError, match="nothing"):
        _ = ntk_tt.nothing


@pytest.mark.slow
def test_networks_that_were_two_arguments_are_taken_as_models():
    params, x = {"w": jnp.ones((4, 3))}, np.random.default_rng(0).normal(size=(6, 4))
    labels, setting = np.arange(6) % 3, ntk_tt.OptimizerConfig(0.1)

    def apply(params, x):
        return x @ params["w"]

    model = ntk_tt.from_function(apply, params)
    problem = ntk_tt.surrogate.linearize(model, x, labels)
    pairs = [
        (ntk_tt.finetune, (), (x, labels, setting, 2)),
        (ntk_tt.surrogate.linearize, (), (x, labels)),
        (ntk_tt.prediction.assess, (problem,), (x, labels, setting, 2)),
        (ntk_tt.prediction.linearization_residual, (), (x, labels, setting)),
    ]
    for function, before, after in pairs:
        expected = function(*before, model, *after)
        with pytest.warns(DeprecationWarning, match=rf"{function.__name__}\(model, …\)"):
            former = function(*before, apply, params, *after)
        for name in ("loss", "initial_logits", "reason", "value"):
            if hasattr(expected, name):
                np.testing.assert_array_equal(getattr(former, name), getattr(expected, name))
    inputs, classes, optimizer, steps = pairs[0][2]
    with pytest.warns(DeprecationWarning, match="finetune"):
        run = ntk_tt.finetune(
            apply=apply,
            params=params,
            inputs=inputs,
            labels=classes,
            optimizer=optimizer,
            num_steps=steps,
        )
    assert np.array_equal(run.loss, ntk_tt.finetune(model, *pairs[0][2]).loss)
    with pytest.raises(ValueError, match="model: must be a Model, got something of type Linear"):
        ntk_tt.finetune(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), x, labels, setting, 2)


def test_options_that_were_keywords_are_taken_as_options():
    params, x = {"w": jnp.ones((4, 3))}, jax.random.normal(jax.random.key(0), (6, 4))
    labels = np.arange(6) % 3

    def apply(params, x):
        return x @ params["w"]

    exact = ntk_tt.FeatureOptions(num_projections="exact")
    with pytest.warns(DeprecationWarning, match=r"FeatureOptions\(num_projections='exact'\)"):
        found = ntk_tt.features.jacobian_features(apply, params, x, num_projections="exact")
    assert np.array_equal(found, ntk_tt.features.jacobian_features(apply, params, x, options=exact))
    small = ntk_tt.FeatureOptions(block_size=2)
    with pytest.warns(DeprecationWarning, match="linearize"):
        problem = ntk_tt.surrogate.linearize(
            apply, params, x, labels, num_projections="exact", options=small
        )
    assert problem.num_projections is None
    with pytest.raises(ValueError, match="num_projections"), pytest.warns(match="options="):
        ntk_tt.surrogate.linearize(apply, params, x, labels, num_projections=0)
    with pytest.raises(TypeError, match="number_of_projections"):
        ntk_tt.surrogate.linearize(apply, params, x, labels, number_of_projections=5)
