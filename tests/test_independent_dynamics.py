"""Flow, noise and closed form against spectra that are known, scipy's integrators, and the exact
moments of SGD.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import ntk_tt
from ntk_tt.dynamics import ode as ode_module
from ntk_tt.dynamics import replay, solve_closed_form, solve_ode, solve_sde
from ntk_tt.dynamics.batches import noise_variance
from ntk_tt.dynamics.optimizer_replay import run_records
from ntk_tt.dynamics.sde import _integrate
from ntk_tt.dynamics.steps import steps_of
from ntk_tt.kernels.operators import DualKernel, PrimalKernel
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.surrogate.linear import LinearizedProblem
from tests import oracles


class Known:
    """A problem whose Θ/N has the eigenvalues 1 … 1/condition, and zeros beyond a rank."""

    def __init__(
        self,
        num_samples,
        num_outputs,
        condition,
        *,
        space="primal",
        loss="mse",
        rank=None,
        dtype=jnp.float32,
        seed=0,
        weights=False,
    ):
        rng, rows = np.random.default_rng(seed), num_samples * num_outputs
        self.vectors = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
        self.values = np.geomspace(1, 1 / condition, rows)
        self.values[rank:] = 0 if rank is not None else self.values[rank:]
        self.features = (self.vectors * np.sqrt(num_samples * self.values)).reshape(
            num_samples, num_outputs, rows
        )
        self.ntk = self.features.reshape(rows, rows) @ self.features.reshape(rows, rows).T
        self.logits = rng.normal(size=(num_samples, num_outputs))
        self.weight_logits = (
            rng.normal(size=(num_samples, num_outputs))
            if weights
            else np.zeros((num_samples, num_outputs))
        )
        self.targets = (
            rng.normal(size=(num_samples, num_outputs))
            if loss == "mse"
            else np.eye(num_outputs)[np.arange(num_samples) % num_outputs]
        )
        self.loss = loss
        kernel = (
            PrimalKernel(jnp.asarray(self.features, dtype))
            if space == "primal"
            else DualKernel(
                jnp.asarray(self.ntk.reshape(*self.logits.shape, *self.logits.shape), dtype)
            )
        )
        self.problem = LinearizedProblem(
            kernel,
            *(jnp.asarray(each, dtype) for each in (self.logits, self.weight_logits, self.targets)),
            loss,
        )

    def curve(self, times) -> np.ndarray:
        """L(τ) = ½ mean ‖V e^{−Λτ} Vᵀ (f₀ − y)‖² for `mse`."""
        start = self.vectors.T @ (self.logits - self.targets).ravel()
        return np.asarray(
            [
                0.5 * ((start * np.exp(-self.values * time)) ** 2).sum() / len(self.logits)
                for time in times
            ]
        )

    def flow(self, times, weight_decay=0.0) -> np.ndarray:
        """Losses by scipy's Radau: du/dτ = −(Jᵀ ∂L/∂f + λ (u + w₀)) of f = f₀ + J u, with J w₀
        known.
        """
        shape, size = self.logits.shape, self.logits.size

        def logits(state):
            return (
                self.logits
                + (self.features.reshape(size, -1) @ state[:-1]).reshape(shape)
                + state[-1] * self.weight_logits
            )

        def velocity(_, state):
            g = oracles.residuals(self.loss, logits(state), self.targets).ravel() / shape[0]
            return np.append(
                -self.features.reshape(size, -1).T @ g - weight_decay * state[:-1],
                -weight_decay * (state[-1] + 1),
            )

        found = scipy.integrate.solve_ivp(
            velocity, (0, times[-1]), np.zeros(size + 1), "LSODA", times, rtol=1e-9, atol=1e-11
        )
        return np.asarray(
            [oracles.mean_loss(self.loss, logits(state), self.targets) for state in found.y.T]
        )


# The flow


SMALL, LARGE = (10, 3), (90, 3)  # solved implicitly, and with Tsit5


ALL = [
    (shape, num_steps, condition, space)
    for shape in (SMALL, LARGE)
    for num_steps in (1_000, 100_000)
    for condition in (1e2, 1e6)
    for space in ("primal", "dual")
]
QUICK = [(LARGE, 1_000, 1e6, "primal")]
DEAR = [each for each in ALL if each[:2] == (LARGE, 100_000)]  # five seconds each


@pytest.mark.parametrize(
    ("shape", "num_steps", "condition", "space"),
    [
        each
        if each in QUICK
        else pytest.param(*each, marks=pytest.mark.nightly if each in DEAR else pytest.mark.slow)
        for each in ALL
    ],
)
def test_flow_of_a_stiff_spectrum_is_the_sum_of_its_exponentials(
    shape, num_steps, condition, space
):
    known = Known(*shape, condition, space=space)
    found = solve_ode(known.problem, OptimizerConfig(1.0), num_steps, record_every=num_steps // 10)
    truth = known.curve(found.steps)
    np.testing.assert_allclose(found.loss, truth, rtol=3e-4, atol=1e-5 * truth[0])
    assert truth[-1] < 0.6 * truth[0]


@pytest.mark.parametrize("shape", [LARGE, pytest.param(SMALL, marks=pytest.mark.slow)])
def test_flow_of_cross_entropy_with_decay_is_that_of_scipy(shape):
    known = Known(*shape, 1e3, loss="ce", weights=True)
    found = solve_ode(
        known.problem, OptimizerConfig(0.5, momentum=0.5, weight_decay=2e-3), 400, record_every=80
    )
    np.testing.assert_allclose(found.loss, known.flow(1.0 * found.steps, 2e-3), rtol=5e-4)


@pytest.mark.slow
def test_explicit_and_implicit_solver_agree_where_the_default_is_explicit():
    known = Known(*LARGE, 1e4, loss="ce", weights=True)
    optimizer = OptimizerConfig(1.0, weight_decay=1e-3)
    one, other = (
        solve_ode(known.problem, optimizer, 500, record_every=100, solver=solver)
        for solver in (None, diffrax.Kvaerno5())
    )
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-3)


@pytest.mark.slow
def test_flow_is_read_at_the_schedule_s_own_times():
    known = Known(*SMALL, 1e2, space="dual")
    rates = np.where(np.arange(12) < 3, 0.0, np.linspace(0.1, 2.0, 12))  # no progress at first
    found = solve_ode(
        known.problem, OptimizerConfig(lambda step: rates[int(step)], momentum=0.75), 12
    )
    np.testing.assert_allclose(
        found.loss, known.curve(np.concatenate([[0], np.cumsum(rates / 0.25)])), rtol=1e-3
    )
    np.testing.assert_allclose(found.loss[:4], found.loss[0])


@pytest.mark.parametrize(
    ("solver", "remedy"),
    [
        (diffrax.Tsit5(), "give solver=diffrax.Kvaerno5"),
        pytest.param(diffrax.Kvaerno5(), "give a smaller learning rate", marks=pytest.mark.slow),
    ],
)
def test_a_flow_that_takes_too_many_steps_is_an_error(monkeypatch, solver, remedy):
    monkeypatch.setattr(ode_module, "_MAX_SOLVER_STEPS", 7)
    with pytest.raises(
        ValueError, match=f"too stiff for {type(solver).__name__} within 7 steps; {remedy}"
    ):
        # shapes that no other test compiles for
        solve_ode(
            Known(3, 2, 1e3).problem,
            OptimizerConfig(1.0),
            100_000,
            record_every=40_000,
            solver=solver,
        )


# Noise


NOISY = (6, 2)
RATE, MOMENTUM, BATCH, STEPS = 0.6, 0.25, 2, 12


def covariance_of_batches(ntk, second_moment, num_samples, num_outputs):
    """E Cov of Θ[:, i] gᵢ over the samples i, where E[g gᵀ] is known: (1/N) Σᵢ Θᵢ Mᵢᵢ Θᵢᵀ − (1/N²)
    Θ M Θ.
    """
    blocks = np.zeros_like(second_moment)
    for sample in range(num_samples):
        rows = slice(sample * num_outputs, (sample + 1) * num_outputs)
        blocks[rows, rows] = second_moment[rows, rows]
    return ntk @ blocks @ ntk / num_samples - ntk @ second_moment @ ntk / num_samples**2


def moments(known: Known, rate, num_steps, substeps, variance, noise="full"):
    """Mean and second moment of g = f − y after each step of Euler–Maruyama; both obey linear
    recursions under `mse`.
    """
    (num_samples, num_outputs), size = known.logits.shape, known.logits.size
    start = (known.logits - known.targets).ravel()
    contraction = np.eye(size) - rate / substeps * known.ntk / num_samples
    gradients = np.einsum("nc,ncd->nd", start.reshape(num_samples, num_outputs), known.features)
    flat = known.features.reshape(size, -1)
    diagonal = (flat * gradients.var(0)) @ flat.T
    mean, second, found = start, np.outer(start, start), []
    for _ in range(num_steps):
        for _ in range(substeps):
            added = (
                covariance_of_batches(known.ntk, second, num_samples, num_outputs)
                if noise == "full"
                else diagonal * (np.trace(second) / (start @ start) if noise == "diagonal" else 1.0)
            )
            second = contraction @ second @ contraction + variance * rate**2 / substeps * added
            mean = contraction @ mean
        found.append((mean, second))
    return found


def check_moments(logits: np.ndarray, known: Known, expected) -> None:
    """Sampled logits (paths, T+1, N, C) against mean and second moment, to five standard errors."""
    mean, second = expected
    delta = (logits[:, -1] - known.targets).reshape(len(logits), -1)
    error = delta.std(0) / np.sqrt(len(delta))
    assert (np.abs(delta.mean(0) - mean) <= 5 * error + 1e-5).all()
    losses = (delta**2).sum(1)
    assert abs(losses.mean() - np.trace(second)) <= 5 * losses.std() / np.sqrt(len(losses)) + 1e-5
    spread = np.trace(second) - mean @ mean  # what is due to noise alone
    centred = ((delta - mean) ** 2).sum(1)
    assert abs(centred.mean() - spread) <= 5 * centred.std() / np.sqrt(len(centred)) + 1e-5
    # so the factor (N−B)/(N−1) = 0.8 would show
    assert spread > 20 * centred.std() / np.sqrt(len(centred))


@functools.cache
def noisy() -> Known:
    return Known(*NOISY, 30.0, seed=2)


def sampled(
    known: Known, optimizer: OptimizerConfig, noise, substeps: int, num_paths: int
) -> np.ndarray:
    """Logits (paths, 2, N, C) at the start and the end, of the very integration that `solve_sde`
    runs.
    """
    shape = known.logits.shape[:1] if noise == "full" else known.problem.kernel.zero().shape
    rates = jnp.full(STEPS, optimizer.learning_rate / (1 - optimizer.momentum))
    scale = jnp.sqrt(noise_variance(len(known.logits), optimizer))

    def one(key):
        path = diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct(shape, jnp.float32), key=key)
        return _integrate(
            known.problem,
            noise,
            substeps,
            True,
            scale,
            0.0,
            rates,
            jnp.asarray([0.0, STEPS]),
            path,
            known.problem.zero(),
        )[2]

    keys = jax.random.split(jax.random.key(0), num_paths)
    found = np.asarray(jax.vmap(one)(keys))
    alone = solve_sde(
        known.problem,
        optimizer,
        STEPS,
        key=keys[1],
        noise=noise,
        substeps=substeps,
        record_every=STEPS,
        save_logits=True,
    ).logits
    np.testing.assert_allclose(found[1], alone, rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("noise", "substeps", "sampling"),
    [
        pytest.param("diagonal", 1, "epoch", marks=pytest.mark.slow),
        pytest.param("full", 1, "epoch", marks=pytest.mark.slow),
        pytest.param("full", 3, "replacement", marks=pytest.mark.slow),
        pytest.param("diagonal-constant", 1, "replacement", marks=pytest.mark.slow),
    ],
)
def test_moments_of_the_sde(noise, substeps, sampling):
    """Also the factor (N−B)/(N−1) without replacement, and η/(1−m) in both terms."""
    known = noisy()
    optimizer = OptimizerConfig(RATE, MOMENTUM, batch_size=BATCH, sampling=sampling)
    variance = 1 / BATCH * ((NOISY[0] - BATCH) / (NOISY[0] - 1) if sampling == "epoch" else 1)
    logits = sampled(known, optimizer, noise, substeps, 20_000)
    check_moments(
        logits, known, moments(known, RATE / (1 - MOMENTUM), STEPS, substeps, variance, noise)[-1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [False, True])
def test_moments_of_sgd_are_those_of_the_sde(replacement):
    """Steps of the size of the optimiser's own: the recursion is that of independent batches,
    whatever their distribution. All paths run at once, by the very function that `replay` runs.
    """
    known, rng, paths = noisy(), np.random.default_rng(0), 4_000
    batches = (
        rng.integers(0, NOISY[0], (paths, STEPS, BATCH))
        if replacement
        else rng.random((paths, STEPS, NOISY[0])).argsort(-1)[..., :BATCH]
    )
    optimizer = OptimizerConfig(RATE, batch_size=BATCH)
    steps = steps_of(known.problem, optimizer, STEPS)

    def trained(indices):
        begun = steps.begin(known.problem)
        _, after = run_records(known.problem, steps, 1, STEPS, False, indices[None], begun)
        return jnp.stack([known.problem.logits(steps.read(each)) for each in (begun, after)])

    logits = np.asarray(jax.jit(jax.vmap(trained))(batches))
    alone = replay(
        known.problem,
        optimizer,
        STEPS,
        batches=batches[7],
        record_every=STEPS,
        save_logits=True,
    ).logits
    np.testing.assert_allclose(logits[7], alone, rtol=1e-4, atol=1e-5)
    variance = 1 / BATCH * (1 if replacement else (NOISY[0] - BATCH) / (NOISY[0] - 1))
    check_moments(logits, known, moments(known, RATE, STEPS, 1, variance)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_a_full_batch_without_replacement_has_no_noise(noise):
    known = noisy()
    for batch_size in (None, NOISY[0]):
        found = solve_sde(
            known.problem,
            OptimizerConfig(RATE, batch_size=batch_size),
            STEPS,
            key=jax.random.key(3),
            noise=noise,
            substeps=1,
        )
        np.testing.assert_allclose(
            found.loss, replay(known.problem, OptimizerConfig(RATE), STEPS).loss, rtol=1e-5
        )
    drawn = solve_sde(
        known.problem,
        OptimizerConfig(RATE, batch_size=NOISY[0], sampling="replacement"),
        STEPS,
        key=jax.random.key(3),
        noise=noise,
        substeps=1,
    )
    assert np.abs(drawn.loss - found.loss).max() > 1e-3


# The closed form, and samples that are not trained on


def tanh_network(params, x):
    return jnp.tanh(x @ params["a"]) @ params["w"]


def params_of(dtype):
    rng = np.random.default_rng(1)
    return {
        "a": jnp.asarray(rng.normal(size=(4, 20)), dtype),
        "w": jnp.asarray(0.3 * rng.normal(size=(20, 2)), dtype),
    }


@pytest.mark.slow
def test_train_and_test_samples_follow_the_kernel_between_them():
    """f*(t) = f*₀ − Θ*ₙ Θ⁻¹ (1 − (1 − ηΘ/N)ᵗ)(f₀ − y), and its limit: replay of the whole set with
    batches of the first samples alone, and training for real of the linear network.
    """
    with jax.enable_x64(True):
        params, rng = params_of(jnp.float64), np.random.default_rng(0)
        x, targets = jnp.asarray(rng.normal(size=(9, 4))), rng.normal(size=(9, 2))
        network, trained = oracles.dense(tanh_network, params, x), np.arange(6)
        cross = np.asarray(ntk_tt.kernels.empirical_ntk(tanh_network, params, x, x[:6])).reshape(
            18, 12
        )
        np.testing.assert_allclose(
            cross,
            network.jacobian.reshape(18, -1) @ network.jacobian[:6].reshape(12, -1).T,
            rtol=1e-9,
            atol=1e-9,
        )
        ntk, start = cross[:12], (network.logits[:6] - targets[:6]).ravel()
        rate = 1 / np.linalg.eigvalsh(ntk)[-1] * 6
        problem = ntk_tt.surrogate.linearize(
            ntk_tt.from_function(tanh_network, params),
            x,
            targets,
            loss="mse",
            options=ntk_tt.FeatureOptions(num_projections="exact"),
            space="dual",
        )
        for num_steps in (1, 30, 4_000):
            power = np.linalg.matrix_power(np.eye(12) - rate * ntk / 6, num_steps)
            expected = network.logits - (
                cross @ np.linalg.solve(ntk, start - power @ start)
            ).reshape(9, 2)
            found = replay(
                problem,
                OptimizerConfig(rate),
                num_steps,
                batches=np.tile(trained, (num_steps, 1)),
                record_every=num_steps,
                save_logits=True,
            ).logits[-1]
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)

        def linear(params_now, inputs):
            return jax.jvp(
                lambda w: tanh_network(w, inputs),
                (params,),
                (jax.tree.map(jnp.subtract, params_now, params),),
            )[1] + tanh_network(params, inputs)

        run = ntk_tt.finetune(
            ntk_tt.from_function(linear, params),
            x[:6],
            targets[:6],
            OptimizerConfig(rate),
            30,
            loss="mse",
            record_every=30,
        )
        power = np.linalg.matrix_power(np.eye(12) - rate * ntk / 6, 30)
        np.testing.assert_allclose(
            linear(run.params, x),
            network.logits - (cross @ np.linalg.solve(ntk, start - power @ start)).reshape(9, 2),
            rtol=1e-7,
            atol=1e-7,
        )


@pytest.mark.parametrize("space", ["primal", "dual"])
@pytest.mark.parametrize("rank", [1, 7, 29])
def test_closed_form_leaves_what_a_kernel_of_low_rank_cannot_reach(space, rank):
    """At learning rate × steps = 10⁸ too, in single precision: what rounding adds to Θ decays
    nothing.
    """
    known = Known(10, 3, 10.0, rank=rank, space=space)
    for rate in (0.1, 1e4, 1e7):
        found = solve_closed_form(known.problem, OptimizerConfig(rate), 10, save_logits=True)
        start = known.vectors.T @ (known.logits - known.targets).ravel()
        for step, logits in zip(found.steps, found.logits, strict=True):
            expected = known.targets.ravel() + known.vectors @ (
                np.exp(-known.values * rate * step) * start
            )
            np.testing.assert_allclose(logits.ravel(), expected, atol=2e-5)
        np.testing.assert_allclose(found.loss, known.curve(rate * found.steps), rtol=1e-4)


@pytest.mark.slow_but("replay-dual")
@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("closed-form", "primal"),
        ("closed-form", "dual"),
        ("replay", "dual"),
        pytest.param("ode", "dual", marks=pytest.mark.slow),
    ],
)
def test_duplicates_share_what_their_labels_leave(method, space):
    """Two samples alike with labels y and y': both end at (y + y')/2; where they agree they are one
    sample of twice the weight.
    """
    params, rng = params_of(jnp.float32), np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(3, 4)).astype(np.float32), 2, 0)
    targets = rng.normal(size=(6, 2)).astype(np.float32)
    targets[5] = targets[4]
    problem = ntk_tt.surrogate.linearize(
        ntk_tt.from_function(tanh_network, params),
        x,
        targets,
        loss="mse",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        space=space,
    )
    jacobian = (
        oracles.dense(tanh_network, params, jnp.asarray(x)).jacobian.reshape(12, -1).astype(float)
    )
    rate = 6 / np.linalg.eigvalsh(jacobian @ jacobian.T)[-1]
    num_steps = 3_000 if method == "replay" else 50
    found = ntk_tt.dynamics.simulate(
        problem,
        OptimizerConfig(rate if method == "replay" else 1e4 * rate),
        num_steps,
        method=method,
        record_every=num_steps,
        save_logits=True,
    )
    halves = targets.reshape(3, 2, 2).mean(1).repeat(2, 0)
    np.testing.assert_allclose(found.logits[-1], halves, atol=2e-3)
    assert found.loss[-1] == pytest.approx(0.5 * ((halves - targets) ** 2).sum() / 6, rel=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        "closed-form",
        "replay",
        pytest.param("ode", marks=pytest.mark.slow),
        pytest.param("sde", marks=pytest.mark.slow),
        pytest.param("sde-diagonal", marks=pytest.mark.slow),
    ],
)
def test_nothing_moves_where_all_is_learned_already(method):
    """Targets that the network gives: a residual of zero, no noise, no NaN."""
    known = Known(5, 2, 10.0)
    problem = LinearizedProblem(
        known.problem.kernel,
        known.problem.initial_logits,
        known.problem.weight_logits,
        known.problem.initial_logits,
        "mse",
    )
    found = ntk_tt.dynamics.simulate(
        problem,
        OptimizerConfig(0.5, batch_size=None if method in ("closed-form", "ode") else 2),
        20,
        method=method,
        save_logits=True,
    )
    np.testing.assert_allclose(
        found.logits, np.broadcast_to(known.logits, found.logits.shape), atol=1e-6
    )
    np.testing.assert_allclose(found.loss, 0, atol=1e-12)
