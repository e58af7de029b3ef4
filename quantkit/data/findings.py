"""What was noticed about rows on the way to tokens? Conversions that were made, and rows that cannot be used.

Values become text by the rule in `as_text` alone and each conversion is counted. Chat templates, which render numbers as
`1008.0` or as nothing at all, depending on the model, never see anything but strings.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from quantkit.errors import UsageError
from quantkit.layout import counted

PLURAL = re.compile(r"\b(number|value|list|turn)s\b")
"""What a sort of conversion counts."""
OnBadRows = Literal["error", "drop"]
CUT_OFF = "response cut off by max_length"
"""Reason for which a longer `max_length` is the remedy."""


class RowError(Exception):
    """A row cannot be used: `reason` groups such rows in the report, the text says what was found."""

    def __init__(self, text: str, *, column: str = "", reason: str) -> None:
        super().__init__(f"column {column!r}: {text}" if column else text)
        self.reason = reason


def shown(value: object, limit: int = 60) -> str:
    """Return the value as one short line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def normalised(text: str) -> str:
    """Return the text case-folded with single spaces, the form in which questions are compared."""
    return " ".join(text.casefold().split())


def as_text(value: Any) -> str:
    """Turn a cell into text: `True` → `yes`, `1008.0` → `1008`, `0.088` → `0.088`; text stays as it is.

    Dates, missing values, bytes, lists and non-finite numbers have no one spelling and are refused.

    >>> as_text(1008.0), as_text(1e-7), as_text(False)
    ('1008', '0.0000001', 'no')

    Raises:
        ValueError: no rule covers the value; the text says why.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no text") from None
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise ValueError("is not a finite number")
        text = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text == "-0" else text
    if value is None:
        raise ValueError("is missing")
    raise ValueError(f"is {type(value).__name__}, for which there is no rule; store it as text")


@dataclass(slots=True)
class Findings:
    """Counts conversions and collects unusable rows of one set; `place` turns a row number into file and line."""

    place: Callable[[int], str]
    conversions: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    first_row: int = 0
    first_of: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Reason → number of the first such row, and where it stands and what was found in it."""

    def text(self, value: Any, column: str) -> str:
        """Return the cell as text and count the conversion if there was one.

        Raises:
            RowError: no rule covers the value.
        """
        try:
            text = as_text(value)
        except ValueError as error:
            raise RowError(f"{shown(value)} {error}", column=column, reason=f"unusable value in {column!r}") from None
        if not isinstance(value, str):
            what = "yes/no values written out" if isinstance(value, bool) else "numbers converted"
            self.converted(column, what, f"{value!r} → {text!r}")
        return text

    def converted(self, column: str, what: str, example: str) -> None:
        """Count one conversion; the first example of each sort is kept."""
        self.conversions[column, what] += 1
        self.examples.setdefault((column, what), example)

    def bad(self, row: int, error: RowError) -> None:
        """Count a row that cannot be used; the first one in the file is the one that is named."""
        self.dropped[error.reason] += 1
        if not self.first_bad or row < self.first_row:
            self.first_bad, self.first_row = f"{self.place(row)}, {error}", row
        if row < self.first_of.get(error.reason, (row + 1, ""))[0]:
            self.first_of[error.reason] = row, f"{self.place(row)}, {error}"

    def settle(self, on_bad_rows: OnBadRows) -> None:
        """Stop on unusable rows unless they may be dropped.

        Raises:
            UsageError: names file, row, column and value of the first one, and how many more there are.
        """
        if self.dropped and on_bad_rows == "error":
            more = self.dropped.total() - 1
            others = f" ({counted(more, 'more unusable row')})" if more else ""
            remedy = "Raise max_length, correct the data" if CUT_OFF in self.dropped else "Correct the data"
            raise UsageError(f"{self.first_bad}{others}. {remedy} or set on_bad_rows='drop' to leave such rows out")

    def conversion_lines(self) -> list[str]:
        """Return one line per sort of conversion: `answer: 1,000 numbers converted, 19600.0 → '19600'`."""
        lines = []
        for (column, what), count in self.conversions.items():
            sort = what if count > 1 else PLURAL.sub(r"\1", what, count=1)
            lines.append(f"{column}: {count:,} {sort}, {self.examples[column, what]}")
        return lines
