"""How are CSV and JSON lines of unknown origin read without trusting them?

With limits on bytes, rows and cells, by the standard library's parser; a row that does not fit is named by file and line. A
data frame would fill in, cast and drop without a word.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from quantkit.audit.values import short
from quantkit.errors import UsageError
from quantkit.files import read_text

MAX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 500_000
MAX_COLUMNS = 2_000
MAX_CELL = 1 << 17
"""Characters of a cell; set for each table, since whoever reads rows in the same process allows more."""
Table = list[tuple[int, dict[str, str]]]
"""Line in the file, and column → cell."""


def read_csv(path: Path) -> tuple[list[str], Table]:
    """Return the columns and rows of a table separated by commas, semicolons or tabs.

    Raises:
        UsageError: it is too large, not UTF-8, has no or a repeated column, or a row has other cells than there are columns.
    """
    text = read_text(path, max_bytes=MAX_BYTES)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    csv.field_size_limit(MAX_CELL)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(rows, [])]
        if not any(header) or len(header) > MAX_COLUMNS:
            raise UsageError(f"{path}: {len(header)} columns in line 1; a table needs 1 to {MAX_COLUMNS} with names")
        repeated = next((name for name in header if header.count(name) > 1 and name), None)
        if repeated is not None:
            raise UsageError(f"{path}: the column {short(repeated)} stands there twice; which one counts cannot be told")
        table: Table = []
        for cells in rows:
            line = rows.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                extra = header[len(cells)] if len(cells) < len(header) else cells[len(header)]
                what = "is missing" if len(cells) < len(header) else "has no column"
                raise UsageError(
                    f"{path}, line {line}: {len(cells)} cells for {len(header)} columns; {short(extra)} {what}; quote"
                    f" cells that hold {delimiter!r}"
                )
            table.append((line, dict(zip(header, cells, strict=True))))
            if len(table) > MAX_ROWS:
                raise UsageError(f"{path}: more than {MAX_ROWS} rows")
    except csv.Error as error:
        raise UsageError(f"{path}: not a table: {error}") from None
    return [name for name in header if name], table


def read_jsonl(path: Path) -> list[tuple[int, Any]]:
    """Return line number and data of every line; raises `UsageError` naming the line that is no JSON."""
    found = []
    for number, line in enumerate(read_text(path, max_bytes=MAX_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not valid JSON: {error}") from None
        if len(found) > MAX_ROWS:
            raise UsageError(f"{path}: more than {MAX_ROWS} lines")
    return found
