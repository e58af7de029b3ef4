"""How is a measured value written for people, the same on the console and on the page?"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.layout import cell_text, digits, format_bytes, format_duration
from quantkit.reporting.facts import Row

FOLDERS = re.compile(r"(?<![\w./\\])(?:/(?!/)(?:[^/\s:]+/)+|[A-Za-z]:\\(?:[^\\\s]+\\)+)")
LONGEST_LIST = 12


def number_text(value: float, row: Row) -> str:
    """Return a value of the row's metric: a share in percent, anything else with three digits."""
    return f"{100 * value:.1f}%" if row.is_share else digits(value)


def interval_text(row: Row) -> str:
    """Return the row's 95 % interval in the unit of its value."""
    return f"{100 * row.low:.1f}–{100 * row.high:.1f}" if row.is_share else f"{digits(row.low)}–{digits(row.high)}"


def floor_text(row: Row) -> str | None:
    """Return what a predictor that understands nothing gets on the same rows; None where the task has no floor."""
    return None if row.best_floor is None else f"{number_text(row.best_floor, row)} ({row.best_floor_name})"


def without_folders(text: str) -> str:
    """Return text whose absolute paths are cut to their last part: a page travels, one machine's folders do not.

    >>> without_folders("openmath:/data/me/train.jsonl of org/model")
    'openmath:train.jsonl of org/model'
    >>> without_folders("https://host/data/me")
    'https://host/data/me'
    """
    return FOLDERS.sub("", text)


def pairs(data: Mapping[str, Any], *, lead: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values as text, in their order; what is null or empty is left out.

    >>> list(pairs({"a": {"b": 1, "c": None}, "size_bytes": 2048, "d": [1, 2]}))
    [('a.b', '1'), ('size', '2.0 KiB'), ('d', '1, 2')]
    """
    for key, value in data.items():
        name = f"{lead}{key}"
        if isinstance(value, Mapping):
            yield from pairs(value, lead=f"{name}.")
        elif value is not None and value not in ([], ()):
            yield _pair(name, value)


def _pair(name: str, value: Any) -> tuple[str, str]:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name.endswith("_bytes") and whole:
        return name.removesuffix("_bytes"), format_bytes(value)
    if name.endswith("_s") and not name.endswith("per_s") and isinstance(value, int | float):
        return name.removesuffix("_s"), format_duration(value)
    if isinstance(value, list | tuple):
        more = f" … ({len(value)} in all)" if len(value) > LONGEST_LIST else ""
        return name, without_folders(", ".join(_item(item) for item in value[:LONGEST_LIST]) + more)
    return name, without_folders(f"{value:,}" if whole else cell_text(value))


def _item(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {text}" for key, text in pairs(value))
    return cell_text(value)
