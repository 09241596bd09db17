"""Tasks from digits and image folders: what is read, what is sampled, what is refused."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ntk_tt.data import UpTo, default_classes, load_task
from ntk_tt.data.images import resized_size, square

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def plain(colour, size=(8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def write_images(root, classes: dict[str, list[Image.Image]], suffix="png") -> str:
    """`root/<class>/<number>.<suffix>`; returns the source."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(root / name / f"{number}.{suffix}")
    return f"folder:{root}"


@pytest.fixture
def two_colours(tmp_path) -> str:
    return write_images(tmp_path / "set", {"red": [plain(RED)] * 3, "blue": [plain(BLUE)] * 3})


def read_one(image: Image.Image, tmp_path, image_size: int, suffix="png") -> np.ndarray:
    source = write_images(tmp_path / "one", {"it": [image], "other": [plain(RED)]}, suffix)
    return load_task(source, num_classes=2, per_class=1, image_size=image_size).images[0]


# digits


def test_digits_task_has_the_asked_images():
    task = load_task("digits", num_classes=3, per_class=7, image_size=16, seed=4)
    assert task.images.shape == (21, 16, 16, 3)
    assert task.images.dtype == np.uint8
    assert task.labels.dtype == np.int32
    np.testing.assert_array_equal(task.labels, np.repeat([0, 1, 2], 7))
    assert task.num_classes == len(task.class_names) == 3
    assert list(task.class_names) == sorted(task.class_names)
    assert set(task.class_names) <= set("0123456789")
    assert (task.source, task.seed) == ("digits", 4)


def test_digits_images_are_distinct_ones_of_the_class_that_labels_them():
    task = load_task("digits", num_classes=4, per_class=20, image_size=8, seed=1)
    digits = load_digits()
    originals = np.round(digits.images * 255 / 16).astype(np.uint8)
    for label, name in enumerate(task.class_names):
        of_class = {image.tobytes() for image in originals[digits.target == int(name)]}
        chosen = [image[..., 0].tobytes() for image in task.images[task.labels == label]]
        assert set(chosen) <= of_class
        assert len(set(chosen)) == 20
    assert (task.images == task.images[..., :1]).all()


def test_all_digits_are_taken_where_no_number_is_given():
    task = load_task("digits", num_classes=None, per_class=None, image_size=8)
    assert task.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(task.labels), np.bincount(load_digits().target))


def test_sampling_is_decided_by_the_seed():
    first, again = (
        load_task("digits", num_classes=5, per_class=6, image_size=8, seed=0) for _ in range(2)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert first.class_names == again.class_names
    others = [
        load_task("digits", num_classes=5, per_class=6, image_size=8, seed=seed)
        for seed in range(1, 6)
    ]
    assert len({task.class_names for task in (first, *others)}) > 1
    other_images = load_task("digits", num_classes=None, per_class=6, image_size=8, seed=1).images
    assert not np.array_equal(
        load_task("digits", num_classes=None, per_class=6, image_size=8, seed=0).images,
        other_images,
    )


def test_the_sample_of_a_seed_stays_what_it_was():
    """Published results name a seed: K of the names, then for each in turn N of its images, from
    one generator.
    """
    digits, rng = load_digits(), np.random.default_rng(6)
    originals = np.round(digits.images * 255 / 16).astype(np.uint8)
    chosen = sorted(rng.choice(list("0123456789"), 3, replace=False))
    expected = [
        originals[digits.target == int(name)][
            sorted(rng.choice((digits.target == int(name)).sum(), 4, replace=False))
        ]
        for name in chosen
    ]
    task = load_task("digits", num_classes=3, per_class=4, image_size=8, seed=6)
    assert task.class_names == tuple(chosen)
    np.testing.assert_array_equal(task.images[..., 0], np.concatenate(expected))


# folders


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG"])
@pytest.mark.parametrize("layout", ["flat", "train"])
def test_folder_layouts_and_suffixes(layout, suffix, tmp_path):
    folder = tmp_path / "set" / "train" if layout == "train" else tmp_path / "set"
    write_images(folder, {"red": [plain(RED)] * 3, "blue": [plain(BLUE)] * 2}, suffix)
    if layout == "train":
        write_images(tmp_path / "set" / "test", {"green": [plain(GREEN)]}, suffix)
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / "empty").mkdir()
    task = load_task(f"folder:{tmp_path / 'set'}", num_classes=None, per_class=None, image_size=8)
    assert task.class_names == ("blue", "red")
    np.testing.assert_array_equal(task.labels, [0, 0, 1, 1, 1])
    expected = np.asarray([BLUE, BLUE, RED, RED, RED])[:, None, None]
    # JPEG rounds
    np.testing.assert_allclose(
        task.images.astype(int), np.broadcast_to(expected, task.images.shape), atol=2
    )


def test_wide_images_lose_their_sides_and_tall_ones_top_and_bottom(tmp_path):
    bands = np.zeros((8, 16, 3), np.uint8)
    bands[:, :4], bands[:, 4:8], bands[:, 8:12], bands[:, 12:] = RED, GREEN, BLUE, RED
    kept = np.zeros((8, 8, 3), np.uint8)
    kept[:, :4], kept[:, 4:] = GREEN, BLUE
    np.testing.assert_array_equal(read_one(Image.fromarray(bands), tmp_path / "wide", 8), kept)
    np.testing.assert_array_equal(
        read_one(Image.fromarray(bands.transpose(1, 0, 2)), tmp_path / "tall", 8),
        kept.transpose(1, 0, 2),
    )


def test_the_short_side_is_resized_before_the_crop(tmp_path):
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32], halves[:, 32:] = GREEN, BLUE
    image = read_one(Image.fromarray(halves), tmp_path, 8)
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(image[:, :3], np.broadcast_to(GREEN, (8, 3, 3)))
    np.testing.assert_array_equal(image[:, 5:], np.broadcast_to(BLUE, (8, 3, 3)))


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(
        read_one(Image.fromarray(stripes), tmp_path, 8).astype(int), 100, atol=6
    )


def test_small_images_are_enlarged(tmp_path):
    np.testing.assert_array_equal(
        read_one(plain(GREEN, (3, 5)), tmp_path, 9), np.broadcast_to(GREEN, (9, 9, 3))
    )


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    values = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 255, 0).astype(np.uint8)
    image = read_one(Image.fromarray(values).convert("RGB").convert(mode), tmp_path, 8)
    np.testing.assert_array_equal(image, np.repeat(values[..., None], 3, axis=-1))


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    image = read_one(Image.fromarray(values), tmp_path, 8)
    np.testing.assert_array_equal(image[..., 0], values // 256)
    np.testing.assert_array_equal(image[..., 1:], np.repeat(image[..., :1], 2, axis=-1))


def test_folder_sampling_draws_without_replacement(tmp_path):
    grey = [plain((10 * level,) * 3) for level in range(20)]
    source = write_images(tmp_path / "set", {"a": grey, "b": grey, "c": grey})
    task = load_task(source, num_classes=2, per_class=12, image_size=8, seed=3)
    for label in range(2):
        assert len({image.tobytes() for image in task.images[task.labels == label]}) == 12


# what is refused


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_classes": 1}, "classes: must be at least 2, got 1"),
        ({"num_classes": 0}, "classes: must be at least 2, got 0"),
        ({"per_class": 0}, "per-class: must be at least 1, got 0"),
        ({"per_class": -3}, "per-class: must be at least 1, got -3"),
        ({"image_size": 0}, "image-size: must be at least 1, got 0"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"num_classes": 11}, "classes: 11 asked, but 'digits' has 10"),
        (
            {"per_class": 1000},
            r"per-class: 1000 images asked, but class '\d' of 'digits' has 1\d\d",
        ),
    ],
)
def test_bad_numbers_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        load_task("digits", **numbers)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "mnist",
            "data: unknown source 'mnist'; give 'digits', 'folder:PATH', 'list:FILE@ROOT', "
            "'tfds:NAME', 'arrays:FILE.npz', 'csv:FILE', 'jsonl:FILE' or one of cifar10, cifar100, "
            "cub200, cars",
        ),
        ("", "data: unknown source ''"),
        ("digits:8", "data: 'digits' takes no argument, got '8'"),
        ("folder:", "data: there is no folder ''"),
        ("folder:/no/such/place", "data: there is no folder '/no/such/place'"),
    ],
)
def test_unknown_sources_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_task(source)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data: there is no folder '.*file'"):
        load_task(f"folder:{tmp_path / 'file'}")


def test_an_empty_folder_and_a_single_class_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(
        ValueError, match=r"has 0 class\(es\) \(none\); classification needs at least two"
    ):
        load_task(f"folder:{tmp_path / 'set'}")
    source = write_images(tmp_path / "set", {"red": [plain(RED)] * 3})
    with pytest.raises(
        ValueError, match=r"has 1 class\(es\) \(red\); classification needs at least two"
    ):
        load_task(source, num_classes=None)


def test_too_few_classes_or_images_are_refused(two_colours):
    with pytest.raises(
        ValueError, match=r"classes: 3 asked, but 'folder:.*' has 2; ask for at most 2"
    ):
        load_task(two_colours, num_classes=3, per_class=1)
    with pytest.raises(
        ValueError, match=r"per-class: 4 images asked, but class 'blue' of 'folder:.*' has 3"
    ):
        load_task(two_colours, num_classes=2, per_class=4)


def test_classes_too_small_for_what_is_asked_give_way_to_others(tmp_path):
    sizes = {"a": 4, "b": 1, "c": 4, "d": 5, "e": 2, "f": 4}
    source = write_images(tmp_path / "set", {name: [plain(RED)] * n for name, n in sizes.items()})
    for seed in range(6):
        drawn = np.random.default_rng(seed).choice(6, 3, replace=False)
        small = [name for name in "be" if "abcdef".index(name) in drawn]
        task = load_task(source, num_classes=3, per_class=4, seed=seed)
        assert task.per_class == (4, 4, 4)
        assert not {*task.class_names} & {"b", "e"}
        kept = {"abcdef"[index] for index in drawn} - {*small}
        assert kept <= {*task.class_names}
        assert len(task.passed_over) == bool(small)
        for name in small:
            assert "fewer than 4 images, others drawn instead" in task.passed_over[0]
            assert f"'{name}' ({sizes[name]})" in task.passed_over[0]
    with pytest.raises(ValueError, match=r"per-class: 5 images asked, but class '.' of .* has"):
        load_task(source, num_classes=3, per_class=5, seed=0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_truncated_image_is_named(suffix, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    source = write_images(tmp_path / "set", {"a": [noise, noise], "b": [noise, noise]}, suffix)
    damaged = tmp_path / "set" / "b" / f"1.{suffix}"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(
        ValueError,
        match=rf"data: the image '.*set/b/1\.{suffix}' cannot be read .*remove or replace it",
    ):
        load_task(source, num_classes=2, per_class=2)


@pytest.mark.parametrize("content", [b"", b"hello", b"BM" + bytes(range(200))])
def test_something_else_than_an_image_is_named(content, two_colours, tmp_path):
    (tmp_path / "set" / "red" / "0.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"data: the image '.*red/0\.png' cannot be read"):
        load_task(two_colours, num_classes=2, per_class=3)


def test_an_absurdly_large_image_is_named(two_colours, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # an image of 8×8 is more than twice that
    with pytest.raises(
        ValueError, match=r"data: the image '.*blue/0\.png' cannot be read \(Image size"
    ):
        load_task(two_colours, num_classes=2, per_class=3)


# size and crop


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        ((500, 375), 224, (298, 224)),  # 298.67 is rounded down
        ((375, 500), 224, (224, 298)),
        ((640, 427), 32, (47, 32)),  # 47.96
        ((33, 32), 32, (33, 32)),
        ((10, 3), 5, (16, 5)),  # enlarged, 16.67
        ((7, 7), 9, (9, 9)),
    ],
)
def test_the_long_side_follows_torchvision(given, size, expected):
    """torchvision's `_compute_resized_output_size`: int(size * long / short)."""
    assert resized_size(*given, size) == expected


@pytest.mark.parametrize(("width", "left"), [(9, 0), (11, 2), (13, 2), (15, 4)])
def test_an_odd_margin_is_halved_as_torchvision_does(width, left):
    """torchvision's `center_crop`: int(round((width - size) / 2)), halves to even."""
    columns = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None] * 10, 3, axis=2)
    image = Image.fromarray(np.repeat(columns, 8, axis=0))
    np.testing.assert_array_equal(square(image, 8)[0, :, 0], 10 * np.arange(left, left + 8))
    np.testing.assert_array_equal(
        square(image.transpose(Image.Transpose.TRANSPOSE), 8)[:, 0, 0],
        10 * np.arange(left, left + 8),
    )


# splits


def test_a_split_is_a_folder(tmp_path):
    write_images(tmp_path / "set" / "train", {"red": [plain(RED)] * 2, "blue": [plain(BLUE)] * 2})
    source = write_images(
        tmp_path / "set" / "test",
        {"red": [plain(RED)], "blue": [plain(BLUE)], "green": [plain(GREEN)]},
    ).removesuffix("/test")
    task = load_task(source, num_classes=None, per_class=None, split="test")
    assert task.class_names == ("blue", "green", "red")
    np.testing.assert_array_equal(task.labels, [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"split: '.*set' has no folder 'val'; take 'train' or make '.*set/val'"
    ):
        load_task(source, split="val")
    with pytest.raises(ValueError, match="split: 'digits' has no split 'test'; take 'train'"):
        load_task("digits", split="test")


def test_hidden_files_are_no_images(two_colours, tmp_path):
    (tmp_path / "set" / "red" / "._0.png").write_bytes(b"resource fork")
    write_images(tmp_path / "set", {".checkpoints": [plain(GREEN)]})
    assert load_task(two_colours, num_classes=None, per_class=None).per_class == (3, 3)


# up to N


def test_up_to_takes_what_there_is_and_says_so(tmp_path):
    """The paper: "150 images (or the maximum available for the specific dataset)"."""
    grey = [plain((10 * level,) * 3) for level in range(9)]
    source = write_images(tmp_path / "set", {"few": grey[:2], "many": grey, "some": grey[:5]})
    task = load_task(source, num_classes=None, per_class=UpTo(5))
    assert task.per_class == (2, 5, 5)
    assert task.asked_per_class == 5
    assert task.notes == ("fewer than 5 images in 1 of 3 classes: 'few' has 2",)
    assert load_task(source, num_classes=None).per_class == (2, 9, 5)  # by default up to 150
    assert load_task(source, num_classes=None, per_class=None).notes == ()


def test_up_to_draws_the_same_images_as_the_number(tmp_path):
    for seed in (0, 1):
        exact, up_to = (
            load_task("digits", num_classes=3, per_class=number, image_size=8, seed=seed)
            for number in (6, UpTo(6))
        )
        np.testing.assert_array_equal(exact.images, up_to.images)
        assert exact.class_names == up_to.class_names


def test_many_classes_share_what_is_taken_in_all(tmp_path):
    grey = [plain((10 * level,) * 3) for level in range(16)]
    source = write_images(tmp_path / "set", {"few": grey[:2], "many": grey, "some": grey})
    for in_all, taken in ((None, 14), (90, 14), (36, 12), (6, 10)):  # at least 10 a class
        task = load_task(source, num_classes=None, per_class=UpTo(14, in_all))
        assert task.per_class == (2, taken, taken)
        assert task.asked_per_class == taken
        assert task.num_there == 34
    two = load_task(source, num_classes=2, per_class=UpTo(14, 24), seed=1)
    assert two.num_there == sum(len(grey) if name != "few" else 2 for name in two.class_names)
    assert max(two.per_class) == 12


def test_all_classes_of_ones_own_data_and_five_of_a_benchmark(tmp_path):
    source = write_images(tmp_path / "set", {name: [plain(RED)] for name in "abcdefg"})
    path = source.removeprefix("folder:")
    for own in (source, path, f"list:names.txt@{path}", "arrays:set.npz", "set.npz"):
        assert default_classes(own) is None
    for benchmark in ("digits", "tfds:cars196", "cifar10", "cub200"):
        assert default_classes(benchmark) == 5


def test_up_to_none_is_refused():
    with pytest.raises(ValueError, match="per-class: must be at least 1, got 0"):
        load_task("digits", per_class=UpTo(0))


# unreadable images left out


@pytest.fixture
def damaged(tmp_path):
    """20 shades in each of two classes; 1, 2, 3 of `b` are damaged."""
    grey = [plain((10 * level,) * 3) for level in range(20)]
    source = write_images(tmp_path / "set", {"a": grey, "b": grey, "c": grey})
    for number in (1, 2, 3):
        (tmp_path / "set" / "b" / f"{number}.png").write_bytes(b"no image")
    return source


def test_unreadable_images_are_replaced_on_request(damaged):
    with pytest.raises(
        ValueError, match=r"data: the image '.*b/[123]\.png' cannot be read .*on_corrupt='skip'"
    ):
        load_task(damaged, num_classes=None, per_class=17)
    task = load_task(
        damaged, num_classes=None, per_class=17, image_size=8, on_corrupt="skip", seed=1
    )
    assert task.per_class == (17, 17, 17)
    shades = task.images[task.labels == 1][:, 0, 0, 0]
    assert sorted(set(shades.tolist())) == [0, *range(40, 200, 10)]  # each readable one once
    assert 1 <= len(task.skipped) <= 3
    assert {name[-7:] for name in task.skipped} <= {"b/1.png", "b/2.png", "b/3.png"}
    assert task.notes[-1].startswith(
        f"{len(task.skipped)} unreadable image(s) left out, the first is "
    )


def test_leaving_images_out_of_one_class_does_not_change_the_others(damaged, tmp_path):
    skipping = load_task(
        damaged, num_classes=None, per_class=15, image_size=8, on_corrupt="skip", seed=3
    )
    assert skipping.skipped
    for number in (1, 2, 3):
        plain((10 * number,) * 3).save(tmp_path / "set" / "b" / f"{number}.png")
    whole = load_task(damaged, num_classes=None, per_class=15, image_size=8, seed=3)
    for label in (0, 2):
        np.testing.assert_array_equal(
            skipping.images[skipping.labels == label], whole.images[whole.labels == label]
        )


def test_too_few_readable_images_are_refused_where_a_number_was_asked(damaged):
    with pytest.raises(
        ValueError,
        match=r"per-class: 18 images asked, but class 'b' of 'folder:.*' has 17 readable ones of "
        r"20 \(the first unreadable is '.*b/\d\.png'\)",
    ):
        load_task(damaged, num_classes=None, per_class=18, on_corrupt="skip")
    assert load_task(
        damaged, num_classes=None, per_class=UpTo(18), on_corrupt="skip"
    ).per_class == (18, 17, 18)
    assert load_task(damaged, num_classes=None, per_class=UpTo(30), on_corrupt="skip").notes == (
        "fewer than 30 images in 3 of 3 classes: 'a' has 20, 'b' has 17, 'c' has 20",
        load_task(damaged, num_classes=None, on_corrupt="skip").notes[-1],
    )


def test_a_class_without_a_readable_image_is_refused(two_colours, tmp_path):
    for file in (tmp_path / "set" / "red").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'red' of 'folder:.*' has 0 readable ones of 3"):
        load_task(two_colours, num_classes=2, per_class=UpTo(3), on_corrupt="skip")


def test_an_unknown_way_with_unreadable_images_is_refused(unchecked):
    with pytest.raises(ValueError, match="on_corrupt: unknown 'ignore'; give 'raise' or 'skip'"):
        load_task("digits", on_corrupt="ignore")  # type: ignore[arg-type]


# real images


@pytest.mark.data
def test_a_real_set_is_read_at_the_asked_size(data_root):
    task = load_task(
        f"folder:{data_root / 'dtd'}", num_classes=3, per_class=5, image_size=32, seed=2
    )
    assert task.images.shape == (15, 32, 32, 3)
    assert set(task.class_names) <= {
        folder.name for folder in (data_root / "dtd" / "train").iterdir()
    }
    assert len({image.tobytes() for image in task.images}) == 15
    assert task.images.std(axis=(1, 2, 3)).min() > 5  # photographs, not blanks


@pytest.mark.data
def test_images_of_the_asked_size_are_read_unchanged(data_root):
    task = load_task(
        f"folder:{data_root / 'cifar100'}", num_classes=2, per_class=None, image_size=32
    )
    folder = data_root / "cifar100" / "train" / task.class_names[1]
    expected = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir())]
    np.testing.assert_array_equal(task.images[task.labels == 1], expected)
