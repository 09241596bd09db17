"""Files of torch.save: read without PyTorch, and nothing in them is run. The good ones were written
by `tools/parity.py`.
"""

import io
import os
import pickle
import random
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ntk_tt.models import load_model, pickle_machine, read_weights
from ntk_tt.models.stored import kind_of
from ntk_tt.models.torch_pickle import open_torch
from tests import parity
from tests.torch_files import (
    MAGIC,
    Calls,
    Checkpoint,
    Global,
    Reference,
    legacy,
    pickled,
    tensor,
    tensor_file,
    zipped,
)

FIXTURES = Path(__file__).parent / "fixtures"
SHAPES = {
    "layers.0.weight": (4, 12),
    "layers.0.bias": (4,),
    "head.weight": (2, 4),
    "head.bias": (2,),
}


def tensors(path: Path) -> dict[str, np.ndarray]:
    with open_torch(path, kind_of(path)) as (stored, _):
        return {name: each.read() for name, each in stored.items()}


@pytest.mark.parametrize("name", ["plain", "legacy"])
def test_both_formats_give_the_tensors_that_were_saved(name):
    arrays = tensors(FIXTURES / f"{name}.pth")
    assert list(arrays) == list(SHAPES)
    for key, shape in SHAPES.items():
        assert arrays[key].dtype == np.float32
        np.testing.assert_array_equal(arrays[key], parity.parameter(key, shape), err_msg=key)


def test_a_state_dict_is_found_inside_a_training_state():
    arrays = tensors(FIXTURES / "training.pth")
    assert {name for name in arrays if name.startswith("state_dict/")} == {
        f"state_dict/module.{key}" for key in (*SHAPES, "layers.0.num_batches_tracked")
    }
    np.testing.assert_array_equal(
        arrays["state_dict/module.head.weight"], parity.parameter("head.weight", (2, 4))
    )
    assert arrays["state_dict/module.layers.0.num_batches_tracked"] == 3


def test_bfloat16_is_kept():
    arrays = tensors(FIXTURES / "bfloat16.pth")
    np.testing.assert_array_equal(
        arrays["head.bias"], parity.parameter("head.bias", (2,)).astype(ml_dtypes.bfloat16)
    )


def test_a_checkpoint_becomes_a_network():
    model = load_model("mlp", weights=str(FIXTURES / "training.pth"), image_size=2)
    weights = parity.parameters(SHAPES)
    images = model.preprocess(parity.images(2))
    hidden = np.maximum(
        np.asarray(images).reshape(2, 12) @ weights["layers.0.weight"].T + weights["layers.0.bias"],
        0,
    )
    np.testing.assert_allclose(
        model.apply(model.params, images),
        hidden @ weights["head.weight"].T + weights["head.bias"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_pickled_module_is_refused_with_the_remedy():
    with pytest.raises(
        ValueError,
        match=r"weights: '.*module\.pth' is not a readable PyTorch checkpoint \(it asks for "
        r"torch\.nn\.modules\.\w+\.\w+, and only tensors in dictionaries are read; save "
        r"model\.state_dict\(\) alone\)",
    ):
        read_weights(FIXTURES / "module.pth")


# What an attacker or a broken disk makes


@pytest.mark.parametrize("form", ["zip", "legacy root", "legacy machine"])
def test_nothing_that_a_file_names_is_run(form, tmp_path):
    evidence = tmp_path / "was_here"
    attack = Calls(os.mkdir, str(evidence))
    pickle.loads(pickle.dumps(attack))
    assert evidence.is_dir()  # an ordinary unpickler runs it
    evidence.rmdir()
    if form == "zip":
        path = zipped(tmp_path / "evil.pth", pickle.dumps({"a": attack}))
    elif form == "legacy root":
        path = legacy(tmp_path / "evil.pth", MAGIC, 1001, {"little_endian": True}, {"a": attack})
    else:
        path = legacy(tmp_path / "evil.pth", MAGIC, 1001, attack)
    with pytest.raises(ValueError, match=r"it asks for posix\.mkdir, and only tensors"):
        tensors(path)
    assert not evidence.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "torch.load",
        "torch._utils.os",
        "numpy.load",
        "collections.OrderedDict.__init__",
        "ntk_tt.cli.commands.main",
    ],
)
def test_only_listed_names_are_known(name, tmp_path):
    module, _, function = name.rpartition(".")
    root = b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{function}\n".encode() + b"s."
    with pytest.raises(ValueError, match="it asks for"):
        tensors(zipped(tmp_path / "evil.pth", root))


def test_the_stand_ins_cannot_be_changed_by_a_file(tmp_path):
    # GLOBAL rebuild; BUILD with slot state {"__call__": 1, "extra": 1}: setattr on the stand-in
    root = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x05\x00\x00\x00extraK\x01stb."
    with pytest.raises(
        ValueError,
        match=r"is not a readable PyTorch checkpoint .its pickle sets attributes of something of "
        r"type StandIn",
    ):
        tensors(zipped(tmp_path / "evil.pth", root))


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_the_forged_files_below_are_well_formed(tmp_path):
    arrays = tensors(tensor_file(tmp_path / "a.pth", Reference(), 1, (3,), (1,), FOUR))
    np.testing.assert_array_equal(arrays["a"], [1, 2, 3])


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "length", "content"),
    [
        (0, (5,), (1,), 4, FOUR),
        (1, (4,), (1,), 4, FOUR),
        (0, (2,), (4,), 4, FOUR),
        (-1, (1,), (1,), 4, FOUR),
        (3, (2,), (-1,), 4, FOUR),
        (0, (4,), (1,), 4, FOUR[:-4]),
        (0, (8,), (1,), 8, FOUR),
        (0, (-1,), (1,), 4, FOUR),
        (0, (10**12,), (0,), 4, FOUR),
        (0, (2, 2), (1,), 4, FOUR),
        (0, (2**62, 2**62), (2**62, 1), 4, FOUR),
        (4, (1,), (2**70,), 4, FOUR),
        (0, (1,) * 40, (1,) * 40, 4, FOUR),
        (2**70, (1,), (1,), 4, FOUR),
        (True, (1,), (1,), 4, FOUR),
        ("0", (1,), (1,), 4, FOUR),
        (0, "1", (1,), 4, FOUR),
        (0, (1,), (1.0,), 4, FOUR),
        (0, (1,), (1,), -1, FOUR),
        (0, (1,), (1,), 10**30, FOUR),
    ],
)
def test_tensors_beyond_their_storage_are_refused(
    offset, shape, strides, length, content, tmp_path
):
    path = tensor_file(
        tmp_path / "a.pth", Reference(length=length), offset, shape, strides, content
    )
    message = (
        "reaches beyond its storage|holds .* bytes instead of|shape or strides are no short "
        "list|more than 64 times over|no storage of a known kind"
    )
    with pytest.raises(
        ValueError,
        match=rf"weights: '.*a\.pth' is not a readable PyTorch checkpoint \(.*({message})",
    ):
        tensors(path)


def test_compressed_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is compressed"):
        tensors(
            tensor_file(tmp_path / "a.pth", Reference(), 0, (4,), (1,), FOUR, zipfile.ZIP_DEFLATED)
        )


def test_unknown_storages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no storage of a known kind"):
        tensors(tensor_file(tmp_path / "a.pth", Reference("Size"), 0, (4,), (1,), FOUR))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("ComplexFloat", "complex64"),
        ("QInt8", "qint8"),
        ("Char", "int8"),
        ("Bool", "bool"),
        ("Long", "int64"),
        ("Byte", "uint8"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_other_numbers_than_floats_are_named(kind, dtype, form, tmp_path):
    size = {"complex64": 8, "int64": 8}.get(dtype, 1)
    root = {"state_dict": {"fc.weight": tensor(Reference(f"{kind}Storage"), 0, (2, 2), (2, 1))}}
    if form == "zip":
        path = zipped(tmp_path / "a.pth", pickled(root), {"data/0": bytes(4 * size)})
    else:
        path = legacy(
            tmp_path / "a.pth",
            MAGIC,
            1001,
            {"little_endian": True},
            root,
            ["0"],
            data=(4).to_bytes(8, "little") + bytes(4 * size),
        )
    with pytest.raises(
        ValueError,
        match=rf"weights: 'fc\.weight' in '.*a\.pth' is {dtype}, which is not read; convert it to "
        r"float16 or float32",
    ):
        read_weights(path)


@pytest.mark.parametrize(
    "dtype",
    ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "complex32"],
)
def test_numbers_that_have_no_storage_of_their_own_are_named(dtype, tmp_path):
    """float8 lies in bytes without type, and the tensor says what they are."""
    build = Calls(
        Global("torch._utils", "_rebuild_tensor_v3"),
        Reference("UntypedStorage", length=4, module="torch.storage"),
        0,
        (2,),
        (1,),
        False,
        {},
        Global("torch", dtype),
        None,
    )
    with pytest.raises(
        ValueError,
        match=rf"weights: 'fc\.weight' in '.*a\.pth' is {dtype}, which is not read; convert it to "
        r"float16 or float32",
    ):
        read_weights(
            zipped(tmp_path / "a.pth", pickled({"fc.weight": build}), {"data/0": bytes(4)})
        )


def test_quantised_tensors_are_named(tmp_path):
    build = Calls(
        Global("torch._utils", "_rebuild_qtensor"),
        Reference("QInt8Storage"),
        0,
        (2, 2),
        (2, 1),
        (Global("torch", "per_tensor_affine"), 0.1, 0),
        False,
        {},
    )
    with pytest.raises(
        ValueError, match=r"'fc\.weight' in '.*' is qint8, quantised, which is not read"
    ):
        read_weights(
            zipped(tmp_path / "a.pth", pickled({"fc.weight": build}), {"data/0": bytes(4)})
        )


def test_a_tensor_marked_as_negative_is_refused(tmp_path):
    """PyTorch flips its sign when it is read, by a mark beside the numbers."""
    path = zipped(
        tmp_path / "a.pth",
        pickled({"a": tensor(Reference(), 0, (4,), (1,), {"neg": True})}),
        {"data/0": FOUR},
    )
    with pytest.raises(
        ValueError, match=r"a tensor marked as 'neg'; save it again after resolve_neg"
    ):
        tensors(path)


@pytest.mark.parametrize("root", [{}, {"epoch": 3}, [1, 2], 7, {"state_dict": {"a": 1}}])
def test_files_without_tensors_are_refused(root, tmp_path):
    with pytest.raises(
        ValueError, match=r"it holds no dictionary of tensors; save model\.state_dict"
    ):
        tensors(zipped(tmp_path / "a.pth", pickle.dumps(root, 2)))


@pytest.mark.parametrize("name", ["plain", "legacy"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.99])
def test_cut_files_are_refused(name, kept, tmp_path):
    whole = (FIXTURES / f"{name}.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        ValueError, match=r"weights: '.*cut\.pth' is not a readable PyTorch checkpoint"
    ):
        read_weights(tmp_path / "cut.pth")


def test_other_archives_and_formats_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"it is a zip archive without PyTorch's data\.pkl"):
        tensors(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"it does not begin as torch\.save's files do"):
        tensors(legacy(tmp_path / "pickle.pth", {"a": 1}))
    with pytest.raises(ValueError, match="big-endian"):
        tensors(legacy(tmp_path / "big.pth", MAGIC, 1001, {"little_endian": False}))


def test_damaged_values_are_named(tmp_path):
    path = tensor_file(
        tmp_path / "a.pth",
        Reference(),
        0,
        (4,),
        (1,),
        np.asarray([0, 1, np.inf, 2], np.float32).tobytes(),
    )
    with pytest.raises(ValueError, match=r"weights: 'a' in .* holds NaN or infinity"):
        read_weights(path)


# Views of one storage

RNG = np.random.default_rng(0)
TREE = {
    f"block.{index}.weight": RNG.normal(size=(3, 4, 2, 2)).astype(np.float32) for index in range(50)
}


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "order",
    [np.asarray, lambda array: array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)],
    ids=["contiguous", "channels_last"],
)
def test_tensors_of_any_order_are_read_as_they_are(order, form, tmp_path):
    checkpoint = Checkpoint(TREE, order=order)
    for name, array in tensors(getattr(checkpoint, form)(tmp_path / "a.pth")).items():
        np.testing.assert_array_equal(array, TREE[name])


def test_a_storage_of_many_tensors_is_read_once(tmp_path, monkeypatch):
    """And not copied for each of them."""
    read: list[str] = []
    original = zipfile.ZipFile.read

    def counted(archive, entry, *more):
        read.append(entry.filename)
        return original(archive, entry, *more)

    path = Checkpoint(TREE, one_storage=True).zip(tmp_path / "flat.pth")
    monkeypatch.setattr(zipfile.ZipFile, "read", counted)
    found = tensors(path)
    assert sum("/data/" in name for name in read) == 1
    for name, array in TREE.items():
        np.testing.assert_array_equal(found[name], array)
        assert np.shares_memory(found[name], found["block.0.weight"]) == (name == "block.0.weight")
        assert not found[name].flags.owndata


def test_views_of_everything_take_no_memory(tmp_path):
    """500 tensors that each show a whole storage of 4 MB would be 2 GB."""
    content = np.zeros(2**20, np.float32).tobytes()
    views = {
        f"a{index}": tensor(Reference(length=2**20), 0, (2**20,), (1,)) for index in range(500)
    }
    path = zipped(tmp_path / "views.pth", pickled(views), {"data/0": content})
    tracemalloc.start()
    with pytest.raises(
        ValueError,
        match="its tensors show the same numbers more than 64 times over; save each once",
    ):
        tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (3,), (0,), [0, 0, 0]),
        (1, (2, 3), (0, 1), [[1, 2, 3], [1, 2, 3]]),
        (0, (3, 2), (1, 1), [[0, 1], [1, 2], [2, 3]]),
        (0, (2, 2), (1, 2), [[0, 2], [1, 3]]),
        (0, (2,), (3,), [0, 3]),
        (3, (), (), 3),
        (0, (0, 5), (5, 1), np.zeros((0, 5))),
        (4, (0,), (1,), []),
        (3, (1, 1), (2**40, 7), [[3]]),
        (0, (6,), (0,), [0] * 6),
    ],
)
def test_views_of_every_kind_are_right(offset, shape, strides, expected, tmp_path):
    """Expanded, overlapping, transposed, strided, without axes, empty."""
    np.testing.assert_array_equal(
        tensors(tensor_file(tmp_path / "a.pth", Reference(), offset, shape, strides, FOUR))["a"],
        expected,
    )


def test_what_training_scripts_add_is_passed_over(tmp_path):
    """Arguments, paths, numbers of NumPy, an optimiser with numbered entries."""
    added = {
        "args": Calls(Global("argparse", "Namespace")),
        "path": Calls(Global("pathlib", "PosixPath"), "a", "b"),
        "classes": {1, 2},
        "device": Calls(Global("torch", "device"), "cpu"),
        "best": Calls(
            Global("numpy.core.multiarray", "scalar"),
            Calls(Global("numpy", "dtype"), "f8", 0, 1),
            b"12345678",
        ),
        "state": {0: {"step": 1}, (1, 2): 3},
        "type": Global("torch", "float32"),
    }
    np.testing.assert_array_equal(
        read_weights(
            Checkpoint({"model": {"a": np.ones(2, np.float32)}, **added}).zip(tmp_path / "a.pth")
        )[0]["a"],
        [1, 1],
    )


# Pickles that ask for work without end: each is a few hundred bytes, or asks for more than a file
# of its size can need

# a pair of the last pair, twice: 2⁸⁰ leaves
NESTED = b"\x80\x02)" + b"".join(b"q\x00h\x00\x86" for _ in range(80))


@pytest.mark.slow_but("zip-*")
@pytest.mark.parametrize(
    ("name", "pickle_bytes"),
    [
        ("as a reference", NESTED + b"Q."),
        ("as a key", b"\x80\x02}" + NESTED[2:] + b"K\x01s."),
        ("in a set", b"\x80\x04\x8f(" + NESTED[2:] + b"\x90."),
        ("as a frozen set", b"\x80\x04(" + NESTED[2:] + b"\x91."),
        ("as a root", NESTED + b"."),
        ("as a shape", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN" + NESTED[2:] + b"\x86R."),
        ("as a name", b"\x80\x04" + NESTED[2:] + NESTED[2:] + b"\x93."),
        ("as a function", NESTED + b")R."),
        ("as a state", b"\x80\x02}" + NESTED[2:] + b"b."),
        ("as a size", b"\x80\x02ctorch\nSize\n" + NESTED[2:] + b"\x85R."),
        (
            "as a storage's name",
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
            + NESTED[2:]
            + b"X\x03\x00\x00\x00cpuK\x01tQ.",
        ),
        ("a list in itself", b"\x80\x02]q\x00h\x00a."),
        ("a dictionary in itself", b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."),
        (
            "dictionaries of one another",
            b"\x80\x02}"
            + b"".join(b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u" for _ in range(80))
            + b".",
        ),
        ("deep lists", b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
        ("deep tuples", b"\x80\x02)" + b"\x85" * 20_000 + b"."),
        ("nothing on the stack", b"\x80\x020."),
        ("no mark", b"\x80\x02t."),
        ("what was not made", b"\x80\x02h\x07."),
        ("without end", b"\x80\x02" + b"N" * 1000),
        ("a long text", b"\x80\x02X\xff\xff\xff\x7fabc."),
        ("a longer text", b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc."),
        ("a number of many digits", b"\x80\x02L" + b"9" * 100_000 + b"L\n."),
        ("instructions that call", b"(S'echo'\nios\nsystem\n."),
        ("a class", b"\x80\x02(cbuiltins\nlist\no."),
        ("an extension", b"\x80\x02\x82\x01."),
        ("empty", b"."),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_that_grows_without_end_is_refused_at_once(name, pickle_bytes, form, tmp_path):
    path = zipped(tmp_path / "evil.pth", pickle_bytes) if form == "zip" else tmp_path / "evil.pth"
    if form == "legacy":
        path.write_bytes(
            pickled(MAGIC) + pickled(1001) + pickled({"little_endian": True}) + pickle_bytes
        )
    start = time.process_time()
    with pytest.raises(
        ValueError, match=r"weights: '.*evil\.pth' is not a readable PyTorch checkpoint \(.+\)"
    ) as caught:
        tensors(path)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 600
    assert "checkpoint ()" not in str(caught.value)


def test_the_number_of_instructions_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(
        ValueError, match="its pickle has more than 1000 instructions; save the state dict alone"
    ):
        tensors(zipped(tmp_path / "flood.pth", b"\x80\x02N" + b"q\x00" * 10**6 + b"."))


def test_a_list_of_pairs_serves_one_dictionary(tmp_path):
    """A list of a million pairs, named again and again at five bytes each, would be work without
    end.
    """
    root = (
        b"\x80\x02](X\x01\x00\x00\x00aK\x01\x86eq\x00(ccollections\nOrderedDict\nq\x01h\x00\x85R"
        b"h\x01h\x00\x85Rl."
    )
    assert pickle_machine.load(
        io.BytesIO(root),
        lambda *_: pickle_machine.StandIn(pickle_machine.ordered_dict),
        lambda _: None,
    ) == [{"a": 1}, {}]


def test_names_in_an_archive_lead_nowhere(tmp_path):
    """Nothing is unpacked, so a path in a name is only a name that is not there."""
    root = pickled({"a": tensor(Reference(key="../../../../etc/passwd"), 0, (4,), (1,))})
    with pytest.raises(ValueError, match=r"its entry 'archive/data/\.\./.*etc/passwd' is missing"):
        tensors(zipped(tmp_path / "a.pth", root, {"../../../../etc/passwd2": FOUR}))
    path = tmp_path / "b.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../data.pkl", pickled({"a": tensor(Reference(), 0, (4,), (1,))}))
        archive.writestr("../data/0", FOUR)
    np.testing.assert_array_equal(tensors(path)["a"], [0, 1, 2, 3])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.pth", path]


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(
            tmp_path / "a.pth",
            pickled({"a": tensor(Reference(), 0, (4,), (1,))}),
            {"data/0": FOUR, "data.pkl": b"\x80\x02N."},
        )
    with pytest.raises(ValueError, match="its entries overlap"):
        tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("declared", [2**31, 5])
def test_a_declared_size_is_not_believed(declared, tmp_path):
    """The directory at the archive's end says how long an entry is; the storage says so too."""
    path = tensor_file(tmp_path / "a.pth", Reference(), 0, (4,), (1,), FOUR)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = declared.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"its entry 'archive/data/0' holds {declared} bytes instead of 16"
    ):
        tensors(path)


def test_a_silent_exception_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    with pytest.raises(ValueError, match=r"is not a readable PyTorch checkpoint \(MemoryError\)"):
        tensors(FIXTURES / "plain.pth")


# Mutations, with fixed seeds

SMALL = {
    "state_dict": {
        "module.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "module.a.bias": np.arange(2, dtype=np.float16),
        "module.num_batches_tracked": np.asarray(3),
    },
    "epoch": 3,
}


def small_file(form: str, path: Path) -> Path:
    if form == "safetensors":
        safetensors.numpy.save_file(
            {
                "a.kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
                "a.bias": np.arange(2, dtype=np.float16),
            },
            str(path),
        )
        return path
    return getattr(Checkpoint(SMALL), form)(path)


def mutated(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 8))):
        at = generator.randrange(len(changed))
        match generator.randrange(5):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                changed[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + generator.randrange(1, 20)]
            case 3:
                changed[at:at] = changed[at : at + generator.randrange(1, 40)]
            case _:
                changed[at : at + 8] = generator.choice(
                    (b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", (2**62).to_bytes(8, "little"))
                )
        if not changed:
            break
    return bytes(changed)


@pytest.mark.slow_but("safetensors")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_any_mutation_is_read_or_refused_with_the_file_named(form, tmp_path):
    """200 each: nothing but a ValueError with the file's name, in bounded time and memory; what is
    read is finite and small.
    """
    content, generator, path = (
        small_file(form, tmp_path / "whole").read_bytes(),
        random.Random(0),
        tmp_path / "mutated",
    )
    messages: list[str] = []
    start = time.process_time()
    tracemalloc.start()
    for _ in range(200):
        path.write_bytes(mutated(content, generator))
        try:
            arrays, _ = read_weights(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert sum(array.size for array in arrays.values()) < 10_000
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert time.process_time() - start < 60
    assert len(messages) > 100
    assert all(str(path) in message and len(message) < 1000 for message in messages)


@pytest.mark.slow
def test_every_flipped_byte_of_an_archive_is_found_or_changes_nothing(tmp_path):
    """The archive has checksums: of every byte one bit is flipped, and never are other numbers
    read.
    """
    path = Checkpoint(
        {
            "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
            "a.bias": np.arange(2, dtype=np.float16),
        }
    ).zip(tmp_path / "whole.pth")
    content, expected, found = path.read_bytes(), read_weights(path)[0], 0
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            arrays, _ = read_weights(path)
        except ValueError:
            found += 1
            continue
        assert set(arrays) == set(expected)
        assert all(
            np.array_equal(arrays[name], expected[name])
            and arrays[name].dtype == expected[name].dtype
            for name in arrays
        )
    assert found > len(content) / 2


def test_flipped_bytes_of_a_header_are_found_and_of_numbers_are_not(tmp_path):
    """A safetensors file and the old form of torch.save have no checksum: their numbers can change
    unseen, their shapes and types hardly.
    """
    path = small_file("safetensors", tmp_path / "whole.safetensors")
    content, expected = path.read_bytes(), read_weights(path)[0]
    unseen = 0
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        try:
            arrays, _ = read_weights(path)
        except ValueError:
            continue
        assert at >= len(content) - 28  # behind the header
        assert {name: array.shape for name, array in arrays.items()} == {
            name: array.shape for name, array in expected.items()
        }
        unseen += 1
    assert unseen > 0
