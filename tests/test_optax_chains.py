"""Any optimiser of optax, by name or as a chain: real training against a plain loop, and what a
frozen kernel refuses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt.dynamics import replay_many
from ntk_tt.optimizer import OptimizerConfig, as_setting, scaled
from ntk_tt.prediction.margin import margin_on_the_way
from ntk_tt.prediction.safe_rate import safe_learning_rate
from ntk_tt.schedules import named_schedule
from tests.networks import normal

NUM_SAMPLES, BATCH_SIZE, NUM_STEPS = 9, 4, 7
INPUTS, LABELS = normal(1, NUM_SAMPLES, 4), np.arange(NUM_SAMPLES) % 3
PARAMS = {
    "body": {"kernel": 0.6 * normal(2, 4, 5), "bias": 0.3 * normal(3, 5)},
    "head": {"kernel": 0.6 * normal(4, 5, 3), "bias": 0.3 * normal(5, 3)},
}


def apply(params, x):
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


MODEL = ntk_tt.from_function(apply, PARAMS)


@jax.jit
def loss_and_gradient(params, x, labels):
    def mean_loss(params):
        return -jnp.take_along_axis(
            jax.nn.log_softmax(apply(params, x)), labels[:, None], axis=1
        ).mean()

    return jax.value_and_grad(mean_loss)(params)


def batches(num_steps, seed=0):
    """Two batches of four an epoch, of nine samples."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(NUM_SAMPLES) for _ in range(num_steps)]
    return [order[start : start + 4] for order in orders for start in (0, 4)][:num_steps]


def plain_loop(step, state):
    """The parameters after each batch, `step(params, gradient, state)` being one update."""
    params = PARAMS
    for batch in batches(NUM_STEPS):
        _, gradient = loss_and_gradient(params, INPUTS[batch], LABELS[batch])
        params, state = step(params, gradient, state)
    return params


def optax_loop(chain):
    @jax.jit
    def step(params, gradient, state):
        updates, state = chain.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return plain_loop(step, jax.jit(chain.init)(PARAMS))


def cosine_after_warm_up(step):
    up, down = step / 3, 0.5 * (1 + jnp.cos(jnp.pi * (step - 3) / (NUM_STEPS - 3)))
    return 0.02 * jnp.where(step < 3, up, down)


NAMED = {
    "adamw": (
        {
            "learning_rate": named_schedule("cosine", 0.02, NUM_STEPS, warmup_steps=3),
            "weight_decay": 0.3,
            "betas": (0.8, 0.95),
            "eps": 1e-4,
        },
        optax.adamw(cosine_after_warm_up, b1=0.8, b2=0.95, eps=1e-4, weight_decay=0.3),
    ),
    "lion": ({"learning_rate": 0.01, "weight_decay": 0.5}, optax.lion(0.01, weight_decay=0.5)),
    "adam": (
        {"learning_rate": 0.01, "weight_decay": 0.2, "clip_norm": 0.1},
        optax.chain(
            optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.2), optax.adam(0.01)
        ),
    ),
    "rmsprop": (
        {"learning_rate": 0.01, "momentum": 0.5, "nesterov": True, "eps": 1e-3},
        optax.rmsprop(0.01, momentum=0.5, nesterov=True, eps=1e-3),
    ),
    "adagrad": (
        {"learning_rate": 0.1, "weight_decay": 0.2},
        optax.chain(optax.add_decayed_weights(0.2), optax.adagrad(0.1)),
    ),
    "sgd": (
        {"learning_rate": 0.3, "momentum": 0.5, "weight_decay": 0.2, "clip_norm": 0.2},
        optax.chain(
            optax.clip_by_global_norm(0.2), optax.add_decayed_weights(0.2), optax.sgd(0.3, 0.5)
        ),
    ),
}


def assert_equal(found, expected):
    jax.tree.map(
        lambda a, b, start: np.testing.assert_allclose(
            a - start, b - start, rtol=1e-3, atol=2e-5 * np.abs(b - start).max()
        ),
        found,
        expected,
        PARAMS,
    )


@pytest.mark.slow_but("adamw", "sgd")
@pytest.mark.parametrize("name", NAMED)
def test_an_optimizer_by_name_is_that_of_optax(name):
    setting, chain = NAMED[name]
    optimizer = OptimizerConfig(**setting, name=name, batch_size=BATCH_SIZE)
    run = ntk_tt.finetune(
        MODEL,
        INPUTS,
        LABELS,
        optimizer,
        NUM_STEPS,
        record_every=NUM_STEPS,
    )
    expected = optax_loop(chain)
    assert_equal(run.params, expected)
    np.testing.assert_allclose(
        run.loss[-1], loss_and_gradient(expected, INPUTS, LABELS)[0], rtol=1e-5
    )
    assert (run.velocity is not None) == (name == "sgd")


def test_a_chain_goes_by_the_names_of_the_parameters():
    rates = {"body": 0.1, "head": 0.5}

    def label(path, _):
        return f"{path[0].key} {'decays' if path[1].key == 'kernel' else 'stays'}"

    chain = optax.multi_transform(
        {
            f"{layer} {kind}": optax.chain(
                optax.add_decayed_weights(0.2 if kind == "decays" else 0.0), optax.sgd(rate)
            )
            for layer, rate in rates.items()
            for kind in ("decays", "stays")
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    run = ntk_tt.finetune(
        MODEL,
        INPUTS,
        LABELS,
        chain,
        NUM_STEPS,
        batch_size=BATCH_SIZE,
        record_every=9,
    )

    def step(params, gradient, state):
        return {
            layer: {
                part: w - rates[layer] * (gradient[layer][part] + decay * w)
                for (part, w), decay in zip(leaves.items(), (0.2, 0.0), strict=True)
            }
            for layer, leaves in params.items()
        }, state

    assert_equal(run.params, plain_loop(step, None))
    assert run.velocity is None


def test_gradients_are_gathered_over_steps_and_only_some_parameters_move():
    chain = optax.MultiSteps(
        optax.chain(
            optax.masked(optax.set_to_zero(), {"body": True, "head": False}),
            optax.apply_if_finite(optax.sgd(optax.linear_schedule(0.4, 0.0, 4)), 3),
        ),
        every_k_schedule=2,
    )
    run = ntk_tt.finetune(
        MODEL,
        INPUTS,
        LABELS,
        chain,
        NUM_STEPS,
        batch_size=BATCH_SIZE,
        record_every=1,
    )

    def step(params, gradient, state):
        count, before = state
        if before is None:
            return params, (count, gradient)
        rate = 0.4 - 0.1 * count
        head = jax.tree.map(
            lambda w, g, h: w - rate * (g + h) / 2, params["head"], gradient["head"], before["head"]
        )
        return params | {"head": head}, (count + 1, None)

    expected = plain_loop(step, (0, None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run.params, expected
    )
    np.testing.assert_array_equal(run.params["body"]["kernel"], PARAMS["body"]["kernel"])
    np.testing.assert_array_equal(run.loss[[0, 2, 4]], run.loss[[1, 3, 5]])
    assert run.loss[2] < run.loss[1]


def test_the_learning_rate_multiplies_a_chain_and_its_state_is_kept():
    rate = optax.linear_schedule(0.02, 0.0, NUM_STEPS)
    setting = OptimizerConfig.of(optax.adam(0.5), learning_rate=rate, batch_size=BATCH_SIZE)
    run = ntk_tt.finetune(MODEL, INPUTS, LABELS, setting, NUM_STEPS, record_every=9)
    assert_equal(run.params, optax_loop(optax.adam(lambda count: 0.5 * rate(count))))
    assert int(optax.tree_utils.tree_get_all_with_path(run.opt_state, "count")[0][1]) == NUM_STEPS
    assert OptimizerConfig.of(optax.adam(0.5)).learning_rate == 1.0
    assert OptimizerConfig(transformation=optax.adam(0.5)).learning_rate == 1.0
    assert OptimizerConfig().learning_rate == 0.01


def updates_of(chain, num_steps=4):
    @jax.jit
    def update(params, state, step):
        gradient = jax.tree.map(lambda w: jnp.sin(w + step), params)
        updates, state = chain.update(gradient, state, params)
        return updates, state, optax.apply_updates(params, updates)

    params, state, found = PARAMS, chain.init(PARAMS), []
    for step in range(num_steps):
        updates, state, params = update(params, state, step)
        found.append(updates)
    return found


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"), [(0.0, False, 0.0), (0.9, False, 0.1), (0.7, True, 0.0)]
)
def test_sgd_is_bit_for_bit_what_it_was(momentum, nesterov, decay):
    schedule = optax.cosine_decay_schedule(0.3, 4)
    setting = OptimizerConfig(schedule, momentum, nesterov, decay)
    rates = jnp.asarray(setting.learning_rates(4))
    before = optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(lambda count: rates[count], momentum or None, nesterov=nesterov),
    )
    jax.tree.map(np.testing.assert_array_equal, updates_of(setting.chain(4)), updates_of(before))


@pytest.mark.parametrize(
    "setting",
    [
        OptimizerConfig(optax.cosine_decay_schedule(0.1, 4), name="adamw", weight_decay=0.3),
        OptimizerConfig(lambda step: 0.1 if step < 2 else 0.05, 0.9),
        OptimizerConfig.of(optax.lion(0.1), learning_rate=optax.linear_schedule(1.0, 0.1, 4)),
    ],
    ids=["adamw", "sgd", "transformation"],
)
def test_a_traced_scale_is_a_multiple_of_the_learning_rate(setting):
    factors = jnp.asarray([0.5, 3.0])
    together = jax.jit(jax.vmap(lambda factor: updates_of(setting.chain(4, factor))))(factors)
    for index, factor in enumerate(factors):
        jax.tree.map(
            lambda a, b, index=index: np.testing.assert_allclose(a[index], b, rtol=1e-4, atol=1e-6),
            together,
            updates_of(scaled(setting, float(factor)).chain(4)),
        )


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (
            optax.masked(optax.sgd(0.1), {"body": True}),
            "optimizer: it fails on these parameters .ValueError.*body",
        ),
        (optax.lbfgs(), "optimizer: it fails on these parameters .TypeError"),
        (
            optax.multi_transform({"a": optax.sgd(0.1)}, lambda params: "b"),
            "optimizer: it fails on these parameters",
        ),
    ],
)
def test_a_chain_that_does_not_fit_is_refused_before_training(chain, message):
    with pytest.raises(ValueError, match=message):
        ntk_tt.finetune(MODEL, INPUTS, LABELS, chain, 3)


def test_a_setting_has_its_own_batch_size():
    with pytest.raises(ValueError, match="batch_size: the setting has its own, 4, got 3"):
        ntk_tt.finetune(
            MODEL,
            INPUTS,
            LABELS,
            OptimizerConfig(batch_size=4),
            3,
            batch_size=3,
        )


ADAMW = OptimizerConfig(0.001, name="adamw")


@pytest.fixture(scope="module")
def problem():
    return ntk_tt.surrogate.linearize(MODEL, INPUTS, LABELS, loss="mse")


@pytest.mark.parametrize(
    "method", ["replay", "ode", "sde", "sde-diagonal", "sde-diagonal-constant", "closed-form"]
)
def test_a_frozen_kernel_knows_sgd_only(problem, method):
    with pytest.raises(
        ValueError,
        match=f"optimizer: method '{method}' knows SGD only, got adamw; take method='head'",
    ):
        ntk_tt.prediction.predict(problem, ADAMW, 3, method=method)


@pytest.mark.parametrize(
    "ask",
    [
        lambda problem, optimizer: replay_many(problem, [OptimizerConfig(), optimizer], 3),
        lambda problem, optimizer: ntk_tt.prediction.stability(problem, optimizer, 3),
        lambda problem, optimizer: margin_on_the_way(problem, optimizer, 3),
        lambda problem, optimizer: safe_learning_rate(problem, optimizer, 3, margin=2.0),
        lambda problem, optimizer: ntk_tt.prediction.assess(
            problem, MODEL, INPUTS, LABELS, optimizer, 3
        ),
    ],
)
@pytest.mark.parametrize(
    ("optimizer", "label"),
    [
        (ADAMW, "adamw"),
        (OptimizerConfig(0.1, clip_norm=1.0), "sgd with clip_norm"),
        (OptimizerConfig(0.1, weight_ema=0.9), "sgd with weight_ema"),
        (OptimizerConfig.of(optax.sgd(0.1)), "a transformation of your own"),
    ],
    ids=["adamw", "clipping", "average", "chain"],
)
def test_so_do_its_verdict_and_what_is_behind_it(problem, ask, optimizer, label):
    with pytest.raises(ValueError, match=f"knows SGD only, got {label};"):
        ask(problem, optimizer)


DOWN = optax.scale(-1.0)
SCHEDULES = {
    "cosine": optax.cosine_decay_schedule(0.1, 300),
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.1, 20, 200),
    "cut": optax.piecewise_constant_schedule(0.1, {50: 0.1}),
}


@pytest.mark.slow_but("cut-True", "warm-up-False")
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_within_sgd_is_that_of_the_setting(name, nesterov):
    schedule = SCHEDULES[name]
    chain = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, 0.9, nesterov))
    setting = as_setting(chain, 16)
    assert setting.is_sgd
    assert (setting.momentum, setting.nesterov, setting.weight_decay) == (0.9, nesterov, 5e-4)
    wanted = np.asarray([schedule(step) for step in range(250)])
    np.testing.assert_allclose(
        setting.learning_rates(250), wanted, rtol=1e-5, atol=5e-8
    )  # of 0.1 in float32


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_chain_that_is_sgd_is_the_setting_that_says_so(momentum, decay, nesterov):
    if nesterov and not momentum:
        return
    chain = optax.sgd(0.003, momentum or None, nesterov)
    if decay:
        chain = optax.chain(optax.add_decayed_weights(decay), chain)
    setting = as_setting(chain, 16)
    assert setting == OptimizerConfig(0.003, momentum, nesterov, decay, 16)
    assert setting.is_sgd


@pytest.mark.parametrize(
    "chain",
    [
        optax.chain(optax.scale_by_schedule(SCHEDULES["cosine"]), optax.trace(0.9), DOWN),
        optax.chain(optax.sgd(SCHEDULES["cosine"]), optax.add_decayed_weights(-1e-3)),
        optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(SCHEDULES["cosine"], 0.9)),
        optax.chain(optax.sgd(0.1), optax.scale_by_schedule(SCHEDULES["cosine"]), optax.trace(0.9)),
        optax.inject_hyperparams(optax.sgd)(SCHEDULES["cosine"]),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.chain(optax.clip(100.0), optax.sgd(0.1)),
        optax.chain(optax.sgd(0.1, 0.9), optax.add_decayed_weights(-1e-3)),
        optax.chain(
            optax.add_decayed_weights(
                1e-3, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
            ),
            optax.sgd(0.1),
        ),
        optax.masked(optax.sgd(0.1), {"body": True}),
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.adam(1e-3),
        optax.sign_sgd(0.1),
        optax.scale(0.1),  # uphill
        optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16),
        optax.set_to_zero(),
    ],
)
def test_a_chain_that_is_not_sgd_stays_what_it_is(chain):
    setting = as_setting(chain, 16)
    assert setting.transformation is chain
    assert not setting.is_sgd
