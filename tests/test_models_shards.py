"""Weights in several files, and the hub's ways to keep them."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ntk_tt.models import MODELS, load_model, read_weights
from ntk_tt.models.load import weight_file
from tests.torch_files import Checkpoint

MAP = "weight_map"


def bundled() -> dict[str, np.ndarray]:
    return read_weights(weight_file("resnet8", MODELS["resnet8"], "bundled"))[0]


def in_shards(folder: Path, kind: str, arrays: dict[str, np.ndarray], number: int = 3) -> Path:
    """Files as `save_pretrained` makes them; the index."""
    names, held = sorted(arrays), {}
    for which in range(number):
        mine = {name: arrays[name] for name in names[which::number]}
        file = folder / f"{kind}-{which + 1:05}-of-{number:05}"
        if kind == "model":
            file = file.with_name(f"{file.name}.safetensors")
            safetensors.numpy.save_file(mine, str(file))
        else:
            file = file.with_name(f"{file.name}.bin")
            Checkpoint(mine).zip(file)
        held |= dict.fromkeys(mine, file.name)
    suffix = "safetensors" if kind == "model" else "bin"
    index = folder / f"{kind}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, MAP: held}))
    return index


def same(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("kind", ["model", "pytorch_model"])
def test_an_index_reads_as_the_files_that_it_names(kind, tmp_path):
    arrays = bundled()
    index = in_shards(tmp_path, kind, arrays)
    same(read_weights(index)[0], arrays)
    assert load_model(weights=str(index), num_classes=3).num_classes == 3


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({}, "it names no tensors"),
        ([], "it names no tensors"),
        ({"a": "../secret.safetensors"}, r"'\.\./secret\.safetensors', which is not beside it"),
        ({"a": "/etc/passwd"}, "which is not beside it"),
        ({"a": "b\\c.bin"}, "which is not beside it"),
        ({"a": ".."}, "which is not beside it"),
        ({"a": ""}, "which is not beside it"),
        ({"a": 3}, "the file '3', which is not beside it"),
        (["a"], "list"),
        ({str(which): str(which) for which in range(5000)}, "more than 4096 files"),
        ({"a": "nothing.safetensors"}, "there is no file"),
        ({"a": "model.safetensors.index.json"}, "an index that another one names"),
        ({"a": "one.safetensors"}, r"'a' is not in '.*one\.safetensors' where"),
        ({"a": "text.txt"}, "no checkpoint that can be read"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(held, said, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({MAP: held}))
    (tmp_path / "text.txt").write_text("text")
    safetensors.numpy.save_file({"b": np.ones(2, np.float32)}, str(tmp_path / "one.safetensors"))
    with pytest.raises(ValueError, match=rf"weights: .*{said}"):
        read_weights(index)


@pytest.mark.parametrize(
    "text", ['{"weight_map": ', '{"weight_map": ' + "[" * 100_000, '{"weight_map"']
)
def test_a_damaged_index_is_named(text, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"weights: '.*index\.json' is no index of weights"):
        read_weights(index)


class NotThere(Exception):
    """As huggingface_hub's EntryNotFoundError."""


class Hub:
    """A hub with these files; what was asked for."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.asked = folder, []
        module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("errors")
        errors.EntryNotFoundError = NotThere
        module.errors, module.hf_hub_download = errors, self.download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)

    def download(self, repository: str, name: str) -> str:
        self.asked.append(name)
        if repository == "owner/broken":
            raise LookupError("401 unauthorised\nlong explanation")
        if not (self.folder / name).exists():
            raise NotThere(name)
        return str(self.folder / name)


@pytest.mark.parametrize("kept", ["model", "pytorch_model", "pytorch_model.bin"])
def test_the_hubs_ways_to_keep_weights_are_tried_in_turn(kept, tmp_path, monkeypatch):
    arrays, hub = bundled(), Hub(tmp_path, monkeypatch)
    if kept == "pytorch_model.bin":
        Checkpoint(arrays).zip(tmp_path / kept)
        asked = ["model.safetensors", "model.safetensors.index.json", kept]
    else:
        index = in_shards(tmp_path, kept, arrays, 2)
        shards = sorted(path.name for path in tmp_path.iterdir() if path != index)
        before = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
        asked = [*before[: 1 if kept == "model" else 3], index.name, *shards]
    model = load_model(weights="hf:owner/name", num_classes=3)
    assert hub.asked == asked
    np.testing.assert_array_equal(model.params["stem"]["kernel"], arrays["stem.kernel"])


def test_what_the_hub_does_not_have_is_said(tmp_path, monkeypatch):
    hub = Hub(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"'owner/name' has none of model\.safetensors, .* give"):
        load_model(weights="hf:owner/name")
    with pytest.raises(
        ValueError,
        match=r"weights: cannot get model\.safetensors of 'owner/broken' from the hub \(401 "
        r"unauthorised\); check",
    ):
        load_model(weights="hf:owner/broken")
    index = in_shards(tmp_path, "model", bundled(), 2)
    next(tmp_path.glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"weights: cannot get model-00002-of-00002\.safetensors"):
        load_model(weights="hf:owner/name")
    index.write_text('{"weight_map": {"a": "../../secret"}}')
    hub.asked.clear()
    with pytest.raises(ValueError, match="not beside it"):
        load_model(weights="hf:owner/name")
    assert hub.asked == ["model.safetensors", "model.safetensors.index.json"]
