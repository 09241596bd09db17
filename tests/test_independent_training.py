"""Replay and real fine-tuning, each against a plain loop of optax in double precision
(`tests/oracles.py`).
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import ntk_tt
from ntk_tt.dynamics import replay, replay_many
from ntk_tt.dynamics.batches import batch_indices
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.surrogate.linear import LinearizedProblem
from tests import oracles

NUM_SAMPLES, NUM_INPUTS = 7, 4
TOLERANCE = 1e-6  # optax's schedules count in single precision


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def linear(params, x):
    return x @ params["w"] + params["b"]


def curved(params, x):
    return jnp.tanh(x @ params["a"] + params["c"]) @ params["w"] + params["b"]


NETWORKS = {"linear": linear, "curved": curved}


def network_of(name: str, num_outputs: int):
    rng = np.random.default_rng(3)
    shapes = (
        {"a": (NUM_INPUTS, 5), "c": (5,), "w": (5, num_outputs), "b": (num_outputs,)}
        if name == "curved"
        else {"w": (NUM_INPUTS, num_outputs), "b": (num_outputs,)}
    )
    return NETWORKS[name], {
        key: jnp.asarray(0.6 * rng.normal(size=shape)) for key, shape in shapes.items()
    }


def task_of(num_outputs: int, loss: str):
    """Inputs, labels as the package takes them, and targets as the oracle does."""
    rng = np.random.default_rng(5)
    inputs = jnp.asarray(rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)))
    if num_outputs == 1:
        targets = np.where(rng.random((NUM_SAMPLES, 1)) < 0.5, -1.0, 1.0)
        return inputs, targets, targets
    labels = np.arange(NUM_SAMPLES) % num_outputs
    if loss == "mse":
        # real targets, not only one-hot rows
        targets = oracles.one_hot(labels, num_outputs) - 0.2 * rng.random(
            (NUM_SAMPLES, num_outputs)
        )
        return inputs, targets, targets
    return inputs, labels, oracles.one_hot(labels, num_outputs)


COSINE = optax.cosine_decay_schedule(0.4, 17)
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 0.5, 4, 17)
PIECES = optax.piecewise_constant_schedule(0.3, {5: 0.5, 11: 0.1})

SETTINGS = {
    "plain": {"rate": 0.3},
    "heavy ball": {"rate": 0.1, "momentum": 0.9},
    "nesterov": {"rate": 0.1, "momentum": 0.8, "nesterov": True},
    "decay": {"rate": 0.2, "weight_decay": 0.1},
    "everything": {
        "rate": COSINE,
        "momentum": 0.7,
        "nesterov": True,
        "weight_decay": 0.05,
        "batch_size": 3,
    },
    "heavy ball and decay in batches": {
        "rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.02,
        "batch_size": 3,
    },
    "cosine": {"rate": COSINE, "momentum": 0.5},
    "warm-up": {"rate": WARM_UP, "momentum": 0.9, "batch_size": 3},
    "pieces": {"rate": PIECES, "batch_size": 3},
    "batches that do not divide the data": {"rate": 0.2, "batch_size": 3},
    "one sample at a time": {"rate": 0.1, "momentum": 0.5, "batch_size": 1},
    "the whole data as a batch": {"rate": 0.3, "batch_size": NUM_SAMPLES},
    "drawn with replacement": {
        "rate": 0.2,
        "momentum": 0.5,
        "batch_size": 3,
        "sampling": "replacement",
    },
    "drawn with replacement, as many as there are": {
        "rate": 0.2,
        "batch_size": NUM_SAMPLES,
        "sampling": "replacement",
    },
}


def quick(names, chosen):
    """Parameters of a test of which only the chosen run in the ordinary suite: each compiles
    anew.
    """
    return [
        name
        if name in chosen
        else pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=pytest.mark.slow)
        for name in names
    ]


def split(setting: dict) -> tuple[dict, int | None, str]:
    """What the optimiser needs, the batch size and the sampling."""
    return (
        {name: value for name, value in setting.items() if name not in ("batch_size", "sampling")},
        setting.get("batch_size"),
        setting.get("sampling", "epoch"),
    )


def check_curve(
    found, logits: np.ndarray, targets: np.ndarray, loss: str, tolerance: float = TOLERANCE
) -> None:
    """Loss and error of the records against those of the oracle's logits (T+1, N, C)."""
    np.testing.assert_allclose(
        found.loss,
        [oracles.mean_loss(loss, logits[step], targets) for step in found.steps],
        rtol=tolerance,
    )
    np.testing.assert_allclose(
        found.error, [oracles.error_rate(logits[step], targets) for step in found.steps], rtol=1e-6
    )


class Task(NamedTuple):
    """What the package takes and what the oracle takes."""

    apply: Callable
    params: dict
    inputs: jax.Array
    labels: np.ndarray
    targets: np.ndarray
    dense: oracles.Dense


@functools.cache
def task(loss: str, num_outputs: int, network: str) -> Task:
    apply, params = network_of(network, num_outputs)
    inputs, labels, targets = task_of(num_outputs, loss)
    return Task(apply, params, inputs, labels, targets, oracles.dense(apply, params, inputs))


@functools.cache
def problem_of(
    loss: str, num_outputs: int, network: str, kind: str, folder=None
) -> LinearizedProblem:
    apply, params, inputs, labels, _, _ = task(loss, num_outputs, network)
    outputs = "contrasts" if kind.startswith("contrasts") else "logits"
    if not kind.endswith("streamed"):
        mesh = ntk_tt.runtime.sharding.sample_mesh() if "sharded" in kind else None
        return ntk_tt.surrogate.linearize(
            ntk_tt.from_function(apply, params),
            inputs,
            labels,
            loss=loss,
            outputs=outputs,
            options=ntk_tt.FeatureOptions(num_projections="exact"),
            space=kind.split()[-1],
            mesh=mesh,
        )
    store = ntk_tt.features.write_features(
        ntk_tt.features.stored_outputs(apply, num_outputs, outputs),
        params,
        inputs,
        folder,
        options=ntk_tt.FeatureOptions(num_projections="exact", block_size=2),
    )
    problem = ntk_tt.surrogate.linearize(
        ntk_tt.from_function(apply, params),
        inputs,
        labels,
        loss=loss,
        outputs=outputs,
        features=store,
        options=ntk_tt.FeatureOptions(memory=2 * 8 * store.shape[1] * store.shape[2]),
    )
    assert problem.kernel.streamed
    return problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def check_replay(kind, name, loss, num_outputs, network, num_steps=15, record_every=5, folder=None):
    _, _, _, _, targets, network_at_start = task(loss, num_outputs, network)
    setting, batch_size, sampling = split(SETTINGS[name])
    batches = oracles.orders(NUM_SAMPLES, batch_size, num_steps, sampling)
    expected = oracles.train_linear(network_at_start, targets, loss, batches, **setting)
    optimizer = OptimizerConfig(
        SETTINGS[name]["rate"],
        **{key: value for key, value in SETTINGS[name].items() if key != "rate"},
    )
    problem = problem_of(loss, num_outputs, network, kind, folder)
    found = replay(
        problem,
        optimizer,
        num_steps,
        batches=None if optimizer.is_full_batch(NUM_SAMPLES) else batches,
        record_every=record_every,
        save_logits=True,
    )
    np.testing.assert_array_equal(
        found.steps, sorted({*range(0, num_steps, record_every), num_steps})
    )
    check_curve(found, expected, targets, loss)
    # which leave out the shift that is common to a sample's logits
    if kind.startswith("contrasts"):
        found_logits, expected = (
            each - each.mean(-1, keepdims=True) for each in (found.logits, expected)
        )
    else:
        found_logits = found.logits
    np.testing.assert_allclose(found_logits, expected[found.steps], rtol=TOLERANCE, atol=1e-9)
    return expected


@pytest.mark.slow_but("dual-everything", "dual-one sample*", "dual-nesterov")
@pytest.mark.parametrize(
    ("kind", "name"),
    quick(
        [(kind, name) for kind in ("primal", "dual") for name in SETTINGS],
        [("dual", name) for name in SETTINGS],
    ),
)
def test_replay_is_optax_on_the_linear_network(kind, name):
    expected = check_replay(kind, name, "ce", 3, "curved")
    targets = task("ce", 3, "curved").targets
    # it did train
    assert (
        oracles.mean_loss("ce", expected[0], targets)
        - oracles.mean_loss("ce", expected[-1], targets)
        > 0.05
    )


@pytest.mark.parametrize("name", quick(["everything", "one sample at a time"], ["everything"]))
@pytest.mark.parametrize(
    ("loss", "num_outputs", "network", "kind"),
    quick(
        [
            (*each, kind)
            for each in (
                ("ce", 2, "curved"),
                ("ce", 2, "linear"),
                ("mse", 1, "curved"),
                ("mse", 1, "linear"),
                ("mse", 2, "linear"),
                ("mse", 3, "curved"),
            )
            for kind in ("primal", "dual")
        ],
        [("mse", 1, "curved", "primal")],
    ),
)
def test_replay_of_either_loss_and_any_number_of_outputs(name, loss, num_outputs, network, kind):
    check_replay(kind, name, loss, num_outputs, network)


@pytest.mark.slow_but("contrasts streamed-decay", "contrasts streamed-heavy ball*")
@pytest.mark.parametrize(
    "name", ["everything", "one sample at a time", "heavy ball", "drawn with replacement", "decay"]
)
@pytest.mark.parametrize(
    "kind",
    quick(
        ["contrasts primal", "contrasts dual", "streamed", "contrasts streamed"],
        ["contrasts streamed"],
    ),
)
def test_replay_in_contrasts_and_from_disk(kind, name, folder):
    check_replay(kind, name, "ce", 3, "curved", folder=folder)


@pytest.mark.slow_but("dual-6-7", "dual-1-3")
@pytest.mark.parametrize(("num_steps", "record_every"), [(1, 1), (1, 3), (5, 2), (6, 7), (4, 4)])
@pytest.mark.parametrize("kind", quick(["dual", "contrasts streamed"], ["dual"]))
def test_any_number_of_steps_and_records(kind, num_steps, record_every, folder):
    check_replay(kind, "everything", "ce", 3, "curved", num_steps, record_every, folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", quick(["primal", "dual", "contrasts streamed"], ["dual"]))
def test_several_settings_at_once_are_each_optax_alone(kind, folder):
    names = [name for name, setting in SETTINGS.items() if setting.get("batch_size") is None]
    *_, targets, start = task("ce", 3, "curved")
    optimizers = [
        OptimizerConfig(
            SETTINGS[name]["rate"],
            **{key: value for key, value in SETTINGS[name].items() if key != "rate"},
        )
        for name in names
    ]
    for name, found in zip(
        names,
        replay_many(problem_of("ce", 3, "curved", kind, folder), optimizers, 11, record_every=4),
        strict=True,
    ):
        check_curve(
            found,
            oracles.train_linear(
                start, targets, "ce", oracles.orders(NUM_SAMPLES, None, 11), **SETTINGS[name]
            ),
            targets,
            "ce",
        )


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", quick([1, 2, 3, 6], [3]))
def test_the_order_of_a_key_is_of_whole_epochs_without_the_rest(batch_size):
    """What `replay(key=...)` does is `replay(batches=...)` of an order in which every epoch shows a
    sample at most once, and all alike in the long run.
    """
    per_epoch, epochs = NUM_SAMPLES // batch_size, 400
    optimizer = OptimizerConfig(0.1, batch_size=batch_size)
    order = np.asarray(batch_indices(NUM_SAMPLES, optimizer, per_epoch * epochs, jax.random.key(1)))
    by_epoch = order.reshape(epochs, per_epoch * batch_size)
    assert all(len(set(epoch)) == per_epoch * batch_size for epoch in by_epoch.tolist())
    share = per_epoch * batch_size / NUM_SAMPLES
    counts = np.bincount(order.ravel(), minlength=NUM_SAMPLES)
    assert np.abs(counts - epochs * share).max() <= 5 * np.sqrt(epochs * share * (1 - share))
    places = np.bincount(by_epoch[:, 0], minlength=NUM_SAMPLES)
    assert np.abs(places - epochs / NUM_SAMPLES).max() < 5 * np.sqrt(epochs / NUM_SAMPLES)
    problem = problem_of("ce", 3, "curved", "dual")
    by_key, given = (
        replay(problem, optimizer, 9, key=jax.random.key(1)),
        replay(
            problem,
            optimizer,
            9,
            batches=batch_indices(NUM_SAMPLES, optimizer, 9, jax.random.key(1)),
        ),
    )
    np.testing.assert_array_equal(by_key.loss, given.loss)


def check_over_devices() -> None:
    """Seven samples over eight devices."""
    assert jax.device_count() == 8
    with jax.enable_x64(True):
        for name in ("everything", "one sample at a time", "heavy ball", "drawn with replacement"):
            for kind in (
                "sharded primal",
                "sharded dual",
                "contrasts sharded primal",
                "contrasts sharded dual",
            ):
                check_replay(kind, name, "ce", 3, "curved")
            check_replay("sharded dual", name, "mse", 1, "curved")
    print("CHECKED")


@pytest.mark.slow
def test_replay_over_eight_devices_is_optax_on_the_linear_network():
    program = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8); from "
        "tests.test_independent_training import check_over_devices; check_over_devices()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert "CHECKED" in done.stdout, done.stderr[-3000:]


# Real training


@pytest.mark.slow_but("everything")
@pytest.mark.parametrize(
    "name",
    quick(
        SETTINGS,
        [
            "everything",
            "one sample at a time",
            "drawn with replacement",
            "batches that do not divide the data",
            "pieces",
        ],
    ),
)
def test_finetune_is_optax(name):
    check_finetune(name, "ce", 3, "curved")


@pytest.mark.parametrize(
    ("name", "loss", "num_outputs", "network"),
    quick(
        [
            ("one sample at a time", "ce", 2, "linear"),
            ("everything", "mse", 1, "curved"),
            ("everything", "mse", 2, "linear"),
        ],
        [("everything", "mse", 1, "curved")],
    ),
)
def test_finetune_of_either_loss_and_any_number_of_outputs(name, loss, num_outputs, network):
    check_finetune(name, loss, num_outputs, network)


@pytest.mark.slow_but("everything-*")
@pytest.mark.parametrize(
    ("name", "num_steps", "record_every", "block_size"),
    quick(
        [
            ("heavy ball", 1, 1, None),
            ("everything", 1, 3, 1),
            ("everything", 5, 2, 2),
            ("heavy ball", 6, 7, 3),
            ("heavy ball", 4, 4, 100),
        ],
        [("everything", 1, 3, 1), ("heavy ball", 6, 7, 3)],
    ),
)
def test_finetune_in_any_blocks_and_records(name, num_steps, record_every, block_size):
    check_finetune(name, "ce", 3, "curved", num_steps, record_every, block_size)


def check_finetune(
    name, loss, num_outputs, network, num_steps=15, record_every=5, block_size=None, seed=4
):
    apply, params, inputs, labels, targets, _ = task(loss, num_outputs, network)
    setting, batch_size, sampling = split(SETTINGS[name])
    flat, restore = ravel_pytree(params)
    gradient = jax.jit(
        jax.grad(lambda weights, x, y: objective(loss, apply(restore(weights), x), y))
    )
    batches = oracles.orders(
        NUM_SAMPLES,
        None if batch_size == NUM_SAMPLES and sampling == "epoch" else batch_size,
        num_steps,
        sampling,
        seed,
    )
    weights = oracles.train(
        lambda weights, batch: np.asarray(gradient(weights, inputs[batch], targets[batch])),
        np.asarray(flat),
        batches,
        **setting,
    )
    optimizer = OptimizerConfig(
        SETTINGS[name]["rate"],
        **{key: value for key, value in SETTINGS[name].items() if key != "rate"},
    )
    found = ntk_tt.finetune(
        ntk_tt.from_function(apply, params),
        inputs,
        labels,
        optimizer,
        num_steps,
        loss=loss,
        seed=seed,
        record_every=record_every,
        block_size=block_size,
    )
    np.testing.assert_array_equal(
        found.steps, sorted({*range(0, num_steps, record_every), num_steps})
    )
    check_curve(
        found,
        {step: np.asarray(apply(restore(weights[step]), inputs)) for step in found.steps.tolist()},
        targets,
        loss,
    )
    np.testing.assert_allclose(
        ravel_pytree(found.params)[0], weights[-1], rtol=TOLERANCE, atol=1e-9
    )


def objective(loss: str, logits, targets):
    """optax's losses, averaged over the batch."""
    return (
        optax.softmax_cross_entropy(logits, targets)
        if loss == "ce"
        else optax.l2_loss(logits, targets).sum(-1)
    ).mean()


# A real head


class HeadNetwork(nnx.Module):
    """φ = tanh(x A + a), f = φ W + b."""

    def __init__(self, num_outputs: int, bias: bool):
        rngs, options = nnx.Rngs(0), {"param_dtype": jnp.float64}
        self.first = nnx.Linear(NUM_INPUTS, 5, rngs=rngs, **options)
        self.head = nnx.Linear(5, num_outputs, use_bias=bias, rngs=rngs, **options)

    def features(self, x):
        return jnp.tanh(self.first(x))

    def __call__(self, x):
        return self.head(self.features(x))


@functools.cache
def head_problem(loss: str, num_outputs: int, bias: bool, curvature: bool):
    inputs, labels, targets = task_of(num_outputs, loss)
    module = HeadNetwork(num_outputs, bias)
    if bias:
        module.head.bias[...] = jnp.linspace(-0.2, 0.3, num_outputs)
    model = ntk_tt.from_nnx(module, head="head", num_classes=num_outputs)
    problem = ntk_tt.surrogate.expand(
        model,
        inputs,
        labels,
        loss=loss,
        curvature=curvature,
        num_directions="all",
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    first = model.params["first"]
    return (
        problem,
        targets,
        oracles.dense(
            lambda first, x: jnp.tanh(x @ first["kernel"] + first["bias"]), first, inputs
        ),
        lambda w: oracles.dense(
            lambda first, x: jnp.tanh(x @ first["kernel"] + first["bias"]),
            ravel_pytree(first)[1](jnp.asarray(w)),
            inputs,
        ),
        model.params["head"],
    )


def pack(*parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def train_head(
    moved, network: oracles.Dense, head, targets, loss, batches, **setting
) -> np.ndarray:
    """optax on f = φ(u) W + b, where `moved(u)` is (φ, its derivative by u) and the weights are
    w₀ + u, W and b.
    """
    bias = "bias" in head
    size, (num_features, num_outputs) = len(network.weights), head["kernel"].shape

    def unpack(weights):
        weights, kernel, shift = np.split(
            np.asarray(weights), [size, size + num_features * num_outputs]
        )
        features, slope = moved(weights - network.weights)
        return (
            features,
            slope,
            kernel.reshape(num_features, num_outputs),
            shift if bias else 0.0,
        )

    def logits(weights):
        features, _, kernel, shift = unpack(weights)
        return features @ kernel + shift

    def gradient(weights, batch):
        features, slope, kernel, shift = unpack(weights)
        g = oracles.residuals(loss, features[batch] @ kernel + shift, targets[batch]) / len(batch)
        return pack(
            np.einsum("nfd,nf->d", slope[batch], g @ kernel.T),
            features[batch].T @ g,
            *([g.sum(0)] if bias else []),
        )

    start = pack(network.weights, head["kernel"], *([head["bias"]] if bias else []))
    return np.stack(
        [logits(weights) for weights in oracles.train(gradient, start, batches, **setting)]
    )


def check_head(name, loss, num_outputs, bias, moved, curvature):
    problem, targets, network, _, head = head_problem(loss, num_outputs, bias, curvature)
    setting, batch_size, sampling = split(SETTINGS[name])
    batches = oracles.orders(NUM_SAMPLES, batch_size, 15, sampling)
    expected = train_head(moved, network, head, targets, loss, batches, **setting)
    optimizer = OptimizerConfig(
        SETTINGS[name]["rate"],
        **{key: value for key, value in SETTINGS[name].items() if key != "rate"},
    )
    found = replay(
        problem,
        optimizer,
        15,
        batches=None if batch_size is None else batches,
        record_every=5,
        save_logits=True,
    )
    check_curve(found, expected, targets, loss)
    np.testing.assert_allclose(found.logits, expected[found.steps], rtol=TOLERANCE, atol=1e-9)
    return expected


HEADS = quick(
    [
        ("heavy ball", "ce", 3, True),
        ("everything", "ce", 3, True),
        ("one sample at a time", "ce", 2, False),
        ("everything", "mse", 1, True),
        ("nesterov", "mse", 2, True),
    ],
    [("everything", "ce", 3, True)],
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss", "num_outputs", "bias"), HEADS)
def test_replay_with_a_real_head_is_optax_on_its_product(name, loss, num_outputs, bias):
    *_, network, _, _ = head_problem(loss, num_outputs, bias, False)
    check_head(
        name,
        loss,
        num_outputs,
        bias,
        lambda u: (network.logits + network.jacobian @ u, network.jacobian),
        False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss", "num_outputs", "bias"), HEADS)
def test_replay_with_curvature_is_optax_on_the_documented_model(name, loss, num_outputs, bias):
    """φ = φ₀ + Ψu + s Bu − ½ s² Bu₁, s = ⟨u, u₁⟩/‖u₁‖² within 0 … 2, B the change of the dense
    Jacobian to w₀ + u₁.
    """
    problem, _, network, at, _ = head_problem(loss, num_outputs, bias, True)
    first = np.asarray(problem.bend.displacement)
    change = at(network.weights + first).jacobian - network.jacobian
    assert np.linalg.norm(change) > 0.05 * np.linalg.norm(network.jacobian)

    def moved(u):
        share = np.clip(u @ first / (first @ first), 0, 2)
        features = (
            network.logits
            + network.jacobian @ u
            + share * (change @ u)
            - 0.5 * share**2 * (change @ first)
        )
        inner = 1.0 if 0 < u @ first < 2 * (first @ first) else 0.0
        bend = (change @ u - share * (change @ first))[..., None] * (
            inner * first / (first @ first)
        )
        return features, network.jacobian + share * change + bend

    check_head(name, loss, num_outputs, bias, moved, True)


@pytest.mark.slow
def test_the_second_point_lies_on_gradient_descent_to_a_quarter_of_the_loss():
    """Steps of 1/λ on the product with a linear backbone, in fives, until the loss is below a
    quarter of its start.
    """
    problem, targets, network, _, head = head_problem("ce", 3, True, True)
    rows, columns = NUM_SAMPLES * 3, 5 * 3
    kernel = np.asarray(head["kernel"])
    tangent = np.concatenate(
        [
            np.einsum("nfd,fc->ncd", network.jacobian, kernel).reshape(rows, -1),
            np.einsum("nf,cb->ncfb", network.logits, np.eye(3)).reshape(rows, columns),
            np.tile(np.eye(3), (NUM_SAMPLES, 1)),
        ],
        1,
    )
    p = oracles.softmax(network.logits @ kernel + np.asarray(head["bias"]))
    hessian = np.einsum("nc,cb->ncb", p, np.eye(3)) - np.einsum("nc,nb->ncb", p, p)
    curvature = (
        np.einsum(
            "ncx,ncb,nby->xy",
            tangent.reshape(NUM_SAMPLES, 3, -1),
            hessian,
            tangent.reshape(NUM_SAMPLES, 3, -1),
        )
        / NUM_SAMPLES
    )
    rate = 1 / np.linalg.eigvalsh(curvature)[-1]
    weights, kernel, shift = np.zeros_like(network.weights), kernel, np.asarray(head["bias"])
    start, step = None, 0
    for step in range(10_000):
        features = network.logits + network.jacobian @ weights
        loss = oracles.mean_loss("ce", features @ kernel + shift, targets)
        start = loss if start is None else start
        if step % 5 == 0 and loss < 0.25 * start:
            break
        g = oracles.residuals("ce", features @ kernel + shift, targets) / NUM_SAMPLES
        weights, kernel, shift = (
            weights - rate * np.einsum("nfd,nf->d", network.jacobian, g @ kernel.T),
            kernel - rate * features.T @ g,
            shift - rate * g.sum(0),
        )
    assert step > 0
    np.testing.assert_allclose(
        problem.bend.displacement, weights, rtol=1e-3, atol=1e-3 * np.abs(weights).max()
    )
