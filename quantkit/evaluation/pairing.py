"""Did these two models answer the same questions, asked in the same way?

Rows are matched by their number, never by their place in the file. What a setting changes is taken as changing the questions
unless it is known not to: a comparison refused is asked about, one that should have been is believed.
"""

from collections import Counter
from collections.abc import Iterable

from quantkit.errors import UsageError
from quantkit.evaluation.results import RowResult, TaskResult

HARMLESS = ("batch_size", "device", "reference", "dtype_reason")
"""Settings that may differ without a word: they change answers by rounding at most, or are told by another one."""
TOLD = {
    "system_prompt": "each was asked with its own system prompt",
    "dtype": "they computed in different data types",
    "integer_kernels": "one of them multiplied integers, the other their rounded values",
}
"""Settings that may differ because they belong to a model; the comparison says so."""

Pairs = list[tuple[RowResult, RowResult]]


def pair_up(name_a: str, a: TaskResult, name_b: str, b: TaskResult) -> tuple[Pairs, list[str]]:
    """Return each row's two outcomes in the order of row numbers, and what else differs between the runs.

    Raises:
        UsageError: data, kind of task, rows, references or settings are not the same; says which.
    """
    if a.data_fingerprint != b.data_fingerprint:
        raise _refusal(name_a, name_b, f"saw different data ({a.source} and {b.source}, by their fingerprints)")
    if (a.kind, a.metric) != (b.kind, b.metric):
        raise _refusal(name_a, name_b, f"were judged differently ({a.kind}, {a.metric} and {b.kind}, {b.metric})")
    caveats = []
    for key in sorted((a.settings.keys() | b.settings.keys()) - set(HARMLESS)):
        theirs = [item.settings.get(key) for item in (a, b)]
        if theirs[0] == theirs[1]:
            continue
        if key not in TOLD:
            raise _refusal(name_a, name_b, f"ran with different settings: {key} is {theirs[0]!r} and {theirs[1]!r}")
        caveats.append(TOLD[key])
    rows_a, rows_b = _by_number(name_a, a), _by_number(name_b, b)
    if rows_a.keys() != rows_b.keys():
        lone = [f"{_few(one.keys() - two.keys())} only of {name}" for one, two, name in _both(rows_a, name_a, rows_b, name_b)]
        raise _refusal(name_a, name_b, f"have results for different rows: {'; '.join(item for item in lone if item[0] != ' ')}")
    for number, row in rows_a.items():
        if row.gold != rows_b[number].gold:
            raise _refusal(
                name_a, name_b, f"were judged by different references: row {number}, {row.gold!r} and {rows_b[number].gold!r}"
            )
    return [(rows_a[number], rows_b[number]) for number in sorted(rows_a)], caveats


def _refusal(name_a: str, name_b: str, why: str) -> UsageError:
    return UsageError(f"{name_a} and {name_b} cannot be compared: they {why}; evaluate both with the same data and settings")


def _by_number(name: str, result: TaskResult) -> dict[int, RowResult]:
    twice = [number for number, times in Counter(row.row for row in result.rows).items() if times > 1]
    if twice:
        raise UsageError(f"{name}: row {twice[0]} of {result.task} stands twice in its results; evaluate it again")
    if len(result.rows) != result.n:
        raise UsageError(
            f"{name}: {len(result.rows)} of {result.n} rows of {result.task} are in its results; evaluate it again"
        )
    return {row.row: row for row in result.rows}


def _both(
    rows_a: dict[int, RowResult], name_a: str, rows_b: dict[int, RowResult], name_b: str
) -> Iterable[tuple[dict[int, RowResult], dict[int, RowResult], str]]:
    return ((rows_a, rows_b, name_a), (rows_b, rows_a, name_b))


def _few(numbers: Iterable[int]) -> str:
    """Return the first numbers, and how many there are.

    >>> _few(range(5)), _few([])
    ('0, 1, 2 … (5 rows)', '')
    """
    listed = sorted(numbers)
    if len(listed) <= 3:
        return ", ".join(map(str, listed))
    return f"{', '.join(map(str, listed[:3]))} … ({len(listed)} rows)"
