"""How does a file of rows become dictionaries, and where in the file does each row stand?

JSONL, JSON, CSV, parquet and plain text only, each read by the standard library or pyarrow; values keep the file's own
types. pandas or `datasets` would guess types (a column of answers becomes floats) and forget the line a row came from.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from quantkit.data.findings import shown
from quantkit.errors import UsageError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file; `numbers` says where each stands, counted from 1 in `unit`s (`row` or `line`)."""

    path: str
    unit: str
    numbers: list[int]
    rows: list[Row]


def read_file(path: Path, limit: int | None = None) -> Part:
    """Read at most `limit` rows of one file, chosen by its suffix.

    Raises:
        UsageError: the file cannot be read, or is not what its suffix says; file, line and reason are named.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: rows are read from {', '.join(READERS)} files; found {path.suffix or 'no suffix'!r}")
    try:
        return reader(path, limit)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {_one_line(error.strerror or error)}") from None


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UsageError(
            f"{path} line {line}: byte 0x{byte:02x} (offset {error.start}) is not UTF-8; save it as UTF-8"
        ) from None


def _jsonl(path: Path, limit: int | None) -> Part:
    return _json_lines(path, _text(path), limit)


def _json_lines(path: Path, text: str, limit: int | None) -> Part:
    def parsed() -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{path} line {number}: not valid JSON: {_one_line(error)}: {shown(line)}") from None
                yield number, _object(row, f"{path} line {number}")

    found = list(islice(parsed(), limit))
    return Part(str(path), "line", [number for number, _ in found], [row for _, row in found])


def _json(path: Path, limit: int | None) -> Part:
    text = _text(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(path, text, limit)
        raise UsageError(f"{path} line {error.lineno}: not valid JSON: {_one_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {_one_line(error)}") from None
    rows = data.get("data") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        found = f"an object with the keys {shown(sorted(data))}" if isinstance(data, dict) else type(data).__name__
        raise UsageError(f'{path}: a list of rows or {{"data": [rows]}} is wanted; found {found}')
    rows = rows[:limit]
    return _numbered(path, [_object(row, f"{path} row {number}") for number, row in enumerate(rows, start=1)])


def _csv(path: Path, limit: int | None) -> Part:
    csv.field_size_limit(1 << 27)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    numbers: list[int] = []
    rows: list[Row] = []
    try:
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise UsageError(f"{path} line 1: two columns have the same name: {shown(header)}")
        for cells in lines:
            if not cells:
                continue
            if limit is not None and len(rows) >= limit:
                break
            if len(cells) != len(header):
                raise UsageError(
                    f"{path} line {lines.line_num}: {len(cells)} cells, the header has {len(header)}: {shown(cells)}"
                )
            numbers.append(lines.line_num)
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path} line {lines.line_num}: not valid CSV: {error}") from None
    return Part(str(path), "line", numbers, rows)


def _parquet(path: Path, limit: int | None) -> Part:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if limit is None:
                return _numbered(path, file.read().to_pylist())
            rows: list[Row] = []
            for batch in file.iter_batches(batch_size=min(limit, 4096)):
                rows += batch.to_pylist()
                if len(rows) >= limit:
                    break
            return _numbered(path, rows[:limit])
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: not a readable parquet file: {_one_line(error)}") from None


def _paragraphs(path: Path, limit: int | None) -> Part:
    """Read paragraphs, which blank lines part, as rows with the one column `text`."""
    numbers: list[int] = []
    rows: list[Row] = []
    blank = True
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip() and blank:
            if len(rows) == limit:
                break
            numbers.append(number)
            rows.append({"text": line})
        elif line.strip():
            rows[-1]["text"] += f"\n{line}"
        blank = not line.strip()
    return Part(str(path), "line", numbers, rows)


def _numbered(path: Path, rows: list[Row]) -> Part:
    return Part(str(path), "row", list(range(1, len(rows) + 1)), rows)


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{place}: a row is an object of column: value; found {type(row).__name__}: {shown(row)}")
    return row


def _one_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


READERS: dict[str, Callable[[Path, int | None], Part]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _paragraphs,
}
"""Suffix → reader."""
