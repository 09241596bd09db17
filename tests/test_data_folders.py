"""Image folders as they lie on disks: what is read, and what is passed over with a word."""

import os
import re
import socket

import numpy as np
import pytest
from PIL import Image

from ntk_tt.cli import main
from ntk_tt.data import describe_data, load_task


def put(root, *names: str) -> None:
    """Images of 4×4 by their paths below root, each with a brightness of its own."""
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (100 + level,) * 3).save(root / name)


def load(root, **more):
    return load_task(f"folder:{root}", num_classes=None, per_class=None, image_size=4, **more)


def two_classes(root) -> None:
    put(root, "ant/0.png", "ant/1.png", "bee/0.png")


# depth and suffixes


def test_class_folders_are_searched_to_any_depth(tmp_path):
    put(
        tmp_path,
        "ant/1.png",
        "ant/a/0.png",
        "ant/a/b/c/0.png",
        "ant/z/0.png",
        "bee/0.png",
        "bee/x/y/0.png",
    )
    task = load(tmp_path)
    assert (task.class_names, task.per_class) == (("ant", "bee"), (4, 2))
    # in the order of their paths
    assert task.images[:, 0, 0, 0].tolist() == [
        100,
        101,
        102,
        103,
        104,
        105,
    ]
    assert task.notes == (
        "4 of 6 image(s) lie in folders within the folder of their class, and are taken",
    )


def test_images_that_all_lie_one_level_too_deep_are_asked_about(tmp_path):
    put(tmp_path, "images/ant/0.png", "images/bee/0.png", "masks/ant/0.png", "masks/bee/0.png")
    assert load(tmp_path).notes == (
        "4 of 4 image(s) lie in folders within the folder of their class, and are taken; "
        "if 'images', 'masks' are no classes, give the folder in which the classes are",
    )


@pytest.mark.parametrize(
    "suffix",
    [
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".jpe",
        ".jfif",
        ".jp2",
        ".pcx",
        ".tga",
        ".TIF",
        ".JPG",
        ".Png",
        ".GIF",
        ".PPM",
    ],
)
def test_what_pillow_opens_is_an_image(suffix, tmp_path):
    two_classes(tmp_path)
    kind = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(kind).save(tmp_path / "bee" / f"1{suffix}")
    task = load(tmp_path)
    assert task.per_class == (2, 2)
    assert (task.images[3] >= 250).all()
    assert task.notes == ()


def test_other_suffixes_are_counted_and_a_class_of_them_is_named(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "cat").mkdir()
    for name in ("cat/0.psd", "cat/1.psd", "cat/2.PSD", "bee/labels.txt", "ant/raw"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    task = load(tmp_path)
    assert task.per_class == (2, 1)
    assert task.notes == (
        "passed over 5 file(s) that are no images by their suffix: "
        "3 .psd, 1 without suffix, 1 .txt",
        "2 folder(s) without images are no classes: 'cat' (3 .psd), 'empty' (empty)",
    )
    with pytest.raises(
        ValueError,
        match=r"classes: 3 asked, but .* has 2; ask for at most 2; passed over 5 file\(s\) .*'cat' "
        r"\(3 \.psd\), 'empty' \(empty\)",
    ):
        load_task(f"folder:{tmp_path}", num_classes=3)


def test_where_no_class_is_left_the_error_says_what_was_there(tmp_path):
    for name in ("forest/0.psd", "river/0.heic", "river/1.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    message = (
        r"3 file\(s\) that are no images by their suffix: 2 \.heic, 1 \.psd; 2 folder\(s\) "
        r"without images are no classes"
    )
    with pytest.raises(
        ValueError,
        match=rf"has no classes; give a folder of folders of images; passed over {message}",
    ):
        describe_data(f"folder:{tmp_path}")
    with pytest.raises(
        ValueError,
        match=r"has 0 class\(es\) \(none\); classification needs at least two; passed over "
        rf"{message}",
    ):
        load(tmp_path)


def test_the_command_that_describes_data_says_what_was_passed_over(tmp_path, capsys):
    two_classes(tmp_path)
    (tmp_path / "bee" / "0.xcf").write_bytes(b"x")
    main(["data", f"folder:{tmp_path}"])
    assert (
        "note: passed over 1 file(s) that are no images by their suffix: 1 .xcf"
        in capsys.readouterr().out
    )
    assert describe_data(f"folder:{tmp_path}").notes == load(tmp_path).notes


# what systems leave behind


def test_what_operating_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    two_classes(tmp_path)
    put(
        tmp_path,
        "@eaDir/0.png",
        "__MACOSX/ant/0.png",
        "ant/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "#recycle/0.png",
        ".trash/0.png",
        "bee/.hidden/0.png",
    )
    for name in ("ant/Thumbs.db", "ant/.DS_Store", "ant/._0.png", "bee/desktop.ini", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    task = load(tmp_path)
    assert (task.class_names, task.per_class) == (("ant", "bee"), (2, 1))
    assert task.notes == (
        f"passed over 4 folder(s) of the operating system, the first is '{tmp_path}/#recycle'",
    )


@pytest.mark.parametrize("name", ["@Recycle", "@tmp", "__pycache__", "_gsdata_", "RECYCLER"])
def test_folders_of_storage_boxes_are_no_classes(name, tmp_path):
    two_classes(tmp_path)
    put(tmp_path, f"{name}/0.png", f"ant/{name}/0.png")
    task = load(tmp_path)
    assert (task.class_names, task.per_class) == (("ant", "bee"), (2, 1))
    assert "passed over 2 folder(s) of the operating system" in task.notes[0]


@pytest.mark.parametrize("twin", ["Ant", "ant ", "ant-hill", "caf\u00e9"])
def test_classes_that_look_alike_get_a_word(twin, tmp_path):
    other = {"ant-hill": "ant_hill", "caf\u00e9": "cafe\u0301"}.get(twin, "ant")
    put(tmp_path, f"{other}/0.png", f"{twin}/0.png", "bee/0.png")
    task = load(tmp_path)
    assert set(task.class_names) == {other, twin, "bee"}  # they stay two
    note = "classes whose names differ only in how they are written: {} and {}; join them"
    assert task.notes[-1].startswith(note.format(*map(ascii, sorted([other, twin]))))


def test_images_beside_the_class_folders_have_no_class(tmp_path):
    two_classes(tmp_path)
    put(tmp_path, "0.png", "1.tif")
    assert load(tmp_path).notes == (
        "passed over 2 image(s) beside the class folders, which have no class, the first is "
        f"'{tmp_path}/0.png'",
    )
    put(tmp_path / "flat", "0.png", "1.png")
    with pytest.raises(
        ValueError, match=r"has 0 class\(es\).* passed over 2 image\(s\) beside the class folders"
    ):
        load(tmp_path / "flat")


def test_folders_named_like_images_are_folders(tmp_path):
    two_classes(tmp_path)
    put(tmp_path, "ant/x.jpg/0.png")
    (tmp_path / "bee" / "y.png").mkdir()
    task = load(tmp_path)
    assert task.per_class == (3, 1)
    assert (
        task.notes[0]
        == f"searched 2 folder(s) named like images, the first is '{tmp_path}/ant/x.jpg'"
    )


# links


def test_links_are_followed_and_broken_ones_named(tmp_path):
    put(tmp_path / "store", "0.png", "1.png", "2.png", "more/3.png")
    root = tmp_path / "set"
    two_classes(root)
    (root / "bee" / "linked.png").symlink_to(tmp_path / "store" / "1.png")
    (root / "cat").symlink_to(tmp_path / "store")
    (root / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "round.png").symlink_to(root / "round.png")
    (root / "bee" / "round.png").symlink_to(root / "bee" / "round.png")
    (root / "dog").symlink_to(tmp_path / "no such folder")
    task = load(root)
    assert (task.class_names, task.per_class) == (("ant", "bee", "cat"), (2, 2, 4))
    assert task.notes[0] == f"passed over 4 link(s) that lead nowhere, the first is '{root}/dog'"


def test_no_image_of_a_class_is_read_twice_and_loops_end(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "ant" / "itself").symlink_to(tmp_path / "ant")
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    (tmp_path / "ant" / "far up").symlink_to("/")
    (tmp_path / "ant" / "sister").symlink_to(tmp_path / "bee")
    put(tmp_path, "bee/deep/1.png")
    (tmp_path / "bee" / "deep" / "back").symlink_to(tmp_path / "bee" / "deep")
    (tmp_path / "bee" / "again").symlink_to(tmp_path / "bee" / "deep")
    (tmp_path / "ant" / "twin.png").symlink_to(tmp_path / "ant" / "1.png")
    (tmp_path / "wasp").symlink_to(tmp_path / "bee")
    task = load(tmp_path)
    assert (task.class_names, task.per_class) == (("ant", "bee"), (2, 2))
    assert task.notes[:2] == (
        f"passed over 7 link(s) to folders that are read already, the first is '{tmp_path}/wasp'",
        "passed over 1 link(s) to images that are read already, the first is "
        f"'{tmp_path}/ant/twin.png'",
    )


def test_two_classes_may_share_a_folder_outside(tmp_path):
    put(tmp_path / "store", "9.png")
    root = tmp_path / "set"
    two_classes(root)
    for name in ("ant", "bee"):
        (root / name / "shared").symlink_to(tmp_path / "store")
    assert load(root).per_class == (3, 2)


# things that are no files, and odd names


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_sockets_are_passed_over(tmp_path, monkeypatch):
    two_classes(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path / "bee")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        task = load(tmp_path)
    assert task.per_class == (2, 1)
    assert task.notes == (
        f"passed over 3 pipe(s), socket(s) or device(s), the first is '{tmp_path}/pipe'",
    )


def test_names_that_are_no_text_are_shown_as_escapes(tmp_path):
    folder = os.fsencode(tmp_path)
    try:
        os.mkdir(folder + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    os.mkdir(folder + b"/tab\there")
    put(tmp_path, "white.png")
    for name in (b"/caf\xe9/\xff.png", b"/tab\there/0.png", b"/caf\xe9/odd.\xfe"):
        os.link(folder + b"/white.png", folder + name)
    os.remove(folder + b"/white.png")
    task = load(tmp_path)
    assert task.class_names == (r"caf\udce9", r"tab\there")
    assert task.notes == (r"passed over 1 file(s) that are no images by their suffix: 1 .\udcfe",)
    "".join((*task.class_names, *task.notes)).encode()  # can be printed
    os.truncate(folder + b"/caf\xe9/\xff.png", 20)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load(tmp_path)
    str(caught.value).encode()


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    two_classes(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*bee'"):
        load(tmp_path)


# splits


@pytest.mark.parametrize(
    "names",
    [("test", "val"), ("Training", "Testing"), ("train_set", "test-images", "valid"), ("test",)],
)
def test_folders_of_splits_are_no_classes(names, tmp_path):
    for name in names:
        put(tmp_path, f"{name}/ant/0.png", f"{name}/bee/0.png")
    listed = re.escape(", ".join(map(repr, sorted(names))))
    with pytest.raises(
        ValueError,
        match=rf"split: the folder\(s\) {listed} in '.*' are splits by their names, not classes; "
        r"choose one with split",
    ):
        load(tmp_path)
    assert load(tmp_path, split=names[0]).class_names == ("ant", "bee")


def test_a_class_with_the_name_of_a_split_gets_a_word(tmp_path):
    two_classes(tmp_path)
    put(tmp_path, "test/0.png")
    assert load(tmp_path).notes == ("'test' counted among the classes, with the name of a split",)


# the draw stays what it was


def test_a_class_called_train_among_others_is_no_split(tmp_path):
    put(tmp_path, "bus/0.png", "car/0.png", "car/1.png", "train/0.png", "train/1.png")
    task = load(tmp_path)
    assert (task.class_names, task.per_class) == (("bus", "car", "train"), (1, 2, 2))
    assert task.notes == ("'train' counted among the classes, with the name of a split",)
    # what the user names is what is meant
    with pytest.raises(ValueError, match="has no folder 'val'"):
        load(tmp_path, split="val")


def test_what_lies_beside_a_split_gets_a_word(tmp_path):
    put(tmp_path, "train/ant/0.png", "train/bee/0.png", "test/9.png", "bus/0.png", "car/0.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.txt").write_text("")
    task = load(tmp_path)
    assert task.class_names == ("ant", "bee")
    assert task.notes == ("2 folder(s) with images beside 'train' are left out: 'bus', 'car'",)


def test_a_split_of_images_without_classes_is_no_class(tmp_path):
    put(tmp_path, "train/0.png", "test/0.png")
    with pytest.raises(ValueError, match="class"):
        load(tmp_path)


def test_plain_folders_are_drawn_from_as_before(tmp_path):
    """Names sorted; K of the names, then for each in turn N of its images, from one generator."""
    names = [f"{name}/{number}.png" for name in ("b", "a", "C", "d") for number in range(12)]
    put(tmp_path, *names)
    level = {name: 100 + index for index, name in enumerate(names)}
    rng = np.random.default_rng(5)
    chosen = sorted(rng.choice(["C", "a", "b", "d"], 3, replace=False))
    expected = []
    for kind in chosen:
        files = sorted(name for name in names if name.startswith(kind))
        expected += [level[files[index]] for index in sorted(rng.choice(12, 4, replace=False))]
    task = load_task(f"folder:{tmp_path}", num_classes=3, per_class=4, image_size=4, seed=5)
    assert task.class_names == tuple(chosen)
    assert task.images[:, 0, 0, 0].tolist() == expected
    assert task.notes == ()


def test_a_path_needs_no_prefix(tmp_path):
    two_classes(tmp_path)
    told, plain = (describe_data(f"{prefix}{tmp_path}") for prefix in ("folder:", ""))
    assert plain[2:] == told[2:]
    file = tmp_path / "some.npz"
    np.savez(file, images=np.zeros((4, 3, 3, 3), np.uint8), labels=np.arange(4) % 2)
    assert describe_data(str(file)).num_images == 4
    with pytest.raises(ValueError, match="unknown source"):
        describe_data(str(tmp_path / "absent"))
