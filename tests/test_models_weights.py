"""Checkpoints: what is read, what is refused and how that is said."""

import bz2
import gzip
import json
import lzma
import os
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from ntk_tt.models import MODELS, from_nnx, load_model, read_weights, save_weights
from ntk_tt.models.load import weight_file
from ntk_tt.models.zoo.resnet8 import ResNet8
from ntk_tt.runtime.parameter_names import named_leaves

NUM_PRETRAINED_CLASSES = 200


def arrays_of(module: nnx.Module) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(leaf)
        for name, leaf in named_leaves(nnx.to_pure_dict(nnx.state(module))).items()
    }


def _bundled_file() -> str:
    return str(weight_file("resnet8", MODELS["resnet8"], "bundled"))


@pytest.fixture
def checkpoint(tmp_path):
    """Writes the bundled arrays, changed by a function, and returns the file's name."""

    def write(change, name="changed.safetensors") -> str:
        arrays, _ = read_weights(_bundled_file())
        change(arrays)
        safetensors.numpy.save_file(arrays, str(tmp_path / name))
        return str(tmp_path / name)

    return write


def test_saved_weights_come_back(tmp_path):
    module = ResNet8(7, rngs=nnx.Rngs(3))
    module.stem_norm.mean[...] = jnp.linspace(-1, 1, 16)
    path, record = (
        tmp_path / "weights.safetensors",
        {"data": "made up", "steps": 12, "rates": [0.1, 0.2]},
    )
    save_weights(path, nnx.to_pure_dict(nnx.state(module)), dtype=np.float32, record=record)
    arrays, read_record = read_weights(path)
    assert read_record == record
    original = arrays_of(module)
    assert set(arrays) == set(original)
    assert all((arrays[name] == original[name]).all() for name in original)

    model, expected = load_model("resnet8", weights=str(path)), from_nnx(module)
    assert model.num_classes == 7
    for restored, first in zip(
        jax.tree.leaves((model.params, model.batch_statistics.state)),
        jax.tree.leaves((expected.params, expected.batch_statistics.state)),
        strict=True,
    ):
        np.testing.assert_array_equal(restored, first)


def test_half_precision_checkpoints_are_read_in_full_precision(tmp_path):
    module = ResNet8(2, rngs=nnx.Rngs(3))
    save_weights(
        tmp_path / "half.safetensors", nnx.to_pure_dict(nnx.state(module)), dtype=np.float16
    )
    kernel = load_model(weights=str(tmp_path / "half.safetensors")).params["stem"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(
        kernel, np.asarray(module.stem.kernel[...]).astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize("record", ["not json", "[1]", "null", "[" * 100_000])
def test_metadata_of_other_programs_is_no_record(record, tmp_path):
    safetensors.numpy.save_file(
        {"a": np.ones(2, np.float32)},
        str(tmp_path / "other.safetensors"),
        metadata={"record": record},
    )
    arrays, read_record = read_weights(tmp_path / "other.safetensors")
    assert read_record == {}
    np.testing.assert_array_equal(arrays["a"], [1, 1])


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="model: unknown network 'resnet9'; known: resnet8"):
        load_model("resnet9")


def test_random_weights_need_a_number_of_classes():
    with pytest.raises(
        ValueError,
        match="num_classes: give the number of classes for a randomly initialised network",
    ):
        load_model(weights="random")
    with pytest.raises(ValueError, match="num_classes: must be at least 1, got 0"):
        load_model(num_classes=0)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"weights: there is no file '.*nothing\.safetensors'; give a \.safetensors or \.pth "
        r"file",
    ):
        load_model(weights=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ValueError, match=r"weights: '.*' is a folder; give a file of weights$"):
        load_model(weights=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(
        ValueError, match=r"is a folder; give a file of weights, such as '.*model\.safetensors'"
    ):
        load_model(weights=str(tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("model.safetensors/inside", "loop", "x" * 300, "a\0b"):
        with pytest.raises(ValueError, match="weights: there is no file"):
            load_model(weights=str(tmp_path / name))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_may_never_end_is_not_opened(kind, tmp_path):
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe.safetensors"
        os.mkfifo(path)
    with pytest.raises(ValueError, match=f"weights: '{path}' is a pipe or a device, not a file"):
        load_model(weights=str(path))


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "is empty; download it again"),
        (b"garbage", "text that begins with 'garbage'"),
        (b"\xff" * 100, "neither safetensors nor a file of torch.save"),
        (b"\0" * 5000, "nothing but zeros, as an interrupted download leaves"),
        (b"<!DOCTYPE html><html>", "a web page, as a failed download leaves; download it again"),
        (b"\xef\xbb\xbf\n <html lang=de>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "a web page"),
        (b'{"architectures": ["ResNet"]}', "text in JSON: a configuration"),
        ("Bitte anmelden: ä".encode(), "text that begins with"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n",
            "a pointer of git LFS and not the weights themselves; run git lfs pull",
        ),
        (gzip.compress(b"1"), "a file compressed by gzip; unpack it with gunzip"),
        (bz2.compress(b"1"), "a file compressed by bzip2"),
        (lzma.compress(b"1"), "a file compressed by xz"),
        (b"\x28\xb5\x2f\xfd123", "a file compressed by zstd"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", r"HDF5, as Keras writes \(\.h5\); convert it"),
        (b"\x08\x07\x12\x07pytorch\x1a\x032.1", "ONNX; export the weights"),
        (b"\x08\x01\x12\xff\x01", "TensorFlow's SavedModel"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"\x81\xa6params\x82", "msgpack, as flax.serialization writes"),
        (b"\xde\x00\x10\xa6params", "msgpack"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"\x93NUMPY\1\0", "an array of NumPy"),
        (b"\x89PNG\r\n", "an image"),
        (
            b"sys_info" + b"\0" * 249 + b"ustar\x0000" + b"\0" * 300,
            "a tar archive, as the first releases of PyTorch",
        ),
        (b"a/" + b"\0" * 255 + b"ustar\x0000" + b"\0" * 300, "a tar archive; unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pth"])
def test_what_is_no_checkpoint_is_said_to_be_what_it_looks_like(content, looks, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"weights: '.*{name}' (is no checkpoint that can be read: it looks like )?{looks}",
    ):
        load_model(weights=str(tmp_path / name))


def test_other_archives_are_said_to_be_what_they_look_like(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    for name, entry, looks in (
        ("arrays.npz", None, r"NumPy's \.npz"),
        ("a.keras", "model.weights.h5", "Keras's"),
        ("a.zip", "inner/last.ckpt", "unpack it and give 'inner/last.ckpt'"),
    ):
        if entry is not None:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.writestr(entry, b"1")
        with pytest.raises(
            ValueError, match=rf"it is a zip archive without PyTorch's data\.pkl; .*{looks}"
        ):
            load_model(weights=str(tmp_path / name))


def tensor_of(dtype: str, num_bytes: int, path: Path, name: str = "fc.weight") -> str:
    header = json.dumps(
        {name: {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, num_bytes]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "num_bytes"),
    [
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("F4", 4),
        ("C64", 64),
        ("BOOL", 8),
        ("I8", 8),
        ("U8", 8),
        ("I32", 32),
    ],
)
def test_other_numbers_than_floats_are_named(dtype, num_bytes, tmp_path):
    path = tensor_of(dtype, num_bytes, tmp_path / "small.safetensors")
    is_unknown = dtype in ("F8_E8M0", "F4", "C64") and metadata.version("safetensors") < "0.7"
    for load in (
        lambda: load_model("resnet18", weights=path, num_classes=2, image_size=32),
        lambda: read_weights(path),
    ):
        with pytest.raises(
            ValueError,
            match=r"weights: '.*small\.safetensors' is not a readable safetensors file"
            if is_unknown
            else rf"weights: 'fc\.weight' in '.*small\.safetensors' is {dtype}, which is not "
            r"read; convert it to float16 or float32",
        ):
            load()


def test_numbers_too_large_for_the_network_are_named(tmp_path):
    """float64 holds what float32 makes infinite."""
    arrays, _ = read_weights(_bundled_file())
    arrays["block1.conv1.kernel"] = arrays["block1.conv1.kernel"].astype(np.float64)
    arrays["block1.conv1.kernel"][0, 0, 0, 0] = 1e300
    safetensors.numpy.save_file(arrays, str(tmp_path / "large.safetensors"))
    with pytest.raises(
        ValueError,
        match=r"weights: 'block1\.conv1\.kernel' in '.*large\.safetensors' holds numbers too large "
        r"for float32",
    ):
        load_model(weights=str(tmp_path / "large.safetensors"), num_classes=2)


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b'{"__metadata__": {"record": 3}}',
        b'{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}',
        b'{"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b"{\xff}",
    ],
)
def test_a_hostile_header_is_refused(header, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(
        ValueError,
        match=r"weights: '.*hostile\.safetensors' is not a readable safetensors file \(.+\)",
    ):
        load_model(weights=str(path))


@pytest.mark.parametrize(
    "record",
    [
        {"image_size": "large"},
        {"image_size": 10**400},
        {"image_size": -3},
        {"mean": [1, 2]},
        {"std": 3},
        {"mean": ["a", 0, 0]},
    ],
)
def test_a_record_that_is_none_is_refused(record, tmp_path):
    arrays, _ = read_weights(_bundled_file())
    safetensors.numpy.save_file(
        arrays, str(tmp_path / "a.safetensors"), metadata={"record": json.dumps(record)}
    )
    with pytest.raises(
        ValueError,
        match=r"weights: the record in '.*a\.safetensors' has an image_size, mean or std that is "
        r"none",
    ):
        load_model(weights=str(tmp_path / "a.safetensors"))


def test_a_cut_checkpoint_is_refused(checkpoint, tmp_path):
    whole = checkpoint(lambda arrays: None)
    cut = tmp_path / "cut.safetensors"
    with open(whole, "rb") as file:
        cut.write_bytes(file.read()[:-1000])
    with pytest.raises(
        ValueError, match=r"weights: '.*cut\.safetensors' is not a readable safetensors file"
    ):
        load_model(weights=str(cut))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["block2.conv2.kernel", "block1.norm1.var"])
def test_non_finite_weights_are_named(name, value, checkpoint):
    def damage(arrays):
        arrays[name].reshape(-1)[-1] = value

    with pytest.raises(
        ValueError, match=rf"weights: '{name}' in '.*changed\.safetensors' holds NaN or infinity"
    ):
        load_model(weights=checkpoint(damage), num_classes=3)


def test_non_finite_bfloat16_weights_are_named(tmp_path):
    safetensors.numpy.save_file(
        {"a": np.asarray([1, np.nan], ml_dtypes.bfloat16)}, str(tmp_path / "brain.safetensors")
    )
    with pytest.raises(ValueError, match=r"weights: 'a' in .* holds NaN or infinity"):
        read_weights(tmp_path / "brain.safetensors")


def test_a_missing_name_is_given_with_the_shape_it_needs(checkpoint):
    path = checkpoint(lambda arrays: arrays.pop("block3.conv1.kernel"))
    with pytest.raises(
        ValueError,
        match=r"weights: '.*changed\.safetensors' has no 'block3\.conv1\.kernel' \(the network "
        r"needs shape \(3, 3, 48, 96\)\)",
    ):
        load_model(weights=path)


def test_a_wrong_shape_is_given_with_both_shapes(checkpoint):
    def transpose(arrays):
        arrays["block2.conv1.kernel"] = np.ascontiguousarray(
            arrays["block2.conv1.kernel"].transpose(3, 2, 0, 1)
        )

    with pytest.raises(
        ValueError,
        match=r"weights: 'block2\.conv1\.kernel' has shape \(48, 16, 3, 3\) in '.*', but the "
        r"network needs \(3, 3, 16, 48\)",
    ):
        load_model(weights=checkpoint(transpose), num_classes=3)


def test_an_extra_name_is_given(checkpoint):
    path = checkpoint(
        lambda arrays: arrays.update({"block4.conv1.kernel": np.zeros((1, 2), np.float32)})
    )
    with pytest.raises(
        ValueError,
        match=r"weights: '.*' holds 'block4\.conv1\.kernel' \(1, 2\), which the network does not "
        r"have",
    ):
        load_model(weights=path, num_classes=3)


def test_a_backbone_without_head_has_features_or_takes_a_new_one(checkpoint):
    def behead(arrays):
        del arrays["head.kernel"], arrays["head.bias"]

    path, bundled = checkpoint(behead), load_model()
    backbone = load_model(weights=path)
    assert (backbone.num_classes, backbone.head) == (0, "")
    images = jnp.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(
        backbone.features(backbone.params, images), bundled.features(bundled.params, images)
    )
    with pytest.raises(
        ValueError,
        match="apply: this network has no head, only `features`; load it with num_classes for a "
        "new one",
    ):
        backbone.apply(backbone.params, images)
    assert load_model(weights=path, num_classes=3).num_classes == 3


def test_the_hub_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError,
        match=r"weights: 'hf:' needs huggingface_hub; install it with: pip install 'ntk-tt\[hub\]'",
    ):
        load_model(weights="hf:owner/name")
