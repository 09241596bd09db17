"""One page of HTML with a report: nothing is loaded from elsewhere."""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_tt.report.document import finite
from ntk_tt.report.sweep_text import cells, remarks, sweep_sentence
from ntk_tt.report.text import report_text, sentence, setting_words
from ntk_tt.runtime.files import write_whole

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } td.word, th.word { text-align: left; }
.high { color: #1a7f37; } .medium { color: #9a6700; } .low { color: #bc4c00; }
.none { color: #c1121f; font-weight: 600; }
svg { max-width: 100%; height: auto; } pre { overflow-x: auto; }
div.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b; } th, td { border-color: #444; }
  svg { background: #fff; }
}
"""
_WORDS = ("setting", "leave it", "optimizer", "model", "trainable", "schedule", "trust")


def prediction_page(report: Any) -> str:
    """The page of a `TrainingTimeReport`."""
    document = report.document
    verdict, environment = document["verdict"], document["environment"]
    return _page(
        sentence(document),
        [
            _picture(report.plot(), "predicted loss and error"),
            _section("In numbers", f"<pre>{html.escape(report_text(document, width=100))}</pre>"),
            _section(
                "How far to trust it",
                f'<p><span class="{verdict["trust"]}">{verdict["trust"]}</span>: '
                f"{html.escape(str(verdict['reason']))}</p>",
            ),
            _section("What it costs", _pairs(document["cost"])),
            _section(
                "The setting",
                f"<p>{html.escape(setting_words(document['optimizer']))}</p>"
                + _pairs({**document["optimizer"], **document["task"]}),
            ),
        ],
        environment,
    )


def sweep_page(report: Any) -> str:
    """The page of a `SweepReport`: all rows."""
    document = report.document
    rows = document["rows"]
    made = [{"": str(row["rank"]), **cells(row, document)} for row in rows]
    about = document["sweep"]
    cost = {name: value for name, value in about.items() if name not in ("passes", "target")}
    parts = [
        _picture(report.plot(), "time to the target over the learning rate"),
        _section("All settings", _table(made, reasons=[row["reason"] for row in rows])),
        _section("Remarks", _list(remarks(document, len(rows)))),
        _section("What it costs", _pairs(cost) + "".join(_pairs(each) for each in about["passes"])),
    ]
    return _page(sweep_sentence(document), parts, document["environment"])


def plan_page(document: dict[str, Any], title: str, rows: Sequence[dict[str, str]]) -> str:
    """The page of a `PlanReport`: its sentence, its table, and what each run is."""
    settings = [
        {"": str(run["order"]), **{name: str(value) for name, value in run["setting"].items()}}
        for run in document["runs"]
    ]
    names = list(dict.fromkeys(name for each in settings for name in each))
    parts = [
        _section("Runs, in their order", _table(rows)),
        _section("Settings", _table([{n: each.get(n, "") for n in names} for each in settings])),
        _section("The budget", _pairs(document["plan"])),
    ]
    return _page(title, parts, document["environment"])


def notebook_cell(text: str, figure: Any) -> str:
    """A report in a notebook: its text, and the figure as PNG."""
    import base64

    import matplotlib.pyplot as plt

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    plt.close(figure)
    picture = base64.b64encode(drawn.getvalue()).decode()
    return (
        f"<pre>{html.escape(text)}</pre>"
        f'<img alt="predicted curves" src="data:image/png;base64,{picture}">'
    )


def write_page(path: Path, page: str) -> None:
    """Replace a file as a whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode("utf-8", "replace"))


def _page(title: str, parts: Sequence[str], environment: dict[str, Any]) -> str:
    head = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>ntk-tt: {head}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{head}</h1>\n"
        + "\n".join(parts)
        + _section("Made with", _pairs(environment))
        + "\n</body>\n</html>\n"
    )


def _section(name: str, inside: str) -> str:
    return f"<section>\n<h2>{html.escape(name)}</h2>\n{inside}\n</section>"


def _picture(figure: Any, words: str) -> str:
    """A figure as SVG in the page."""
    import matplotlib.pyplot as plt

    drawn = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ntk-tt"}):
        figure.savefig(drawn, format="svg")
    plt.close(figure)
    text = drawn.getvalue()
    inside, words = text[text.index("<svg") :], html.escape(words)
    return f'<figure role="img" aria-label="{words}">{inside}</figure>'


def _table(rows: Sequence[dict[str, str]], reasons: Sequence[str] | None = None) -> str:
    if not rows:
        return "<p>none</p>"
    names = [name for name in rows[0] if any(row[name] for row in rows)]

    def cell(tag: str, name: str, text: str) -> str:
        kinds = "word" if name in _WORDS else ""
        inside = html.escape(text)
        if name == "trust" and tag == "td":
            inside = f'<span class="{inside}">{inside}</span>'
        return f'<{tag} class="{kinds}">{inside}</{tag}>' if kinds else f"<{tag}>{inside}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", name, name) for name in names) + "</tr>"]
    for index, row in enumerate(rows):
        why = "" if reasons is None else f' title="{html.escape(reasons[index])}"'
        lines.append(
            f"<tr{why}>" + "".join(cell("td", name, row[name]) for name in names) + "</tr>"
        )
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _pairs(values: dict[str, Any]) -> str:
    """Names and values, those that are there."""
    lines = []
    for name, value in values.items():
        if value is None or value == [] or value == "":
            continue
        text = value if isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False)
        lines.append(
            f'<tr><td class="word">{html.escape(name)}</td>'
            f'<td class="word">{html.escape(text)}</td></tr>'
        )
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
