"""Tasks from images and labels of the user's own, and what is refused because it could be
misread.
"""

import os
import struct
import zipfile

import numpy as np
import pytest

from ntk_tt.data import describe_data, load_task, task_from_arrays


def shades(number: int, size=(6, 8)) -> np.ndarray:
    return np.stack([np.full((*size, 3), 5 * index, np.uint8) for index in range(number)])


def test_arrays_become_a_task_with_their_own_labels():
    labels = np.asarray([10, 2, 2, 7, 10, 2])
    task = task_from_arrays(shades(6), labels)
    assert task.class_names == ("2", "7", "10")  # numbers in their order, not that of their digits
    np.testing.assert_array_equal(task.labels, [0, 0, 0, 1, 2, 2])
    np.testing.assert_array_equal(task.images[:, 0, 0, 0], [5, 10, 25, 15, 0, 20])
    assert task.images.shape == (6, 6, 6, 3)  # the short side, the middle
    assert task.source == "arrays"


def test_class_names_number_the_classes():
    task = task_from_arrays(
        shades(4), [2, 0, 2, 0], class_names=("zebra", "unused", "ape"), name="mine"
    )
    assert (task.class_names, task.source) == (("zebra", "ape"), "mine")
    np.testing.assert_array_equal(task.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(task.images[:, 0, 0, 0], [5, 15, 0, 10])
    assert task_from_arrays(shades(3), ["b", "a", "b"]).class_names == ("a", "b")


def test_arrays_are_sampled_like_any_source():
    labels = np.arange(40) % 4
    tasks = [
        task_from_arrays(shades(40), labels, num_classes=3, per_class=4, image_size=5, seed=seed)
        for seed in (0, 0, 1, 2)
    ]
    assert tasks[0].images.shape == (12, 5, 5, 3)
    np.testing.assert_array_equal(tasks[0].images, tasks[1].images)
    assert len({task.images.tobytes() for task in tasks}) == 3
    values = tasks[0].images[:, 0, 0, 0] // 5
    np.testing.assert_array_equal(
        values % 4, np.asarray([int(name) for name in tasks[0].class_names])[tasks[0].labels]
    )


def test_sampled_classes_keep_their_order():
    names = {
        task_from_arrays(shades(24), np.arange(24) % 12, num_classes=6, seed=seed).class_names
        for seed in range(4)
    }
    assert len(names) > 1
    assert all(list(each) == sorted(each, key=int) for each in names)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x[..., 0],
        lambda x: x[..., :1],
        lambda x: x / 255,
        lambda x: (x / 255).astype(np.float32)[..., 0],
    ],
)
def test_every_layout_gives_the_same_pixels(convert):
    expected = task_from_arrays(shades(6), [0, 1] * 3)
    np.testing.assert_array_equal(
        task_from_arrays(convert(shades(6)), [0, 1] * 3).images, expected.images
    )


@pytest.mark.parametrize(
    ("images", "labels", "more", "message"),
    [
        (
            shades(4).transpose(0, 3, 1, 2),
            [0, 1] * 2,
            {},
            r"images: must have shape .* got \(4, 3, 6, 8\); channels come last: "
            r"images.transpose\(0, 2, 3, 1\)",
        ),
        (shades(4)[0, 0], [0, 1] * 2, {}, r"images: must have shape .* got \(8, 3\)"),
        (
            np.zeros((0, 4, 4, 3), np.uint8),
            [],
            {},
            r"images: must have shape .* got \(0, 4, 4, 3\)",
        ),
        (
            shades(4).astype(int),
            [0, 1] * 2,
            {},
            "images: must be uint8 in 0 … 255 or floating point in .* got dtype int64",
        ),
        (
            shades(4) / 10.0,
            [0, 1] * 2,
            {},
            r"images: floating-point pixels must lie in \[0, 1\], got 0 … 1.5",
        ),
        (
            shades(4) / 255 - 0.5,
            [0, 1] * 2,
            {},
            r"images: floating-point pixels must lie in \[0, 1\], got -0.5",
        ),
        (
            np.where(np.arange(4)[:, None, None, None] == 2, np.nan, shades(4) / 255),
            [0, 1] * 2,
            {},
            "images: image 2 holds NaN or infinity",
        ),
        (
            shades(4),
            [0, 1, 0],
            {},
            r"labels: must be one for each of the 4 images, got shape \(3,\)",
        ),
        (
            shades(4),
            np.eye(4),
            {},
            r"labels: must be one for each of the 4 images, got shape \(4, 4\)",
        ),
        (
            shades(4),
            np.asarray([0.0, 1.0, 0.0, 1.0]),
            {},
            "labels: must be integers or strings, got dtype float64",
        ),
        (
            shades(4),
            ["a", "b", "a", "b"],
            {"class_names": ("a", "b")},
            "labels: must be integers where class_names are given",
        ),
        (
            shades(4),
            [0, 1, 0, 2],
            {"class_names": ("a", "b")},
            "labels: 2 has no name among the 2 class_names; labels must lie in 0 … 1",
        ),
        (shades(4), [0, 1, 0, -1], {"class_names": ("a", "b")}, "labels: -1 has no name"),
        (shades(4), [0, 1, 0, 1], {"class_names": ("a", "a")}, "class_names: 'a' appears twice"),
        (shades(4), [0, 0, 0, 0], {}, r"data: 'arrays' has 1 class\(es\) \(0\)"),
        (
            shades(4),
            [0, 1, 0, 1],
            {"per_class": 3},
            "per-class: 3 images asked, but class '0' of 'arrays' has 2",
        ),
    ],
)
def test_arrays_that_could_be_misread_are_refused(images, labels, more, message):
    with pytest.raises(ValueError, match=message):
        task_from_arrays(images, labels, **more)


# files


def test_a_file_of_arrays_is_read(tmp_path):
    np.savez(
        tmp_path / "mine.npz",
        images=shades(10),
        labels=np.arange(10) % 2,
        class_names=["zebra", "ape"],
    )
    source = f"arrays:{tmp_path / 'mine.npz'}"
    task = load_task(source, num_classes=None, per_class=3, image_size=4, seed=1)
    assert (task.source, task.class_names, task.per_class) == (source, ("zebra", "ape"), (3, 3))
    assert set((task.images[task.labels == 1][:, 0, 0, 0] // 5).tolist()) <= {1, 3, 5, 7, 9}
    assert describe_data(source).num_images == 10


def test_files_of_other_things_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=shades(2), labels=[0, 1])
    np.savez(
        tmp_path / "objects.npz", images=np.asarray([shades(1), None], dtype=object), labels=[0, 1]
    )
    np.save(tmp_path / "single.npy", shades(2))
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (
        (
            "x.npz",
            r"data: '.*x\.npz' holds 'x', 'labels' but no 'images'; write it with numpy\.savez",
        ),
        ("objects.npz", r"data: '.*objects\.npz' cannot be read \(Object arrays cannot be loaded"),
        ("single.npy", r"data: '.*single\.npy' cannot be read"),
        ("text.npz", r"data: '.*text\.npz' cannot be read"),
        ("missing.npz", r"data: there is no file '.*missing\.npz'; give arrays:FILE\.npz"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task(f"arrays:{tmp_path / name}")
    with pytest.raises(ValueError, match="split: 'arrays:' has no split 'test'"):
        load_task("arrays:x.npz", split="test")


# names and labels of other types


@pytest.mark.parametrize(
    "names",
    [
        [b"cat", b"dog"],
        np.asarray([b"cat", b"dog"]),
        np.asarray(["cat", "dog"]),
        np.asarray(["cat", "dog"], object),
        np.asarray([b"cat", b"dog"], object),
        ("cat", "dog"),
        [np.str_("cat"), np.bytes_(b"dog")],
    ],
)
def test_names_are_text_whatever_they_come_as(names, tmp_path):
    assert task_from_arrays(shades(4), [0, 1, 0, 1], class_names=names).class_names == (
        "cat",
        "dog",
    )
    if np.asarray(names).dtype.kind != "O":
        np.savez(tmp_path / "x.npz", images=shades(4), labels=[0, 1, 0, 1], class_names=names)
        assert load_task(f"arrays:{tmp_path}/x.npz", num_classes=None).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (
            np.asarray([b"cat", "K\u00fche".encode(), b"cat", "K\u00fche".encode()]),
            ("K\u00fche", "cat"),
        ),
        (np.asarray(["cat", "ant", "cat", "ant"], object), ("ant", "cat")),
        (np.asarray([b"cat", "ant", b"cat", "ant"], object), ("ant", "cat")),
        (np.asarray(["cat", "ant", "cat", "ant"], np.dtypes.StringDType()), ("ant", "cat")),
        (np.asarray([3, 20, 3, 20], object), ("3", "20")),
        (np.asarray([False, True, False, True]), ("False", "True")),
        (np.asarray([-1, 1, -1, 1]), ("-1", "1")),
        (np.asarray([2**64 - 1, 2**63, 2**64 - 1, 2**63], np.uint64), (str(2**63), str(2**64 - 1))),
        (np.asarray([3, 2, 3, 2], ">i2"), ("2", "3")),
        (np.asarray([-(2**63) + 2**63, 2**63 - 1, 0, 2**63 - 1]), ("0", str(2**63 - 1))),
    ],
)
def test_labels_of_every_type_name_their_classes(labels, names):
    task = task_from_arrays(shades(4), labels)
    assert task.class_names == names
    of_first = (
        [0, 10]
        if labels[0] in (names[0], names[0].encode()) or str(labels[0]) == names[0]
        else [5, 15]
    )
    assert task.images[task.labels == 0][:, 0, 0, 0].tolist() == of_first
    assert task.per_class == (2, 2)


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        (
            [[0], [1], [0], [1]],
            {},
            r"labels: must be one for each of the 4 images, got shape \(4, 1\); give "
            r"labels.ravel\(\)",
        ),
        ([0, 1, 0, -1], {}, "labels: -1 is no class beside 1; leave images without a class out"),
        ([0.0, np.nan, 0, 1], {}, "labels: must be integers or strings, got dtype float64"),
        ([None, "a", "b", "a"], {}, "labels: must be integers or strings, got dtype object"),
        (
            [b"\xff", b"a", b"a", b"a"],
            {},
            r"class names: b'\\xff' is not UTF-8; decode them with their encoding",
        ),
        (
            np.asarray([0, 1, 0, 1], "M8[s]"),
            {},
            "labels: must be integers or strings, got dtype datetime64",
        ),
        (
            [0, 1, 0, 2**40],
            {"class_names": ("a", "b")},
            "labels: 1099511627776 has no name among the 2 class_names",
        ),
        ([0, 1, 0, 1], {"class_names": "cat"}, "class_names: must be a list of names, got 'cat'"),
        (
            [0, 1, 0, 1],
            {"class_names": np.asarray([["a", "b"]])},
            "class_names: must be a list of names",
        ),
        ([0, 1, 0, 1], {"class_names": [b"\xfc", b"a"]}, r"class names: b'\\xfc' is not UTF-8"),
        (
            [False, True, False, True],
            {"class_names": ["only"]},
            "labels: 1 has no name among the 1 class_names",
        ),
    ],
)
def test_labels_that_could_be_misread_are_refused(labels, more, message, unchecked):
    with pytest.raises(ValueError, match=message):
        task_from_arrays(shades(4), labels, **more)


def test_true_and_false_number_the_class_names():
    assert task_from_arrays(
        shades(4), np.asarray([True, False, True, False]), class_names=("no", "yes")
    ).class_names == ("no", "yes")


# pixels of other types


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            shades(4).astype(np.uint16) * 257,
            r"got dtype uint16; convert them, those of 16 bits with \(images >> "
            r"8\).astype\('uint8'\)",
        ),
        (
            shades(4).astype(np.int16),
            r"got dtype int16; convert them, if they lie in 0 … 255 with images.astype\('uint8'\)",
        ),
        (shades(4) > 5, r"got dtype bool; convert them, scale them: images \* numpy.uint8\(255\)"),
        (shades(4).astype(complex), "got dtype complex128; convert them, to one of these"),
        (shades(4).astype(str), "got dtype <U3"),
        (
            shades(4).astype(np.float32),
            r"floating-point pixels must lie in \[0, 1\], got 0 … 15; divide by 255, or give uint8",
        ),
        (
            shades(4) / np.float32(127.5) - 1,
            r"floating-point pixels must lie in \[0, 1\], got -1 … -0.88\d*; "
            r"undo the normalisation",
        ),
        (
            np.where(np.arange(4)[:, None, None, None] == 3, np.inf, shades(4) / 255),
            "images: image 3 holds NaN or infinity",
        ),
        ([np.zeros((2, 3)), np.zeros((3, 2))], "images: must be one array of images of one size"),
    ],
)
def test_pixels_that_could_be_misread_are_refused(images, message, unchecked):
    with pytest.raises(ValueError, match=message):
        task_from_arrays(images, [0, 1, 0, 1][: len(images)])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "g"])
def test_floats_of_every_kind_give_the_same_pixels(dtype):
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    np.testing.assert_array_equal(
        task_from_arrays((images / 255).astype(dtype), [0, 1] * 2).images[:, ..., 0].ravel(),
        images[[0, 2, 1, 3]].ravel(),
    )


@pytest.mark.parametrize(
    "images",
    [
        np.eye(8, dtype=np.uint8)[None].repeat(4, 0),
        np.eye(8)[None].repeat(4, 0) / 255,
        np.zeros((4, 8, 8), np.uint8),
    ],
)
def test_masks_get_a_word(images):
    brightest = 1 if images.any() else 0
    assert task_from_arrays(images, [0, 1] * 2).notes == (
        f"no pixel is brighter than {brightest} of 255; if these are masks, or numbers that do not "
        "use eight bits, scale them to 0 … 255",
    )


# hostile files


def write_archive(path, members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return f"arrays:{path}"


def array(shape: str, descr: str = "'|u1'", content: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", len(header))
        + header
        + content
    )


LABELS = array("(2,)", "'<i8'", struct.pack("<qq", 0, 1))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (
            array(f"({2**40}, 8, 8, 3)", content=bytes(384)),
            r"images.npy says that it has the shape \(1099511627776, 8, 8, 3\) of uint8, which "
            r"takes other than the",
        ),
        # 64 bits do not hold the product
        (
            array(f"({2**62}, 4)", content=bytes(384)),
            "which takes other than",
        ),
        (array("(-2, 8, 8, 3)", content=bytes(384)), "which takes other than"),
        (array("(2, -8, -8, 3)", content=bytes(384)), "which takes other than"),
        (array("(2, 8, 8, 3)", content=bytes(383)), "which takes other than"),
        (array("(2, 8, 8, 3)", content=bytes(385)), "which takes other than"),
        (array("(2, 8, 8, 3)", "'|O'", bytes(384)), "Object arrays cannot be loaded"),
        (array("(2, 8, 8, 3)", "[('a', '|O')]", bytes(384)), "Object arrays cannot be loaded"),
        (array("(2, 8, 8, 3)", "'nonsense'", bytes(384)), "nonsense"),
        (array("(2.5, 8)", content=bytes(20)), "shape"),
        (array("'text'", content=bytes(20)), "shape"),
        (array("__import__('os').getpid()", content=bytes(20)), ""),
        (array("(" * 3000, content=bytes(20)), ""),
        (array("[" * 60000, content=bytes(20)), ""),
        (array("(2, 8, 8, 3)", content=bytes(384))[:40], "EOF"),
        (array("(2, 8, 8, 3)", content=bytes(384), version=3), r"version \(3, 0\)"),
        (b"", ""),
        (b"\x93NUMPY", ""),
        (b"\x80\x04K\x01.", ""),
    ],
)
def test_headers_that_lie_are_refused(images, reason, tmp_path):
    source = write_archive(tmp_path / "x.npz", {"images.npy": images, "labels.npy": LABELS})
    with pytest.raises(
        ValueError,
        match=rf"data: '.*x\.npz' cannot be read \((?s:.*){reason}(?s:.*)\); write it with "
        r"numpy\.savez",
    ):
        load_task(source)


@pytest.mark.slow
def test_a_file_that_expands_beyond_measure_is_refused_unread(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", LABELS)
        with archive.open("images.npy", "w") as file:
            file.write(array("(2, 10000, 10000, 3)"))
            for _ in range(600):
                file.write(bytes(10**6))
    assert (tmp_path / "x.npz").stat().st_size < 10**6
    monkeypatch.setattr("ntk_tt.data.arrays.npy_format.read_array", None)  # would be a TypeError
    with pytest.raises(
        ValueError, match=r"images\.npy expands from 5\d\d KiB to 572 MiB, which images do not"
    ):
        load_task(f"arrays:{tmp_path}/x.npz")


def test_a_file_larger_than_memory_is_refused_unread(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 1000, 1000, 3), np.uint8), labels=[0, 1])
    monkeypatch.setattr("ntk_tt.data.arrays.host_bytes", lambda: 5_000_000)
    with pytest.raises(ValueError, match=r"images\.npy takes 5\.72 MiB, 4\.77 MiB may be used"):
        load_task(f"arrays:{tmp_path}/x.npz")


def test_honest_files_are_read_however_they_are_written(tmp_path):
    images, labels = shades(10) * 5, np.arange(10) % 2
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=np.asfortranarray(images), labels=labels.astype(">i2"))
    np.savez(
        tmp_path / "c.npz",
        images=(images / 255).astype(">f4"),
        labels=labels,
        weights=np.ones(3),
        notes="x",
    )
    tasks = [
        load_task(f"arrays:{tmp_path}/{name}.npz", num_classes=None, per_class=None, image_size=4)
        for name in "abc"
    ]
    for task in tasks[1:]:
        np.testing.assert_array_equal(task.images, tasks[0].images)
    assert [task.notes for task in tasks] == [
        (),
        (),
        ("passed over 2 other array(s) of the file: 'weights', 'notes'",),
    ]


def test_a_damaged_byte_is_noticed(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        images=np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        labels=np.arange(8) % 2,
    )
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[600] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"data: '.*x\.npz' cannot be read \(Bad CRC-32"):
        load_task(f"arrays:{tmp_path}/x.npz")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {
                "images.npy": array("(2, 8, 8, 3)", content=bytes(384)),
                "labels.npy": array("(3,)", "'<i8'", bytes(24)),
            },
            r"x\.npz': labels: must be one for each of the 2 images, got shape \(3,\)",
        ),
        (
            {"images.npy": array("(2, 3, 8, 8)", content=bytes(384)), "labels.npy": LABELS},
            r"x\.npz': images: must have shape .* channels come last",
        ),
        (
            {
                "images.npy": array("(2, 8, 8, 3)", content=bytes(384)),
                "labels.npy": array("(2,)", "'<f8'", bytes(16)),
            },
            r"x\.npz': labels: must be integers or strings, got dtype float64",
        ),
        (
            {"x_train.npy": array("(2, 8, 8, 3)", content=bytes(384)), "y_train.npy": LABELS},
            r"holds 'x_train', 'y_train' but no 'images'",
        ),
        ({}, "holds nothing but no 'images'"),
        (
            {
                "images.npy": array("(2, 8, 8, 3)", "[('r', '|u1')]", content=bytes(384)),
                "labels.npy": LABELS,
            },
            r"x\.npz': images: must be uint8",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(members, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_task(write_archive(tmp_path / "x.npz", members))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_an_archive_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path, reason in (
        (tmp_path / "pipe.npz", "it is a pipe, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (tmp_path, "it is a folder, not a file"),
    ):
        with pytest.raises(
            ValueError, match=rf"data: '{path}' cannot be read \({reason}\); give arrays:FILE\.npz"
        ):
            load_task(f"arrays:{path}")


def test_other_ways_of_compression_are_refused(tmp_path):
    source = write_archive(
        tmp_path / "x.npz",
        {"images.npy": array("(2, 8, 8, 3)", content=bytes(384)), "labels.npy": LABELS},
        zipfile.ZIP_LZMA,
    )
    with pytest.raises(
        ValueError, match=r"images\.npy is compressed in a way that NumPy does not write"
    ):
        load_task(source)
