"""What the site needs beside docs/: figures of the experiments, and links to files that are not
pages. MkDocs calls it (`hooks` in mkdocs.yml).
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds every figure of the results, as `figures/<experiment>/<file>`."""
    for figure in sorted(RESULTS.glob("*/*.png")):
        name = f"figures/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside docs/ lead to the repository; figures of the results are shown."""
    docs = Path(config["docs_dir"])
    folder = (docs / page.file.src_uri).parent

    def lead(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[1]))
        if target.is_relative_to(docs):
            return match[0]
        if target.suffix == ".png" and target.is_relative_to(RESULTS):
            shown = docs / "figures" / target.relative_to(RESULTS)
            return f"]({Path(os.path.relpath(shown, folder)).as_posix()})"
        if not target.exists():
            raise ValueError(f"{page.file.src_uri}: there is no {match[1]}")
        kind = "tree" if target.is_dir() else "blob"
        inside = target.relative_to(ROOT).as_posix()
        return f"]({config['repo_url']}/{kind}/main/{inside}{match[2] or ''})"

    return LINK.sub(lead, markdown)
