"""How is one value of somebody else's JSON taken as what it should be? By its type, or not at all."""

import json
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 200_000
"""Characters of one text that are kept."""
MAX_ITEMS = 500_000


def as_number(raw: Any) -> float | None:
    """Return a JSON number, also a non-finite one; None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        return float(raw)
    except OverflowError:
        return float("inf")


def as_count(raw: Any) -> int | None:
    """Return a whole number; None for anything else."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 1 << 62 else None


def as_text(raw: Any) -> str | None:
    """Return a text, cut at a length no result needs; None for anything else."""
    return raw[:MAX_TEXT] if isinstance(raw, str) else None


def as_object(raw: Any) -> Mapping[str, Any]:
    """Return an object, an empty one for anything else."""
    return raw if isinstance(raw, dict) else {}


def as_objects(raw: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list; an empty list for anything else."""
    return [item for item in raw[:MAX_ITEMS] if isinstance(item, dict)] if isinstance(raw, list) else []


def as_settings(raw: Any) -> dict[str, str]:
    """Return an object's values as short texts that can be compared."""
    return {str(key)[:80]: setting_text(value) for key, value in as_object(raw).items()}


def setting_text(value: Any) -> str:
    """Return one setting as text: texts as they are, everything else as JSON.

    >>> setting_text("greedy"), setting_text(None), setting_text({"b": 1, "a": 2})
    ('greedy', 'null', '{"a": 2, "b": 1}')
    """
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))[:2000]
