"""Is one model really better than another on these rows, or could the difference be luck?

Both answered the same rows, so they are compared row by row: what both find hard cancels out. Two intervals side by side, the
usual way, hide most real differences and invite ranking the rest. Right and wrong: McNemar's test in its exact form (McNemar
1947; the binomial test on the rows where exactly one is right; its mid-p variant shows more but may err a little more often
than it says), with Newcombe's interval (1998, method 10). Means such as F1, negative log-likelihoods per token and divergences:
the paired bootstrap for the interval, random sign flips of the rows' differences (Fisher 1935) for the p-value, which stays
honest on few rows. A difference is called real only if the p-value, after Holm's correction (1979) where several models are
compared, is below 0.05 and the interval leaves out zero; and nobody wins who is marked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from quantkit.errors import UsageError
from quantkit.evaluation.measures import Measure, measures_of
from quantkit.evaluation.pairing import pair_up
from quantkit.evaluation.results import TaskResult

ALPHA = 0.05
IN_WORDS = {"points": "points", "nats/token": "nats per token", "nats": "nats", "units": "units"}

Verdict = Literal["first", "second", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One measure of two models on the same rows."""

    task: str
    measure: str
    """Key of the score that is compared."""
    first: str
    second: str
    n: int
    """Rows that both were judged on."""
    difference: float
    """First minus second; of shares in percentage points."""
    low: float
    high: float
    """95 % interval of the difference, for this pair alone."""
    unit: str
    """`points` (hundredths of a share), `nats/token`, `nats`, or `units` of the task's own."""
    higher_is_better: bool
    test: str
    """`exact McNemar` or `sign flips`; the second's interval is a paired bootstrap."""
    p_value: float
    """After Holm's correction for `comparisons`."""
    p_single: float
    """Of this pair alone."""
    comparisons: int = 1
    """Pairs of models that the correction is for."""
    only_first: int | None = None
    """Rows that only the first got right; None where the measure is no right or wrong."""
    only_second: int | None = None
    smallest: float | None = None
    """About the smallest difference that these rows could have shown; None where they can show none."""
    marks: dict[str, list[str]] = field(default_factory=dict)
    """`first` and `second` to their marks, where there are any."""
    caveats: list[str] = field(default_factory=list)
    """What else differs between the two runs."""

    @property
    def leader(self) -> Verdict:
        """Return which of the two has the better number, real or not; none where they are equal."""
        if self.difference == 0:
            return "none"
        return "first" if (self.difference > 0) == self.higher_is_better else "second"

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than luck explains."""
        return self.p_value < ALPHA and not self.low <= 0 <= self.high

    @property
    def winner(self) -> Verdict:
        """Return which of the two is better; none where no difference is shown, or where the better one is marked."""
        return self.leader if self.is_real and not self.marks.get(self.leader) else "none"

    @property
    def verdict(self) -> str:
        """Return the outcome in words."""
        names = {"first": self.first, "second": self.second}
        if self.winner != "none":
            return f"{names[self.winner]} is better"
        if self.is_real:
            return f"no winner: {names[self.leader]} is marked {', '.join(self.marks[self.leader])}"
        if self.low == self.high == 0:
            return f"equal on all {self.n} rows"
        if self.smallest is None:
            return f"no difference shown; n = {self.n} can show none"
        return f"no difference shown at n = {self.n}; smallest it could show about {self.smallest:.3g} {IN_WORDS[self.unit]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, with the `winner` and the `verdict` in words."""
        return asdict(self) | {"winner": self.winner, "verdict": self.verdict}


def compare(first: tuple[str, TaskResult], second: tuple[str, TaskResult], *, seed: int = 0) -> list[Comparison]:
    """Compare two results, each with its model's name, on every measure that both have on all rows.

    Raises:
        UsageError: they are not answers to the same questions; says in what they differ.
    """
    (name_a, a), (name_b, b) = first, second
    rows, caveats = pair_up(name_a, a, name_b, b)
    measures, left_out = measures_of(a, b, rows)
    caveats += left_out
    return [_comparison(item, item.outcome(rows, seed=seed), first, second, caveats) for item in measures]


def _comparison(
    measure: Measure,
    outcome: Mapping[str, Any],
    first: tuple[str, TaskResult],
    second: tuple[str, TaskResult],
    caveats: Sequence[str],
) -> Comparison:
    marks = {place: item.marks for place, (_, item) in (("first", first), ("second", second)) if item.marks}
    return Comparison(
        task=first[1].task,
        measure=measure.name,
        first=first[0],
        second=second[0],
        unit=measure.unit,
        higher_is_better=measure.higher_is_better,
        p_single=outcome["p_value"],
        marks=marks,
        caveats=list(caveats),
        **outcome,
    )


def compare_all(
    results: Sequence[tuple[str, TaskResult]], *, baseline: str | None = None, seed: int = 0
) -> tuple[list[Comparison], list[str]]:
    """Compare each of several models on one task with `baseline`, by default the best unmarked; return also what could not be.

    Holm's correction counts the pairs looked at: one per model against a baseline named beforehand, all pairs where the best is
    taken, because choosing it looked at all of them.

    Raises:
        UsageError: two models have one name, or none is called `baseline`.
    """
    names = [name for name, _ in results]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two results of {results[0][1].task} are called {name!r}; comparisons need names apart")
    if len(results) < 2:
        return [], []
    if baseline is not None and baseline not in names:
        raise UsageError(f"no result of {results[0][1].task} is called {baseline!r}; there are {', '.join(names)}")
    chosen = best_of(results) if baseline is None else baseline
    base = next(item for item in results if item[0] == chosen)
    found, refused = [], []
    for other in results:
        if other[0] == chosen:
            continue
        try:
            found += compare(other, base, seed=seed)
        except UsageError as error:
            refused.append(str(error))
    pairs = len(list(combinations(names, 2))) if baseline is None else len(names) - 1
    measures = dict.fromkeys(item.measure for item in found)
    return [item for measure in measures for item in holm([one for one in found if one.measure == measure], pairs)], refused


def best_of(results: Sequence[tuple[str, TaskResult]]) -> str:
    """Return the name with the best main score among those without a mark; among all where every one is marked."""
    fair = [item for item in results if not item[1].marks] or list(results)
    sign = 1 if fair[0][1].main.higher_is_better else -1
    return max(fair, key=lambda item: sign * item[1].main.value)[0]


def holm(comparisons: Sequence[Comparison], pairs: int) -> list[Comparison]:
    """Return the comparisons of one measure with p-values corrected for `pairs` looked at (Holm 1979), in their order."""
    order = sorted(range(len(comparisons)), key=lambda index: comparisons[index].p_single)
    corrected, largest = {}, 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, comparisons[index].p_single * (pairs - rank)))
        corrected[index] = replace(comparisons[index], p_value=largest, comparisons=pairs)
    return [corrected[index] for index in range(len(comparisons))]
