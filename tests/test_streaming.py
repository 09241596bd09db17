"""Streamed features give what features in memory give, in bounded memory, one pass a step."""

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.dynamics import replay, replay_many
from ntk_tt.features.contrasts import contrast_basis
from ntk_tt.features.store import FeatureStore
from ntk_tt.kernels import streaming
from ntk_tt.kernels.operators import ContrastKernel, PrimalKernel
from ntk_tt.kernels.streaming import StreamedKernel
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.schedules import named_schedule
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.sharpness import (
    batch_curvature_variance,
    largest_curvature,
    largest_curvature_bound,
)
from tests.networks import mlp

NUM_SAMPLES, NUM_OUTPUTS, NUM_PROJECTIONS, BLOCK_SIZE = 23, 3, 40, 5  # the last block is shorter
ROW_BYTES = 4 * NUM_OUTPUTS * NUM_PROJECTIONS


def write_store(folder, features, block_size=BLOCK_SIZE):
    num_samples, num_outputs, num_projections = features.shape
    manifest = {
        "num_samples": num_samples,
        "num_outputs": num_outputs,
        "num_projections": num_projections,
        "block_size": block_size,
        "dtype": features.dtype.name,
    }
    store = FeatureStore.open(folder, manifest)
    for index in range(len(store)):
        store.write(index, features[store.samples(index)])
    return store


def make_problem(kernel, loss="ce", num_outputs=NUM_OUTPUTS):
    """Everything but the kernel is the same at each call."""
    rng = np.random.default_rng(7)
    logits, weights = (
        jnp.asarray(rng.normal(size=(NUM_SAMPLES, num_outputs)), jnp.float32) for _ in range(2)
    )
    return LinearizedProblem(
        kernel,
        logits,
        weights,
        jax.nn.one_hot(np.arange(NUM_SAMPLES) % num_outputs, num_outputs),
        loss,
    )


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(NUM_SAMPLES, NUM_OUTPUTS, NUM_PROJECTIONS))
        / np.linspace(1, 20, NUM_PROJECTIONS)
    ).astype(np.float32)


@pytest.fixture(scope="module")
def store(features, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("features"), features)


@pytest.fixture(
    params=[0, 7 * ROW_BYTES, 20 * ROW_BYTES, 10**9],
    ids=["all streamed", "one block resident", "all but one", "all resident"],
)
def kernels(request, features, store):
    """(streamed, in memory), at several budgets."""
    return StreamedKernel(store, memory_bytes=request.param), PrimalKernel(jnp.asarray(features))


def wrapped(kernel):
    """The kernel as that of the contrasts of one output more."""
    return ContrastKernel(kernel, contrast_basis(NUM_OUTPUTS + 1))


# Products


@pytest.mark.slow_but("one block resident-True")
@pytest.mark.parametrize("contrasts", [False, True])
def test_products_equal_those_in_memory(kernels, contrasts):
    streamed, held = (wrapped(kernel) if contrasts else kernel for kernel in kernels)
    num_outputs = NUM_OUTPUTS + contrasts
    rng = np.random.default_rng(1)
    states = jnp.asarray(rng.normal(size=(4, NUM_PROJECTIONS)), jnp.float32)
    residuals = jnp.asarray(rng.normal(size=(NUM_SAMPLES, num_outputs)), jnp.float32)
    indices = np.array([22, 3, 3, 0, 11, 4])
    assert (streamed.space, streamed.streamed, held.streamed) == ("primal", True, False)
    same = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_array_equal(streamed.zero(), held.zero())
    np.testing.assert_allclose(streamed.push(states[0]), held.push(states[0]), **same)
    np.testing.assert_allclose(
        streamed.push_rows(states[0], indices),
        held.push_rows(states[0], jnp.asarray(indices)),
        **same,
    )
    np.testing.assert_allclose(streamed.pull(residuals), held.pull(residuals), **same)
    np.testing.assert_allclose(
        streamed.pull_rows(residuals[:6], indices),
        held.pull_rows(residuals[:6], jnp.asarray(indices)),
        **same,
    )
    np.testing.assert_allclose(streamed.product(residuals), held.product(residuals), **same)
    np.testing.assert_allclose(streamed.diagonal_blocks(), held.diagonal_blocks(), **same)
    for chosen in (None, indices):

        def respond(samples, changes):
            return jnp.tanh(changes) * residuals[samples]

        np.testing.assert_allclose(
            streamed.sweep(states, respond, chosen), held.sweep(states, respond, chosen), **same
        )
        np.testing.assert_array_equal(
            streamed.sweep(states, lambda *_: None, chosen), jnp.zeros_like(states)
        )
        one_by_one = [held.pull(jnp.tanh(held.push(state)) * residuals) for state in states]
        if chosen is None:
            np.testing.assert_allclose(held.sweep(states, respond), np.stack(one_by_one), **same)


@pytest.mark.slow_but("bfloat16-*")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_computed_in_single(tmp_path, features, dtype, tolerance):
    """Only the rounding of what is stored is seen: the products with the rounded features are those
    of single precision.
    """
    rounded = np.asarray(jnp.asarray(features, dtype))
    store = write_store(tmp_path, rounded)
    held = PrimalKernel(jnp.asarray(rounded, jnp.float32))
    for memory_bytes in (0, 7 * ROW_BYTES, 10**9):
        streamed = StreamedKernel(store, memory_bytes=memory_bytes)
        assert len(streamed.resident) in (0, BLOCK_SIZE, NUM_SAMPLES)
        state = jnp.linspace(-1, 1, NUM_PROJECTIONS)
        assert streamed.push(state).dtype == jnp.float32
        np.testing.assert_allclose(streamed.push(state), held.push(state), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            streamed.push_rows(state, np.array([1, 20])),
            held.push(state)[np.array([1, 20])],
            rtol=1e-5,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            streamed.push(state), features @ np.asarray(state), atol=5 * tolerance
        )


def test_double_precision(tmp_path, features):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        exact = rng.normal(size=(NUM_SAMPLES, NUM_OUTPUTS, NUM_PROJECTIONS))
        streamed = StreamedKernel(write_store(tmp_path, exact), memory_bytes=2 * 7 * ROW_BYTES)
        state = rng.normal(size=NUM_PROJECTIONS)
        assert len(streamed.resident) == BLOCK_SIZE
        np.testing.assert_allclose(streamed.push(jnp.asarray(state)), exact @ state, rtol=1e-12)


# Replay

SETTINGS = {
    "gradient descent": {},
    "momentum": {"momentum": 0.9},
    "nesterov, decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    "whole batch by its size": {"batch_size": NUM_SAMPLES, "weight_decay": 0.02},
    "epochs": {"momentum": 0.9, "batch_size": 6, "weight_decay": 0.01},
    "epochs, nesterov": {"momentum": 0.5, "nesterov": True, "batch_size": 4},
    "replacement": {
        "momentum": 0.7,
        "batch_size": 5,
        "sampling": "replacement",
        "weight_decay": 0.01,
    },
}


@pytest.mark.slow_but("mse-nesterov, decay")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_replay_equals_the_one_in_memory(store, features, setting, loss):
    num_steps = 40
    optimizer = OptimizerConfig(named_schedule("warmup-cosine", 0.3, num_steps), **setting)
    streamed, held = (
        replay(
            make_problem(kernel, loss),
            optimizer,
            num_steps,
            key=jax.random.key(5),
            record_every=7,
            save_logits=True,
        )
        for kernel in (
            StreamedKernel(store, memory_bytes=7 * ROW_BYTES),
            PrimalKernel(jnp.asarray(features)),
        )
    )
    assert np.abs(held.logits[-1] - held.logits[0]).max() > 0.5  # it did train
    np.testing.assert_array_equal(streamed.steps, held.steps)
    np.testing.assert_allclose(streamed.logits, held.logits, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(streamed.loss, held.loss, rtol=1e-5)
    np.testing.assert_allclose(streamed.error, held.error)
    assert replay(make_problem(StreamedKernel(store), loss), optimizer, 2).logits is None


@pytest.mark.slow_but("6")
@pytest.mark.parametrize("batch_size", [None, 6])
def test_replay_of_contrasts(store, features, batch_size):
    optimizer = OptimizerConfig(0.2, 0.9, batch_size=batch_size, weight_decay=0.01)
    streamed, held = (
        replay(
            make_problem(wrapped(kernel), num_outputs=NUM_OUTPUTS + 1),
            optimizer,
            30,
            save_logits=True,
        )
        for kernel in (StreamedKernel(store), PrimalKernel(jnp.asarray(features)))
    )
    np.testing.assert_allclose(streamed.logits, held.logits, rtol=1e-4, atol=2e-5)
    assert held.loss[-1] < 0.8 * held.loss[0]


def test_replay_of_given_batches(store, features):
    # repeated samples within a batch too
    batches = np.random.default_rng(0).integers(0, NUM_SAMPLES, (30, 6))
    streamed, held = (
        replay(
            make_problem(kernel), OptimizerConfig(0.1, 0.9), 30, batches=batches, save_logits=True
        )
        for kernel in (
            StreamedKernel(store, memory_bytes=7 * ROW_BYTES),
            PrimalKernel(jnp.asarray(features)),
        )
    )
    np.testing.assert_allclose(streamed.logits, held.logits, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_many_settings_equal_one_by_one(store, features):
    optimizers = [
        OptimizerConfig(named_schedule("cosine", rate, 30), **SETTINGS[name])
        for rate, name in zip((0.05, 0.4, 0.2, 0.1), SETTINGS, strict=False)
    ]
    optimizers[2:2] = [OptimizerConfig(rate, 0.5, batch_size=4) for rate in (0.1, 0.05)]
    for kernel in (
        StreamedKernel(store),
        PrimalKernel(jnp.asarray(features)),
        wrapped(StreamedKernel(store)),
    ):
        problem = make_problem(kernel, num_outputs=NUM_OUTPUTS + isinstance(kernel, ContrastKernel))
        together = replay_many(problem, optimizers, 30, record_every=4, save_logits=True)
        assert len(together) == len(optimizers)
        for optimizer, curve in zip(optimizers, together, strict=True):
            alone = replay(problem, optimizer, 30, record_every=4, save_logits=True)
            np.testing.assert_array_equal(curve.steps, alone.steps)
            np.testing.assert_allclose(curve.logits, alone.logits, rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(curve.loss, alone.loss, rtol=1e-5)


def test_divergence_is_seen(store):
    curve = replay(make_problem(StreamedKernel(store), "mse"), OptimizerConfig(50.0), 60)
    assert not curve.loss[-1] < 1e6


# What is read


@pytest.fixture
def reads(monkeypatch):
    """The blocks read whole, and the rows read alone, in order."""
    blocks, rows = [], []
    read_block, read_rows = StreamedKernel._read, FeatureStore.rows
    monkeypatch.setattr(
        StreamedKernel,
        "_read",
        lambda self, index: (blocks.append(index), read_block(self, index))[1],
    )
    monkeypatch.setattr(
        FeatureStore,
        "rows",
        lambda self, indices: (rows.append(list(indices)), read_rows(self, indices))[1],
    )
    return blocks, rows


@pytest.mark.slow
def test_a_full_batch_step_reads_each_block_once_for_all_settings(store, reads):
    blocks, rows = reads
    problem = make_problem(StreamedKernel(store, memory_bytes=12 * ROW_BYTES))
    optimizers = [OptimizerConfig(rate, 0.9) for rate in (0.1, 0.2, 0.3)]
    replay_many(problem, optimizers, 6, record_every=1)
    assert blocks == [2, 3, 4] * 7  # blocks 0 and 1 are resident; six steps and the last record
    assert rows == []


def test_a_mini_batch_step_reads_its_rows(store, reads):
    blocks, rows = reads
    batches = np.array([[0, 7, 22], [1, 2, 9], [11, 15, 12]])
    replay(
        make_problem(StreamedKernel(store, memory_bytes=12 * ROW_BYTES)),
        OptimizerConfig(0.1),
        3,
        batches=batches,
        record_every=3,
    )
    assert blocks == [2, 3, 4] * 2  # the first and the last record
    assert rows == [[22], [11, 15, 12]]  # the rest is resident


# Learning rates and verdict


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "contrasts"), [("ce", False), ("ce", True), ("mse", False)])
def test_curvature_and_stability_equal_those_in_memory(store, features, loss, contrasts):
    kernels = StreamedKernel(store, memory_bytes=7 * ROW_BYTES), PrimalKernel(jnp.asarray(features))
    streamed, held = (
        make_problem(wrapped(kernel) if contrasts else kernel, loss, NUM_OUTPUTS + contrasts)
        for kernel in kernels
    )
    logits = 2 * streamed.initial_logits
    (curvature, direction), (expected, expected_direction) = (
        largest_curvature(problem, logits) for problem in (streamed, held)
    )
    assert curvature == pytest.approx(expected, rel=1e-3)
    assert abs(float((direction * expected_direction).sum())) == pytest.approx(1, rel=1e-2)
    assert float(jnp.linalg.norm(direction)) == pytest.approx(1, rel=1e-5)
    assert largest_curvature_bound(streamed) == pytest.approx(
        largest_curvature_bound(held), rel=1e-3
    )
    variance = batch_curvature_variance(held, logits, expected, expected_direction)
    assert batch_curvature_variance(
        streamed, logits, expected, expected_direction
    ) == pytest.approx(variance, rel=1e-3)
    optimizer = OptimizerConfig(0.1, 0.9, batch_size=5)
    np.testing.assert_allclose(
        ntk_tt.prediction.stability(streamed, optimizer, 10),
        ntk_tt.prediction.stability(held, optimizer, 10),
        rtol=1e-2,
    )


def test_saturated_logits_have_no_curvature(store):
    problem = make_problem(StreamedKernel(store))
    curvature, direction = largest_curvature(problem, 1e4 * problem.targets)
    assert curvature == 0
    assert jnp.isfinite(direction).all()


@pytest.mark.slow
def test_prediction_and_verdict_of_a_network(tmp_path):
    case = mlp(NUM_OUTPUTS, width=24)
    x, labels = case.inputs(12, 0), np.arange(12) % NUM_OUTPUTS
    held = ntk_tt.surrogate.linearize(
        case.model,
        x,
        labels,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
        space="primal",
    )
    streamed = LinearizedProblem(
        StreamedKernel(write_store(tmp_path, np.asarray(held.kernel.features))),
        held.initial_logits,
        held.weight_logits,
        held.targets,
        held.loss,
    )
    optimizer = OptimizerConfig(0.3, 0.5, batch_size=4)
    two, one = (
        ntk_tt.prediction.predict(problem, optimizer, 30, num_seeds=2, record_every=3)
        for problem in (streamed, held)
    )
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-4)
    assert two.times == one.times
    two, one = (
        ntk_tt.prediction.assess(problem, case.model, x, labels, optimizer, 30)
        for problem in (streamed, held)
    )
    assert two.trust == one.trust
    for name in ("stability_margin", "linearization_residual", "expected_residual"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-2)
    # fewer ways are followed over a disk
    assert two.largest_safe_learning_rate > 0.5 * one.largest_safe_learning_rate


# What is refused


@pytest.mark.parametrize("method", ["ode", "sde", "sde-diagonal", "closed-form"])
def test_methods_inside_jit_are_refused(store, method):
    for kernel in (StreamedKernel(store), wrapped(StreamedKernel(store))):
        problem = make_problem(kernel, "mse", NUM_OUTPUTS + isinstance(kernel, ContrastKernel))
        with pytest.raises(
            ValueError,
            match=f"method: '{method[:3]}.*streamed from disk; use 'replay', or .*a smaller "
            "num_projections",
        ):
            ntk_tt.dynamics.simulate(problem, OptimizerConfig(0.1), 5, method=method)


def test_incomplete_and_damaged_stores_are_refused(features, tmp_path):
    store = write_store(tmp_path, features)
    file = store.folder / "block-000003.safetensors"
    good = file.read_bytes()
    file.unlink()
    with pytest.raises(
        ValueError,
        match=r"store: 1 of the 5 blocks in .* are missing or damaged, the first is block 3; "
        r"compute and `write`",
    ):
        StreamedKernel(store)
    for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        file.write_bytes(bad)
        with (
            pytest.warns(UserWarning, match=r"block 3 in .* is (truncated|corrupted)"),
            pytest.raises(ValueError, match="the first is block 3"),
        ):
            StreamedKernel(store)
    file.write_bytes(good)
    kernel = StreamedKernel(store)
    file.unlink()  # afterwards
    with pytest.raises(ValueError, match=r"block 3 in .* is not there"):
        kernel.push(kernel.zero())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: StreamedKernel(p.kernel.store, memory_bytes=-1),
            "memory_bytes: must be 0 or more, got -1",
        ),
        (lambda p: replay_many(p, [], 5), "optimizers: there are none"),
        (
            lambda p: replay_many(p, [OptimizerConfig(), OptimizerConfig(batch_size=24)], 5),
            "batch_size: 24 is larger than the 23 samples",
        ),
        (
            lambda p: replay_many(p, [OptimizerConfig()], 0),
            "num_steps: must be a whole number of at least 1",
        ),
        (lambda p: replay_many(p, [OptimizerConfig()], 5, record_every=0), "record_every"),
        (
            lambda p: replay(p, OptimizerConfig(batch_size=24), 5),
            "batch_size: 24 is larger than the 23 samples",
        ),
        (
            lambda p: replay(p, OptimizerConfig(), 5, batches=np.full((5, 2), 23)),
            "batches: must hold",
        ),
    ],
)
def test_bad_arguments(unchecked, store, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_problem(StreamedKernel(store)))


# Memory


def test_one_block_is_in_use_and_the_next_is_read_by_a_thread(store, monkeypatch):
    kernel = StreamedKernel(store, memory_bytes=12 * ROW_BYTES)
    read, push, in_use, readers = StreamedKernel._read, streaming._push, [], set()

    def read_and_note(self, index):
        readers.add(threading.current_thread().name)
        return read(self, index)

    def push_and_count(rows, states):
        in_use.append(
            sum(
                array.shape == (BLOCK_SIZE, NUM_OUTPUTS, NUM_PROJECTIONS)
                for array in jax.live_arrays()
            )
        )
        return push(rows, states)

    monkeypatch.setattr(StreamedKernel, "_read", read_and_note)
    monkeypatch.setattr(streaming, "_push", push_and_count)
    kernel.sweep(kernel.zero()[None], lambda samples, changes: changes)
    # the resident ones are one array of another shape, and so is the last block
    assert in_use == [
        0,
        1,
        1,
        0,
    ]
    assert threading.current_thread().name not in readers


_CHILD = """
import re, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from ntk_tt.dynamics import replay, replay_many
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.features.store import FeatureStore
from ntk_tt.kernels.streaming import StreamedKernel

def run(kernel):
    num_samples, num_outputs, _ = kernel.store.shape
    targets = jnp.eye(num_outputs)[np.arange(num_samples) % num_outputs]
    problem = LinearizedProblem(kernel, jnp.zeros_like(targets), jnp.ones_like(targets), targets)
    for optimizer in (OptimizerConfig(1e-6, 0.9), OptimizerConfig(1e-6, batch_size=8)):
        replay(problem, optimizer, 2, record_every=2)
    replay_many(problem, [OptimizerConfig(1e-6), OptimizerConfig(1e-7)], 2)
def peak():  # ru_maxrss begins at that of the parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
small, large = FeatureStore.open(sys.argv[1]), FeatureStore.open(sys.argv[2])
for store, budget in ((small, 0), (large, 0), (large, int(sys.argv[3]))):
    run(StreamedKernel(store, memory_bytes=budget))
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_does_not_follow_the_features(tmp_path):
    """256 MB of features in blocks of 8 MB take what 24 MB do, and the budget of 32 MB: the slack
    is for mapped pages and the compiler.
    """
    numbers = np.random.default_rng(0).normal(size=(8, 4, 65536)).astype(np.float32)
    for name, count in (("small", 3), ("large", 32)):
        write_store(tmp_path / name, np.tile(numbers, (count, 1, 1)), 8)
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            _CHILD,
            str(tmp_path / "small"),
            str(tmp_path / "large"),
            str(32 << 20),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    small, large, with_budget = map(int, run.stdout.split())
    assert large - small < 80e6
    assert 24e6 < with_budget - large < (32 << 20) + 80e6
