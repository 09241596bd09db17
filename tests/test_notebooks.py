"""The notebooks have the cells of the scripts beside them, with what these print and draw."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tools import notebooks

SCRIPTS = sorted(notebooks.FOLDER.glob("*.py"))
TOTAL = 300_000  # bytes of a notebook


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_in_step_with_its_script(script):
    document = json.loads(script.with_suffix(".ipynb").read_text())
    found = [
        notebooks.Cell(cell["cell_type"], "".join(cell["source"])) for cell in document["cells"]
    ]
    assert found == notebooks.cells(script.read_text()), "run make notebooks"
    assert document["metadata"] == notebooks.METADATA
    assert len({cell["id"] for cell in document["cells"]}) == len(found)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_has_pictures_and_what_is_printed_and_is_small(script):
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size < TOTAL
    pictures = 0
    for cell in json.loads(path.read_text())["cells"]:
        source, outputs = "".join(cell["source"]), cell.get("outputs", [])
        kinds = {output["output_type"] for output in outputs}
        assert ("stream" in kinds) == ("print(" in source)
        assert ("display_data" in kinds) == ("plt." in source)
        for output in outputs:
            if "data" in output:
                image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
                assert min(image.size) > 200
                pictures += 1
    assert pictures


def test_no_notebook_without_a_script():
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == {
        path.stem for path in SCRIPTS
    }


SCRIPT = """# ---
# jupyter: header
# ---

# %% [markdown]
# # A title
#
# and text

# %%
import matplotlib.pyplot as plt

a = 1


def twice(x):
    return 2 * x


# %%
print(twice(a))
_ = plt.plot([a])
"""


def test_cells_are_read_and_executed_in_order():
    first, second, third = notebooks.cells(SCRIPT)
    assert first == ("markdown", "# A title\n\nand text")
    assert second.source.startswith("import matplotlib")
    assert second.source.endswith("return 2 * x")
    assert third == ("code", "print(twice(a))\n_ = plt.plot([a])")
    document = notebooks.notebook(SCRIPT, "test")
    last = document["cells"][-1]
    assert last["execution_count"] == 2
    text, picture = last["outputs"]
    assert text["text"] == ["2\n"]
    assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")
    assert notebooks.notebook(SCRIPT, "test") == document  # the same picture again


def test_a_cell_that_fails_says_which(capsys):
    with pytest.raises(ZeroDivisionError) as caught:
        notebooks.notebook("# %%\na = 0\n\n# %%\n1 / a\n", "some.py")
    assert any("some.py, cell 1" in str(entry.path) for entry in caught.traceback)


def test_unknown_notebook_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "FOLDER", Path(tmp_path))
    with pytest.raises(SystemExit, match="no notebook x"):
        notebooks.main(["x"])
