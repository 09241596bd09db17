"""Learning-rate schedules as optax calls them, and settings that are refused."""

import math
import runpy

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_tt import OptimizerConfig, optimizer
from ntk_tt.optimizer import MAX_SEEDS, MAX_STEPS, scaled
from ntk_tt.schedules import named_schedule

# as users have it: without the types that tests check first
UNCHECKED = runpy.run_path(optimizer.__file__)
CHAIN = optax.adamw(1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            lambda count: 0.01 * jnp.minimum(1.0, (count.astype(jnp.float32) + 1) / 100),
            lambda step: 0.01 * min(1.0, (step + 1) / 100),
        ),
        (lambda step: 0.1 if step < 3 else 0.01, lambda step: 0.1 if step < 3 else 0.01),
        (lambda step: [0.1, 0.2, 0.3, 0.4, 0.5][step], lambda step: 0.1 * (step + 1)),
        (lambda step: {0: 0.1}.get(step, 0.05), lambda step: 0.1 if step == 0 else 0.05),
        (lambda step: 0.1 * math.exp(-step), lambda step: 0.1 * math.exp(-step)),
        (
            lambda step: 0.1 / (1 + step.astype(np.float32)) if step > 0 else 0.1,
            lambda step: 0.1 / (1 + step),
        ),
        (lambda step: np.where(step < 2, 0.1, 0.2), lambda step: 0.1 if step < 2 else 0.2),
        (lambda step: 0.1, lambda step: 0.1),
        (lambda step: 1, lambda step: 1.0),
        (optax.linear_schedule(0.1, 0.0, 4), lambda step: 0.1 - 0.025 * step),
    ],
)
def test_schedules_take_arrays_and_python_takes_numbers(schedule, expected):
    np.testing.assert_allclose(
        OptimizerConfig(schedule).learning_rates(5),
        [expected(step) for step in range(5)],
        rtol=1e-5,
        atol=1e-8,
    )


def test_a_schedule_of_arrays_is_called_a_few_times_however_many_steps():
    calls = []

    def schedule(step):
        calls.append(step)
        return optax.warmup_cosine_decay_schedule(0.0, 0.3, 100, 20_000)(step)

    setting = OptimizerConfig(schedule)
    rates = setting.learning_rates(20_000)
    assert len(calls) <= 3
    assert rates[100] == pytest.approx(0.3)
    setting.learning_rates(20_000)[0] = 7.0  # a copy
    np.testing.assert_array_equal(setting.learning_rates(20_000), rates)
    assert len(calls) <= 3
    for step in (0, 50, 12_345):
        assert rates[step] == pytest.approx(float(schedule(jnp.asarray(step))), rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda step: jnp.where(step == 3, jnp.nan, 0.1), "nan at step 3"),
        (lambda step: 0.1 if step < 2 else float("inf"), "inf at step 2"),
        (lambda step: 0.1 - 0.04 * step, r"-0\.0\d+ at step 3"),
        (lambda step: [0.1, 0.2][step], "fails at step 2 .IndexError"),
        (lambda step: None, "None at step 0"),
        (lambda step: "0.1", "at step 0; it must give one real number"),
        (lambda step: jnp.ones(1), "one real number"),
        (lambda step: 0.1 + 0j, "one real number"),
    ],
)
def test_what_a_schedule_may_not_give_is_named_with_its_step(schedule, message):
    with pytest.raises(ValueError, match=f"learning_rate: the schedule .*{message}"):
        OptimizerConfig(schedule).learning_rates(5)


def test_a_schedule_that_counts_its_calls_is_refused():
    rates = iter(np.arange(0.1, 1.0, 0.01))
    with pytest.raises(ValueError, match="must depend on the step alone"):
        OptimizerConfig(lambda step: next(rates)).learning_rates(5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": value}
        for value in ("0.1", None, True, 1j, math.nan, math.inf, [0.1], -1.0, 0)
    ]
    + [{"batch_size": value} for value in (2.5, "3", True, 0, -1)]
    + [
        {"momentum": "0.9"},
        {"momentum": math.nan},
        {"weight_decay": None},
        {"weight_decay": math.inf},
    ],
)
def test_settings_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}: must"):
        UNCHECKED["OptimizerConfig"](**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "muon"}, "name: unknown 'muon'; known: sgd, adam, .*transformation"),
        ({"name": "adam", "momentum": 0.9}, "momentum: adam has none, .*take sgd or rmsprop"),
        ({"name": "adamw", "nesterov": True}, "nesterov: adamw has none"),
        ({"name": "adagrad", "betas": (0.9, 0.99)}, "betas: adagrad has none, .*take adam or"),
        ({"betas": (0.9, 0.99)}, "betas: sgd has none"),
        ({"name": "lion", "eps": 1e-8}, "eps: lion has none"),
        ({"name": "adam", "betas": (0.9, 1.0)}, r"betas: must be two numbers in \[0, 1\)"),
        ({"name": "adam", "betas": (0.9,)}, "betas: must be two numbers"),
        ({"name": "adam", "betas": 0.9}, "betas: must be two numbers"),
        ({"name": "adam", "eps": 0.0}, "eps: must be positive and finite .* got 0.0; leave it out"),
        ({"name": "adam", "eps": "small"}, "eps: must be positive"),
        ({"clip_norm": 0}, "clip_norm: must be positive .*no clipping"),
        ({"clip_norm": math.inf}, "clip_norm: must be positive"),
        ({"weight_ema": 1.0}, r"weight_ema: must lie in \[0, 1\), such as 0.99, got 1.0"),
        ({"transformation": optax.adam}, "transformation: must be an optax.Gradient.*function"),
        ({"transformation": CHAIN, "name": "adam"}, "name: a transformation has its own"),
        ({"transformation": CHAIN, "momentum": 0.5}, "momentum: a transformation has its own"),
        ({"transformation": CHAIN, "weight_decay": 0.1}, "weight_decay: a transformation has"),
        ({"transformation": CHAIN, "clip_norm": 1.0}, "clip_norm: a transformation has its own"),
        ({"transformation": CHAIN, "learning_rate": -1.0}, "learning_rate: must be positive"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNCHECKED["OptimizerConfig"](**arguments)


def test_numbers_that_are_not_given_are_those_of_optax():
    assert OptimizerConfig(name="adam").numbers == {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
    assert OptimizerConfig(name="lion").numbers == {"b1": 0.9, "b2": 0.99}
    assert OptimizerConfig(name="adagrad", eps=1e-3).numbers == {"eps": 1e-3}
    assert OptimizerConfig().numbers == OptimizerConfig.of(CHAIN).numbers == {}


def test_only_sgd_without_clipping_is_sgd():
    assert OptimizerConfig(0.1, 0.9, True, 0.1, 4).is_sgd
    assert not OptimizerConfig(clip_norm=1.0).is_sgd
    assert not OptimizerConfig(name="adam").is_sgd
    assert not OptimizerConfig.of(CHAIN).is_sgd


@pytest.mark.parametrize(
    ("name", "after"), [("constant", [8.0] * 4), ("linear", [8.0, 6.0, 4.0, 2.0])]
)
def test_a_warm_up_rises_from_zero_before_the_schedule(name, after):
    schedule = named_schedule(name, 8.0, 8, warmup_steps=4)
    np.testing.assert_allclose(
        OptimizerConfig(schedule).learning_rates(8), [0.0, 2.0, 4.0, 6.0, *after], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("cosine", 8, "warmup_steps: must lie in 0 … 7, .*got 8"),
        ("cosine", -1, "warmup_steps: must lie in 0 … 7"),
        ("warmup-cosine", 2, "warmup_steps: 'warmup-cosine' has a warm-up of its own"),
    ],
)
def test_warm_ups_that_leave_nothing_or_come_twice(name, steps, message):
    with pytest.raises(ValueError, match=message):
        named_schedule(name, 0.1, 8, steps)


def test_numbers_of_any_library_are_settings():
    setting = UNCHECKED["OptimizerConfig"](
        np.float32(0.5), jnp.asarray(0.25), batch_size=np.int64(3)
    )
    np.testing.assert_array_equal(setting.learning_rates(2), [0.5, 0.5])


@pytest.mark.parametrize(
    ("check", "most"), [("check_num_steps", MAX_STEPS), ("check_num_seeds", MAX_SEEDS)]
)
def test_counts(check, most):
    check = UNCHECKED[check]
    check(1)
    check(np.int64(most))
    for value in (0, -1, 2.5, "3", None, True):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            check(value)
    with pytest.raises(ValueError, match=f"{10**10} is more than the {most}"):
        check(10**10)


def test_absurd_steps_are_refused_before_rates_are_made():
    with pytest.raises(ValueError, match="num_steps: 10000000000 is more"):
        OptimizerConfig(lambda step: 1 / 0).learning_rates(10**10)


def test_scaled():
    np.testing.assert_allclose(scaled(OptimizerConfig(0.1, 0.9), 3.0).learning_rates(2), [0.3, 0.3])
    np.testing.assert_allclose(
        scaled(OptimizerConfig(optax.linear_schedule(0.1, 0.0, 4)), 2.0).learning_rates(4),
        [0.2, 0.15, 0.1, 0.05],
        rtol=1e-5,
    )


def test_a_rate_that_is_changed_on_the_way():
    from ntk_tt.optimizer import changed_at

    begun = OptimizerConfig(0.1, 0.9, batch_size=8)
    lower = changed_at(begun, 3, 0.01)
    np.testing.assert_allclose(lower.learning_rates(6), [0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert (lower.momentum, lower.batch_size) == (0.9, 8)
    falling = changed_at(lower, 4, optax.linear_schedule(0.6, 0.0, 6))
    np.testing.assert_allclose(falling.learning_rates(6)[2:], [0.1, 0.01, 0.2, 0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="learning_rate"):
        changed_at(begun, 3, -1.0)
    with pytest.raises(ValueError, match="num_steps"):
        changed_at(begun, -1, 0.1)
