"""What does a person see: on a narrow terminal, on a wide one, without colour, in a log file?

The only importer of rich, and only when something is printed. Text of users and libraries is never read as markup, and
its control characters are shown, not obeyed. Where the output is no terminal nothing is wrapped, folded or left out, and a row
is a line, so that `grep` finds whole names and what belongs to them (set COLUMNS to have a width all the same; `less -S`
scrolls to the side), and a progress is a line now and then. Printing directly, or tqdm, would fill a log file with
carriage returns.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from quantkit.layout import Column, describe_fields, format_bytes, format_duration, joined, printable, table_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

__all__ = [
    "MARKS",
    "Column",
    "Progress",
    "emit_json",
    "format_bytes",
    "format_duration",
    "has_colour",
    "live_lines",
    "progress",
    "say",
    "say_marked",
    "silence",
    "table",
    "use_stderr",
    "use_stdout",
    "warn",
]

LINE_EVERY_S = (10.0, 60.0)
"""Longest silence of a progress in a log file, in seconds: in its first five minutes, and later."""
MARKS = ("⟦", "⟧")
"""What stands around marked text where there is no colour."""
UNLIMITED = 10_000
"""Characters of a line where nothing limits it."""

_to_stderr = False
_silent = False
_live: "RichProgress | None" = None


class Progress(Protocol):
    """What `progress` yields."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more as done and show these values; names in `_bytes` and `_per_s` are shown in their units."""


def say(text: str, *, style: str | None = None) -> None:
    """Print human text, word-wrapped on a terminal and as it is elsewhere; `style` is a rich style such as `bold`."""
    _print(_console(_to_stderr), text, style or "")


def warn(text: str) -> None:
    """Print `warning: …` on stderr."""
    _print(_console(True), f"warning: {text}", "yellow")


def has_colour() -> bool:
    """Whether text is shown in colour: on a terminal, unless NO_COLOR is set."""
    console = _console(_to_stderr)
    return console.color_system is not None and not console.no_color


def say_marked(parts: Sequence[tuple[str, bool]]) -> None:
    """Print one text of which parts are marked: in colour, the rest dim; without colour, between the signs of `MARKS`."""
    from rich.text import Text

    console, text = _console(_to_stderr), Text(overflow="fold")
    for part, marked in parts:
        shown = printable(part)
        if has_colour():
            text.append(shown, "bold green" if marked else "dim")
        else:
            text.append(MARKS[0] + shown + MARKS[1] if marked else shown)
    console.print(text, soft_wrap=not console.is_terminal)


def use_stderr() -> None:
    """Send human text to stderr from here on: stdout belongs to the one JSON object of `--json`."""
    globals()["_to_stderr"] = True


def use_stdout() -> None:
    """Send human text to stdout, as at the start of a process."""
    globals()["_to_stderr"] = False


def silence(on: bool = True) -> None:
    """Print nothing from here on, or, with `on` false, print again: of several processes one speaks."""
    globals()["_silent"] = on


def emit_json(data: object) -> None:
    """Print one JSON object on stdout; non-finite numbers are refused with `ValueError`."""
    if not _silent:
        print(json.dumps(data, indent=2, allow_nan=False), flush=True)


def table(title: str, columns: Sequence[str | Column], rows: Sequence[Sequence[object]], *, caption: str = "") -> None:
    """Print a table; cells may be anything, see `layout.cell_text`. Where nothing gives a width each row is one line.

    Columns without names have no line of names.
    """
    from rich.text import Text

    console = _console(_to_stderr)
    has_width = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    if not has_width:
        heads, rows = [replace(item, name=joined(item.name)) for item in heads], [list(map(joined, row)) for row in rows]
    (head, *body), dropped = table_lines(heads, rows, console.width if has_width else UNLIMITED)
    width = max(len(line) for lines in (head, *body) for line in lines)
    head = [line for line in head if line.strip()]
    styled = [(printable(title), "bold"), *((line, "bold") for line in head), ("─" * width, "dim")]
    styled += [(line, "") for lines in body for line in lines] if body else [("(none)", "dim")]
    below = [printable(line) for line in caption.split("\n") if line]
    if dropped:
        below.append(f"not shown at this width: {', '.join(name.replace(chr(10), ' ') for name in dropped)}")
    console.print()
    for line, style in styled:
        console.print(Text(line, style), soft_wrap=True)
    for line in below:
        is_prose = max(map(len, line.split()), default=0) <= console.width // 3  # names are left whole
        console.print(Text(line, "dim"), soft_wrap=not (has_width and is_prose))


@contextmanager
def progress(title: str, total: int, *, unit: str = "", even: bool = True) -> Iterator[Progress]:
    """Show how far a loop of `total` rounds is: a live bar on a terminal, now and then a line elsewhere.

    Rounds that are not `even`, such as answers that end together, tell nothing of the time left, and none is shown.
    """
    console = _console(_to_stderr)
    if _live is not None:
        inner = _Bar(_live, title, total, unit, even)
        try:
            yield inner
        finally:
            inner.remove()
    elif not console.is_terminal or console.is_dumb_terminal:
        lines = _Lines(console, title, total, unit, even)
        yield lines
        lines.finish()
    else:
        bars = _bars(console)
        globals()["_live"] = bars
        try:
            with bars:
                yield _Bar(bars, title, total, unit, even)
        finally:
            globals()["_live"] = None


@contextmanager
def live_lines() -> Iterator[Callable[[Sequence[str]], None]]:
    """Yield what shows lines below all that is printed, in place of those before; on a terminal only."""
    console = _console(_to_stderr)
    if _live is not None or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _: None
        return
    from rich.progress import Progress as RichProgress
    from rich.progress import TextColumn
    from rich.table import Column as RichColumn

    whole = RichColumn(no_wrap=True, overflow="ellipsis")
    column = TextColumn("{task.description}", style="dim", markup=False, table_column=whole)
    shown = RichProgress(column, console=console, transient=True, redirect_stderr=sys.stderr.isatty())
    task = shown.add_task("", total=None)
    globals()["_live"] = shown
    try:
        with shown:
            yield lambda lines: shown.update(task, description="\n".join(map(printable, lines)), refresh=True)
    finally:
        globals()["_live"] = None


def _bars(console: "Console") -> "RichProgress":
    """Return a display of two lines per loop, title, bar, count and time above, the loop's values below."""
    from rich.progress import BarColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Bars(RichProgress):
        def get_renderables(self) -> Iterator[Any]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["note"]:
                    yield Text("  " + task.fields["note"], "dim", overflow="ellipsis", no_wrap=True)

    class TimeLeft(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return super().render(task).append(" left") if task.fields["even"] else Text()

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(8, min(40, console.width - 60))),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TimeLeft(),
        console=console,
        redirect_stderr=sys.stderr.isatty(),
    )


class _Bar:
    """A bar of the one live display; a loop inside a loop adds a second one to it while it lasts."""

    def __init__(self, bars: "RichProgress", title: str, total: int, unit: str, even: bool) -> None:
        self._bars = bars
        self._task = bars.add_task(printable(title), total=total, unit=printable(unit), note="", even=even)

    def advance(self, n: int = 1, **fields: object) -> None:
        more: dict[str, Any] = {"note": describe_fields(fields)} if fields else {}
        self._bars.update(self._task, advance=n, **more)

    def remove(self) -> None:
        """Take the bar off the display."""
        self._bars.remove_task(self._task)


class _Lines:
    """Lines for a log file: the first round, then every 5 % but at most one a second, or after a silence, the last.

    The time left is that of the rounds left at the pace so far.
    """

    def __init__(self, console: "Console", title: str, total: int, unit: str, even: bool) -> None:
        self._console, self._title, self._total, self._unit, self._even = console, title, total, unit, even
        self._done = self._shown = 0
        self._note = ""
        self._started = self._shown_at = time.monotonic()

    def advance(self, n: int = 1, **fields: object) -> None:
        first = self._done == 0
        self._done += n
        self._note = describe_fields(fields) if fields else self._note
        now = time.monotonic()
        silent_s = now - self._shown_at
        step = (self._done - self._shown) * 20 >= self._total and silent_s >= 1.0
        if first or step or silent_s >= LINE_EVERY_S[now - self._started > 300.0] or self._done == self._total:
            self._show(now)

    def finish(self) -> None:
        """Show where the loop ended, if its last round was not shown."""
        if self._shown != self._done:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        spent = now - self._started
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}".rstrip(), format_duration(spent)]
        if self._even and 0 < self._done < self._total:
            parts.append(f"{format_duration(spent * (self._total / self._done - 1))} left")
        _print(self._console, " · ".join([*parts, self._note] if self._note else parts), "")
        self._shown, self._shown_at = self._done, now


def _console(stderr: bool) -> "Console":
    """Return a console for the stream as it is now; while a bar is live on the same terminal, the bar's own."""
    if _live is not None and (stderr == _live.console.stderr or sys.stderr.isatty()):
        return _live.console
    return _console_class()(stderr=stderr, quiet=_silent, highlight=False, markup=False, emoji=False)


@cache
def _console_class() -> type["Console"]:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 (rich calls this where it caught the error, and would end the process with code 1)

    return Plain


def _print(console: "Console", text: str, style: str) -> None:
    from rich.text import Text

    if console.is_terminal:
        console.print(Text(printable(text), style, overflow="fold"))
    else:
        console.print(Text(printable(text), style), soft_wrap=True)
    console.file.flush()
