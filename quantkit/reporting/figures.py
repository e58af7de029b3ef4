"""What is drawn? Quality against cost with its uncertainty, the Pareto front, and training losses, as plotly's plain JSON.

Colours of text and grid are left to the page, which knows whether it is dark, light or paper. Importing plotly's classes to
write these dictionaries would take a second; a test has plotly check them instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from quantkit.layout import format_bytes
from quantkit.reporting.curves import Curve
from quantkit.reporting.facts import Row
from quantkit.reporting.ranking import Board, Cost, front
from quantkit.reporting.wording import interval_text, number_text

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
"""Okabe and Ito's colours, told apart by colour-blind readers; shapes and dashes say the same again."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
"""One more than colours, so that 56 methods differ in one or the other."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MOST_LABELS = 25
"""Points of a plot that are all numbered; of more only those on the front, the others by pointing at them."""
LABEL_AT = ("middle right", "top center", "middle left", "bottom center")
"""Where a point's number stands, by turns: points near each other keep theirs apart."""
UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True, slots=True)
class Axis:
    """A cost that quality is drawn against."""

    key: str
    title: str
    cost: Cost
    less_is_better: bool
    in_bytes: bool


AXES = (
    Axis("memory", "peak memory", lambda row: row.peak_memory_bytes, True, True),
    Axis("speed", "generated tokens per second", lambda row: row.tokens_per_s, False, False),
    Axis("size", "size on disk", lambda row: row.size_bytes, True, True),
)


def quality_figure(board: Board, axis: Axis, methods: Sequence[str]) -> dict[str, Any] | None:
    """Return the figure of scores against a cost, None where no artifact has it; `methods` fixes colours and shapes."""
    rows = [row for row in board.rows if axis.cost(row) is not None]
    if not rows:
        return None
    unit, scale = _unit(max(axis.cost(row) or 0 for row in rows)) if axis.in_bytes else ("", 1)
    best = front(rows, axis.cost, less_is_better=axis.less_is_better)
    traces: list[dict[str, Any]] = []
    if len(best) > 1:
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
                "x": [(axis.cost(row) or 0) / scale for row in best], "y": [row.value for row in best],
                "line": {"dash": "dash", "width": 1.5, "color": "#8c8c8c"},
            }
        )  # fmt: skip
    numbered = {row.number for row in (rows if len(rows) <= MOST_LABELS else best)}
    for method in [name for name in methods if any(row.method == name for row in rows)]:
        traces.append(_points([row for row in rows if row.method == method], methods.index(method), axis, scale, numbered))
    share = all(row.is_share for row in rows)
    y_title = board.first.metric.replace("_", " ") + ("" if board.first.higher_is_better else ", lower is better")
    layout = {
        "xaxis": {"title": {"text": f"{axis.title}{f' ({unit})' if unit else ''}"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y_title}} | ({"tickformat": ".0%", "range": [-0.04, 1.04]} if share else {}),
        "shapes": _floor_lines(rows),
    }
    return {"data": traces, "layout": layout}


def _points(rows: Sequence[Row], place: int, axis: Axis, scale: float, numbered: set[int]) -> dict[str, Any]:
    symbol, color = SYMBOLS[place % len(SYMBOLS)], PALETTE[place % len(PALETTE)]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": escape(rows[0].method),
        "x": [(axis.cost(row) or 0) / scale for row in rows],
        "y": [row.value for row in rows],
        "text": [str(row.number) if row.number in numbered else "" for row in rows],
        "textposition": [LABEL_AT[row.number % len(LABEL_AT)] for row in rows],
        "cliponaxis": False,
        "hovertext": [_hover(row, axis) for row in rows],
        "hoverinfo": "text",
        "marker": {"size": 11, "color": color, "symbol": [f"{symbol}-open" if not row.is_ranked else symbol for row in rows]},
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": color,
            "array": [row.high - row.value for row in rows], "arrayminus": [row.value - row.low for row in rows],
        },
    }  # fmt: skip


def _hover(row: Row, axis: Axis) -> str:
    cost = axis.cost(row) or 0
    shown = format_bytes(int(cost)) if axis.in_bytes else f"{cost:,.0f}"
    lines = [
        f"{row.number}: {row.name}",
        f"{number_text(row.value, row)} ({interval_text(row)}), n {row.n}, coverage {row.coverage:.0%}",
        f"{axis.title}: {shown}",
        *([", ".join(row.marks)] if row.marks else []),
    ]
    return "<br>".join(escape(line) for line in lines)


def _floor_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the line of the best floor, where it is the same for all rows."""
    floors = {row.best_floor for row in rows}
    if len(floors) != 1 or (floor := floors.pop()) is None:
        return []
    return [
        {
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor, "layer": "below",
            "line": {"dash": "dot", "width": 1.5, "color": "#8c8c8c"},
        }
    ]  # fmt: skip


def _unit(most: float) -> tuple[str, int]:
    return next(((name, size) for name, size in UNITS if most >= size), ("B", 1))


def loss_figure(curves: Sequence[Curve]) -> dict[str, Any] | None:
    """Return the figure of training losses by step; None without any. Diamonds are held-out losses before and after."""
    traces: list[dict[str, Any]] = []
    for index, curve in enumerate(curves):
        color, of = PALETTE[index % len(PALETTE)], curve.subject
        name = escape(f"{of.number}: {of.method}, {of.peft}")
        line = {"color": color, "dash": DASHES[index % len(DASHES)], "width": 2}
        traces.append({"type": "scatter", "mode": "lines", "name": name, "x": curve.x, "y": curve.y, "line": line})
        ends = [(0.0, curve.before), (curve.x[-1], curve.after)]
        known = [(x, y) for x, y in ends if y is not None]
        if known:
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{name}, held out", "showlegend": False, "cliponaxis": False,
                    "x": [x for x, _ in known], "y": [y for _, y in known],
                    "marker": {"color": color, "symbol": "diamond-open", "size": 10},
                }
            )  # fmt: skip
    if not traces:
        return None
    values = [y for trace in traces for y in trace["y"]]
    wide = min(values) > 0 and max(values) > 10 * min(values)
    y_axis = {"title": {"text": "loss (nats per supervised token)"}} | (
        {"type": "log", "dtick": "D2"} if wide else {"rangemode": "tozero"}
    )
    return {"data": traces, "layout": {"xaxis": {"title": {"text": "optimizer step"}, "rangemode": "tozero"}, "yaxis": y_axis}}
