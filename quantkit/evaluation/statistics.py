"""How sure is a number, and would a predictor that knows nothing have got it too?

A `Score` cannot be built without n, a 95 % interval, its coverage and its floors, so none can be shown without them. The
alternative, a bare float in a dictionary, is how a silenced model came to lead a table: only its few parsed answers were
averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from quantkit.errors import UsageError
from quantkit.evaluation.resampling import check_values, interval, mean_of, ratio_of, resample, resampled_quantiles
from quantkit.spec import read_fields

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What a predictor that understands nothing gets on the same rows."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number with all that is needed to judge it.

    Raises:
        UsageError: the interval does not hold the value, n is 0, or the coverage is no share.
    """

    value: float
    n: int
    """Rows it was measured on, unparsed ones included."""
    low: float
    high: float
    """Bounds of the 95 % interval."""
    interval: str
    """How the interval was computed: `wilson` or `bootstrap`."""
    coverage: float
    """Share of what should have been judged that could be: rows whose answer parsed, tokens within the context."""
    floors: tuple[Floor, ...]
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "floors", tuple(self.floors))
        if self.n < 1:
            raise UsageError(f"score.n is {self.n}; a score needs at least one row")
        if not 0.0 <= self.coverage <= 1.0:
            raise UsageError(f"score.coverage is {self.coverage}; it must be between 0 and 1")
        if not self.low <= self.value <= self.high:
            raise UsageError(f"score.value {self.value} lies outside its interval [{self.low}, {self.high}]")

    @property
    def best_floor(self) -> Floor | None:
        """Return the floor that is hardest to beat; None where there is none."""
        if not self.floors:
            return None
        return (max if self.higher_is_better else min)(self.floors, key=lambda floor: floor.value)

    @property
    def is_floor(self) -> bool:
        """Whether the best floor lies within the interval or beyond it: the score then shows no ability."""
        floor = self.best_floor
        if floor is None:
            return False
        return self.low <= floor.value if self.higher_is_better else self.high >= floor.value

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, with the mark `is_floor`; `from_dict` is its inverse."""
        return asdict(self) | {"floors": [asdict(floor) for floor in self.floors], "is_floor": self.is_floor}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a score back; raises `UsageError` when a field is missing, unknown or of the wrong type."""
        return read_fields(cls, {key: value for key, value in data.items() if key != "is_floor"}, where="score")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927; Brown, Cai, DasGupta 2001, section 3.1.1).

    >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"{successes} of {n} is no share; at least one row is needed")
    return _wilson(successes / n, n)


def _wilson(share: float, n: int) -> tuple[float, float]:
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def share_score(successes: int, n: int, *, coverage: float = 1.0, floors: Sequence[Floor] = ()) -> Score:
    """Return the share of rows for which something holds, with its Wilson interval."""
    low, high = wilson_interval(successes, n)
    return Score(value=successes / n, n=n, low=low, high=high, interval="wilson", coverage=coverage, floors=tuple(floors))


def bootstrap_ratio(pairs: Sequence[tuple[float, float]], *, seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of Σ first / Σ second over rows; every second must be positive."""
    first, second = zip(*pairs, strict=True)
    return interval(resample((first, second), ratio_of, seed=seed), len(pairs))


def mean_score(
    values: Sequence[float], *, seed: int, coverage: float, floors: Sequence[Floor] = (), higher_is_better: bool = True
) -> Score:
    """Return the mean of one value per row, such as F1 or a divergence in nats, with its bootstrap interval.

    `coverage` is the share of all rows asked that these are; it has no default, because a mean over the rows that went well
    looks like a mean over all. Where all rows have one value, resampling shows no spread; for values from 0 to 1 of which more
    is better (F1, agreement) the interval is then Wilson's, the widest that such values can need.
    """
    check_values(values, "mean")
    n = len(values)
    value = math.fsum(values) / n
    bounds, how = interval(resample((values,), mean_of, seed=seed), n), "bootstrap"
    if higher_is_better and min(values) == max(values) and 0.0 <= value <= 1.0:
        bounds, how = _wilson(value, n), "wilson"
    return _score(value, n, bounds, interval=how, coverage=coverage, floors=tuple(floors), higher_is_better=higher_is_better)


def ratio_score(
    pairs: Sequence[tuple[float, float]],
    *,
    seed: int,
    coverage: float,
    floors: Sequence[Floor] = (),
    higher_is_better: bool = True,
) -> Score:
    """Return Σ first / Σ second over rows, such as a mean per token with each row's tokens as its second, rows resampled.

    Rows whose second is 0 weigh nothing and are left out of `n`; `coverage` has to say so.
    """
    check_values([number for pair in pairs for number in pair], "ratio")
    kept = [pair for pair in pairs if pair[1] > 0]
    if not kept:
        raise UsageError(f"ratio of {len(pairs)} rows: every weight is 0; at least one must be above it")
    value = math.fsum(first for first, _ in kept) / math.fsum(second for _, second in kept)
    return _score(
        value,
        len(kept),
        bootstrap_ratio(kept, seed=seed),
        coverage=coverage,
        floors=tuple(floors),
        higher_is_better=higher_is_better,
    )


def quantile_score(
    rows: Sequence[Sequence[float]],
    q: float,
    *,
    seed: int,
    coverage: float,
    floors: Sequence[Floor] = (),
    higher_is_better: bool = True,
) -> Score:
    """Return the `q` quantile of all values, such as the 99th percentile of divergence per token; whole rows are resampled.

    `rows` holds each row's values, e.g. one per position: positions of one text resemble each other, and resampling them
    singly would give too narrow an interval. One value per row is `[[value], …]`. The quantile is the smallest value that
    at least the share `q` of all values does not exceed.
    """
    import numpy as np

    kept = [row for row in rows if row]
    check_values([value for row in kept for value in row], "quantile")
    if not 0.0 < q < 1.0:
        raise UsageError(f"quantile {q}; it must lie between 0 and 1")
    value = float(np.quantile(np.concatenate([np.asarray(row, dtype=np.float64) for row in kept]), q, method="inverted_cdf"))
    bounds = interval(resampled_quantiles(kept, q, seed=seed), len(kept))
    return _score(value, len(kept), bounds, coverage=coverage, floors=tuple(floors), higher_is_better=higher_is_better)


def _score(value: float, n: int, bounds: tuple[float, float], *, interval: str = "bootstrap", **rest: Any) -> Score:
    low, high = min(bounds[0], value), max(bounds[1], value)  # rounding, and skewed draws of few rows
    return Score(value=value, n=n, low=low, high=high, interval=interval, **rest)
