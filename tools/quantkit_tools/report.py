"""Which method is best for my model, my data, my memory? (`quantkit report`)

Results that `quantkit evaluate` filed, put side by side: a table here, CSV and JSON for programs, and one HTML page that works
without a network. Nothing is loaded or measured again, so a report takes a moment and needs no torch.
"""

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from quantkit import console
from quantkit.errors import UsageError
from quantkit.reporting import comparing
from quantkit.reporting.listing import CAPTION, csv_text, table_columns, table_rows
from quantkit.reporting.report import Report
from quantkit_registry.store import Registry
from quantkit_tools.report_reading import read_subjects
from quantkit_tools.result_files import refuse_unwritable, write_result
from quantkit_tools.small_flags import read_small_flags


@dataclass(frozen=True)
class Flags:
    """Put the results of a registry side by side: table, CSV, JSON, and one HTML page that needs no network."""

    artifacts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ARTIFACT…]")]
    """Names, paths, or first digits of a hash; without any, everything that has results, and what has none."""
    registry: str | None = None
    """Folder that keeps artifacts and results; default $QUANTKIT_REGISTRY or artifacts."""
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK[,TASK…]")] = None
    """Only these tasks, in this order; the first one orders the table. Default: all, by name."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the page: sortable table, plots, loss curves, and a section for each artifact."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write one line per artifact and task, with every fact in a column."""
    baseline: str | None = None
    """Compare every artifact with this one, row by row: a name, or first digits of a hash. Default, on the page: each task's
    best unmarked result."""
    open: bool = False
    """Show the page in a browser."""
    overwrite: bool = False
    """Replace files that exist."""
    json: bool = False
    """Print one JSON object with the rows; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit report`."""
    flags = read_small_flags(Flags, "report", arguments)
    if flags.json:
        console.use_stderr()
    if flags.open and flags.html is None:
        raise UsageError("--open shows the page that --html FILE names; give both")
    for target in (flags.html, flags.csv):
        if target is not None:
            refuse_unwritable(target, overwrite=flags.overwrite)
    registry = Registry(flags.registry)
    if flags.registry is not None and not registry.root.is_dir():
        console.warn(f"{flags.registry}: no such folder; --registry names the folder that holds artifacts and results")
    subjects, faults = read_subjects(registry, flags.artifacts)
    tasks = [task for task in (flags.task or "").split(",") if task]
    report = Report.of(subjects, title=registry.root.resolve().name, tasks=tasks, faults=faults)
    if flags.baseline is not None or flags.html is not None:
        report = report.with_comparisons(flags.baseline)
    show(report, compared=flags.baseline is not None)
    if flags.csv is not None:
        write_result(flags.csv, csv_text(report.rows))
    if flags.html is not None:
        from quantkit.reporting.page import render_page

        write_result(flags.html, render_page(report))
    if flags.open and flags.html is not None and not webbrowser.open(flags.html.resolve().as_uri()):
        console.warn(f"no browser was found to show {flags.html}")
    if flags.json:
        console.emit_json(report.to_dict())
    return 0


def show(report: Report, *, compared: bool = False) -> None:
    """Print the table, on request the comparisons, and what is in neither."""
    columns, rows = table_columns(report.boards), table_rows(report.subjects, report.boards)
    console.table(f"Report on {report.title}", columns, rows, caption=CAPTION if rows else "")
    if compared:
        title = f"Against {report.compared[0].baseline}" if report.compared else "Comparisons"
        console.table(title, comparing.COLUMNS, comparing.table_rows(report.compared), caption=comparing.CAPTION)
        for reason in (reason for each in report.compared for reason in each.refused):
            console.say(f"not compared: {reason}")
    for line in (*report.missing, *report.faults):
        console.say(line)
