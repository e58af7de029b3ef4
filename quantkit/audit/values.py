"""What number does a cell of somebody else's file hold, in which scale, and to how many digits?

Digits are kept because 42.0 % of 50 answers is a count and 42.3 % is none. Nothing is guessed from one value alone: whether a
column is in percent is decided over all its cells.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from quantkit.errors import UsageError

NOTHING = {"", "-", "–", "n/a", "na", "none", "null"}
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
LONGEST = 400
"""Characters of a cell that is to hold a number."""
SIZES = {"bytes": 1, "kb": 1 << 10, "mb": 1 << 20, "mib": 1 << 20, "gb": 1 << 30, "gib": 1 << 30}


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as a file writes it."""

    value: float
    shown: str
    step: float
    """Half a unit of its last digit."""
    percent: bool = False


def read_number(raw: object) -> Cell | None:
    """Return the number of a cell; None where it is empty.

    Raises:
        UsageError: it holds something else.

    >>> read_number("42.0 %"), read_number("n/a")
    (Cell(value=42.0, shown='42.0 %', step=0.05, percent=True), None)
    """
    if raw is None:
        return None
    if isinstance(raw, bool | list | dict):
        raise UsageError(f"{short(raw)} is no number")
    shown = str(raw).strip()[: LONGEST + 1]
    if shown.lower() in NOTHING:
        return None
    text = shown.removesuffix("%").strip()
    if len(shown) > LONGEST or not text or not NUMBER.fullmatch(text) or text in ("+", "-", "."):
        raise UsageError(f"{short(raw)} is no number")
    try:
        value = float(text.replace(",", ""))
    except (ValueError, OverflowError):
        raise UsageError(f"{short(raw)} is no number") from None
    return Cell(value, shown, _step(text), shown.endswith("%"))


def _step(text: str) -> float:
    mantissa, _, exponent = text.lower().partition("e")
    decimals = len(mantissa.partition(".")[2]) - (int(exponent[:5]) if exponent.lstrip("+-").isdigit() else 0)
    return 0.5 * 10.0 ** -min(max(decimals, -300), 300)


def as_percent(cells: Iterable[Cell]) -> bool:
    """Whether a column of shares is written in percent: one value says so or is larger than 1."""
    return any(cell.percent or (math.isfinite(cell.value) and cell.value > 1.0 + cell.step) for cell in cells)


def in_bytes(value: float, name: str) -> float:
    """Return a memory size in bytes; the unit is the last word of its column's name, gigabytes where there is none.

    >>> in_bytes(2.0, "peak_vram_gb") == 2 * 1024**3, in_bytes(1024.0, "memory_mb") == 1024**3
    (True, True)
    """
    return value * SIZES.get(name.rpartition("_")[2], 1 << 30 if value < 1 << 14 else 1)


def in_seconds(value: float, name: str) -> float:
    """Return a duration in seconds, given the name of its column."""
    return value / 1000 if name.endswith("_ms") else value


def plain_name(text: str) -> str:
    """Return a column's or key's name in the one spelling that names are compared in.

    >>> plain_name("Peak VRAM (GB)"), plain_name("exactMatch"), plain_name("HasAns_exact")
    ('peak_vram_gb', 'exact_match', 'hasans_exact')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z]{2})", "_", text[:200])
    words = words.replace("HasAns", "hasans").replace("Has_Ans", "hasans").replace("NoAns", "noans").replace("No_Ans", "noans")
    return re.sub(r"[^a-z0-9]+", "_", words.lower().replace("tok/s", "tokens_per_s").replace("/s", "_per_s")).strip("_")


def short(raw: object, limit: int = 60) -> str:
    """Return a value for people, quoted and cut."""
    text = repr(raw) if isinstance(raw, str | int | float | bool) or raw is None else type(raw).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
