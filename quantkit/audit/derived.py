"""What do the answers themselves say, where they are in the file, whatever was reported of them?

Rows are believed before summaries. A share that only a summary states is used where there are no rows.
"""

import re
from collections import Counter
from collections.abc import Sequence

from quantkit.audit.facts import Measured, Number, Row
from quantkit.evaluation.answers import canonical_number
from quantkit.evaluation.statistics import Floor, wilson_interval
from quantkit.evaluation.tasks.qa import normalise

WORD = re.compile(r"\w")
SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d{1,4}(?:\.\d{1,2})?)([BbMm])(?![A-Za-z0-9])")
QA_WITHOUT_ANSWER = re.compile(r"squad[-_ ]?v?2|squad", re.IGNORECASE)
"""Data sets in which questions without an answer are usual."""


def normalised(text: str) -> str:
    """Return a text as exact match compares it: numbers in one spelling, other text as SQuAD does.

    >>> normalised("The  Answer!"), normalised("!!!!"), normalised("1,008.0")
    ('answer', '', '1008')
    """
    number = canonical_number(text) if len(text) < 80 else None
    if number is not None:
        return number
    return normalise(text)


def says_nothing(row: Row) -> bool:
    """Whether an answer has no tokens, or no letter and no digit."""
    return row.tokens == 0 or (row.text is not None and not WORD.search(row.text))


def empty_share(measured: Measured) -> float | None:
    """Return the share of answers that say nothing."""
    spoken = [row for row in measured.rows if row.text is not None or row.tokens is not None]
    if spoken:
        return sum(map(says_nothing, spoken)) / len(spoken)
    if measured.empty is not None:
        return measured.empty
    tokens = tokens_per_answer(measured)
    return 1.0 if tokens == 0 else None


def coverage_of(measured: Measured) -> float | None:
    """Return the share of answers that parsed, as rows or the file say; None where neither does."""
    rows = measured.rows
    if rows and any(row.difference is not None for row in rows):
        return sum(row.difference is not None and row.difference == row.difference for row in rows) / len(rows)
    if rows and measured.answers_recorded:
        return sum(row.answer is not None for row in rows) / len(rows)
    return measured.coverage


def tokens_per_answer(measured: Measured) -> float | None:
    """Return how many tokens an answer has on average."""
    counted = [row.tokens for row in measured.rows if row.tokens is not None]
    if counted and len(counted) == len(measured.rows):
        return sum(counted) / len(counted)
    if measured.answer_tokens is not None:
        return measured.answer_tokens
    return None if measured.total_tokens is None or not measured.n else measured.total_tokens / measured.n


def right(text: str, row: Row) -> bool:
    """Whether a text would be an exact match of the row's reference; an empty one where there is none."""
    golds = {normalised(gold) for gold in row.gold or ()} or {""}
    return normalised(text) in golds


def floors_of(rows: Sequence[Row]) -> tuple[Floor, ...]:
    """Return what predictors that understand nothing get by exact match; nothing where no reference is recorded."""
    judged = [row for row in rows if row.gold is not None]
    if len(judged) < 2 or len(judged) != len(rows):
        return ()
    golds: Counter[str] = Counter()
    for row in judged:
        golds.update({normalised(gold) for gold in row.gold or ("",)})
    floors = [Floor(name="empty or '!!!!'", value=sum(right("", row) for row in judged) / len(judged))]
    (answer, times) = golds.most_common(1)[0]
    if times > 1 or len(judged) > 20:
        floors.append(Floor(name=f"always {answer[:20]!r}", value=times / len(judged)))
    if all(row.prompt for row in judged):
        floors.append(Floor(name="echo", value=sum(right(row.prompt or "", row) for row in judged) / len(judged)))
    return tuple(floors)


def interval_of(measured: Measured, number: Number) -> tuple[float, float] | None:
    """Return the 95 % interval of a number: the file's own, by its standard error, or of a share by n."""
    if number.low is not None and number.high is not None:
        return number.low, number.high
    if number.stderr is not None:
        return number.value - 1.96 * number.stderr, number.value + 1.96 * number.stderr
    if number.kind == "share" and measured.n and 0 <= number.value <= 1 and measured.n < 1e12:
        return wilson_interval(round(number.value * measured.n), measured.n)
    return None


def parameters_of(measured: Measured) -> float | None:
    """Return the number of parameters: the file's, or the one in the model's name."""
    if measured.parameters is not None and measured.parameters >= 1e6:
        return measured.parameters
    found = [float(size) * (1e9 if unit in "Bb" else 1e6) for size, unit in SIZE.findall(measured.model.replace("_", "-"))]
    return max(found, default=None)
