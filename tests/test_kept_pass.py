"""What the passes of a small network find is kept, found again, and computed anew where it is
damaged.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.features import kept_pass as files
from ntk_tt.features.sampled_pass import sampled_pass
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.kept_passes import kept_pass
from ntk_tt.prediction.passes import pass_over
from ntk_tt.surrogate import expansion, second_point


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    inputs = (rng.normal(size=(3, 5))[labels] + rng.normal(size=(40, 5))).astype(np.float32)
    params = {
        "body": jnp.asarray(rng.normal(size=(5, 8)) / 5**0.5, jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 3)) / 8**0.5, jnp.float32),
    }
    model = ntk_tt.from_function(
        lambda params, inputs: jnp.tanh(inputs @ params["body"]) @ params["head"], params
    )
    return model, inputs, labels


@pytest.fixture
def what(network, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1)  # files of 16 samples
    return Finetuning(*network, store=tmp_path / "store")


@pytest.fixture
def looks(monkeypatch):
    """Samples of every pass over the data."""
    found = []

    def counted(apply, params, entries, inputs, *args, **kwargs):
        found.append(len(inputs))
        return sampled_pass(apply, params, entries, inputs, *args, **kwargs)

    for module in (expansion, second_point):
        monkeypatch.setattr(module, "sampled_pass", counted)
    return found


def leaves(problem):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(problem)]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True))


@pytest.mark.slow
def test_what_is_kept_is_found_and_is_the_same(what, looks):
    plain = pass_over(what).problem
    assert looks == [40, 40]
    assert pass_over(what, keep=True).features is not None
    looks.clear()
    found = pass_over(what)
    assert looks == []
    assert same(found.problem, plain)
    assert found.problem.head == plain.head
    assert found.problem.facts() == plain.facts()
    assert found.features.folder.parent == what.store
    head = pass_over(what, "head")  # shares the first pass
    assert looks == []
    assert head.problem.bend is None
    np.testing.assert_array_equal(head.problem.jacobian, plain.jacobian)


@pytest.mark.slow_but("other0", "other3")
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"label_smoothing": 0.1},
        {"options": ntk_tt.FeatureOptions(num_projections=20)},
        {"labels": (np.arange(40) + 1) % 3},
    ],
)
def test_another_pass_is_not_that(what, looks, other):
    pass_over(what, keep=True)
    looks.clear()
    assert pass_over(dataclasses.replace(what, **other)).features is None
    assert looks == [40, 40]


@pytest.mark.slow
def test_an_optimiser_on_its_own_way_shares_the_first_pass(what, looks):
    adam = ntk_tt.OptimizerConfig(0.01, name="adam")
    plain = pass_over(what, optimizer=adam, num_steps=30).problem
    pass_over(what, keep=True)
    looks.clear()
    assert same(pass_over(what, optimizer=adam, num_steps=30).problem, plain)
    assert looks == [40]
    pass_over(what, optimizer=adam, num_steps=30, keep=True)
    looks.clear()
    assert same(pass_over(what, optimizer=adam, num_steps=30).problem, plain)
    assert looks == []


def test_nothing_is_written_unasked(what):
    pass_over(what)
    assert not what.store.exists()
    what.store.mkdir()
    pass_over(what)
    assert list(what.store.iterdir()) == []


def blocks(what: Finetuning) -> list[Path]:
    return sorted(what.store.glob("*/block-*"))


def test_a_pass_that_was_stopped_goes_on(what, looks):
    pass_over(what, keep=True)
    whole = {file: file.read_bytes() for file in blocks(what)}
    assert len(whole) == 6
    lost = blocks(what)[1:5]
    for file in lost:
        file.unlink()
    looks.clear()
    assert pass_over(what).features is None  # what is not whole is not read, nor written
    assert looks == [40, 40]
    looks.clear()
    pass_over(what, keep=True)
    assert looks == [16] * len(lost)
    assert {file: file.read_bytes() for file in blocks(what)} == whole


@pytest.mark.slow_but("*.record.*")
@pytest.mark.parametrize("which", ["*/block-000001*", "*.record.*"])
def test_damage_is_noticed(what, looks, which):
    pass_over(what, keep=True)
    plain = pass_over(what).problem
    for file in what.store.glob(which):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"store: .*(damaged|corrupted)"):
        assert pass_over(what).features is None
    with pytest.warns(UserWarning, match=r"store: .*(damaged|corrupted)"):
        pass_over(what, keep=True)
    looks.clear()
    assert same(pass_over(what).problem, plain)
    assert looks == []


def test_what_does_not_fit_into_memory_is_not_read(what, looks, monkeypatch):
    pass_over(what, keep=True)
    looks.clear()
    monkeypatch.setattr("ntk_tt.surrogate.kept.available_bytes", lambda: 1000)
    assert pass_over(what).features is None
    assert looks == [40, 40]


def test_a_chain_of_ones_own_has_no_second_part(what):
    import optax

    own = ntk_tt.OptimizerConfig.of(optax.adam(0.01))
    assert kept_pass(what, own, 30, writes=True).second is None
    assert kept_pass(what, None, None, writes=True).second is not None


def test_prepare_keeps_in_a_folder(network, tmp_path, looks):
    first = ntk_tt.prepare(*network, store=tmp_path)
    looks.clear()
    again = ntk_tt.prepare(*network, store=str(tmp_path))
    assert looks == []
    assert same(first.found.problem, again.found.problem)
    assert again.found.features.folder.parent == tmp_path
