"""What the documents show runs, and what they lead to is there."""

import importlib
import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import table
from ntk_tt.models import hub_folder
from ntk_tt.runtime.input_trees import Tokens
from tests.test_text_encoder import write_folder

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _fences(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def _code(path):
    """Lines of fences without a language, and what stands in backticks, without remarks."""
    text = path.read_text()
    shown = [line for fence in _fences(path, "") for line in fence.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    return [line.split(" #")[0].strip() for line in shown]


def _run(path):
    names = {}
    for snippet in _fences(path, "python"):
        exec(compile(snippet, _name(path), "exec"), names)


def _by_length(texts):
    """A tokenizer that knows words by their length."""
    words = [[min(len(word), 9) for word in text.split()] for text in texts]
    longest = max(map(len, words))
    return Tokens(
        input_ids=np.asarray([each + [0] * (longest - len(each)) for each in words]),
        attention_mask=np.asarray(
            [[1] * len(each) + [0] * (longest - len(each)) for each in words]
        ),
    )


def test_readme_snippet_is_short():
    snippets = _fences(ROOT / "README.md", "python")
    assert snippets
    for snippet in snippets:
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 12


@pytest.mark.slow
def test_readme_snippet_runs(capsys):
    _run(ROOT / "README.md")
    assert re.search(r"^Loss [\d.]+ after about \d+ steps", capsys.readouterr().out, re.MULTILINE)


def test_readme_takes_five_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS[1:] if _fences(path, "python")],
    ids=_name,
)
def test_examples_of_a_page_run(path, capsys, tmp_path, monkeypatch):
    if path.name == "text.md":  # what it takes for granted: a folder of the hub, its tokenizer
        monkeypatch.chdir(tmp_path)
        Path("PATH").mkdir()
        write_folder(Path("PATH"), "bert")
        monkeypatch.setattr(hub_folder, "read_tokenizer", lambda *_, **__: _by_length)
    _run(path)
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.nightly_but("eigen_*", "prediction_*", "reading_*")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("your_own_model", "predicted"),
        ("eigen_spectra", "shuffled labels: loss halved"),
        ("prediction_step_by_step", "largest difference"),
        ("reading_the_reproduction", "fig1"),
    ],
)
def test_notebook_runs(name, says, capsys):
    runpy.run_path(str(ROOT / "notebooks" / f"{name}.py"))
    assert says in capsys.readouterr().out


def test_all_notebooks_are_run():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.py")} == {
        "your_own_model",
        "eigen_spectra",
        "prediction_step_by_step",
        "reading_the_reproduction",
    }


def test_shown_commands_are_understood(monkeypatch):
    from ntk_tt.cli import entry

    # names that stand for something, and commands that are only named
    unfinished = re.compile(r"…|\b(COMMAND|K|NAME)\b|(LOG|watch)$|\|")
    taken = []
    monkeypatch.setattr(entry, "_execute", taken.append)
    commands = {
        line
        for path in DOCUMENTS
        for line in _code(path)
        if line.startswith("ntk-tt ") and not unfinished.search(line)
    }
    assert len(commands) >= 10
    for command in sorted(commands):
        entry.main(shlex.split(command)[1:])  # exits where a flag or value is not known
    assert len(taken) == len(commands)


def test_shown_modules_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for path in DOCUMENTS:
        for line in _code(path):
            if found := re.match(r"python -m ((?:experiments|tools|benchmarks)[\w.]*)", line):
                assert importlib.util.find_spec(found[1].rstrip(".")), f"{_name(path)}: {line}"
            if found := re.match(r"make ([a-z-]+)", line):
                assert found[1] in targets, f"{_name(path)}: {line}"


def _is_there(name):
    """Whether a dotted name is a module, or something in one."""
    found = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        if hasattr(found, parts[end - 1]):
            found = getattr(found, parts[end - 1])
        else:
            try:
                found = importlib.import_module(".".join(parts[:end]))
            except ImportError:
                return False
    return True


SOURCES = [
    path
    for folder in ("ntk_tt", "experiments", "tools", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=_name)
def test_what_is_named_is_there(path):
    text = path.read_text()
    if path.suffix == ".md" and path.name != "CHANGELOG.md":  # which names what there was
        folders = "ntk_tt|tests|benchmarks|experiments|tools|notebooks|examples"
        for name in re.findall(rf"`((?:{folders})/[\w./-]*)", text):
            assert (ROOT / name).exists(), name
        tests = "".join(test.read_text() for test in (ROOT / "tests").glob("*.py"))
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, name
    if path.name != "CHANGELOG.md":
        for name in set(re.findall(r"`((?:ntk_tt|experiments|tools)(?:\.\w+)+)[`(]", text)):
            assert _is_there(name), name


def _slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path):
    text = path.read_text()
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text)
    links += [(target, "") for target in re.findall(r"^\[[^]]+\]: (?!\w+:)(\S+)$", text, re.M)]
    for target, anchor in links:
        lead = path.parent / target if target else path
        assert lead.exists(), f"{_name(path)} -> {target}"
        if anchor:
            page = lead.read_text()
            known = {_slug(heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
            known |= set(re.findall(r'<a id="([^"]+)"', page))
            assert anchor in known, f"{_name(path)} -> {target}#{anchor}"


def test_every_page_but_those_of_the_experiments_is_in_the_navigation():
    shown = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert shown == {page for page in pages if not page.startswith("experiments/")}


def test_flags_in_the_json_document_exist():
    from ntk_tt.cli.options import Predict, Watch
    from ntk_tt.cli.sweep_command import Budget

    flags = {
        "--" + name.replace("_", "-")
        for command in (Predict, Watch, Budget)
        for name in command.__dataclass_fields__
    }
    assert set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "json.md").read_text())) <= flags


def test_the_table_of_memory_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    assert {row["outcome"] for row in rows.values()} == {"done"}
    assert "\n".join(table(rows)) in (ROOT / "docs" / "reliability.md").read_text()
