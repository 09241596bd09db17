"""The script for a GPU goes on where it was, needs no more than it may, and is small to carry."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.gpu import Size, measurements
from benchmarks.gpu_records import Records, run
from benchmarks.gpu_table import half_time, table
from tools import gpu_data

ROOT = Path(__file__).resolve().parents[1]
MISSING = ("sklearn", "tyro", "tensorflow", "tensorflow_datasets", "huggingface_hub", "beartype")
TINY = """
import sys
sys.modules |= dict.fromkeys({missing!r})  # importing one of these now fails
from benchmarks import gpu
gpu.main(["--tiny"])
"""


def records_in(folder: Path, described=None) -> Records:
    path = folder / "gpu.json"
    return Records(read=[path], write=path, described=described or {"side": 4})


@pytest.mark.slow
def test_tiny_run_measures_all_and_needs_no_more_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-c", TINY.format(missing=MISSING)]
    subprocess.run(command, check=True, cwd=tmp_path)
    document = json.loads((tmp_path / "gpu_tiny.json").read_text())
    (card,) = document["cards"].values()
    found = card["measurements"]
    assert all("failed" not in each for each in found.values())
    assert card["environment"]["jax"]
    assert found["peak"]["bytes_per_second"] > 1e8
    passes = found["resnet8 passes"]
    # a backward pass takes about twice the products of a forward pass
    assert 2 < passes["forward and VJP"]["flops"] / passes["forward"]["flops"] < 4
    # multiply-adds a sample at 32×32 by hand, taps that fall on padding left out; the rest is
    # element-wise
    assert passes["forward"]["flops"] == pytest.approx(
        2 * passes["num_samples"] * 4_313_168, rel=0.03
    )
    real, predicted = (
        np.asarray(found[f"resnet8 {name}"]["loss"]) for name in ("training", "curvature float32")
    )
    np.testing.assert_allclose(predicted, real, rtol=0.05)
    assert found["resnet8 features bfloat16"]["seconds"] > 0


def test_done_measurements_are_left_out_and_failed_ones_tried_again(tmp_path):
    calls = []

    def works(name):
        calls.append(name)
        return {"seconds": 1.0, "loss": np.ones(2, np.float32)}

    def fails():
        raise MemoryError("too large")

    assert not run({"a": lambda: works("a"), "b": fails}, records_in(tmp_path), seconds=60)
    again = records_in(tmp_path)
    assert again.names() == ["a"]
    assert again.get("b") == {}
    assert again.get("a")["loss"] == [1.0, 1.0]
    assert run({"a": lambda: works("a"), "b": lambda: works("b")}, again, seconds=60)
    assert calls == ["a", "b"]


def test_nothing_begins_after_the_time_is_over(tmp_path):
    assert not run({"a": lambda: {"seconds": 1.0}}, records_in(tmp_path), seconds=-1.0)
    assert records_in(tmp_path).names() == []


def test_measurements_of_another_size_or_card_are_not_taken_for_these(tmp_path):
    run({"a": lambda: {"seconds": 1.0}}, records_in(tmp_path), seconds=60)
    assert records_in(tmp_path, {"side": 8}).names() == []
    document = json.loads((tmp_path / "gpu.json").read_text())
    document["cards"] = {"another card": document["cards"].popitem()[1]}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    other = records_in(tmp_path)
    assert other.names() == []
    other.add("b", {"seconds": 2.0})
    kept = json.loads((tmp_path / "gpu.json").read_text())["cards"]
    assert kept["another card"]["measurements"]["a"]["seconds"] == 1.0


def test_table_says_how_near_the_peak(tmp_path):
    records = records_in(tmp_path)
    one = {"seconds": 0.5, "flops": 1e12, "bytes": 1e9}
    records.add("peak", {"flops_per_second": {"float32": 4e12}, "bytes_per_second": 1e10})
    records.add("x passes", {"num_samples": 3, "floor": one, "C VJPs": one, "forward and VJP": one})
    records.add("x features float32", {"seconds": 1.0, "bytes": 2e9})
    records.add("x training", {"seconds": 10.0, "steps": [0, 1, 2], "loss": [2.0, 1.5, 0.5]})
    lines = {line[:34].strip(): line[34:].split() for line in table(records, ["x"]).splitlines()}
    assert lines["x features float32"] == ["1", "2.00", "10.0", "1", "25%", "2", "20%"]
    assert lines["x training"][:5] == ["10", "20.00", "1.0", "0.2", "5%"]
    assert half_time(records.get("x training")) == 2


def test_all_measurements_have_names_of_their_own(tmp_path):
    class Stub:
        size = Size()

    names = measurements(Stub())  # pyright: ignore[reportArgumentType]
    assert {name.split()[0] for name in names} == {"peak", "resnet18", "densenet169"}
    assert len(names) == 1 + 2 * 8


def test_data_for_the_card_is_halved_and_small(tmp_path, monkeypatch):
    data, weights = tmp_path / "data", tmp_path / "weights"
    for name, count in (("few", 1), ("one", 3), ("two", 2), ("two more", 2)):
        (data / "scene15" / "train" / name).mkdir(parents=True)
        for index in range(count):
            (data / "scene15" / "train" / name / f"{index}.jpg").write_bytes(bytes([index]))
    weights.mkdir()
    arrays = {"kernel": np.ones((2, 2), np.float32), "mean": np.full(2, 1e-7, np.float32)}
    save_file(arrays, weights / "resnet18_tinyimagenet.safetensors", {"format": "ours"})
    monkeypatch.setenv("NTK_TT_DATA", str(data))
    monkeypatch.setenv("NTK_TT_WEIGHTS", str(weights))
    target = tmp_path / "gpu-data"
    gpu_data.main(target, Size(classes=2, per_class=2))
    assert sorted(path.name for path in (target / "images").iterdir()) == ["one", "two"]
    assert (target / "images" / "one" / "1.jpg").read_bytes() == b"\x01"
    written = load_file(target / "resnet18.safetensors")
    assert written["kernel"].dtype == np.float16
    np.testing.assert_array_equal(written["mean"], arrays["mean"])  # too small for a float16
    monkeypatch.setattr(gpu_data, "LARGEST", 10)
    with pytest.raises(SystemExit, match="more than"):
        gpu_data.main(target, Size(classes=2, per_class=2))
    with pytest.raises(SystemExit, match="1 classes of 3 images, not 3"):
        gpu_data.main(target, Size(classes=3, per_class=3))
