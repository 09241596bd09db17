"""Tables of texts: CSV and JSON lines."""

import json

import pytest

from ntk_tt.data import describe_data, load_task


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def loaded(path, kind="csv", **options):
    return load_task(
        f"{kind}:{path}", num_classes=None, per_class=None, **{"image_size": 1} | options
    )


def pairs(task) -> set[tuple[str, str]]:
    return {
        (text, task.class_names[label])
        for text, label in zip(task.images, task.labels, strict=True)
    }


def test_cells_in_quotes_hold_commas_quotes_and_line_ends(tmp_path):
    file = write(
        tmp_path / "a.csv",
        '\ufefftext,label\r\n"one, two",x\r\n"a ""b""\nc",y\r\nplain é,x\r\n',
    )
    task = loaded(file)
    assert task.is_text
    assert pairs(task) == {("one, two", "x"), ('a "b"\nc', "y"), ("plain é", "x")}
    assert task.class_names == ("x", "y")
    assert task.notes == ()
    assert pairs(load_task(str(file), num_classes=None, per_class=None)) == pairs(task)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_columns_by_name(delimiter, tmp_path):
    rows = [["id", "what", "kind", "text"], ["1", "a,b", "x", "-"], ["2", "c", "y", "-"]]
    file = write(tmp_path / "a.csv", "\n".join(map(delimiter.join, rows)))
    assert pairs(loaded(file, text_column="what", label_column="kind")) == {
        ("a,b", "x"),
        ("c", "y"),
    }
    with pytest.raises(ValueError, match=r"label-column: .* has the columns 'id', 'what'.*usual"):
        loaded(file)
    with pytest.raises(ValueError, match=r"text-column: .*none called 'title'; name one with --te"):
        loaded(file, text_column="title", label_column="kind")
    with pytest.raises(ValueError, match="label-column: 'kind' is the column of the texts"):
        loaded(file, text_column="kind", label_column="kind")


def test_empty_rows_are_left_out_and_named(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\na,x\n,y\n\n"b\n b",y\nc,\nd,x\n')
    task = loaded(file)
    assert pairs(task) == {("a", "x"), ("b\n b", "y"), ("d", "x")}
    (note,) = task.notes
    assert note == "passed over 3 row(s) without text or class: line 3, 4, 7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,x\nb,y,z\n", r"line 3 of .* has 3 column\(s\), the first line 2"),
        ('text,label\na,x\n"b,y\nc,x\n', r"line 3 of .* cannot be read \(unexpected end of data"),
        ('text,label\na,x\n"b"c,y\n', r"line 3 of .* cannot be read \("),
        ("", "text-column: .* has the columns none"),
        ("text,label\na,x\n", r"has 1 class\(es\)"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loaded(write(tmp_path / "a.csv", text))


def test_text_that_is_not_utf8(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\na,x\né,y\n", "latin-1")
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(line 3: .*save it as UTF-8"):
        loaded(file)


def test_json_lines(tmp_path):
    rows = [
        {"utterance": "a\nb", "intent": 3},
        {"utterance": "c", "intent": 10, "more": [1]},
        {"utterance": "", "intent": 3},
        {"intent": 3},
    ]
    file = write(tmp_path / "a.jsonl", "\ufeff" + "\n".join(map(json.dumps, rows)) + "\n\n")
    task = loaded(file, "jsonl")
    assert pairs(task) == {("a\nb", "3"), ("c", "10")}
    assert task.notes == ("passed over 3 row(s) without text or class: line 3, 4, 5",)
    for text, message in (
        ('{"text": "a", "label": "x"}\n{', r"line 2 of .* is no JSON \("),
        ('["a"]', "line 1 of .* is no JSON object but a list"),
        ('{"text": ["a"], "label": "x"}', "line 1 of .* has a list as 'text'; give a text"),
        ('{"text": "a", "x": 1}', "label-column: .* has the columns 'text', 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded(write(file, text), "jsonl")


def test_the_sampler_is_that_of_images(tmp_path):
    lines = [f"{name} {index},{name}" for name in "abcd" for index in range(6)]
    file = write(tmp_path / "a.csv", "\n".join(["text,label", *lines]))
    task = load_task(f"csv:{file}", num_classes=3, per_class=2, seed=1)
    again = load_task(f"csv:{file}", num_classes=3, per_class=2, seed=1)
    assert task.per_class == (2, 2, 2)
    assert task.images.tolist() == again.images.tolist()
    assert len(set(task.images)) == 6
    with pytest.raises(ValueError, match="per-class: 7 texts asked, but class"):
        load_task(f"csv:{file}", num_classes=3, per_class=7)
    assert describe_data(f"csv:{file}").num_images == 24


def test_flags_that_do_not_belong(tmp_path):
    with pytest.raises(ValueError, match="text-column: belongs to csv:FILE and jsonl:FILE"):
        load_task("digits", text_column="a")
    with pytest.raises(ValueError, match="there is no file"):
        loaded(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="split: 'csv:' has no split 'test'"):
        loaded(write(tmp_path / "a.csv", "text,label\na,x\nb,y"), split="test")
