"""The paper's data sets and its Table 2, computed from what is loaded."""

import re

import pytest
from PIL import Image

from ntk_tt.data import PAPER_DATASETS, describe_data, list_data, load_task


def write_counts(root, counts: dict[str, int]) -> str:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(b"not even an image: counting decodes none")
    return f"folder:{root}"


def test_table_2_is_computed_from_the_images_there(tmp_path):
    row = describe_data(write_counts(tmp_path / "set", {"a": 24, "b": 68, "c": 31}))
    assert (row.num_images, row.num_classes, row.mean_per_class) == (123, 3, 41.0)
    assert row.imbalance == pytest.approx(68 / 24)  # Stanford Cars' smallest and largest class: Table 2 says 2.83
    assert row.source == row.name == f"folder:{tmp_path / 'set'}"


def test_digits_are_described():
    row = describe_data("digits")
    assert (row.num_images, row.num_classes, row.mean_per_class) == (1797, 10, 179.7)
    assert row.imbalance == pytest.approx(183 / 174)


def test_splits_are_described_apart(tmp_path):
    write_counts(tmp_path / "train", {"a": 2, "b": 3})
    write_counts(tmp_path / "test", {"a": 1, "b": 1})
    assert describe_data(f"folder:{tmp_path}").num_images == 5
    assert describe_data(f"folder:{tmp_path}", split="test").num_images == 2


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data: 'folder:.*' has no classes; give a folder of folders of images"):
        describe_data(f"folder:{tmp_path}")


def test_the_seven_sets_of_the_paper_are_listed():
    rows = list_data()
    assert [row.name for row in rows] == ["digits", "cifar10", "cifar100", "cub200", "aircraft", "mit67", "surfaces", "cars"]
    for row in rows:
        assert row.mean_per_class == pytest.approx(row.num_images / row.num_classes, rel=2e-3)  # printed with few digits
        assert row.imbalance >= 1
        assert row.how
        assert row.source or "https://" in row.how or "http://" in row.how
        if row.source:
            assert re.fullmatch(r"digits|tfds:[a-z0-9_]+", row.source)


def test_the_sets_of_tfds_exist_there():
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (pip install 'ntk-tt[tfds]')")
    known = set(tfds.list_builders(with_community_datasets=False))
    assert {entry.source.removeprefix("tfds:") for entry in PAPER_DATASETS.values() if entry.source} <= known
    classes = {name: tfds.builder(entry.source.removeprefix("tfds:")).info.features["label"].num_classes for name, entry in PAPER_DATASETS.items() if entry.source}
    assert classes == {name: PAPER_DATASETS[name].row.num_classes for name in classes}


@pytest.mark.parametrize("name", ["aircraft", "mit67", "surfaces"])
def test_a_set_that_tfds_lacks_says_how_to_get_it(name):
    with pytest.raises(ValueError, match=f"data: '{name}' – tfds has no such set: get it from http.*, and give folder:PATH"):
        load_task(name)


def test_what_is_counted_is_what_is_loaded(tmp_path):
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.webp")
    row, task = describe_data(f"folder:{tmp_path}"), load_task(f"folder:{tmp_path}", num_classes=None, per_class=None, image_size=4)
    assert (row.num_images, row.num_classes) == (len(task.labels), task.num_classes)
