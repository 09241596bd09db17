"""Lists of images as people and data sets write them, and what is refused with the line's
number.
"""

import os
import unicodedata

import pytest
from PIL import Image

from ntk_tt.data import describe_data, load_task

ROOMS = [f"{room}/shot {number}.jpg" for room in ("gym", "living room") for number in range(3)]


@pytest.fixture
def rooms(tmp_path):
    """Six images, of brightness 10, 20, …, 60, below `set`."""
    for index, path in enumerate(ROOMS):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * index + 10).save(tmp_path / "set" / path)
    return tmp_path


def write(folder, content: str | bytes) -> str:
    (folder / "list.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    return f"list:{folder}/list.txt@{folder}/set"


def load(folder, content: str | bytes):
    return load_task(write(folder, content), num_classes=None, per_class=None, image_size=8)


def labelled(separator: str, quote: str = "") -> list[str]:
    return [f"{quote}{path}{quote}{separator}{int(path[0] == 'l')}" for path in ROOMS]


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ("\n".join(ROOMS), ("gym", "living room")),
        ("\n".join(labelled(" ")), ("0", "1")),
        ("\n".join(labelled("   ")), ("0", "1")),
        ("\n".join(labelled("\t")), ("0", "1")),
        ("\n".join(labelled(",")), ("0", "1")),
        ("\n".join(labelled(", ")), ("0", "1")),
        ("\n".join(labelled(";")), ("0", "1")),
        ("\n".join(labelled(",", '"')), ("0", "1")),
        ("\n".join(labelled(" ", '"')), ("0", "1")),
        ("\n".join(f'"{path}"' for path in ROOMS), ("gym", "living room")),
        (
            "\n".join(
                f'{path},"{"gym, small" if path[0] == "g" else "room, living"}"' for path in ROOMS
            ),
            ("gym, small", "room, living"),
        ),
        (
            "\n".join(f"{path} class {int(path[0] == 'l')}" for path in ROOMS),
            ("class 0", "class 1"),
        ),
        ("\r\n".join(labelled(" ")) + "\r\n", ("0", "1")),
        ("\r".join(labelled(" ")), ("0", "1")),
        (b"\xef\xbb\xbf" + "\n".join(ROOMS).encode(), ("gym", "living room")),
        (b"\xef\xbb\xbf" + "\r\n".join(labelled(",")).encode(), ("0", "1")),
        ("\n\n".join(["", *ROOMS, "  ", "\t"]), ("gym", "living room")),
        # as in Food-101
        (
            "\n".join(path.removesuffix(".jpg") for path in ROOMS),
            ("gym", "living room"),
        ),
        ("\n".join(line.replace(".jpg", "") for line in labelled(" ")), ("0", "1")),
        ("\n".join(path.replace("/", "\\") for path in ROOMS), ("gym", "living room")),
        ("\n".join("./" + path for path in ROOMS), ("gym", "living room")),
        ("\n".join(f"gym/../{path}" for path in ROOMS), ("gym", "living room")),  # stays below ROOT
    ],
)
def test_forms_of_a_list(content, classes, rooms):
    task = load(rooms, content)
    assert task.class_names == classes
    assert task.per_class == (3, 3)
    # each image in its class
    assert [round(level, -1) for level in task.images[:, 0, 0, 0].tolist()] == [
        10,
        20,
        30,
        40,
        50,
        60,
    ]
    assert task.notes == ()


def test_absolute_paths_below_root_are_as_good_as_others(rooms, monkeypatch):
    assert load(rooms, "\n".join(f"{rooms}/set/{path}" for path in ROOMS)).class_names == (
        "gym",
        "living room",
    )
    write(rooms, "\n".join(f"{rooms}/set/{path} {path[0]}" for path in ROOMS))
    monkeypatch.chdir(rooms)
    assert load_task("list:list.txt@set", num_classes=None, image_size=4).class_names == ("g", "l")


def test_file_and_root_may_have_the_sign_between_them(rooms):
    os.rename(rooms / "set", rooms / "s@t")
    (rooms / "me@home").mkdir()
    (rooms / "me@home" / "list@1.txt").write_text("\n".join(ROOMS))
    source = f"list:{rooms}/me@home/list@1.txt@{rooms}/s@t"
    assert load_task(source, num_classes=None, image_size=4).class_names == ("gym", "living room")
    (rooms / "s@t" / "list@1.txt").write_text("\n".join(ROOMS))
    assert describe_data(f"list:{rooms}/s@t/list@1.txt").num_images == 6


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_in_either_form(forms, rooms):
    on_disk, listed = (unicodedata.normalize(form, "Küche") for form in forms)
    os.rename(rooms / "set" / "gym", rooms / "set" / on_disk)
    assert load(rooms, "\n".join(path.replace("gym", listed) for path in ROOMS)).per_class == (3, 3)


def test_headings_and_remarks_are_passed_over(rooms):
    for heading in (
        "filename,label",
        "image\tclass",
        "Path;Category",
        "image_id label",
        "# an image, its class",
    ):
        separator = next(char for char in "\t;, " if char in heading)
        task = load(rooms, "\n".join([heading, *labelled(separator), "# the end"]))
        assert task.per_class == (3, 3)
        lines = 2
        assert task.notes == (
            f"passed over {lines} line(s) of '{rooms}/list.txt' with headings or remarks, the "
            "first is line 1",
        )


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize(
    "columns",
    [
        "path,class,split",
        "id,Filename,width,Label",
        "class,path",
        "class_id,class_name,image",
        "# a remark\nsplit,file,class,x,y",
    ],
)
def test_the_first_line_says_which_columns_are_meant(separator, columns, rooms):
    names = columns.lower().splitlines()[-1].split(",")
    rows = []
    for number, path in enumerate(ROOMS):
        label = "big, living" if path[0] == "l" else "gym"
        cells = {"label": label, "class": label, "class_name": label}
        cells |= dict.fromkeys(("path", "filename", "image", "file"), path)
        cells = [cells.get(name, str(number)) for name in names]
        rows.append(separator.join(f'"{cell}"' if separator in cell else cell for cell in cells))
    task = load(rooms, "\n".join([columns.replace(",", separator), *rows]))
    assert task.class_names == ("big, living", "gym")
    assert task.images[:, 0, 0, 0].tolist() == [40, 50, 60, 10, 20, 30]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["gym/shot 0.jpg,gym,train", "living room/shot 0.jpg,room,train"],
            "line 1 of '.*list.txt' has 3 columns, and it is not clear which is the class; begin",
        ),
        (["gym/shot 0.jpg\t1\t2\t3"], "line 1 of .* has 4 columns"),
        (["gym/shot 0;gym;train"], "line 1 of .* has 3 columns"),
        (["gym\\shot 0.jpg,a,b"], "line 1 of .* has 3 columns"),
        (["gym/shot 0.jpg 3 17"], "line 1 of .* has 3 columns"),
        (["gym/shot 0.jpg 3 0.25 1e3"], "line 1 of .* has 4 columns"),
        (["path,breed,split", "gym/shot 0.jpg,a,b"], "line 1 of .* none of them that of the class"),
        (["path,class,split", "gym/shot 0.jpg"], "line 2 of .* without a path or class in the"),
        (["path,class,split", "gym/shot 0.jpg,,b"], "line 2 of .* without a path or class"),
        (["path,class,split", "gym/shot 9.jpg,a,b"], "line 2 of .* no image '.*/set/gym/shot 9.j"),
        (["class,path", "a,../other.jpg"], "line 2 of .* not below"),
    ],
)
def test_columns_that_nothing_names_are_not_guessed(lines, message, rooms):
    Image.new("L", (8, 8)).save(rooms / "other.jpg")
    with pytest.raises(ValueError, match=f"data: {message}"):
        load(rooms, "\n".join(lines))


def test_a_path_may_have_the_sign_between_columns(rooms):
    os.rename(rooms / "set" / "gym", rooms / "set" / "gym, new")
    paths = [path.replace("gym/", "gym, new/") for path in ROOMS]
    task = load(rooms, "\n".join(f"{path},{path[0]}" for path in paths))
    assert task.class_names == ("g", "l")


def test_an_image_whose_name_begins_with_a_remark_sign_is_an_image(rooms):
    Image.new("L", (8, 8)).save(rooms / "set" / "gym" / "#1.jpg")
    os.rename(rooms / "set" / "gym", rooms / "set" / "#gym")
    assert load(
        rooms, "#gym/#1.jpg\nliving room/shot 0.jpg\n#living room/shot 1.jpg"
    ).per_class == (1, 1)


def test_images_that_are_named_twice_count_once(rooms):
    task = load(rooms, "\n".join([*ROOMS, ROOMS[0], "./" + ROOMS[1]]))
    assert task.per_class == (3, 3)
    assert task.notes == (
        f"passed over 2 line(s) of '{rooms}/list.txt' that name an image again, "
        "the first is line 7",
    )
    assert describe_data(f"list:{rooms}/list.txt@{rooms}/set").notes == task.notes
    with pytest.raises(
        ValueError,
        match=r"data: lines 1 and 7 of '.*list\.txt' give 'gym/shot 0\.jpg' the classes '0' and "
        r"'1'; remove one",
    ):
        load(rooms, "\n".join([*labelled(" "), "gym/shot 0.jpg 1"]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["gym/shot 9.jpg 0"],
            r"line 1 of '.*list.txt' is 'gym/shot 9.jpg 0', but there is no image '.*set/gym/shot "
            r"9.jpg'; give list:FILE@ROOT",
        ),
        (
            ["gym/shot 0.jpg", "", "living room/shot 7.jpg"],
            r"line 3 of .* no image '.*set/living room/shot 7.jpg'; give",
        ),
        (["gym/shot 9.jpg,0"], "no image '.*set/gym/shot 9.jpg'"),
        (
            ["../set/gym/shot 0.jpg"],
            r"line 1 of '.*' is '../set/gym/shot 0.jpg', which is not below '.*set'; give "
            r"list:FILE@ROOT with a folder that holds all",
        ),
        (["gym/../../other.jpg 1"], "line 1 of .* which is not below"),
        (["gym/shot 0.jpg", "/etc/passwd"], "line 2 of .* is '/etc/passwd', which is not below"),
        (["/etc/passwd 1"], "which is not below"),
        (['"../other.jpg",1'], "which is not below"),
        (["..\\other.jpg 1"], "which is not below"),
        (["gym"], r"no image '.*set/gym' \(it is a folder, not a file\)"),
        (
            ["gym/shot 0.jpg", "living room/shot 0.jpg 1"],
            "line 1 of '.*list.txt' gives no class, line 2 does; give each image a class, or none "
            "and go by the folders",
        ),
        (
            ["gym/shot 0.jpg 1", "living room/shot 0.jpg"],
            "line 2 of '.*list.txt' gives no class, line 1 does",
        ),
        (
            ["top.jpg"],
            "line 1 of '.*list.txt' is 'top.jpg', an image without a class: give it a folder below "
            "ROOT, or its class after a blank or a comma",
        ),
        (["x" * 9000], "line 1 of '.*list.txt' is longer than 8192 characters"),
        ([], r"has 0 class\(es\)"),
    ],
)
def test_lines_that_lead_nowhere_or_out_are_refused(lines, message, rooms):
    Image.new("L", (8, 8)).save(rooms / "other.jpg")
    Image.new("L", (8, 8)).save(rooms / "set" / "top.jpg")
    with pytest.raises(ValueError, match=message):
        load(rooms, "\n".join(lines))


def test_links_below_root_lead_where_they_lead(rooms):
    Image.new("L", (8, 8), 200).save(rooms / "other.jpg")
    (rooms / "set" / "gym" / "link.jpg").symlink_to(rooms / "other.jpg")
    assert load(rooms, "\n".join([*ROOMS, "gym/link.jpg"])).per_class == (4, 3)


@pytest.mark.parametrize(
    ("encoding", "guess"),
    [
        ("latin-1", "Latin-1 or Windows-1252"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-16"),
    ],
)
def test_other_encodings_are_named(encoding, guess, rooms):
    content = "\n".join([*ROOMS, "Küche/a.jpg"]).encode(encoding)
    line = 7 if encoding == "latin-1" else 1
    with pytest.raises(
        ValueError,
        match=rf"data: line {line} of '.*list\.txt' is not UTF-8 text \(byte 0x.. at character \d; "
        rf"is it {guess}\?\); save it as UTF-8",
    ):
        load(rooms, content)


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)),
        b"\0" * 100,
        b"PK\x03\x04" + bytes(200),
        b"\xff" * 50,
        b'"' * 99,
        b"\\" * 99,
        b"a" * 5_000_000,
        b" ".join([b"a"] * 4000),
    ],
)
def test_something_else_than_a_list_is_refused(content, rooms):
    with pytest.raises(ValueError, match=r"data: line 1 of '.*list\.txt' is"):
        load(rooms, content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_list_is_a_regular_file(rooms):
    os.mkfifo(rooms / "pipe")
    os.mkfifo(rooms / "set" / "gym" / "pipe.jpg")
    (rooms / "round").symlink_to(rooms / "round")
    for name, message in (
        ("pipe", r"cannot be read \(it is a pipe, not a file\)"),
        ("set", r"cannot be read \(it is a folder, not a file\)"),
        ("round", r"cannot be read \(Too many levels of symbolic links\)"),
        ("none", "there is no file"),
    ):
        with pytest.raises(ValueError, match=rf"data: .*{message}.*; give list:FILE@ROOT"):
            load_task(f"list:{rooms}/{name}@{rooms}/set")
    with pytest.raises(
        ValueError, match=r"data: there is no folder '.*elsewhere'; give list:FILE@ROOT"
    ):
        load_task(write(rooms, ROOMS[0]).removesuffix("set") + "elsewhere")
    with pytest.raises(
        ValueError, match=r"data: '/dev/zero' cannot be read \(it is a device, not a file\)"
    ):
        load_task(f"list:/dev/zero@{rooms}/set")
    with pytest.raises(ValueError, match=r"no image '.*pipe\.jpg' \(it is a pipe, not a file\)"):
        load(rooms, "gym/pipe.jpg")
