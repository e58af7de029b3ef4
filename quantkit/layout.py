"""How is a value written for people, and how does a table fit into so many characters?

Plain functions from values to text, so that what is printed can be tested without a terminal. A table that does not fit
drops its least important columns and names them, then folds text; left to itself, rich would cut an artifact's name short.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

GAP = 2
"""Spaces between two columns of a table."""
NARROWEST = 12
"""Characters below which a column is not folded."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FOLD_AFTER = re.compile(r"-*[^ _/\-,]*[_/\-,]* *")


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: its heading, and how it gives way where space is short."""

    name: str
    align: Literal["left", "right"] = "left"
    """Text stands left and is folded first; numbers stand right and are folded, as marks beside a score, where all else is."""
    priority: int = 0
    """0: always shown; of the others the highest number is dropped first."""


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int) -> tuple[list[list[str]], list[str]]:
    """Return the lines of the heading and of each row, at most `width` characters wide, and the columns left out.

    >>> table_lines([Column("name"), Column("bits", "right")], [["a", 4]], 80)
    ([['name  bits'], ['a        4']], [])
    """
    cells = [[column.name for column in columns], *([cell_text(cell) for cell in row] for row in rows)]
    widths, dropped = fit_columns(columns, cells, width)
    return [_row(row, columns, widths) for row in cells], dropped


def fit_columns(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> tuple[dict[int, int], list[str]]:
    """Return column index → characters, and the names of the columns that had to go to fit into `width` characters."""
    widths = {
        index: max(cell_length(line) for row in cells for line in row[index].split("\n")) for index in range(len(columns))
    }

    def excess() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - width

    dropped = []
    for index in sorted((i for i, column in enumerate(columns) if column.priority), key=lambda i: -columns[i].priority):
        spare = sum(max(0, widths[i] - 2 * NARROWEST) for i in widths if columns[i].align == "left" and not columns[i].priority)
        if excess() > spare:
            del widths[index]
            dropped.append(columns[index].name)
    while excess() > 0:
        wide = [index for index in widths if widths[index] > NARROWEST]
        foldable = [index for index in wide if columns[index].align == "left"] or wide
        if not foldable:
            break
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths, dropped[::-1]


def _row(cells: Sequence[str], columns: Sequence[Column], widths: Mapping[int, int]) -> list[str]:
    folded = [(fold(cells[index], width).split("\n"), width, columns[index].align) for index, width in widths.items()]
    lines = []
    for at in range(max((len(parts) for parts, _, _ in folded), default=0)):
        texts = [(parts[at] if at < len(parts) else "", width, align) for parts, width, align in folded]
        padded = [
            " " * (width - cell_length(text)) + text if align == "right" else text + " " * (width - cell_length(text))
            for text, width, align in texts
        ]
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def fold(text: str, width: int) -> str:
    """Break text into lines of at most `width` characters, after a space, `_`, `-`, `/` or comma where there is one.

    >>> fold("Qwen3-0.6B-openmath_SFT", 12).split(chr(10))
    ['Qwen3-0.6B-', 'openmath_SFT']
    >>> fold("merge --policy base", 10).split(chr(10))
    ['merge', '--policy', 'base']
    """
    lines = []
    for line in text.split("\n"):
        current = ""
        for piece in FOLD_AFTER.findall(line):
            if current and cell_length(current + piece.rstrip()) > width:
                lines.append(current.rstrip())
                current = ""
            current += piece
            while cell_length(current.rstrip()) > width:
                taken = next(at for at in range(len(current), 0, -1) if at == 1 or cell_length(current[:at]) <= width)
                lines.append(current[:taken])
                current = current[taken:]
        lines.append(current.rstrip())
    return "\n".join(lines)


def cell_length(text: str) -> int:
    """Return how many terminal cells a text takes.

    >>> [cell_length(text) for text in ("abc", "模型", "é")]
    [3, 4, 1]
    """
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cell_text(cell: object) -> str:
    """Return the text of one cell: None as –, booleans as yes and no, floats with four digits.

    >>> [cell_text(cell) for cell in (None, True, 0.123456, 3, "a")]
    ['–', 'yes', '0.1235', '3', 'a']
    """
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else printable(str(cell))


def joined(cell: object) -> str:
    """Return the text of one cell in one line.

    >>> joined("54.2%\\n40.1–67.6\\nFLOOR"), joined(None)
    ('54.2%, 40.1–67.6, FLOOR', '–')
    """
    return ", ".join(filter(None, cell_text(cell).split("\n")))


def printable(text: str) -> str:
    r"""Return the text with its control characters spelled out, so that no file's content can drive the terminal.

    >>> printable("red" + chr(27) + "[31m")
    'red\\x1b[31m'
    """
    return CONTROL.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)


def describe_fields(fields: Mapping[str, object]) -> str:
    """Return values as a progress line shows them.

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


def digits(value: float, n: int = 3) -> str:
    """Return a measured number with `n` digits that count, zeros at its end included, and no exponent below a million.

    >>> [digits(value) for value in (1.1, 12.997, 0.02, 1234.5, 8.4e-05, 2.5e6)]
    ['1.10', '13.0', '0.0200', '1,234', '8.40e-05', '2.50e+06']
    """
    if 10**n <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:#.{n}g}".rstrip(".")


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number with its noun; the plural is `one` with an s unless it is given.

    >>> counted(1, "step"), counted(1200, "step"), counted(0, "batch", "batches")
    ('1 step', '1,200 steps', '0 batches')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration with the digits that matter.

    >>> [format_duration(s) for s in (0.1234, 4.56, 42.4, 192, 7500)]
    ['0.12 s', '4.6 s', '42 s', '3 min 12 s', '2 h 5 min']
    """
    if seconds < 59.5:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
