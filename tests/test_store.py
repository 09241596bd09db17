"""A store goes on after any interruption with the same bits, and never uses a block that is not
what it should be.
"""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from ntk_tt.features import store
from ntk_tt.features.manifest import describe, identity
from ntk_tt.features.store import FeatureStore
from tests import store_writer
from tests.disks import full_disk
from tests.networks import mlp

CASE = mlp(2, inputs=3, width=4)  # D = 46
INPUTS = np.asarray(CASE.inputs(5, 0))
SCALAR = np.float32(0.1)


def manifest(case=CASE, inputs=INPUTS, **changes):
    return describe(
        case.apply,
        case.params,
        inputs,
        **({"num_projections": 3, "projection": "fold", "key": None, "block_size": 2} | changes),
    )


def numbers(opened, index):
    """A block's content for tests where any numbers do."""
    samples = opened.samples(index)
    values = np.random.default_rng(index).normal(
        size=(samples.stop - samples.start, *opened.shape[1:])
    )
    return values.astype(opened.dtype)


@pytest.fixture
def filled(tmp_path):
    opened = FeatureStore.open(tmp_path / "features", manifest())
    for index in opened.missing():
        opened.write(index, numbers(opened, index))
    return opened


def block_file(opened, index):
    return opened.folder / f"block-{index:06d}.safetensors"


def same_bits(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


# What comes back


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_blocks_and_rows_come_back_bit_for_bit(tmp_path, dtype):
    opened = FeatureStore.open(tmp_path, manifest(dtype=dtype))
    assert (len(opened), opened.shape, opened.dtype) == (3, (5, 2, 3), jnp.dtype(dtype))
    for index in (2, 0, 1):
        assert not opened.complete
        opened.write(index, numbers(opened, index))
    assert opened.complete
    again = FeatureStore.open(tmp_path)  # whatever is there
    blocks = list(again)
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert all(same_bits(block, numbers(opened, index)) for index, block in enumerate(blocks))
    everything = np.concatenate([numbers(opened, index) for index in range(3)])
    order = np.array([4, 0, 3, 3, 1])
    assert same_bits(again.rows(order), everything[order])
    assert again.rows(np.array([], int)).shape == (0, 2, 3)


def test_other_programs_can_read_a_block(filled):
    with safetensors.safe_open(block_file(filled, 1), framework="numpy") as file:
        assert same_bits(file.get_tensor("features"), numbers(filled, 1))
        assert file.metadata()["identity"] == filled.identity


def test_device_arrays_can_be_written_and_blocks_cannot_be_changed(filled):
    filled.write(0, jnp.ones((2, 2, 3)))
    np.testing.assert_array_equal(filled.block(0), 1.0)
    with pytest.raises(ValueError, match="read-only"):
        filled.block(0)[0] = 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_do_not_read_the_whole_block(tmp_path):
    """Two rows of a block of a gigabyte (a hole in the file, but for the process as large as it
    says).
    """
    description = manifest(num_projections=3) | {"num_projections": 2**26, "block_size": 5}
    opened = FeatureStore.open(tmp_path, description)
    with block_file(opened, 0).open("wb") as file:
        file.write(opened._header(0, "0"))
        file.truncate(len(opened._header(0, "0")) + 5 * 2 * 2**28)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert opened.block(0)[[1, 4], 1, -1].tolist() == [0.0, 0.0]
    assert (
        int(Path("/proc/self/statm").read_text().split()[1]) - pages
    ) * resource.getpagesize() < 16e6


# What must not be used


def test_every_flipped_bit_is_noticed(filled):
    file = block_file(filled, 1)
    good = file.read_bytes()
    assert filled.missing() == []
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        with pytest.warns(
            UserWarning,
            match="block-000001.safetensors (has a damaged header|belongs to other features|is "
            "corrupted)",
        ):
            assert filled.missing() == [1], f"byte {position} of {len(good)}"
    filled.write(1, numbers(filled, 1))
    assert file.read_bytes() == good
    assert filled.missing() == []


def test_every_truncation_is_noticed(filled):
    file = block_file(filled, 0)
    good = file.read_bytes()
    for bad in (*(good[:length] for length in range(len(good))), good + b"\0"):
        file.write_bytes(bad)
        with pytest.warns(UserWarning, match="is truncated|has a damaged header|is too long"):
            assert filled.missing() == [0], len(bad)
        with pytest.raises(
            ValueError, match=r"block 0 in .*is truncated|has a damaged header|is too long"
        ):
            filled.rows(np.array([2, 1]))
    file.unlink()
    with warnings.catch_warnings(action="error"):
        assert filled.missing() == [0]  # simply absent: nothing to warn of
    with pytest.raises(ValueError, match=r"block 0 in .* is not there; `missing\(\)` lists"):
        filled.block(0)


def test_foreign_blocks_are_not_used(filled, tmp_path):
    other = FeatureStore.open(tmp_path / "other", manifest(key=jax.random.key(1)))
    other.write(1, numbers(filled, 1))
    shutil.copy(block_file(other, 1), block_file(filled, 1))
    with pytest.warns(
        UserWarning,
        match=f"block 1 in .* belongs to other features .identity {other.identity}, here "
        f"{filled.identity}",
    ):
        assert filled.missing() == [1]
    with pytest.raises(ValueError, match="belongs to other features"):
        filled.block(1)
    # a good block of the same set in another's place
    shutil.copy(block_file(filled, 0), block_file(filled, 1))
    with pytest.warns(UserWarning, match="block 1 in .* has a damaged header"):
        assert filled.missing() == [1]


@pytest.mark.parametrize("content", ["", '{"format": 1', "[1]", "\x00"])
def test_damaged_manifest_is_named(filled, content):
    (filled.folder / "manifest.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"store: .*manifest\.json is damaged .* delete its folder"
    ):
        FeatureStore.open(filled.folder, filled.manifest)


FORGED: dict[str, Any] = {
    "nested too deeply": lambda good: b"[" * 100_000,
    "too large": lambda good: b" " * (65 << 20),
    "not text": lambda good: b"\xff\xfe" + good,
    "a number beyond numbers": lambda good: good.replace(
        b'"num_samples": 5', b'"num_samples": 1' + b"0" * 5000
    ),
    "too many samples": lambda good: good.replace(
        b'"num_samples": 5', b'"num_samples": 99999999999999999999'
    ),
    "no samples": lambda good: good.replace(b'"num_samples": 5', b'"num_samples": 0'),
    "a fraction of a block": lambda good: good.replace(b'"block_size": 2', b'"block_size": 0.5'),
    "no number": lambda good: good.replace(b'"num_outputs": 2', b'"num_outputs": true'),
    "another dtype": lambda good: good.replace(b'"float32"', b'"int32"'),
    "a dtype that is none": lambda good: good.replace(
        b'"dtype": "float32"', b'"dtype": ["float32"]'
    ),
    "an entry missing": lambda good: good.replace(b'"num_projections"', b'"projections"'),
    "a pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a circle": lambda path: path.symlink_to(path.name),
}


@pytest.fixture
def named(tmp_path):
    """A complete store where `find` looks for it."""
    description = manifest()
    opened = FeatureStore.open(store.folder_of(description, tmp_path), description)
    for index in opened.missing():
        opened.write(index, numbers(opened, index))
    return opened


def damage(file, kind):
    good = file.read_bytes()
    file.unlink()
    if kind in ("a pipe", "endless", "a folder", "a circle"):
        FORGED[kind](file)
    else:
        file.write_bytes(FORGED[kind](good))
    return good


@pytest.mark.parametrize("kind", FORGED)
def test_a_damaged_manifest_ends_no_prediction_and_is_written_anew(named, kind):
    """Alone it is refused; where the features are known, each block says itself what it is of."""
    file = named.folder / "manifest.json"
    good = damage(file, kind)
    with pytest.raises(
        ValueError,
        match=r"store: .*manifest\.json is damaged .*; delete its folder or give another",
    ):
        FeatureStore.open(named.folder)
    with pytest.warns(
        UserWarning, match=r"manifest\.json is damaged .* so they are used"
    ) as caught:
        found = store.find(named.manifest, named.folder.parent)
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 1000
    assert found is not None
    assert same_bits(found.rows(np.arange(5)), named.rows(np.arange(5)))
    if kind == "a folder":  # which is not removed
        with (
            pytest.warns(UserWarning, match="written anew"),
            pytest.raises(OSError, match="cannot make a store"),
        ):
            FeatureStore.open(named.folder, named.manifest)
        return
    with pytest.warns(UserWarning, match=r"manifest\.json is damaged .*; it is written anew"):
        again = FeatureStore.open(named.folder, named.manifest)
    assert again.complete
    assert not file.is_symlink()
    assert file.read_bytes() == good


@pytest.mark.slow
def test_every_flipped_bit_of_a_manifest_is_noticed(named):
    file = named.folder / "manifest.json"
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        with pytest.warns(UserWarning, match=r"manifest\.json is damaged"):
            assert store.find(named.manifest, named.folder.parent) is not None, (
                f"byte {position} of {len(good)}"
            )
    file.unlink()
    with warnings.catch_warnings(action="error"):
        # the blocks are all it takes
        assert store.find(named.manifest, named.folder.parent) is not None


@pytest.mark.parametrize("kind", ["a pipe", "endless", "a circle"])
def test_what_is_no_file_counts_as_a_missing_block_and_gives_way(named, kind):
    file = block_file(named, 1)
    good = damage(file, kind)
    with pytest.warns(UserWarning, match=r"block 1 in .* cannot be read"):
        assert named.missing() == [1]
    with pytest.raises(ValueError, match=r"block 1 in .* cannot be read"):
        named.block(1)
    named.write(1, numbers(named, 1))
    assert not file.is_symlink()
    assert file.read_bytes() == good


def test_a_folder_in_the_place_of_a_block_is_named_and_stays(named):
    block_file(named, 1).unlink()
    block_file(named, 1).mkdir()
    with pytest.warns(UserWarning, match=r"block 1 in .* cannot be read"):
        assert store.find(named.manifest, named.folder.parent) is None
    with pytest.raises(OSError, match="cannot write block 1"):
        named.write(1, numbers(named, 1))


def test_other_files_are_left_alone_and_many_damaged_blocks_are_counted(tmp_path):
    opened = FeatureStore.open(
        tmp_path, manifest(inputs=np.asarray(CASE.inputs(20, 0)), block_size=2)
    )
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "block-999999.safetensors").write_bytes(b"?")
    for index in range(10):
        block_file(opened, index).write_bytes(b"?")
    with pytest.warns(UserWarning, match="store: ") as caught:
        assert opened.missing() == list(range(10))
    assert len(caught) == 4
    assert "7 further blocks" in str(caught[-1].message)
    for index in range(10):
        opened.write(index, numbers(opened, index))
    assert opened.complete
    assert (tmp_path / "notes.txt").read_text() == "mine"


# What the features are of


def _changed_leaf(params):
    return [
        params[0],
        {"weight": params[1]["weight"].at[0, 0].multiply(1 + 1e-7), "bias": params[1]["bias"]},
        *params[2:],
    ]


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"case": CASE._replace(params=_changed_leaf(CASE.params))}, r"weights/\[1\]\['weight'\]"),
        ({"inputs": np.nextafter(INPUTS, np.float32(9))}, "inputs"),
        ({"inputs": INPUTS[:4]}, "num_samples"),
        ({"inputs": INPUTS.astype(np.float16)}, "inputs"),
        (
            {"case": CASE._replace(apply=lambda params, x: jnp.tanh(CASE.apply(params, x)))},
            "network",
        ),
        ({"case": mlp(3, inputs=3, width=4)}, "num_outputs"),
        ({"num_projections": 4}, "num_projections"),
        ({"projection": "gaussian"}, "projection"),
        ({"key": jax.random.key(1)}, "key/data"),
        ({"key": jax.random.key(0, impl="rbg")}, "key/kind"),
        ({"block_size": 1}, "block_size"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"settings": {"path": "plain"}}, "settings/path"),
    ],
)
def test_another_feature_set_is_refused_and_the_difference_named(filled, changes, entry):
    before = sorted(filled.folder.iterdir())
    with pytest.raises(
        ValueError,
        match=f"holds other features: .{entry}. is .* there and .* here; give another folder",
    ):
        FeatureStore.open(filled.folder, manifest(**changes))
    assert sorted(filled.folder.iterdir()) == before
    assert identity(manifest(**changes)) != filled.identity


@pytest.mark.parametrize(
    ("setting", "value"),
    [("jax_default_matmul_precision", "highest"), ("jax_threefry_partitionable", False)],
)
def test_arithmetic_of_jax_belongs_to_the_features(filled, setting, value):
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        assert (
            manifest()["arithmetic"]
            == filled.manifest["arithmetic"] | {setting: value}
            != filled.manifest["arithmetic"]
        )
    finally:
        jax.config.update(setting, before)


def test_constants_inside_the_network_belong_to_it():
    """Frozen statistics are no parameters; one of them, in its last bit, in a jitted function
    inside, makes other features.
    """

    def network(constant, scalar=SCALAR):
        inner = jax.jit(lambda params, x: CASE.apply(params, x) * constant * scalar)
        return manifest(CASE._replace(apply=lambda params, x: inner(params, x)))["network"]

    constant = np.array([1.0, 3.0], np.float32)
    assert network(constant) == network(jnp.asarray(constant))
    assert network(constant) != network(np.nextafter(constant, np.float32(9)))
    assert network(constant) != network(constant, np.nextafter(SCALAR, np.float32(9)))
    assert network(constant) != network(constant, jnp.nextafter(jnp.asarray(SCALAR), 9.0))


def test_memory_addresses_do_not_belong_to_the_network():
    class Policy:
        def __call__(self, *_, **__):
            return True

    def network(policy):
        return manifest(CASE._replace(apply=jax.checkpoint(CASE.apply, policy=policy)))["network"]

    policies = Policy(), Policy()
    assert repr(policies[0]) != repr(policies[1])
    assert network(policies[0]) == network(policies[1])


def test_derivative_rules_belong_to_the_network():
    def network(slope):
        @jax.custom_jvp
        def activation(x):
            return x

        activation.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
        return manifest(CASE._replace(apply=lambda params, x: activation(CASE.apply(params, x))))[
            "network"
        ]

    assert network(2.0) == network(2.0)
    assert network(2.0) != network(3.0)


def test_exact_features_do_not_depend_on_the_projection():
    exact = manifest(num_projections=10_000)
    assert exact == manifest(num_projections=46, projection="gaussian", key=jax.random.key(3))
    assert (exact["num_projections"], exact["num_params"], exact["projection"]) == (
        46,
        46,
        "identity",
    )


def test_manifest_survives_its_file(filled):
    assert json.loads((filled.folder / "manifest.json").read_text()) == manifest()
    assert FeatureStore.open(filled.folder, manifest()).missing() == []


# Interruptions, with real processes


def start(folder, *arguments):
    # what is imported is imported once; every process has its own JAX
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store_writer"])
    process = context.Process(target=store_writer.main, args=(str(folder), *arguments))
    process.start()
    return process


def finish(process):
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(folder)) == 0
    opened = FeatureStore.open(folder, store_writer.manifest())
    assert opened.complete
    return opened


def test_killed_at_every_stage_and_restarted_gives_the_same_bits(tmp_path, uninterrupted):
    files = [block_file(uninterrupted, index).name for index in range(5)]

    def present():
        return sorted(path.name for path in tmp_path.glob("block-*"))

    def partial():
        return list(tmp_path.glob(".*.partial"))

    for when, block, whole, leftovers in (
        ("half", 1, 1, 1),
        ("unnamed", 2, 2, 2),
        ("named", 3, 4, 2),
    ):
        assert finish(start(tmp_path, when, block)) == -signal.SIGKILL
        assert present() == files[:whole]
        assert len(partial()) == leftovers
        with warnings.catch_warnings(action="error"):
            assert FeatureStore.open(tmp_path, store_writer.manifest()).missing() == list(
                range(whole, 5)
            )
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("block-*")}
    half = min(path.stat().st_size for path in partial())
    # it was killed within the data
    assert 1000 < half < block_file(uninterrupted, 0).stat().st_size

    assert finish(start(tmp_path)) == 0
    assert present() == files
    # nothing was computed twice
    assert all(path.stat().st_mtime_ns == moment for path, moment in times.items())
    assert [(tmp_path / name).read_bytes() for name in files] == [
        (uninterrupted.folder / name).read_bytes() for name in files
    ]
    assert same_bits(
        FeatureStore.open(tmp_path).rows(np.arange(19)), uninterrupted.rows(np.arange(19))
    )


def test_killed_from_outside_and_restarted_gives_the_same_bits(tmp_path, uninterrupted):
    process = start(tmp_path, "everything")
    while len(list(tmp_path.glob("block-*"))) < 3 and process.is_alive():
        time.sleep(0.0002)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert finish(start(tmp_path)) == 0
    assert same_bits(
        FeatureStore.open(tmp_path).rows(np.arange(19)), uninterrupted.rows(np.arange(19))
    )


def test_blocks_are_those_of_one_pass(uninterrupted):
    whole = store_writer.features(store_writer.INPUTS)
    np.testing.assert_allclose(uninterrupted.rows(np.arange(19)), whole, rtol=1e-4, atol=1e-5)


def test_two_writers_and_a_reader_in_one_folder(tmp_path, uninterrupted):
    """At every moment each block is absent or whole; at the end the bits are those of one
    writer.
    """
    writers = [start(tmp_path, "everything"), start(tmp_path, "everything")]
    looked = 0
    while not (tmp_path / "manifest.json").exists():
        time.sleep(0.001)
    opened = FeatureStore.open(tmp_path, store_writer.manifest())
    with warnings.catch_warnings(action="error"):
        while any(writer.is_alive() for writer in writers):
            looked += len(opened.missing()) < 5
    assert [finish(writer) for writer in writers] == [0, 0]
    assert looked > 0
    assert opened.complete
    assert same_bits(opened.rows(np.arange(19)), uninterrupted.rows(np.arange(19)))
    assert not list(tmp_path.glob(".*.partial"))


def test_partial_files_of_killed_writers_are_removed_when_old(filled):
    old, young = (
        filled.folder / ".block-000000.safetensors.a.partial",
        filled.folder / ".block-000000.safetensors.b.partial",
    )
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    FeatureStore.open(filled.folder)
    assert not old.exists()
    assert young.exists()


# Disks that refuse


def test_failure_in_the_middle_of_a_block_leaves_the_rest(filled):
    """The kernel itself cuts the write short."""
    filled = FeatureStore.open(
        filled.folder.with_name("large"), manifest() | {"num_projections": 100_000}
    )
    filled.write(0, numbers(filled, 0))
    before = sorted(filled.folder.iterdir())
    message = r"store: cannot write block 1 \(1.6 MB\): File too large; check the folder"
    with full_disk(1_000_000), pytest.raises(OSError, match=message) as caught:
        filled.write(1, numbers(filled, 1))
    assert caught.value.errno == errno.EFBIG
    assert sorted(filled.folder.iterdir()) == before
    assert filled.missing() == [1, 2]
    filled.write(1, numbers(filled, 1))
    assert filled.missing() == [2]


def test_full_disk_is_said_and_nothing_is_lost(filled, monkeypatch):
    block_file(filled, 2).unlink()
    before = sorted(filled.folder.iterdir())
    old = block_file(filled, 1).read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # where a file system that allocates late says so
        for index in (1, 2):
            with pytest.raises(
                OSError,
                match=rf"cannot write block {index} .*No space left on device; the disk is full "
                r"\(.* MB free\): make room and run again",
            ) as caught:
                filled.write(index, np.zeros(filled._block_shape(index), np.float32))
            assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match=r"cannot make a store in .*the disk is full"):
            FeatureStore.open(filled.folder / "a" / "b", manifest())
        assert not list((filled.folder / "a" / "b").iterdir())
    shutil.rmtree(filled.folder / "a")
    assert sorted(filled.folder.iterdir()) == before
    assert block_file(filled, 1).read_bytes() == old
    assert filled.missing() == [2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    """One of 256 kB: what fits is kept, the block that does not is named, with room made it goes
    on.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "ballast").write_bytes(bytes(100_000))
        # 64 kB a block
        opened = FeatureStore.open(disk / "features", manifest() | {"num_projections": 4000})
        opened.write(0, numbers(opened, 0))
        opened.write(1, numbers(opened, 1))
        with pytest.raises(
            OSError,
            match=r"cannot write block 2 .*the disk is full \(0\.\d MB free\): make room and run "
            r"again",
        ) as caught:
            opened.write(2, numbers(opened, 2))
        assert caught.value.errno == errno.ENOSPC
        assert not list(opened.folder.glob(".*.partial"))
        assert opened.missing() == [2]
        (disk / "ballast").unlink()
        opened.write(2, numbers(opened, 2))
        assert opened.complete
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def unprivileged_folder():
    """A folder that the test may make read-only; root, whom no permission stops, becomes nobody
    meanwhile.
    """
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    if was_root:
        os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    shutil.rmtree(folder)


def test_read_only_folder_can_be_read_and_says_what_it_cannot(unprivileged_folder):
    opened = FeatureStore.open(unprivileged_folder / "features", manifest())
    for index in range(3):
        opened.write(index, numbers(opened, index))
    (opened.folder / ".block-000000.safetensors.a.partial").touch()
    os.utime(opened.folder / ".block-000000.safetensors.a.partial", (0, 0))
    opened.folder.chmod(0o555)
    unprivileged_folder.chmod(0o555)
    opened = FeatureStore.open(opened.folder, manifest())
    assert opened.complete
    assert same_bits(opened.block(2), numbers(opened, 2))
    with pytest.raises(
        PermissionError,
        match=r"store: cannot write block 0 .*Permission denied; check the folder and its "
        r"permissions",
    ):
        opened.write(0, numbers(opened, 0))
    with pytest.raises(
        PermissionError, match=r"store: cannot make a store in .*new: Permission denied"
    ):
        FeatureStore.open(unprivileged_folder / "new", manifest())
    assert opened.complete
    block_file(opened, 1).chmod(0)
    with pytest.warns(UserWarning, match=r"block 1 in .* cannot be read \(Permission denied\)"):
        assert opened.missing() == [1]


# Where they are


def test_find_gives_a_complete_store_of_exactly_these_features(tmp_path):
    description = manifest()
    assert store.find(description, tmp_path) is None
    opened = FeatureStore.open(store.folder_of(description, tmp_path), description)
    for index in range(3):
        assert store.find(description, tmp_path) is None
        opened.write(index, numbers(opened, index))
    found = store.find(description, tmp_path)
    assert found is not None
    assert same_bits(found.block(1), numbers(opened, 1))
    assert store.find(manifest(key=jax.random.key(1)), tmp_path) is None
    data = bytearray(block_file(opened, 0).read_bytes())
    data[-1] ^= 1
    block_file(opened, 0).write_bytes(data)
    with pytest.warns(UserWarning, match="is corrupted"):
        assert store.find(description, tmp_path) is None


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NTK_TT_CACHE", str(tmp_path))
    assert store.default_folder() == tmp_path
    assert store.folder_of(manifest()) == tmp_path / identity(manifest())
    monkeypatch.delenv("NTK_TT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for platform, folder in (
        ("linux", tmp_path / "cache" / "ntk-tt"),
        ("darwin", Path.home() / "Library" / "Caches" / "ntk-tt"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert store.default_folder() == folder


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("relative/cache", "{here}/relative/cache"),
        ("~/cache", "{home}/cache"),
        ("", "{home}/.cache/ntk-tt"),
        ("  ", "{home}/.cache/ntk-tt"),
        ("/a b\n'é\udcff", "/a b\n'é\udcff"),
    ],
)
def test_odd_names_of_the_default_folder(monkeypatch, tmp_path, given, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as none
    monkeypatch.setenv("NTK_TT_CACHE", given)
    assert store.default_folder() == Path(folder.format(here=tmp_path, home=tmp_path / "home"))


def test_no_home_folder_is_said(monkeypatch):
    def none(*_):
        raise RuntimeError("Could not determine home directory.")

    for name in ("NTK_TT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(
        ValueError,
        match=r"NTK_TT_CACHE: there is no home folder .*; set NTK_TT_CACHE to a folder, or give "
        r"--store",
    ):
        store.default_folder()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_projections": 0}, "num_projections: must be at least 1, got 0"),
        ({"block_size": 0}, "block_size: must be at least 1, got 0"),
        ({"inputs": INPUTS[:0]}, "inputs: must be at least 1, got 0"),
        ({"dtype": "int32"}, "dtype: features cannot be stored as int32; give one of float64"),
        ({"settings": {"path": object()}}, "settings: must be JSON values"),
        ({"settings": {"scale": np.nan}}, "settings: must be JSON values"),
    ],
)
def test_bad_descriptions(changes, message):
    with pytest.raises(ValueError, match=message):
        manifest(**changes)


def test_bad_arguments_of_a_store(unchecked, filled, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"features: block 2 must have shape \(1, 2, 3\) and dtype float32, got \(2, 2, 3\) "
        r"and float32",
    ):
        filled.write(2, numbers(filled, 1))
    with pytest.raises(ValueError, match=r"and dtype float32, got .* and float64"):
        filled.write(0, numbers(filled, 0).astype(np.float64))
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"index: must lie in 0 … 2, got {index}"):
            filled.block(index)
    for indices in ([-1, 0], [0, 5]):
        with pytest.raises(ValueError, match="indices: must lie in 0 … 4, got"):
            filled.rows(np.array(indices))
    with pytest.raises(
        ValueError, match=r"holds no features \(it has no manifest\.json\); give the manifest"
    ):
        FeatureStore.open(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match=r"cannot make a store in .*File exists"):
        FeatureStore.open(block_file(filled, 0), manifest())
