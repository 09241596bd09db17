"""Tasks from images and labels of the user's own, and what is refused because it could be misread."""

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
    task = task_from_arrays(shades(4), [2, 0, 2, 0], class_names=("zebra", "unused", "ape"), name="mine")
    assert (task.class_names, task.source) == (("zebra", "ape"), "mine")
    np.testing.assert_array_equal(task.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(task.images[:, 0, 0, 0], [5, 15, 0, 10])
    assert task_from_arrays(shades(3), ["b", "a", "b"]).class_names == ("a", "b")


def test_arrays_are_sampled_like_any_source():
    labels = np.arange(40) % 4
    tasks = [task_from_arrays(shades(40), labels, num_classes=3, per_class=4, image_size=5, seed=seed) for seed in (0, 0, 1, 2)]
    assert tasks[0].images.shape == (12, 5, 5, 3)
    np.testing.assert_array_equal(tasks[0].images, tasks[1].images)
    assert len({task.images.tobytes() for task in tasks}) == 3
    values = tasks[0].images[:, 0, 0, 0] // 5
    np.testing.assert_array_equal(values % 4, np.asarray([int(name) for name in tasks[0].class_names])[tasks[0].labels])


def test_sampled_classes_keep_their_order():
    names = {task_from_arrays(shades(24), np.arange(24) % 12, num_classes=6, seed=seed).class_names for seed in range(4)}
    assert len(names) > 1
    assert all(list(each) == sorted(each, key=int) for each in names)


@pytest.mark.parametrize("convert", [lambda x: x[..., 0], lambda x: x[..., :1], lambda x: x / 255, lambda x: (x / 255).astype(np.float32)[..., 0]])
def test_every_layout_gives_the_same_pixels(convert):
    expected = task_from_arrays(shades(6), [0, 1] * 3)
    np.testing.assert_array_equal(task_from_arrays(convert(shades(6)), [0, 1] * 3).images, expected.images)


@pytest.mark.parametrize(("images", "labels", "more", "message"), [
    (shades(4).transpose(0, 3, 1, 2), [0, 1] * 2, {}, r"images: must have shape .* got \(4, 3, 6, 8\); channels come last: images.transpose\(0, 2, 3, 1\)"),
    (shades(4)[0, 0], [0, 1] * 2, {}, r"images: must have shape .* got \(8, 3\)"),
    (np.zeros((0, 4, 4, 3), np.uint8), [], {}, r"images: must have shape .* got \(0, 4, 4, 3\)"),
    (shades(4).astype(int), [0, 1] * 2, {}, "images: must be uint8 in 0 … 255 or floating point in .* got dtype int64"),
    (shades(4) / 10.0, [0, 1] * 2, {}, r"images: floating-point pixels must lie in \[0, 1\], got 0 … 1.5"),
    (shades(4) / 255 - 0.5, [0, 1] * 2, {}, r"images: floating-point pixels must lie in \[0, 1\], got -0.5"),
    (np.where(np.arange(4)[:, None, None, None] == 2, np.nan, shades(4) / 255), [0, 1] * 2, {}, "images: image 2 holds NaN or infinity"),
    (shades(4), [0, 1, 0], {}, r"labels: must be one for each of the 4 images, got shape \(3,\)"),
    (shades(4), np.eye(4), {}, r"labels: must be one for each of the 4 images, got shape \(4, 4\)"),
    (shades(4), np.asarray([0.0, 1.0, 0.0, 1.0]), {}, "labels: must be integers or strings, got dtype float64"),
    (shades(4), ["a", "b", "a", "b"], {"class_names": ("a", "b")}, "labels: must be integers where class_names are given"),
    (shades(4), [0, 1, 0, 2], {"class_names": ("a", "b")}, "labels: 2 has no name among the 2 class_names; labels must lie in 0 … 1"),
    (shades(4), [0, 1, 0, -1], {"class_names": ("a", "b")}, "labels: -1 has no name"),
    (shades(4), [0, 1, 0, 1], {"class_names": ("a", "a")}, "class_names: 'a' appears twice"),
    (shades(4), [0, 0, 0, 0], {}, r"data: 'arrays' has 1 class\(es\) \(0\)"),
    (shades(4), [0, 1, 0, 1], {"per_class": 3}, "per-class: 3 images asked, but class '0' of 'arrays' has 2"),
])
def test_arrays_that_could_be_misread_are_refused(images, labels, more, message):
    with pytest.raises(ValueError, match=message):
        task_from_arrays(images, labels, **more)


# files


def test_a_file_of_arrays_is_read(tmp_path):
    np.savez(tmp_path / "mine.npz", images=shades(10), labels=np.arange(10) % 2, class_names=["zebra", "ape"])
    source = f"arrays:{tmp_path / 'mine.npz'}"
    task = load_task(source, num_classes=None, per_class=3, image_size=4, seed=1)
    assert (task.source, task.class_names, task.per_class) == (source, ("zebra", "ape"), (3, 3))
    assert set((task.images[task.labels == 1][:, 0, 0, 0] // 5).tolist()) <= {1, 3, 5, 7, 9}
    assert describe_data(source).num_images == 10


def test_files_of_other_things_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=shades(2), labels=[0, 1])
    np.savez(tmp_path / "objects.npz", images=np.asarray([shades(1), None], dtype=object), labels=[0, 1])
    np.save(tmp_path / "single.npy", shades(2))
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (
        ("x.npz", r"data: '.*x\.npz' holds 'x', 'labels' but no 'images'; write it with numpy\.savez"),
        ("objects.npz", r"data: '.*objects\.npz' cannot be read \(Object arrays cannot be loaded"),
        ("single.npy", r"data: '.*single\.npy' cannot be read"),
        ("text.npz", r"data: '.*text\.npz' cannot be read"),
        ("missing.npz", r"data: there is no file '.*missing\.npz'; give arrays:FILE\.npz"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task(f"arrays:{tmp_path / name}")
    with pytest.raises(ValueError, match="split: 'arrays:' has no split 'test'"):
        load_task("arrays:x.npz", split="test")
