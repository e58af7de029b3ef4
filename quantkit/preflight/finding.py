"""What does a check say? How bad it is, what was found and where, and what to do.

Errors are what a run cannot be right with; a run goes on with warnings, which need a person's eye; `repaired` is what would
have gone wrong with a plainer tool and what is done about it here; notes are facts to know.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "repaired", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know before training."""

    severity: Severity
    check: str
    """Short name of what was looked at."""
    found: str
    """What was found: how often, where first."""
    advice: str = ""
    """What to do, or what is done about it."""

    @property
    def line(self) -> str:
        """Return all of it in one line."""
        return f"{self.found}. {self.advice}" if self.advice else self.found

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON data."""
        return asdict(self)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the worst first; the order is kept otherwise."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def of_all(count: int, total: int, what: str = "rows") -> str:
    """Return a count with its share.

    >>> of_all(12, 1000)
    '12 of 1,000 rows (1.2%)'
    """
    return f"{count:,} of {total:,} {what} ({100 * count / max(1, total):.{0 if count == total else 1}f}%)"
