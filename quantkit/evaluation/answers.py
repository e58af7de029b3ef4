r"""What answer does a text give? The last `\boxed{…}` counts, and two spellings of one number are one answer.

Comparing numbers as text would call `1,008.0` and `1008` different; taking any number that stands in the text would give
credit for repeating the question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

AROUND = " \t.,;:!?*_()[]{}\"'`$"
"""What may stand around a label."""
LONGEST_NUMBER = 64
"""Longer digit strings, and exponents beyond it, are no answers (and would cost memory to write out)."""

BOXED = re.compile(r"\\boxed\s*\{")
SPACING = re.compile(r"\\[,!;: ]|~|\s+|\$|\\\$|\\left|\\right|\\%|%")
UNIT = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}|\^\{?\\circ\}?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}|(-?\d+)/(-?\d+)")
GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
IN_TEXT = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
STATED = re.compile(r"[Aa]nswer(?: is|:)[\s*(\[\"']*([A-Z1-9])(?![A-Za-z0-9'])")
MARKER = re.compile(r"(?:^|(?<=\s))\(?([A-J1-5])[.):](?=\s)")
BEGINS = re.compile(r"[\s*(\[\"']*([A-Z1-9])(?:[\s*\"']*$|[*\"']*[.):\],\n])")


@dataclass(frozen=True, slots=True)
class Option:
    """One of the answers a question offers."""

    label: str
    text: str = ""
    """Empty where only the label is known."""


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


def lettered_options(question: str) -> tuple[Option, ...]:
    r"""Return the options that a question lists after its labels (`A. … B. …`, also 1 to 5); none where it lists none.

    The longest run of labels in order counts, the later one of two equally long.

    >>> [(option.label, option.text) for option in lettered_options("Vitamin A. is what? A. red dye B. a vitamin")]
    [('A', 'red dye'), ('B', 'a vitamin')]
    """
    marks = [(match[1], match.start(), match.end()) for match in MARKER.finditer(question)]
    best: list[tuple[str, int, int]] = []
    for at, first in enumerate(marks):
        if first[0] not in "A1":
            continue
        run = [first]
        for mark in marks[at + 1 :]:
            if mark[0] == chr(ord(run[-1][0]) + 1):
                run.append(mark)
        if len(run) >= max(2, len(best)):
            best = run
    ends = [start for _, start, _ in [*best[1:], ("", len(question), 0)]]
    options = tuple(Option(mark[0], question[mark[2] : end].strip()) for mark, end in zip(best, ends, strict=False))
    return options if all(option.text for option in options) else ()


def normal_label(text: str) -> str:
    """Return a label in its one spelling: case-folded, single spaces, without punctuation around it.

    >>> normal_label(" Very  Positive. ")
    'very positive'
    """
    return " ".join(text.casefold().split()).strip(AROUND)


def stated_label(text: str, labels: Sequence[str], *, closed: bool = False) -> str | None:
    r"""Return the label a text gives: the boxed one, the one it begins with, or the last one stated (after is, are or a colon).

    Labels are in the spelling of `normal_label`; of two that fit in one place the longer counts. With `closed` a stated label
    must be the end of its clause: "there is no doubt" states no `no`.

    >>> [stated_label(text, ("negative", "positive")) for text in ("Positive.", "its sentiment is negative", "not positive")]
    ['positive', 'negative', None]
    """
    boxed = last_boxed(text)
    if boxed is not None:
        found = normal_label(boxed.removeprefix(r"\text{").removesuffix("}"))
        return found if found in labels else None
    either = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    plain = " ".join(text.casefold().split())
    around = rf"[{re.escape(AROUND)}]*"
    if begins := re.match(rf"{around}({either})(?![\w/])", plain):
        return begins[1]
    after = r"(?![\w/])(?!\s\w)" if closed else r"(?![\w/])"
    stated = re.findall(rf"(?:\b(?:is|are)\b|:){around}(?:(?:an?|the)\s)?{around}({either}){after}", plain)
    return str(stated[-1]) if stated else None
