"""The paper's data sets and its Table 2, computed from what is loaded."""

import re
import tempfile

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
    # Stanford Cars' smallest and largest class: Table 2 says 2.83
    assert row.imbalance == pytest.approx(68 / 24)
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
    with pytest.raises(
        ValueError, match=r"data: 'folder:.*' has no classes; give a folder of folders of images"
    ):
        describe_data(f"folder:{tmp_path}")


def test_the_seven_sets_of_the_paper_are_listed():
    rows = list_data()
    assert [row.name for row in rows] == [
        "digits",
        "cifar10",
        "cifar100",
        "cub200",
        "aircraft",
        "mit67",
        "surfaces",
        "cars",
    ]
    for row in rows:
        # printed with few digits
        assert row.mean_per_class == pytest.approx(row.num_images / row.num_classes, rel=2e-3)
        assert row.imbalance >= 1
        assert row.how
        assert row.source or "https://" in row.how or "http://" in row.how
        if row.source:
            assert re.fullmatch(r"digits|tfds:[a-z0-9_]+", row.source)


def test_the_sets_of_tfds_exist_there(tmp_path, monkeypatch):
    # tfds leaves an empty folder behind for each builder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tfds = pytest.importorskip(
        "tensorflow_datasets",
        reason="tensorflow-datasets is not installed (pip install 'ntk-tt[tfds]')",
    )
    known = set(tfds.list_builders(with_community_datasets=False))
    assert {
        entry.source.removeprefix("tfds:") for entry in PAPER_DATASETS.values() if entry.source
    } <= known
    classes = {
        name: tfds.builder(entry.source.removeprefix("tfds:")).info.features["label"].num_classes
        for name, entry in PAPER_DATASETS.items()
        if entry.source
    }
    assert classes == {name: PAPER_DATASETS[name].row.num_classes for name in classes}


@pytest.mark.parametrize("name", ["aircraft", "mit67", "surfaces"])
def test_a_set_that_tfds_lacks_says_how_to_get_it(name):
    with pytest.raises(
        ValueError,
        match=f"data: '{name}' – tfds has no such set: get it from http.*, unpack it, and give "
        "list:.*@",
    ):
        load_task(name)


def test_what_is_counted_is_what_is_loaded(tmp_path):
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.webp")
    row, task = (
        describe_data(f"folder:{tmp_path}"),
        load_task(f"folder:{tmp_path}", num_classes=None, per_class=None, image_size=4),
    )
    assert (row.num_images, row.num_classes) == (len(task.labels), task.num_classes)


# lists, in the three forms in which the sets that tfds lacks publish their training split


def write_listed(root, paths: list[str]) -> None:
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10 * index,) * 3).save(root / path)


@pytest.mark.parametrize(
    ("layout", "images", "file", "lines", "source"),
    [
        (
            "MIT-67",
            ["Images/gym/a b.jpg", "Images/gym/1.jpg", "Images/bar/1.jpg", "Images/bar/test.jpg"],
            "TrainImages.txt",
            ["gym/a b.jpg", "gym/1.jpg", "bar/1.jpg"],
            "list:{root}/TrainImages.txt@{root}/Images",
        ),
        (
            "MINC-2500",
            [
                "images/gym/gym_1.jpg",
                "images/gym/gym_2.jpg",
                "images/bar/bar_1.jpg",
                "images/bar/bar_2.jpg",
            ],
            "labels/train1.txt",
            ["images/gym/gym_1.jpg", "images/gym/gym_2.jpg", "images/bar/bar_1.jpg"],
            "list:{root}/labels/train1.txt@{root}",
        ),
        (
            "FGVC-Aircraft",
            [
                "data/images/0001.jpg",
                "data/images/0002.jpg",
                "data/images/0003.jpg",
                "data/images/0004.jpg",
            ],
            "data/trainval.txt",
            ["0001 gym", "0002 gym", "", "0003 bar"],
            "list:{root}/data/trainval.txt@{root}/data/images",
        ),
        (
            "next to the list",
            ["gym/1.jpg", "gym/2.jpg", "bar/3.jpg", "bar/4.jpg"],
            "train.txt",
            ["gym/1.jpg", "gym/2.jpg", "bar/3.jpg"],
            "list:{root}/train.txt",
        ),
    ],
)
def test_a_published_list_is_a_split(layout, images, file, lines, source, tmp_path):
    write_listed(tmp_path, images)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("\n".join(lines) + "\n")
    task = load_task(source.format(root=tmp_path), num_classes=None, image_size=4)
    assert task.class_names == ("bar", "gym")
    assert task.per_class == (1, 2)
    # not the fourth image, which is not listed
    assert sorted(task.images[:, 0, 0, 0].tolist()) == pytest.approx([0, 10, 20], abs=1)


def test_classes_of_a_list_may_have_blanks(tmp_path):
    write_listed(tmp_path, ["1.jpg", "2.png"])
    (tmp_path / "train.txt").write_text("1 Boeing 717\n2.png DC-10\n")
    assert load_task(
        f"list:{tmp_path / 'train.txt'}", num_classes=None, image_size=4
    ).class_names == ("Boeing 717", "DC-10")


def test_lists_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "train.txt").write_text("gym/1.jpg\n")
    for source, message in (
        (
            f"list:{tmp_path}/train.txt",
            r"data: line 1 of '.*train\.txt' is 'gym/1\.jpg', but there is no image "
            r"'.*gym/1\.jpg'; give list:FILE@ROOT",
        ),
        ("list:nowhere.txt@x", r"data: there is no file 'nowhere\.txt'; give list:FILE@ROOT"),
        ("list:", "data: there is no file ''; give list:FILE@ROOT"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task(source)
    with pytest.raises(ValueError, match="split: 'list:' has no split 'test'"):
        load_task("list:x", split="test")
