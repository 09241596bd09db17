"""tfds data sets, offline: a real builder prepared in the test, tfds's own mock, and what is
refused.
"""

import importlib.util
import io
import json
import struct
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from ntk_tt.data import UpTo, describe_data, load_task

# the grey of each image of a class
SHADES = {
    "zebra": range(0, 60, 10),
    "ape": range(100, 140, 10),
}


def test_tfds_without_the_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ValueError,
        match=r"data: 'tfds:' needs tensorflow-datasets; install it with: pip install "
        r"'ntk-tt\[tfds\]'",
    ):
        load_task("tfds:cifar10")


@pytest.fixture(scope="module")
def tfds():
    pytest.importorskip(
        "array_record", reason="array-record is not installed (pip install 'ntk-tt[tfds]')"
    )
    return pytest.importorskip(
        "tensorflow_datasets",
        reason="tensorflow-datasets is not installed (pip install 'ntk-tt[tfds]')",
    )


@pytest.fixture(scope="module", autouse=True)
def temporary_folder(tmp_path_factory):
    """tfds leaves an empty temporary folder behind for each builder: not in the system's."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def shades(tfds):
    """The recipe of a small data set; images are encoded here, so that preparing it needs no
    TensorFlow.
    """

    class NtkTtShades(tfds.core.GeneratorBasedBuilder):
        """Grey squares, and a mask for each that nobody asks for."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3))
            label = tfds.features.ClassLabel(names=["zebra", "unused", "ape"])
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"picture": image, "kind": label, "mask": image}
                ),
                supervised_keys=("picture", "kind"),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(damage=False),
                "damaged": self._generate_examples(damage=True),
            }

        def _generate_examples(self, damage):
            for kind, levels in SHADES.items():
                for level in levels:
                    file = io.BytesIO()
                    Image.new(
                        "L" if level == 10 else "RGB",
                        (8, 8),
                        level if level == 10 else (level,) * 3,
                    ).save(file, "PNG")
                    encoded = file.getvalue()[: 40 if damage and level == 120 else None]
                    yield (
                        f"{kind}{level}",
                        {
                            "picture": io.BytesIO(encoded),
                            "kind": kind,
                            "mask": io.BytesIO(b"never decoded"),
                        },
                    )

    return NtkTtShades


@pytest.fixture(scope="module")
def prepared(tfds, shades, tmp_path_factory):
    """Where the data set was prepared, as array records."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.builder(
        "ntk_tt_shades", data_dir=folder, file_format="array_record"
    ).download_and_prepare()
    return folder


@pytest.fixture
def use(tfds, monkeypatch):
    """`use(folder)`: tfds reads there, as it does with TFDS_DATA_DIR set before it is imported."""
    real = tfds.builder

    def use(folder):
        monkeypatch.setattr(
            tfds, "builder", lambda name, **more: real(name, data_dir=folder, **more)
        )

    return use


def read_shades(task) -> dict[str, list[int]]:
    assert (task.images == task.images[:, :1, :1, :1]).all()
    return {
        name: sorted(task.images[task.labels == label][:, 0, 0, 0].tolist())
        for label, name in enumerate(task.class_names)
    }


def test_a_prepared_set_is_read_without_tensorflow(prepared, use, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it would fail
    use(prepared)
    task = load_task("tfds:ntk_tt_shades", num_classes=None, per_class=None, image_size=8)
    assert task.class_names == ("ape", "zebra")  # the class without images is no class
    assert read_shades(task) == {name: list(levels) for name, levels in SHADES.items()}


def test_a_set_is_prepared_where_it_is_not_there(shades, use, tmp_path):
    use(tmp_path)
    task = load_task("tfds:ntk_tt_shades", num_classes=2, per_class=UpTo(5), image_size=8)
    assert task.per_class == (4, 5)
    assert list(tmp_path.glob("ntk_tt_shades/1.0.0/*train.array_record*"))


def test_labels_are_counted_without_decoding_images(prepared, use, monkeypatch):
    use(prepared)
    monkeypatch.setattr(Image, "open", None)
    row = describe_data("tfds:ntk_tt_shades")
    assert (row.num_images, row.num_classes, row.mean_per_class, row.imbalance) == (10, 2, 5.0, 1.5)


def test_a_damaged_image_is_named_or_left_out(prepared, use):
    use(prepared)
    with pytest.raises(
        ValueError, match=r"data: the image 'ntk_tt_shades damaged \d+' cannot be read"
    ):
        load_task("tfds:ntk_tt_shades", num_classes=None, per_class=None, split="damaged")
    task = load_task(
        "tfds:ntk_tt_shades", num_classes=None, split="damaged", image_size=8, on_corrupt="skip"
    )
    assert read_shades(task) == {"ape": [100, 110, 130], "zebra": list(SHADES["zebra"])}
    assert len(task.skipped) == 1


def write_tfrecords(prepared, folder, *, drop: int = 0):
    """The prepared set once more as TFRecord files, two a split, framed by hand: length, checksum,
    bytes, checksum.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    source, target = prepared / "ntk_tt_shades" / "1.0.0", folder / "ntk_tt_shades" / "1.0.0"
    target.mkdir(parents=True)
    for name in ("features.json", "kind.labels.txt"):
        (target / name).write_bytes((source / name).read_bytes())
    info = json.loads(
        (source / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    )
    for split in info["splits"]:
        records = ArrayRecordReader(
            str(next(source.glob(f"*-{split['name']}.array_record*")))
        ).read_all()
        halves = [records[:3], records[3 : len(records) - drop]]
        split["shardLengths"] = ["3", str(len(records) - 3)]
        for number, half in enumerate(halves):
            framed = b"".join(
                struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4) for record in half
            )
            (target / f"ntk_tt_shades-{split['name']}.tfrecord-0000{number}-of-00002").write_bytes(
                framed
            )
    (target / "dataset_info.json").write_text(json.dumps(info))


def test_a_set_prepared_as_tfrecords_is_read_without_tensorflow(
    prepared, use, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    write_tfrecords(prepared, tmp_path)
    use(tmp_path)
    task = load_task("tfds:ntk_tt_shades", num_classes=None, per_class=None, image_size=8)
    assert read_shades(task) == {name: list(levels) for name, levels in SHADES.items()}


def test_missing_tfrecords_are_noticed(prepared, use, tmp_path):
    write_tfrecords(prepared, tmp_path, drop=2)
    use(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"data: the files of the tfds data set 'ntk_tt_shades' in '.*' hold 8 examples "
        r"instead of 10; they are damaged",
    ):
        load_task("tfds:ntk_tt_shades")


def test_the_mock_of_tfds_is_read(tfds):
    """tfds's own mock around the real CIFAR-10 builder: its label names, our records, given
    undecoded as they are.
    """
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (7, 7, 7)).save(file, "PNG")
    calls = []

    def records(builder, split, decoders):
        calls.append((builder.name, split, list(decoders)))
        return [
            {
                "image": file.getvalue() if index < 10 else np.full((32, 32, 3), 9, np.uint8),
                "label": index % 10,
            }
            for index in range(20)
        ]

    with tfds.testing.mock_data(as_data_source_fn=records):
        task = load_task("cifar10", num_classes=3, per_class=2)
    assert calls == [("cifar10", "train", ["image"])]
    assert (task.source, task.per_class, task.images.shape) == (
        "cifar10",
        (2, 2, 2),
        (6, 32, 32, 3),
    )
    assert read_shades(task) == {name: [7, 9] for name in task.class_names}


def test_the_mock_with_its_own_records_needs_tensorflow(tfds):
    """Without `as_data_source_fn` tfds encodes random images with TensorFlow; where there is none,
    that is said.
    """
    with tfds.testing.mock_data(num_examples=60):
        if importlib.util.find_spec("tensorflow") is None:
            with pytest.raises(
                ValueError, match="data: reading the tfds data set 'cifar10' needs tensorflow"
            ):
                load_task("tfds:cifar10")
        else:
            task = load_task("tfds:cifar10", num_classes=3, per_class=UpTo(4))
            assert task.images.shape[1:] == (32, 32, 3)
            assert max(task.per_class) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:", "data: give a data set name, as in tfds:cifar10"),
        (
            "tfds:no_such_set",
            r"data: tfds could not prepare 'no_such_set' \(DatasetNotFoundError: .*\); check the "
            r"name and the network",
        ),
    ],
)
def test_unknown_sets_are_refused(source, message, tfds, use, tmp_path):
    use(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_task(source)


def test_splits_that_are_not_there_are_refused(prepared, use):
    use(prepared)
    with pytest.raises(
        ValueError,
        match=r"split: tfds data set 'ntk_tt_shades' has no split 'test'; it has .*train",
    ):
        load_task("tfds:ntk_tt_shades", split="test")


def test_a_set_whose_recipe_needs_tensorflow_says_so(tfds, use, tmp_path, monkeypatch):
    use(tmp_path)

    def fail(self):
        raise ModuleNotFoundError("Failed to finalize writing: No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        ValueError,
        match=r"data: preparing the tfds data set 'cifar10' for the first time needs tensorflow, "
        r"reading it afterwards does not",
    ):
        load_task("tfds:cifar10")


def test_sets_of_other_things_are_refused(tfds, use, tmp_path):
    class NtkTtNumbers(tfds.core.GeneratorBasedBuilder):
        """Numbers."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": np.float32, "label": np.int64}),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": 1.0, "label": 1}

    use(tmp_path)
    with pytest.raises(
        ValueError,
        match="data: tfds data set 'ntk_tt_numbers' has no 'image' and 'label' features; it is not "
        "an image classification set",
    ):
        load_task("tfds:ntk_tt_numbers")


def test_a_split_without_labels_is_refused(prepared, use, tfds, monkeypatch):
    use(prepared)
    monkeypatch.setattr(
        tfds.core.DatasetBuilder,
        "as_data_source",
        lambda self, split, decoders: [{"picture": b"", "kind": -1, "mask": b""}],
    )
    with pytest.raises(
        ValueError,
        match="split: 'train' of the tfds data set 'ntk_tt_shades' has no labels; take another of",
    ):
        load_task("tfds:ntk_tt_shades")


# images of other types, and damaged files


@pytest.fixture(scope="module")
def depths(tfds):
    """A recipe whose images are of the type in `form`: tfds writes float32 as the four bytes of a
    pixel, with TensorFlow alone.
    """

    class NtkTtDepths(tfds.core.GeneratorBasedBuilder):
        """Squares of one number."""

        VERSION = tfds.core.Version("1.0.0")
        form, deep = (np.uint8, 4), False

        def _info(self):
            dtype, channels = self.form
            image = tfds.features.Image(shape=(8, 8, channels), dtype=dtype)
            label = tfds.features.ClassLabel(names=["near", "far", "nowhere"])
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(1.0), "metres": self._generate_examples(10.0)}

        def _generate_examples(self, scale):
            for index in range(8):
                value, file = (0.2 + 0.05 * index) * scale, io.BytesIO()
                deep = np.full((8, 8), int(65535 * min(value, 1)), np.uint16)
                Image.fromarray(
                    deep if self.deep else np.full((8, 8, 1), value, np.float32).view(np.uint8)
                ).save(file, "PNG")
                yield index, {"image": io.BytesIO(file.getvalue()), "label": index % 2}

    return NtkTtDepths


def test_images_of_float32_are_no_bits_of_their_mantissa(tfds, depths, use, tmp_path, monkeypatch):
    use(tmp_path)
    tfds.builder("ntk_tt_depths", file_format="array_record").download_and_prepare()
    monkeypatch.setattr(depths, "form", (np.float32, 1))
    task = load_task("tfds:ntk_tt_depths", num_classes=None, per_class=None, image_size=8)
    assert {
        name: sorted(task.images[task.labels == label][:, 0, 0].tolist())
        for label, name in enumerate(task.class_names)
    } == {
        "far": [[level] * 3 for level in (64, 89, 115, 140)],
        "near": [[level] * 3 for level in (51, 76, 102, 128)],
    }
    assert task.notes == ("1 class(es) without an image in the split 'train': 'nowhere'",)
    with pytest.raises(
        ValueError,
        match=r"data: the image 'ntk_tt_depths metres \d' cannot be read \(floating-point pixels "
        r"must lie in \[0, 1\], got ",
    ):
        load_task("tfds:ntk_tt_depths", num_classes=None, per_class=None, split="metres")


def test_images_of_sixteen_bits_keep_their_range(tfds, depths, use, tmp_path, monkeypatch):
    monkeypatch.setattr(depths, "deep", True)
    use(tmp_path)
    tfds.builder("ntk_tt_depths", file_format="array_record").download_and_prepare()
    monkeypatch.setattr(depths, "form", (np.uint16, 1))
    task = load_task("tfds:ntk_tt_depths", num_classes=None, per_class=None, image_size=8)
    assert sorted(task.images[:, 0, 0, 0].tolist()) == [
        int(65535 * (0.2 + 0.05 * index)) >> 8 for index in range(8)
    ]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((6, 6, 3), 40, np.uint8), 40),
        (np.full((6, 6, 1), 40, np.uint8), 40),
        (np.full((6, 6, 1), 0.2, np.float32), 51),
        (np.full((6, 6, 3), 0.2), 51),
        (np.full((6, 6, 3), 51 << 8, np.uint16), 51),
        (np.full((6, 6, 3), 51), "got dtype int64"),
        (np.full((6, 6, 3), 2.0), r"must lie in \[0, 1\], got 2"),
        (np.full((6, 6, 3), True), "got dtype bool"),
        (np.full((6, 6, 2), 40, np.uint8), 40),
        (b"no image", "it is none of JPEG"),
        (None, ""),
    ],
)
def test_decoded_images_go_by_their_type(pixels, expected, tfds):
    def records(builder, split, decoders):
        return [{"image": pixels, "label": index % 2} for index in range(4)]

    with tfds.testing.mock_data(as_data_source_fn=records):
        if isinstance(expected, str):
            with pytest.raises(
                ValueError,
                match=rf"data: the image 'cifar10 train \d' cannot be read \(.*{expected}",
            ):
                load_task("tfds:cifar10", num_classes=2, per_class=2)
        else:
            assert (
                load_task("tfds:cifar10", num_classes=2, per_class=2, image_size=6).images
                == expected
            ).all()


def test_records_that_cannot_be_read_are_named(tfds):
    class Damaged(list):
        def __getitem__(self, index):
            if index == self.bad:
                raise RuntimeError("bad record\nwith more lines")
            return super().__getitem__(index)

    records = Damaged(
        {"image": np.full((6, 6, 3), 40, np.uint8), "label": index % 2} for index in range(4)
    )
    records.bad = 2
    with tfds.testing.mock_data(as_data_source_fn=lambda builder, split, decoders: records):
        with pytest.raises(
            ValueError,
            match=r"data: example 2 of the tfds data set 'cifar10' cannot be read \(RuntimeError: "
            r"bad record\); its files in '.*' are damaged",
        ):
            load_task("tfds:cifar10", num_classes=2, per_class=2)
        records.bad = None
        records[1] = {"image": records[1]["image"], "label": 1234}
        with pytest.raises(
            ValueError, match="example 1 of the tfds data set 'cifar10' cannot be read"
        ):
            load_task("tfds:cifar10", num_classes=2, per_class=2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-5],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:3] + b"\xff" * 5 + b[8:],
        lambda b: b"\xff" * 8 + b[8:],
    ],
)
def test_damaged_tfrecords_are_noticed(damage, prepared, use, tmp_path):
    write_tfrecords(prepared, tmp_path)
    use(tmp_path)
    path = next(tmp_path.glob("*/*/*train*00001-of*"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError,
        match=r"data: the files of the tfds data set 'ntk_tt_shades' in '.*' hold \d+ examples "
        r"instead of 10; they are damaged",
    ):
        load_task("tfds:ntk_tt_shades")
