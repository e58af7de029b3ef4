"""What does a person see: on a narrow terminal, on a wide one, without colour, in a log file?

The only importer of rich, and only when something is printed. Text of users and libraries is never read as markup, and
its control characters are shown, not obeyed. A table that does not fit drops its least important columns and says so,
then folds text; it never cuts a name short, as rich does when left alone. Where the output is no terminal nothing is
folded, so that `grep` finds whole names; set COLUMNS to have a width all the same.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

GAP = 2
"""Spaces between two columns of a table."""
NARROWEST = 12
"""Characters below which a text column is not folded."""
LINE_EVERY_S = (10.0, 60.0)
"""Longest silence of a progress in a log file, in seconds: in its first five minutes, and later."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FOLD_AFTER = re.compile(r"[^ _/\-,]*[ _/\-,]*")

_to_stderr = False
_live: "RichProgress | None" = None


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: its heading, and how it gives way where space is short."""

    name: str
    align: Literal["left", "right"] = "left"
    """Text stands left and may be folded; numbers stand right and never are."""
    priority: int = 0
    """0: always shown; of the others the highest number is dropped first."""


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


def use_stderr() -> None:
    """Send human text to stderr from here on: stdout belongs to the one JSON object of `--json`."""
    globals()["_to_stderr"] = True


def use_stdout() -> None:
    """Send human text to stdout, as at the start of a process."""
    globals()["_to_stderr"] = False


def emit_json(data: object) -> None:
    """Print one JSON object on stdout; non-finite numbers are refused with `ValueError`."""
    print(json.dumps(data, indent=2, allow_nan=False), flush=True)


def table(title: str, columns: Sequence[str | Column], rows: Sequence[Sequence[object]], *, caption: str = "") -> None:
    """Print a table; cells may be anything: None is shown as –, booleans as yes and no, floats with four digits."""
    from rich.text import Text

    console = _console(_to_stderr)
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    cells = [[cell_text(cell) for cell in row] for row in rows]
    widths, dropped = fit_columns(heads, cells, _width(console))
    lines = [
        Text(printable(title), "bold"),
        *(Text(line, "bold") for line in _row([head.name for head in heads], heads, widths)),
    ]
    lines.append(Text("─" * (sum(widths.values()) + GAP * (len(widths) - 1)), "dim"))
    lines += [Text(line) for row in cells for line in _row(row, heads, widths)]
    if not rows:
        lines.append(Text("(none)", "dim"))
    lines += [Text(printable(line), "dim") for line in caption.split("\n") if line]
    if dropped:
        lines.append(Text(f"not shown at this width: {', '.join(dropped)}", "dim"))
    for line in lines:
        console.print(line, soft_wrap=True)


def _row(texts: Sequence[str], heads: Sequence[Column], widths: Mapping[int, int]) -> list[str]:
    """Return the lines of one row; what is folded goes on below, in its own column."""
    folded = [(fold(texts[index], width).split("\n"), width, heads[index].align) for index, width in widths.items()]
    return [
        (" " * GAP)
        .join(f"{cell:{'>' if align == 'right' else '<'}{width - _cells(cell) + len(cell)}}" for cell, width, align in line)
        .rstrip()
        for line in (
            [(cell[at] if at < len(cell) else "", width, align) for cell, width, align in folded]
            for at in range(max((len(cell) for cell, _, _ in folded), default=0))
        )
    ]


def cell_text(cell: object) -> str:
    """Return the text of one cell.

    >>> [cell_text(cell) for cell in (None, True, 0.123456, 3, "a")]
    ['–', 'yes', '0.1235', '3', 'a']
    """
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else printable(str(cell))


def printable(text: str) -> str:
    """Return the text with its control characters spelled out, so that no file's content can drive the terminal."""
    return CONTROL.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)


def fit_columns(heads: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> tuple[dict[int, int], list[str]]:
    """Return column index → characters, and the names of the columns that had to go to fit into `width` characters."""
    widths = {
        index: max(_cells(line) for text in [head.name, *(row[index] for row in cells)] for line in text.split("\n"))
        for index, head in enumerate(heads)
    }

    def excess() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - width

    dropped = []
    for index in sorted((i for i, head in enumerate(heads) if head.priority), key=lambda i: -heads[i].priority):
        folded = sum(max(0, widths[i] - 2 * NARROWEST) for i in widths if heads[i].align == "left" and not heads[i].priority)
        if excess() > folded:
            del widths[index]
            dropped.append(heads[index].name)
    while excess() > 0:
        foldable = [index for index in widths if heads[index].align == "left" and widths[index] > NARROWEST]
        if not foldable:
            break
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths, dropped[::-1]


def fold(text: str, width: int) -> str:
    r"""Break text into lines of at most `width` characters, after a space, `_`, `-`, `/` or comma where there is one.

    >>> fold("Qwen3-0.6B-openmath_SFT", 12).split("\n")
    ['Qwen3-0.6B-', 'openmath_SFT']
    """
    lines = []
    for line in text.split("\n"):
        current = ""
        for piece in FOLD_AFTER.findall(line):
            while current and _cells(current + piece.rstrip()) > width:
                lines.append(current.rstrip())
                current = ""
            current += piece
            while _cells(current.rstrip()) > width:
                lines.append(current[:width])
                current = current[width:]
        lines.append(current.rstrip())
    return "\n".join(lines)


@contextmanager
def progress(title: str, total: int, *, unit: str = "") -> Iterator[Progress]:
    """Show how far a loop of `total` rounds is: a live bar on a terminal, now and then a line elsewhere."""
    console = _console(_to_stderr)
    if _live is not None:
        yield _Bar(_live, title, total, unit)
        return
    if not console.is_terminal or console.is_dumb_terminal:
        lines = _Lines(console, title, total, unit)
        yield lines
        lines.finish()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(8, min(40, console.width - 66))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        redirect_stderr=sys.stderr.isatty(),
    )
    globals()["_live"] = bars
    try:
        with bars:
            yield _Bar(bars, title, total, unit)
    finally:
        globals()["_live"] = None


class _Bar:
    """A bar of the one live display; a loop inside a loop adds a second bar to it."""

    def __init__(self, bars: "RichProgress", title: str, total: int, unit: str) -> None:
        self._bars = bars
        self._task = bars.add_task(printable(title), total=total, unit=printable(unit), note="")

    def advance(self, n: int = 1, **fields: object) -> None:
        more: dict[str, Any] = {"note": describe_fields(fields)} if fields else {}
        self._bars.update(self._task, advance=n, **more)


class _Lines:
    """Lines for a log file: the first round, then every 5 % but at most one a second, or after a silence, the last."""

    def __init__(self, console: "Console", title: str, total: int, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, printable(title), total, printable(unit)
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
        if self._shown != self._done:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}".rstrip(), format_duration(now - self._started)]
        _print(self._console, " · ".join([*parts, self._note] if self._note else parts), "")
        self._shown, self._shown_at = self._done, now


def describe_fields(fields: dict[str, object]) -> str:
    """Return values for a progress line.

    >>> describe_fields({"loss": 0.51234, "tokens_per_s": 812.0, "memory_bytes": 1610612736})
    'loss 0.5123 · tokens/s 812 · memory 1.50 GiB'
    """
    parts = []
    for name, value in fields.items():
        if name.endswith("_bytes") and isinstance(value, int):
            parts.append(f"{name.removesuffix('_bytes').replace('_', ' ')} {format_bytes(value)}")
        else:
            parts.append(f"{name.replace('_per_', '/').replace('_', ' ')} {cell_text(value)}")
    return " · ".join(parts)


def format_bytes(n: int) -> str:
    """Return a number of bytes in binary units.

    >>> [format_bytes(n) for n in (1610612736, 327155712, 2621440, 2048, 12)]
    ['1.50 GiB', '312 MiB', '2.5 MiB', '2.0 KiB', '12 B']
    """
    if abs(n) >= 1 << 30:
        return f"{n / (1 << 30):.2f} GiB"
    for name, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(n) >= size:
            return f"{n / size:.{1 if abs(n) < 10 * size else 0}f} {name}"
    return f"{n} B"


def format_duration(seconds: float) -> str:
    """Return a duration with the digits that matter.

    >>> [format_duration(s) for s in (0.1234, 4.56, 42.4, 192, 7500)]
    ['0.12 s', '4.6 s', '42 s', '3 min 12 s', '2 h 5 min']
    """
    if seconds < 59.5:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _console(stderr: bool) -> "Console":
    """Return a console for the stream as it is now; while a bar is live on the same terminal, the bar's own."""
    from rich.console import Console

    if _live is not None and (stderr == _live.console.stderr or sys.stderr.isatty()):
        return _live.console
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)


def _width(console: "Console") -> int:
    return console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else 1000


def _print(console: "Console", text: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(printable(text), style=style), **({"overflow": "fold"} if console.is_terminal else {"soft_wrap": True}))


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
