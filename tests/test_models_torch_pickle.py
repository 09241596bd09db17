"""Files of torch.save: read without PyTorch, and nothing in them is run. The good ones were written by `experiments/parity.py`."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ntk_tt.models import load_model, read_weights
from ntk_tt.models import torch_pickle as reader
from tests import parity

FIXTURES = Path(__file__).parent / "fixtures"
SHAPES = {"layers.0.weight": (4, 12), "layers.0.bias": (4,), "head.weight": (2, 4), "head.bias": (2,)}


@pytest.mark.parametrize("name", ["plain", "legacy"])
def test_both_formats_give_the_tensors_that_were_saved(name):
    arrays = reader.read_torch(FIXTURES / f"{name}.pth")
    assert list(arrays) == list(SHAPES)
    for key, shape in SHAPES.items():
        assert arrays[key].dtype == np.float32
        np.testing.assert_array_equal(arrays[key], parity.parameter(key, shape), err_msg=key)


def test_a_state_dict_is_found_inside_a_training_state():
    arrays = reader.read_torch(FIXTURES / "training.pth")
    assert set(arrays) == {f"module.{key}" for key in SHAPES} | {"module.layers.0.num_batches_tracked"}
    np.testing.assert_array_equal(arrays["module.head.weight"], parity.parameter("head.weight", (2, 4)))
    assert arrays["module.layers.0.num_batches_tracked"] == 3


def test_bfloat16_is_kept():
    arrays = reader.read_torch(FIXTURES / "bfloat16.pth")
    np.testing.assert_array_equal(arrays["head.bias"], parity.parameter("head.bias", (2,)).astype(ml_dtypes.bfloat16))


def test_a_checkpoint_becomes_a_network():
    model = load_model("mlp", weights=str(FIXTURES / "training.pth"), image_size=2)
    weights = parity.parameters(SHAPES)
    images = model.preprocess(parity.images(2))
    hidden = np.maximum(np.asarray(images).reshape(2, 12) @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    np.testing.assert_allclose(model.apply(model.params, images), hidden @ weights["head.weight"].T + weights["head.bias"], rtol=1e-5, atol=1e-5)


def test_a_pickled_module_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"weights: '.*module\.pth' is not a readable PyTorch checkpoint \(it asks for torch\.nn\.modules\.\w+\.\w+, and only tensors in dictionaries are read; save model\.state_dict\(\) alone\)"):
        read_weights(FIXTURES / "module.pth")


# What an attacker or a broken disk makes


def zipped(path: Path, root: bytes, entries: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", root)
        for name, content in (entries or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def legacy(path: Path, *values) -> Path:
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in values))
    return path


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
        path = legacy(tmp_path / "evil.pth", reader._LEGACY_MAGIC, 1001, {"little_endian": True}, {"a": attack})
    else:
        path = legacy(tmp_path / "evil.pth", reader._LEGACY_MAGIC, 1001, attack)
    with pytest.raises(ValueError, match=r"it asks for posix\.mkdir, and only tensors"):
        reader.read_torch(path)
    assert not evidence.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.load", "torch._utils.os", "numpy.load", "collections.OrderedDict.__init__", "ntk_tt.cli.main"])
def test_only_listed_names_are_known(name, tmp_path):
    module, _, function = name.rpartition(".")
    root = b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{function}\n".encode() + b"s."
    with pytest.raises(ValueError, match="it asks for"):
        reader.read_torch(zipped(tmp_path / "evil.pth", root))


def test_the_stand_ins_cannot_be_changed_by_a_file(tmp_path):
    # GLOBAL rebuild; BUILD with slot state {"__call__": 1, "extra": 1}: setattr on the stand-in
    root = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x05\x00\x00\x00extraK\x01stb."
    with pytest.raises(ValueError, match="is not a readable PyTorch checkpoint"):
        reader.read_torch(zipped(tmp_path / "evil.pth", root))
    assert not hasattr(reader._ALLOWED["torch._utils", "_rebuild_tensor_v2"], "extra")


class _Storage:
    """Pickled as a reference to a storage, as torch.save does."""

    def __init__(self, kind="FloatStorage", key="0", length=4):
        self.reference = ("storage", Global("torch", kind), key, "cpu", length)


class Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Pickler(pickle._Pickler):
    """Writes references to storages and names of PyTorch that are not installed here."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, _Storage) else None

    def save_global_stand_in(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_rebuild(self, obj):
        self.save(Global("torch._utils", "_rebuild_tensor_v2"))
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    dispatch = {**pickle._Pickler.dispatch, Global: save_global_stand_in, Calls: save_rebuild}  # noqa: RUF012


def tensor_file(path: Path, storage: _Storage, offset, shape, strides, content: bytes, compression=zipfile.ZIP_STORED) -> Path:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Calls(None, storage, offset, shape, strides, False, collections.OrderedDict())})
    return zipped(path, buffer.getvalue(), {"data/0": content}, compression)


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_the_forged_files_below_are_well_formed(tmp_path):
    arrays = reader.read_torch(tensor_file(tmp_path / "a.pth", _Storage(), 1, (3,), (1,), FOUR))
    np.testing.assert_array_equal(arrays["a"], [1, 2, 3])


@pytest.mark.parametrize(("offset", "shape", "strides", "length", "content"), [
    (0, (5,), (1,), 4, FOUR), (1, (4,), (1,), 4, FOUR), (0, (2,), (4,), 4, FOUR), (-1, (1,), (1,), 4, FOUR), (3, (2,), (-1,), 4, FOUR),
    (0, (10**12,), (0,), 4, FOUR), (0, (4,), (1,), 4, FOUR[:-4]), (0, (8,), (1,), 8, FOUR), (0, (-1,), (1,), 4, FOUR),
])
def test_tensors_beyond_their_storage_are_refused(offset, shape, strides, length, content, tmp_path):
    path = tensor_file(tmp_path / "a.pth", _Storage(length=length), offset, shape, strides, content)
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        reader.read_torch(path)


def test_compressed_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is compressed"):
        reader.read_torch(tensor_file(tmp_path / "a.pth", _Storage(), 0, (4,), (1,), FOUR, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(("kind", "message"), [("ComplexFloatStorage", "it asks for torch.ComplexFloatStorage"), ("Size", "which is no storage of a known kind")])
def test_unknown_storages_are_refused(kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reader.read_torch(tensor_file(tmp_path / "a.pth", _Storage(kind), 0, (4,), (1,), FOUR))


@pytest.mark.parametrize("root", [{}, {"epoch": 3}, [1, 2], 7, {"state_dict": {"a": 1}}])
def test_files_without_tensors_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="it holds no dictionary of tensors, at its top or under 'state_dict'"):
        reader.read_torch(zipped(tmp_path / "a.pth", pickle.dumps(root, 2)))


@pytest.mark.parametrize("name", ["plain", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 0.99])
def test_cut_files_are_refused(name, kept, tmp_path):
    whole = (FIXTURES / f"{name}.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"weights: '.*cut\.pth' is not a readable PyTorch checkpoint"):
        read_weights(tmp_path / "cut.pth")


def test_other_archives_and_formats_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"it is a zip archive without PyTorch's data\.pkl"):
        reader.read_torch(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"it does not begin as torch\.save's files do"):
        reader.read_torch(legacy(tmp_path / "pickle.pth", {"a": 1}))
    with pytest.raises(ValueError, match="big-endian"):
        reader.read_torch(legacy(tmp_path / "big.pth", reader._LEGACY_MAGIC, 1001, {"little_endian": False}))


def test_damaged_values_are_named(tmp_path):
    path = tensor_file(tmp_path / "a.pth", _Storage(), 0, (4,), (1,), np.asarray([0, 1, np.inf, 2], np.float32).tobytes())
    with pytest.raises(ValueError, match=r"weights: 'a' in .* holds NaN or infinity"):
        read_weights(path)
