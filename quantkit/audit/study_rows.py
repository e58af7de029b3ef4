"""How does one answer of an evaluation of unknown layout become a row?"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.audit.aliases import sample_field_of
from quantkit.audit.facts import Row
from quantkit.audit.values import plain_name, read_number, short
from quantkit.errors import UsageError


@dataclass
class Names:
    """Which columns and keys were understood, and as what."""

    understood: dict[str, str] = field(default_factory=dict)
    not_understood: dict[str, None] = field(default_factory=dict)


def whole(value: float | None) -> int | None:
    """Return a number as a whole one; None where it is none or absurd."""
    return int(value) if value is not None and math.isfinite(value) and abs(value) < 1e15 else None


def read_row(file: str, item: tuple[str, Any], index: int, names: Names, faults: list[str]) -> Row:
    """Return one answer; cells that hold something else than they should are faults that name file, row and field."""
    where, sample = item
    found: dict[str, Any] = {}
    for name, value in sample.items():
        known = sample_field_of(plain_name(str(name)))
        if known is None:
            names.not_understood[f"answer.{name}"] = None
            continue
        names.understood[f"answer.{name}"] = known
        try:
            if known == "gold":
                found.setdefault(known, _golds(value))
            elif known in ("correct", "stopped"):
                found.setdefault(known, _truth(value))
            elif known in ("difference", "tokens", "latency_s"):
                cell = read_number(value)
                found.setdefault(known, None if cell is None else cell.value)
            elif value is not None:
                found.setdefault(known, str(value)[:20_000])
        except UsageError as error:
            faults.append(f"{file}, {where}, {name}: {error}")
    answer = found.get("answer")
    return Row(
        key=found.get("key", str(index)),
        text=found.get("text"),
        gold=found.get("gold"),
        answer=answer if answer not in ("", "None", "nan", "null") else None,
        correct=found.get("correct"),
        difference=found.get("difference"),
        tokens=whole(found.get("tokens")),
        stopped=found.get("stopped"),
        prompt=found.get("prompt"),
    )


def _golds(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.startswith(("[", "{")) and len(value) < 20_000:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return (value,)
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    if isinstance(value, list):
        return tuple(str(item)[:2000] for item in value[:100])
    return () if value is None else (str(value)[:2000],)


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool) or value is None:
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0", "yes"):
        return True
    if text in ("false", "0", "0.0", "no"):
        return False
    if text == "":
        return None
    raise UsageError(f"{short(value)} is neither true nor false")
