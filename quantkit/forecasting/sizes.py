"""How do people write an amount of memory? `8GiB`, `24 GB`, `512M`; a bare number, GiB to some, bytes to others, is refused."""

import re

from quantkit.errors import UsageError

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def least_text(n: int) -> str:
    """Return the least amount of two decimals that so many bytes fit into, as `parse_bytes` reads it.

    >>> least_text(2_000_000_001), parse_bytes(least_text(2_000_000_001), where="--fit")
    ('1.87GiB', 2007897211)
    """
    unit, size = next(((f"{name.upper()}iB", size) for name, size in reversed(UNITS.items()) if n >= size), ("KiB", UNITS["k"]))
    return f"{-(-100 * n // size) / 100:.2f}{unit}"


def parse_bytes(text: str, *, where: str) -> int:
    """Return the bytes that a text means; GB is 1000³, GiB and the bare letter 1024³.

    >>> parse_bytes("8GiB", where="--fit"), parse_bytes("1.5 kB", where="--fit"), parse_bytes("2g", where="--fit")
    (8589934592, 1500, 2147483648)

    Raises:
        UsageError: the text is no amount of memory.
    """
    found = SIZE.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{where} is {text!r}; an amount of memory is wanted, e.g. 8GiB or 24GB")
    unit = found[2].lower()
    if not unit:
        raise UsageError(f"{where} is {text!r}, without a unit; write e.g. {found[1]}GiB")
    decimal = not found[3] and text.strip().lower().endswith("b")
    return round(float(found[1]) * (1000 ** " kmgt".index(unit) if decimal else UNITS[unit]))
