"""What can two models be compared by, row by row, and how sure is the difference?

Only measures that both have on every row: a mean over the rows where both happened to have a value is the conditional mean
that made a silenced model look best.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantkit.evaluation.pairing import Pairs
from quantkit.evaluation.resampling import RESAMPLES, interval, ratio_of, resample
from quantkit.evaluation.results import RowResult, TaskResult
from quantkit.evaluation.statistics import wilson_interval

FEWEST_TO_SHOW = 6
"""Rows that all point one way before either test's p-value is below 0.05: 2 / 2^6."""
SAME = 1e-9

Take = Callable[[RowResult], "float | None"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number per row, how rows weigh, and in what unit means of it are told."""

    name: str
    unit: Literal["points", "nats/token", "nats", "units"]
    higher_is_better: bool
    take: Take
    """A row's value; where rows are weighed, its total over the weight, such as nats over all of its tokens."""
    weigh: Take | None = None
    right_or_wrong: bool = False

    def outcome(self, pairs: Pairs, *, seed: int) -> dict[str, Any]:
        """Return `n`, difference, interval, p-value, test, and the smallest difference that could have been shown."""
        if self.right_or_wrong:
            return mcnemar([(a.correct, b.correct) for a, b in pairs])
        weights = [1.0 if self.weigh is None else float(self.weigh(a) or 0.0) for a, _ in pairs]
        rows = [
            (float(self.take(a) or 0.0) - float(self.take(b) or 0.0), weight)
            for (a, b), weight in zip(pairs, weights, strict=True)
            if weight > 0
        ]
        return paired_means(rows, scale=100.0 if self.unit == "points" else 1.0, seed=seed)


def measures_of(a: TaskResult, b: TaskResult, pairs: Pairs) -> tuple[list[Measure], list[str]]:
    """Return the measures that both results have on all their rows, the main one first, and what could not be compared."""
    found, left_out = [], []
    if all(_is_share_of_right(item) for item in (a, b)):
        found.append(Measure(a.metric, "points", True, lambda row: float(row.correct), right_or_wrong=True))
    if _complete(pairs, lambda row: row.value):
        name, score = _named(a, b, lambda row: row.value)
        shares = all(0.0 <= (row.value or 0.0) <= 1.0 for pair in pairs for row in pair)
        better = True if score is None else a.scores[score].higher_is_better
        found.append(Measure(name, "points" if shares and better else "units", better, lambda row: row.value))
    judged = [pair for pair in pairs if any(row.nll_tokens for row in pair)] or pairs  # beyond the context nothing is
    if _complete(judged, lambda row: row.kl):
        if a.settings.get("reference") == b.settings.get("reference"):
            by_tokens = _kl_is_by_tokens(a) and _kl_is_by_tokens(b)
            weigh: Take | None = (lambda row: row.nll_tokens) if by_tokens else None
            found.append(Measure("kl_mean", "nats", False, _kl_total if by_tokens else lambda row: row.kl, weigh))
        else:
            left_out.append("they diverge from different reference models, so divergences are not compared")
    if _complete(judged, lambda row: row.nll) and any(one.nll_tokens for one, _ in pairs):
        if all(one.nll_tokens == two.nll_tokens for one, two in pairs):
            found.append(Measure("perplexity_response", "nats/token", False, lambda row: row.nll, lambda row: row.nll_tokens))
        else:
            left_out.append("their tokenizers cut the rows differently, so perplexities are not compared")
    return sorted(found, key=lambda measure: measure.name != a.metric), left_out


def _complete(pairs: Pairs, take: Take) -> bool:
    return all(take(row) is not None for pair in pairs for row in pair)


def _is_share_of_right(result: TaskResult) -> bool:
    share = sum(row.correct for row in result.rows) / len(result.rows)
    return result.main.higher_is_better and result.main.n == result.n and abs(result.main.value - share) < SAME


def _named(a: TaskResult, b: TaskResult, take: Take) -> tuple[str, str | None]:
    """Return the key of the score that is the mean of these values in both results, or `value`."""

    def is_mean(result: TaskResult, key: str) -> bool:
        mean = math.fsum(float(take(row) or 0.0) for row in result.rows) / len(result.rows)
        return key in result.scores and abs(result.scores[key].value - mean) < SAME and result.scores[key].n == result.n

    rates = [key for key in a.scores if not key.endswith("_rate") and is_mean(a, key) and is_mean(b, key)]
    kept = [key for key in rates if key != a.metric or not _is_share_of_right(a)] or rates
    return (kept[0], kept[0]) if kept else ("value", None)


def _kl_total(row: RowResult) -> float | None:
    return None if row.kl is None else row.kl * row.nll_tokens


def _kl_is_by_tokens(result: TaskResult) -> bool:
    """Whether the result's own mean divergence weighs each row by its positions; else all rows weigh the same."""
    tokens = sum(row.nll_tokens for row in result.rows)
    if not tokens or "kl_mean" not in result.scores:
        return False
    mean = math.fsum(_kl_total(row) or 0.0 for row in result.rows) / tokens
    return math.isclose(mean, result.scores["kl_mean"].value, rel_tol=1e-6, abs_tol=SAME)


def mcnemar(right: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Return the outcome of the exact test on pairs of right and wrong; the difference and its interval are in points."""
    n = len(right)
    first, second = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
    low, high = newcombe_interval(sum(a and b for a, b in right), first, second, n)
    return {
        "n": n,
        "difference": 100.0 * (first - second) / n,
        "low": 100.0 * low,
        "high": 100.0 * high,
        "p_value": exact_p(first, second),
        "test": "exact McNemar",
        "only_first": first,
        "only_second": second,
        "smallest": _smallest_shown(first + second, n),
    }


def exact_p(first: int, second: int) -> float:
    """Return the two-sided p-value of so many rows that only one of two models got right (binomial, share one half).

    >>> [round(exact_p(*rows), 5) for rows in ((6, 0), (5, 0), (3, 3), (0, 0))]
    [0.03125, 0.0625, 1.0, 1.0]
    """
    n, fewer = first + second, min(first, second)
    scale = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(math.exp(scale - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def _smallest_shown(discordant: int, n: int) -> float | None:
    """Return the smallest difference, in points, whose p-value is below 0.05 with so many rows that only one got right."""
    if n < FEWEST_TO_SHOW:
        return None
    rows = max(discordant, FEWEST_TO_SHOW)
    first = bisect_left(range(rows + 1), True, lo=(rows + 1) // 2, key=lambda first: exact_p(first, rows - first) < 0.05)
    return 100.0 * (2 * first - rows) / n


def newcombe_interval(both: int, first: int, second: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares on the same rows (Newcombe 1998, method 10).

    >>> [round(bound, 3) for bound in newcombe_interval(20, 12, 2, 50)]
    [0.056, 0.329]
    """
    neither = n - both - first - second
    share_a, share_b = (both + first) / n, (both + second) / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(both + first, n), wilson_interval(both + second, n)
    cross = both * neither - first * second
    corrected = max(cross - n / 2, 0) if cross > 0 else cross
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def spread(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))

    difference = share_a - share_b
    below, above = spread(share_a - low_a, high_b - share_b), spread(high_a - share_a, share_b - low_b)
    return max(-1.0, difference - below), min(1.0, difference + above)


def paired_means(rows: Sequence[tuple[float, float]], *, scale: float, seed: int) -> dict[str, Any]:
    """Return the outcome for one difference and one weight per row: bootstrap interval, p-value by sign flips."""
    differences, weights = zip(*rows, strict=True)
    total, n = math.fsum(weights), len(rows)
    value = math.fsum(differences) / total
    low, high = interval(resample((differences, weights), ratio_of, seed=seed), n)
    low, high = min(low, value), max(high, value)
    return {
        "n": n,
        "difference": scale * value,
        "low": scale * low,
        "high": scale * high,
        "p_value": sign_flip_p(differences, seed=seed),
        "test": "sign flips",
        "smallest": None if n < FEWEST_TO_SHOW else scale * (high - low) / 2,
    }


def sign_flip_p(differences: Sequence[float], *, seed: int, flips: int = RESAMPLES) -> float:
    """Return how often differences as large on average come about when each row's sign is a coin's (Fisher 1935).

    >>> sign_flip_p([0.0, 0.0], seed=0), round(sign_flip_p([1.0] * 4, seed=0), 2)
    (1.0, 0.12)
    """
    import numpy as np

    values, chance = np.asarray(differences, dtype=np.float64), np.random.default_rng(seed)
    observed = abs(float(values.sum()))
    slack = SAME * float(np.abs(values).sum())
    size = max(1, (1 << 21) // len(values))
    as_large = 0
    for start in range(0, flips, size):
        signs = chance.integers(0, 2, size=(min(size, flips - start), len(values)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ values) >= observed - slack).sum())
    return (1 + as_large) / (1 + flips)
