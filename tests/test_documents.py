"""What the documents show runs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_readme_snippet_runs(capsys):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
        exec(compile(snippet, "README.md", "exec"), {})
    assert "loss below 0.5" in capsys.readouterr().out


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


def test_links_in_documents_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_flags_in_the_json_document_exist():
    from ntk_tt.cli.options import Predict, Watch

    flags = {
        "--" + name.replace("_", "-")
        for command in (Predict, Watch)
        for name in command.__dataclass_fields__
    }
    assert set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "json.md").read_text())) <= flags
