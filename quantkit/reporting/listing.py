"""How do all results fit into one table of a terminal, and into one file of a spreadsheet?

On the terminal an artifact is a line and a task a column, whose cell holds interval, place and marks: none of them can be
dropped where space is short. In the file an artifact on a task is a line, with every fact in a column of its own.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from quantkit.console import Column, format_bytes
from quantkit.reporting.facts import Row, Subject
from quantkit.reporting.ranking import Board, place_text
from quantkit.reporting.wording import interval_text, number_text

CSV_COLUMNS = tuple(item.name for item in fields(Row))
CAPTION = (
    "Under each score: its 95 % interval, and #: the places that the intervals "
    "allow; a range is a tie. Results marked FLOOR (not above what a predictor that "
    "understands nothing gets) or degenerate have no place and stand last."
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters at which a spreadsheet would take a text for a formula."""


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a heading; marks are separated by semicolons, null is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in plain(row).values()])
    return stream.getvalue()


def plain(row: Row) -> dict[str, Any]:
    """Return a row as plain JSON data."""
    return asdict(row) | {"marks": list(row.marks), "degenerate": list(row.degenerate)}


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def table_columns(boards: Sequence[Board]) -> list[Column]:
    """Return the columns of the console's table: what never goes, and what goes first where space is short."""
    return [
        Column("artifact"),
        *(Column(f"{board.title}\n{board.first.metric.replace('_', ' ')}", "right") for board in boards),
        Column("method\nPEFT", priority=1),
        Column("bits per\nweight", "right", priority=3),
        Column("size", "right", priority=4),
        Column("peak\nmemory", "right", priority=2),
        Column("tokens/s", "right", priority=5),
        Column("KL", "right", priority=6),
    ]


def table_rows(subjects: Sequence[Subject], boards: Sequence[Board]) -> list[list[object]]:
    """Return one line per artifact that has results, in the order of `in_order`."""
    lines: list[list[object]] = []
    for subject in in_order(subjects, boards):
        found = {board.title: row for board in boards for row in board.rows if row.number == subject.number}
        rows = list(found.values())
        peaks = [row.peak_memory_bytes for row in rows if row.peak_memory_bytes]
        rates = [row.tokens_per_s for row in rows if row.tokens_per_s]
        kls = list(dict.fromkeys(f"{row.kl_mean:.3g}" for row in rows if row.kl_mean is not None))
        lines.append(
            [
                subject.name + ("" if subject.here else f"\n[{subject.artifact[:12]}]") + _gate(subject),
                *(_score(found.get(board.title)) for board in boards),
                f"{subject.method}\n{subject.peft}",
                None if subject.bits_per_weight is None else f"{subject.bits_per_weight:.2f}",
                None if subject.size_bytes is None else format_bytes(subject.size_bytes),
                format_bytes(max(peaks)) if peaks else None,
                f"{min(rates):.0f}" if rates else None,
                "\n".join(kls) or None,
            ]
        )
    return lines


def in_order(subjects: Sequence[Subject], boards: Sequence[Board]) -> list[Subject]:
    """Return the artifacts that have results, by the first task's order; without a result on it before without a place."""
    if not boards:
        return []
    first = {row.number: (0 if row.is_ranked else 2, place) for place, row in enumerate(boards[0].rows)}
    scored = {row.number for board in boards for row in board.rows}
    known = [subject for subject in subjects if subject.number in scored]
    return sorted(known, key=lambda subject: (*first.get(subject.number, (1, 0)), subject.number))


def _score(row: Row | None) -> str | None:
    if row is None:
        return None
    place = place_text(row)
    return "\n".join([number_text(row.value, row), interval_text(row), *([f"#{place}"] if place else []), *row.marks])


def _gate(subject: Subject) -> str:
    return "\nGATE FAILED" if subject.gate == "failed" else ""
