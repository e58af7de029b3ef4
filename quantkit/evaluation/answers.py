r"""What answer does a text give? The last `\boxed{…}` counts, and two spellings of one number are one answer.

Comparing numbers as text would call `1,008.0` and `1008` different; taking any number that stands in the text would give
credit for repeating the question.
"""

import re
from decimal import Decimal, InvalidOperation

LONGEST_NUMBER = 64
"""Longer digit strings, and exponents beyond it, are no answers (and would cost memory to write out)."""

BOXED = re.compile(r"\\boxed\s*\{")
SPACING = re.compile(r"\\[,!;: ]|~|\s+|\$|\\\$|\\left|\\right|\\%|%")
UNIT = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}|\^\{?\\circ\}?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}|(-?\d+)/(-?\d+)")
GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
IN_TEXT = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
STATED = re.compile(r"[Aa]nswer(?: is|:)[\s*(\[\"']*([A-Z1-9])(?![A-Za-z0-9'])")
BEGINS = re.compile(r"[\s*(\[\"']*([A-Z1-9])(?:[\s*\"']*$|[*\"']*[.):\],\n])")


def last_boxed(text: str) -> str | None:
    r"""Return what the last closed `\boxed{…}` holds, nested braces included; None where there is none.

    >>> last_boxed(r"first \boxed{1}, so \boxed{\frac{3}{4}}.")
    '\\frac{3}{4}'
    """
    for match in reversed(list(BOXED.finditer(text))):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[match.end() : position].strip()
    return None


def canonical_number(text: str) -> str | None:
    r"""Return the one spelling of a number or fraction; None for anything else. Fractions stay text, unreduced.

    >>> canonical_number("1,008.0"), canonical_number(r"-\dfrac{3}{4}"), canonical_number("x + 1")
    ('1008', '-3/4', None)
    """
    cleaned = SPACING.sub("", UNIT.sub("", text)).replace("−", "-").removesuffix(".").removeprefix("+")
    if not cleaned or len(cleaned) > LONGEST_NUMBER:
        return None
    if match := FRACTION.fullmatch(cleaned):
        sign, top, bottom = match[1] or "", match[2] or match[4], match[3] or match[5]
        return f"{sign}{int(top)}/{int(bottom)}".replace("--", "")
    if "," in cleaned:
        if not GROUPED.fullmatch(cleaned):
            return None
        cleaned = cleaned.replace(",", "")
    try:
        number = Decimal(cleaned)
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > LONGEST_NUMBER:
        return None
    plain = f"{number:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def numbers_in(text: str) -> list[Decimal]:
    """Return every number that stands alone in a text, thousands commas understood.

    >>> numbers_in("Ben has 1,200 coins and 3.5 more; see Q4.")
    [Decimal('1200'), Decimal('3.5')]
    """
    return [Decimal(match[0].replace(",", "")) for match in IN_TEXT.finditer(text) if len(match[0]) <= LONGEST_NUMBER]


def choice_label(text: str, labels: str) -> str | None:
    r"""Return the label a text chooses: the boxed one, the one after the last "answer is", or the one it begins with.

    A label that merely occurs is no choice: `A star is born` chooses nothing.

    >>> [choice_label(text, "ABCD") for text in ("The answer is (C).", "B. because", "A star is born", r"\boxed{D}")]
    ['C', 'B', None, 'D']
    """
    boxed = last_boxed(text)
    if boxed is not None:
        found = boxed.strip(" .()$").removeprefix(r"\text{").removesuffix("}")
        return found if len(found) == 1 and found in labels else None
    stated = STATED.findall(text)
    begins = BEGINS.match(text)
    label = str(stated[-1]) if stated else begins[1] if begins else ""
    return label if label and label in labels else None
