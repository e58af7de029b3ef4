"""What is in the data, and what was done to it? Counted before the first step, shown to the user and kept in the record.

A log line per fault would scroll away; these numbers stand beside the artifact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from quantkit.data.encode import EncodedRow
from quantkit.layout import counted


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Learnt tokens per row: least, 1st percentile (nearest rank), median (lower), all rows together."""

    minimum: int
    p1: int
    median: int
    total: int

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> "TokenCounts":
        """Count the learnt tokens of at least one row.

        >>> TokenCounts.of([EncodedRow([1, 2, 3], [-100, 2, 3], 1), EncodedRow([1, 2], [-100, 2], 2)])
        TokenCounts(minimum=1, p1=1, median=1, total=3)
        """
        counts = sorted(row.supervised for row in rows)
        return cls(counts[0], counts[(len(counts) - 1) // 100], counts[(len(counts) - 1) // 2], sum(counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read, used, converted and left out of one set."""

    source: str
    kind: str
    """Which columns were read; see `quantkit.data.schemas.KINDS`."""
    rows_read: int
    rows_used: int
    dropped: Mapping[str, int]
    """Reason → rows left out."""
    truncated: int
    """Rows cut to `max_length` tokens; these do not end in an end token."""
    tokens: int
    """Tokens of all rows, prompts included."""
    longest: int
    """Tokens of the longest row, after cutting."""
    supervised: TokenCounts
    duplicates: int
    """Rows whose question and response stand in an earlier row too, whatever their case and spaces."""
    overlap: int = 0
    """Evaluation rows whose question also stands in the training set."""
    conversions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evaluation: "DataReport | None" = field(default=None)
    """The same of the evaluation set, where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = asdict(self) | {"dropped": dict(self.dropped)}
        return data | {
            "conversions": list(self.conversions),
            "notes": list(self.notes),
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
        }

    def lines(self) -> list[str]:
        """Return what a user should see before training, one fact per line."""
        counts = self.supervised
        lines = [
            f"{self.source}: {self.rows_used:,} of {self.rows_read:,} rows as {self.kind}",
            f"learnt tokens per row: least {counts.minimum}, p1 {counts.p1}, median {counts.median};"
            f" {counts.total:,} of {self.tokens:,} tokens, longest row {self.longest}",
        ]
        lines += [f"left out: {counted(count, 'row')}, {reason}" for reason, count in self.dropped.items()]
        lines += [f"converted: {line}" for line in self.conversions]
        if self.truncated:
            lines.append(f"cut to max_length: {counted(self.truncated, 'row')}, losing the end of the response")
        if self.duplicates:
            lines.append(f"duplicates: rows that repeat an earlier one: {self.duplicates}")
        if self.evaluation:
            lines += [f"evaluation: {line}" for line in self.evaluation.lines()]
            share = f"{self.overlap} of {self.evaluation.rows_used} evaluation questions also stand in the training set"
            lines.append(f"overlap: {share}" + (" and will look easier than they are" if self.overlap else ""))
        return lines + list(self.notes)
