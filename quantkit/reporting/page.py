"""How does the report become one HTML page that works offline, prints, and cannot be made to run what artifacts say?

Everything is inlined, plotly.js once. Text is escaped by jinja2; the page's own scripts are allowed by their hashes, and
nothing else is, the network included (Content-Security-Policy). A page that links to a CDN would be a hundredth of the
size, empty without a network, and would tell a stranger who reads what.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from quantkit.layout import counted, format_bytes
from quantkit.reporting import captions
from quantkit.reporting.curves import curves
from quantkit.reporting.details import details
from quantkit.reporting.facts import Row
from quantkit.reporting.figures import AXES, loss_figure, quality_figure
from quantkit.reporting.ranking import Board, place_text
from quantkit.reporting.report import Report
from quantkit.reporting.samples import samples, shown
from quantkit.reporting.wording import floor_text, interval_text, number_text

MOST_NOTES = 6
PACKAGE = "quantkit.reporting"
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none';"
    " form-action 'none'"
)


def render_page(report: Report) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": format_bytes, "breakable": breakable, "counted": counted, "moment": moment}
    scripts = [_own("page.js")]
    methods = sorted({subject.method for subject in report.subjects})
    plots = [_plots(board, methods) for board in report.boards]
    runs = curves(report.subjects)
    figures = {plot["id"]: plot["figure"] for board in plots for plot in board["plots"] if plot["figure"]}
    if loss := loss_figure(runs):
        figures["loss"] = loss
    if figures:
        scripts.insert(0, get_plotlyjs().replace("\r", ""))
    page: str = environment.get_template("page.html").render(
        report=report,
        policy=POLICY.format(scripts=" ".join(f"'{_hash(script)}'" for script in scripts)),
        style=Markup(_own("style.css")),
        scripts=[Markup(script) for script in scripts],
        figures=Markup(script_data(figures)),
        lines=[_line(row, index, board) for index, board in enumerate(report.boards) for row in board.rows],
        choices=_choices(report.rows),
        kl_notes=_kl_notes(report.rows),
        boards=plots,
        loss=captions.loss(runs) if runs else None,
        without_curve=[
            subject.name for subject in report.subjects if subject.number not in {run.subject.number for run in runs}
        ],
        samples=[(board, shown(board), samples(board, report.subjects)) for board in report.boards],
        artifacts=[details(subject, report) for subject in report.subjects],
        captions=captions,
    )
    return page


def _plots(board: Board, methods: Sequence[str]) -> dict[str, Any]:
    place = hashlib.sha256("\0".join(board.first.board).encode()).hexdigest()[:8]
    plots = []
    for axis in AXES:
        figure = quality_figure(board, axis, methods)
        said = captions.quality(board, axis) if figure else captions.not_drawn(axis)
        plots.append({"id": f"{axis.key}-{place}", "title": axis.title, "figure": figure, "caption": said})
    return {"board": board, "plots": plots, "reading": captions.how_to_read(board)}


def _line(row: Row, index: int, board: Board) -> dict[str, Any]:
    """Return a line of the page's table: cells as text beside the values they are sorted by."""
    place = place_text(row)
    return {
        "row": row,
        "board": index,
        "place": place or "–",
        "sort_place": row.rank_low if row.rank_low is not None else "",
        "score": number_text(row.value, row),
        "sort_score": row.value if row.higher_is_better else -row.value,
        "interval": interval_text(row),
        "floor": floor_text(row) or "–",
        "bar": _bar(row, board),
        "words": " ".join([row.name, row.method, row.peft, row.task, row.weights_dtype or "", *row.marks]).casefold(),
    }


def _bar(row: Row, board: Board) -> dict[str, float | None]:
    """Return interval, value and floor as shares of the bar's width: 0 to 1 for shares, the board's own range otherwise."""
    low, high = (0.0, 1.0) if row.is_share else (min(r.low for r in board.rows), max(r.high for r in board.rows))
    width = (high - low) or 1.0

    def at(value: float) -> float:
        return round(min(1.0, max(0.0, (value - low) / width)), 4)

    floor = row.best_floor if row.best_floor is not None and low <= row.best_floor <= high else None
    return {"low": at(row.low), "high": at(row.high), "value": at(row.value), "floor": None if floor is None else at(floor)}


def _kl_notes(rows: Sequence[Row]) -> list[str]:
    """Return where divergences were measured and from which models; of many, the first few."""
    notes = list(dict.fromkeys(row.kl_of for row in rows if row.kl_of))
    more = len(notes) - MOST_NOTES
    return notes if more <= 0 else [*notes[:MOST_NOTES], f"and {more} more, each told by its number's title"]


def _choices(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {
        "task": list(dict.fromkeys(row.task for row in rows)),
        "method": sorted({row.method for row in rows}),
        "peft": sorted({row.peft for row in rows}),
        "marks": sorted({mark for row in rows for mark in row.marks}),
    }


def moment(made_at: str) -> str:
    """Return a moment as people write it.

    >>> moment("2026-11-22T18:06:40+00:00")
    '2026-11-22 18:06 UTC'
    """
    return f"{datetime.fromisoformat(made_at).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def breakable(text: str) -> Any:
    """Return escaped text that may be broken after `_`, `-`, `/` and `.`: names of artifacts have no spaces."""
    from markupsafe import Markup, escape

    broken = str(escape(text))
    for sign in "_-/":
        broken = broken.replace(sign, f"{sign}<wbr>")
    return Markup(broken)


def script_data(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand in a `<script>` element: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _own(name: str) -> str:
    from importlib.resources import files

    return files(PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")
