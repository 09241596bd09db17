"""Replay, ODE, SDE and closed form against explicit training, closed forms, each other and their
convergence orders.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_tt
from ntk_tt.dynamics import replay, simulate, solve_closed_form, solve_ode, solve_sde
from ntk_tt.dynamics.batches import batch_indices, noise_variance
from ntk_tt.dynamics.sde import _integrate
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.schedules import named_schedule
from tests.networks import dense_jacobian, mlp

NUM_SAMPLES, NUM_OUTPUTS = 12, 3


@functools.cache
def make(space="dual", loss="ce", num_samples=NUM_SAMPLES, seed=0, dtype=jnp.float32):
    case = mlp(NUM_OUTPUTS, width=24, seed=seed, dtype=dtype)
    x = case.inputs(num_samples, 0)
    labels = np.arange(num_samples) % NUM_OUTPUTS
    return (
        case,
        x,
        labels,
        ntk_tt.surrogate.linearize(
            case.model,
            x,
            labels,
            loss=loss,
            options=ntk_tt.FeatureOptions(num_projections="exact"),
            space=space,
        ),
    )


def train_linearized(case, x, labels, optimizer: OptimizerConfig, num_steps, batches, loss):
    """The linearised network as an explicit function of its weights, trained by optax: logits after
    every step.
    """

    def linear(params):
        difference = jax.tree.map(jnp.subtract, params, case.params)
        value, change = jax.jvp(lambda w: case.apply(w, x), (case.params,), (difference,))
        return value + change

    targets = jax.nn.one_hot(labels, NUM_OUTPUTS)

    def objective(params, batch):
        f = linear(params)[batch]
        losses = (
            optax.softmax_cross_entropy(f, targets[batch])
            if loss == "ce"
            else optax.l2_loss(f, targets[batch]).sum(-1)
        )
        return losses.mean()

    chain = optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.sgd(optimizer.learning_rate, optimizer.momentum or None, nesterov=optimizer.nesterov),
    )

    @jax.jit
    def step(carry, batch):
        params, state = carry
        updates, state = chain.update(jax.grad(objective)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), linear(params)

    return np.asarray(
        jax.lax.scan(step, (case.params, chain.init(case.params)), jnp.asarray(batches))[1]
    )


@pytest.mark.slow_but("mse-setting1-dual")
@pytest.mark.parametrize("space", ["primal", "dual"])
@pytest.mark.parametrize(
    ("loss", "setting"),
    [
        ("ce", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "batch_size": 5}),
        ("mse", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "batch_size": 5}),
        ("ce", {"momentum": 0.8, "weight_decay": 0.05, "batch_size": 4, "sampling": "replacement"}),
        ("ce", {"weight_decay": 0.02}),
        ("mse", {"momentum": 0.5}),
    ],
)
def test_replay_equals_optax_on_the_linearized_network(space, loss, setting):
    num_steps = 200
    case, x, labels, problem = make(space, loss)
    optimizer = OptimizerConfig(named_schedule("cosine", 0.1, num_steps), **setting)
    order = batch_indices(NUM_SAMPLES, optimizer, num_steps, jax.random.key(7))
    batches = (
        np.tile(np.arange(NUM_SAMPLES), (num_steps, 1)) if order is None else np.asarray(order)
    )
    truth = train_linearized(case, x, labels, optimizer, num_steps, batches, loss)
    result = replay(problem, optimizer, num_steps, key=jax.random.key(7), save_logits=True).logits
    np.testing.assert_array_equal(result[0], problem.initial_logits)
    assert np.abs(truth[-1] - result[0]).max() > 0.5  # it did train
    assert np.abs(result[1:] - truth).max() / np.abs(truth).max() < 1e-4


def test_replay_in_the_two_spaces_and_given_batches():
    _, _, _, primal = make("primal")
    _, _, _, dual = make("dual")
    assert isinstance(primal.kernel, PrimalKernel)
    assert isinstance(dual.kernel, DualKernel)
    optimizer = OptimizerConfig(0.1, 0.9, batch_size=4, weight_decay=1e-3)
    # repeated samples within a batch too
    batches = np.random.default_rng(0).integers(0, NUM_SAMPLES, (30, 6))
    one, two = (
        replay(problem, optimizer, 30, batches=batches, save_logits=True)
        for problem in (primal, dual)
    )
    np.testing.assert_allclose(one.logits, two.logits, rtol=2e-4, atol=2e-4)


def test_replay_of_mse_is_the_power_of_the_iteration_matrix():
    case, x, labels, problem = make("dual", "mse")
    jacobian = dense_jacobian(case, x).reshape(NUM_SAMPLES * NUM_OUTPUTS, -1)
    step = np.eye(len(jacobian)) - 0.1 * jacobian @ jacobian.T / NUM_SAMPLES
    start = (np.asarray(case.apply(case.params, x)) - np.eye(NUM_OUTPUTS)[labels]).ravel()
    result = replay(problem, OptimizerConfig(0.1), 40, save_logits=True)
    for t in (1, 7, 40):
        expected = np.linalg.matrix_power(step, t) @ start + np.eye(NUM_OUTPUTS)[labels].ravel()
        np.testing.assert_allclose(result.logits[t].ravel(), expected, rtol=1e-3, atol=1e-4)
        assert result.loss[t] == pytest.approx(
            0.5 * ((np.linalg.matrix_power(step, t) @ start) ** 2).sum() / NUM_SAMPLES, rel=1e-3
        )


@pytest.mark.slow_but("3", "50")
@pytest.mark.parametrize("record_every", [1, 3, 7, 20, 50])
def test_records_are_a_subset_of_the_full_curve(record_every):
    _, _, _, problem = make()
    optimizer = OptimizerConfig(0.1, batch_size=5)
    every = replay(problem, optimizer, 20)
    some = replay(problem, optimizer, 20, record_every=record_every)
    assert some.steps[0] == 0
    assert some.steps[-1] == 20
    np.testing.assert_allclose(some.loss, every.loss[some.steps], rtol=1e-5)
    np.testing.assert_allclose(some.error, every.error[some.steps])


def test_epochs_visit_every_sample_once():
    order = np.asarray(batch_indices(12, OptimizerConfig(batch_size=5), 6, jax.random.key(0)))
    assert order.shape == (6, 5)
    for epoch in (order[:2], order[2:4], order[4:]):
        assert len(np.unique(epoch)) == 10  # the incomplete last batch is dropped
    assert set(order[:2].ravel()) != set(order[2:4].ravel())
    assert batch_indices(12, OptimizerConfig(batch_size=12), 3, jax.random.key(0)) is None
    drawn = np.asarray(
        batch_indices(
            12, OptimizerConfig(batch_size=12, sampling="replacement"), 200, jax.random.key(0)
        )
    )
    assert any(len(np.unique(batch)) < 12 for batch in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_ode_equals_the_closed_form(schedule):
    with jax.enable_x64(True):
        _, _, _, problem = make("dual", "mse", dtype=jnp.float64)
        optimizer = OptimizerConfig(named_schedule(schedule, 0.02, 100), 0.9, batch_size=3)
        exact = solve_closed_form(problem, optimizer, 100, save_logits=True)
        flow = solve_ode(
            problem,
            optimizer,
            100,
            save_logits=True,
            relative_tolerance=1e-8,
            absolute_tolerance=1e-10,
        )
        np.testing.assert_allclose(flow.logits, exact.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flow.loss, exact.loss, rtol=1e-5, atol=1e-8)
        assert exact.loss[-1] < 0.2 * exact.loss[0]


@pytest.mark.parametrize("space", ["primal", "dual"])
@pytest.mark.parametrize("num_features", [12, 60])
@pytest.mark.parametrize("time", [1.0, 1e3, 1e6, 1e12])
def test_closed_form_in_single_precision_keeps_what_does_not_decay(space, num_features, time):
    """Θ of rank 12 (of 40) and of full rank, against the same in double precision; eigenvalues span
    four orders of magnitude.
    """
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 2, num_features)) * np.logspace(0, -2, num_features)
    start, targets = rng.standard_normal((20, 2)), rng.standard_normal((20, 2))
    left, singular, _ = np.linalg.svd(features.reshape(40, -1), full_matrices=False)
    exact = start - (
        left @ (-np.expm1(-(singular**2) * time / 20) * (left.T @ (start - targets).reshape(-1)))
    ).reshape(20, 2)
    rows = features.reshape(40, -1).astype(np.float32)
    kernel = (
        PrimalKernel(jnp.asarray(features, jnp.float32))
        if space == "primal"
        else DualKernel(jnp.asarray((rows @ rows.T).reshape(20, 2, 20, 2)))
    )
    problem = ntk_tt.surrogate.LinearizedProblem(
        kernel,
        jnp.asarray(start, jnp.float32),
        jnp.zeros((20, 2)),
        jnp.asarray(targets, jnp.float32),
        "mse",
    )
    curve = solve_closed_form(
        problem, OptimizerConfig(time / 10), 10, record_every=10, save_logits=True
    )
    np.testing.assert_allclose(curve.logits[-1], exact, atol=2e-3 if space == "dual" else 1e-5)


def test_closed_form_at_zero_and_infinity():
    _, _, labels, problem = make("primal", "mse")
    curve = solve_closed_form(problem, OptimizerConfig(1e6), 2, save_logits=True)
    np.testing.assert_allclose(curve.logits[0], problem.initial_logits, atol=1e-4)
    # Θ has full rank, so it interpolates
    np.testing.assert_allclose(curve.logits[-1], np.eye(NUM_OUTPUTS)[labels], atol=1e-3)
    assert curve.error[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Kvaerno5(), diffrax.Dopri5()])
def test_ode_solvers_agree(solver):
    _, _, _, problem = make("primal")
    optimizer = OptimizerConfig(0.1, weight_decay=0.01)
    default = solve_ode(problem, optimizer, 50, record_every=10)
    other = solve_ode(problem, optimizer, 50, record_every=10, solver=solver)
    np.testing.assert_allclose(other.loss, default.loss, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"weight_decay": 0.05},
        {"momentum": 0.5, "weight_decay": 0.05},
        {"momentum": 0.5, "nesterov": True},
    ],
)
def test_replay_tends_to_the_ode_at_first_order(setting):
    """At a fixed time ηT/(1−m) = 4 the distance to the flow halves with the step."""
    with jax.enable_x64(True):
        _, _, _, problem = make("dual", dtype=jnp.float64)
        distances = []
        for num_steps in (40, 80, 160, 320):
            optimizer = OptimizerConfig(
                4.0 * (1 - setting.get("momentum", 0)) / num_steps, **setting
            )
            flow = solve_ode(
                problem,
                optimizer,
                num_steps,
                record_every=num_steps,
                save_logits=True,
                relative_tolerance=1e-9,
                absolute_tolerance=1e-11,
            )
            real = replay(problem, optimizer, num_steps, record_every=num_steps, save_logits=True)
            distances.append(np.linalg.norm(flow.logits[-1] - real.logits[-1]))
        orders = np.log2(np.asarray(distances[:-1]) / np.asarray(distances[1:]))
        assert orders[-1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
def test_momentum_lags_the_flow_by_its_memory():
    """Correction 5: heavy ball runs behind the effective-learning-rate flow by about m/(1−m)
    steps.
    """
    with jax.enable_x64(True):
        _, _, _, problem = make("dual", dtype=jnp.float64)
        momentum = 0.9
        optimizer = OptimizerConfig(0.0005, momentum)
        flow, real = solve_ode(problem, optimizer, 120), replay(problem, optimizer, 120)
        lag = real.steps[-1] - np.interp(-real.loss[-1], -flow.loss, flow.steps)
        assert lag == pytest.approx(momentum / (1 - momentum), rel=0.1)


@pytest.mark.slow
def test_sde_without_noise_is_the_ode_and_noise_falls_with_the_batch():
    _, _, _, problem = make("dual", num_samples=48)
    flow = solve_ode(problem, OptimizerConfig(0.02), 60, save_logits=True)
    still = solve_sde(
        problem, OptimizerConfig(0.02, batch_size=48), 60, substeps=32, save_logits=True
    )
    np.testing.assert_allclose(still.logits, flow.logits, atol=5e-3 * np.abs(flow.logits).max())

    def distance(batch_size):
        optimizer = OptimizerConfig(0.02, batch_size=batch_size, sampling="replacement")
        runs = [
            solve_sde(
                problem, optimizer, 60, key=jax.random.key(seed), substeps=4, save_logits=True
            )
            for seed in range(12)
        ]
        drift = solve_sde(problem, OptimizerConfig(0.02), 60, substeps=4, save_logits=True)
        return np.sqrt(
            np.mean([np.square(run.logits[-1] - drift.logits[-1]).sum() for run in runs])
        )

    distances = np.asarray([distance(size) for size in (3, 12, 48)])
    np.testing.assert_allclose(distances[:-1] / distances[1:], 2.0, rtol=0.35)  # ∝ 1/√B


def one_step_increments(problem, optimizer, noise, num_keys):
    """f₁ − f₀ of one integration step for many Brownian paths."""
    shape = (problem.num_samples,) if noise == "full" else problem.kernel.zero().shape
    rate = jnp.asarray([optimizer.learning_rate / (1 - optimizer.momentum)])
    scale = jnp.sqrt(noise_variance(problem.num_samples, optimizer))

    def one(key):
        path = diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct(shape, jnp.float32), key=key)
        return _integrate(
            problem,
            noise,
            1,
            True,
            scale,
            0.0,
            rate,
            jnp.asarray([0.0, 1.0]),
            path,
            problem.zero(),
        )[2]

    logits = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), num_keys)))
    return (logits[:, 1] - logits[:, 0]).reshape(num_keys, -1)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["full", "diagonal"])
def test_noise_covariance_is_that_of_the_mini_batches(noise):
    case, x, labels, problem = make("primal", num_samples=8)
    optimizer = OptimizerConfig(0.1, 0.5, batch_size=2)
    increments = one_step_increments(problem, optimizer, noise, 20_000)
    jacobian = dense_jacobian(case, x)
    residual = np.asarray(jax.nn.softmax(case.apply(case.params, x))) - np.eye(NUM_OUTPUTS)[labels]
    gradients = np.einsum("ncd,nc->nd", jacobian, residual)
    covariance = np.cov(gradients.T, bias=True)
    if noise == "diagonal":
        covariance = np.diag(np.diag(covariance))
    flat = jacobian.reshape(-1, jacobian.shape[-1])
    expected = (0.1 / 0.5) ** 2 / 2 * (8 - 2) / (8 - 1) * flat @ covariance @ flat.T
    measured = np.cov(increments.T, bias=True)
    # The relative error of a sample covariance of Gaussians is about sqrt((1 + tr²/‖·‖²)/n).
    spread = np.sqrt(
        (1 + np.trace(expected) ** 2 / np.linalg.norm(expected) ** 2) / len(increments)
    )
    assert np.linalg.norm(measured - expected) / np.linalg.norm(expected) < 4 * spread
    np.testing.assert_allclose(
        increments.mean(0),
        -(0.1 / 0.5) * (flat @ gradients.mean(0)),
        atol=5 * np.sqrt(np.diag(expected).max() / len(increments)),
    )


@pytest.mark.slow
def test_full_noise_has_the_covariance_of_real_batches():
    """Independent of any formula: the spread of replay's first step over data orders."""
    _, _, _, problem = make("dual", num_samples=8)
    optimizer = OptimizerConfig(0.1, batch_size=3)
    pairs = np.asarray([[i, j, k] for i in range(8) for j in range(i) for k in range(j)])
    steps = np.stack(
        [
            replay(problem, optimizer, 1, batches=pair[None], save_logits=True).logits[1].ravel()
            for pair in pairs
        ]
    )
    measured = np.cov(one_step_increments(problem, optimizer, "full", 20_000).T, bias=True)
    expected = np.cov(steps.T, bias=True)
    assert np.linalg.norm(measured - expected) / np.linalg.norm(expected) < 0.06


@pytest.mark.slow
def test_euler_maruyama_converges_on_one_path():
    """Strong order at least ½ on a fixed Brownian path (1 where the noise hardly depends on the
    state).
    """
    with jax.enable_x64(True):
        _, _, _, problem = make("dual", dtype=jnp.float64)
        optimizer = OptimizerConfig(0.3, batch_size=2)
        errors = np.zeros(3)
        for seed in range(4):
            path = diffrax.VirtualBrownianTree(
                0.0,
                4.0,
                1e-3,
                jax.ShapeDtypeStruct((NUM_SAMPLES,), jnp.float64),
                key=jax.random.key(seed),
            )
            runs = {
                n: solve_sde(
                    problem, optimizer, 4, substeps=n, path=path, record_every=4, save_logits=True
                ).logits[-1]
                for n in (4, 8, 16, 256)
            }
            errors += [np.linalg.norm(runs[n] - runs[256]) for n in (4, 8, 16)]
        orders = np.log2(errors[:-1] / errors[1:])
        assert 0.4 < orders.mean() < 1.5


@pytest.mark.slow
def test_constant_diagonal_noise_does_not_die_out():
    """Fig. 8: once the residuals are small, noise that is not rescaled keeps the loss well above
    the flow's.
    """
    _, _, _, problem = make("primal", num_samples=24)
    optimizer = OptimizerConfig(1.0, batch_size=1)
    flow = simulate(problem, optimizer, 400, method="ode", record_every=40).loss[-4:].mean()
    excess = {}
    for method in ("sde-diagonal", "sde-diagonal-constant"):
        runs = [
            simulate(
                problem, optimizer, 400, method=method, key=jax.random.key(seed), record_every=40
            )
            .loss[-4:]
            .mean()
            for seed in range(6)
        ]
        excess[method] = np.mean(runs) - flow
    assert excess["sde-diagonal-constant"] > 3 * abs(excess["sde-diagonal"])


@pytest.mark.slow
def test_sde_takes_enough_substeps_to_be_stable():
    """η̃ beyond Euler's bound of the flow but fine for heavy ball: one step a step would blow
    up.
    """
    _, _, _, problem = make("dual", "mse")
    jacobian = np.asarray(problem.kernel.ntk).reshape(NUM_SAMPLES * NUM_OUTPUTS, -1)
    largest = float(np.linalg.eigvalsh(jacobian).max()) / NUM_SAMPLES
    optimizer = OptimizerConfig(3.0 / largest, 0.9)
    curve = solve_sde(problem, optimizer, 30)
    assert curve.loss[-1] < curve.loss[0]
    assert not solve_sde(problem, optimizer, 30, substeps=1).loss[-1] < curve.loss[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: replay(p, OptimizerConfig(0.1, batch_size=13), 5),
            "batch_size: 13 is larger than the 12 samples",
        ),
        (
            lambda p: replay(p, OptimizerConfig(0.1), 0),
            "num_steps: must be a whole number of at least 1",
        ),
        (lambda p: replay(p, OptimizerConfig(0.1), 5, record_every=0), "record_every"),
        (
            lambda p: replay(p, OptimizerConfig(0.1), 5, batches=np.zeros((4, 2), int)),
            "batches: must hold",
        ),
        (
            lambda p: replay(p, OptimizerConfig(0.1), 5, batches=np.full((5, 2), 12)),
            "batches: must hold",
        ),
        (lambda p: replay(p, OptimizerConfig(lambda step: -1.0), 5), "the schedule gives -1"),
        (lambda p: solve_sde(p, OptimizerConfig(0.1), 5, noise="pink"), "noise: unknown 'pink'"),
        (lambda p: solve_sde(p, OptimizerConfig(0.1), 5, noise="diagonal"), "space='primal'"),
        (lambda p: solve_closed_form(p, OptimizerConfig(0.1), 5), "closed form is for 'mse'"),
        (lambda p: simulate(p, OptimizerConfig(0.1), 5, method="magic"), "method: unknown 'magic'"),
    ],
)
def test_bad_arguments(unchecked, call, message):
    _, _, _, problem = make("dual")
    with pytest.raises(ValueError, match=message):
        call(problem)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"nesterov": True}, "nesterov"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"batch_size": 0}, "batch_size"),
        ({"sampling": "sorted"}, "sampling"),
    ],
)
def test_bad_settings(unchecked, setting, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**setting)
