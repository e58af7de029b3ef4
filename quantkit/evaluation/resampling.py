"""How much would this number move had other rows of the same kind been drawn?

The nonparametric bootstrap (Efron 1979): rows are drawn with replacement, all of a row's columns together, so that what is
paired or weighted in a row stays so. Normal-theory intervals were the alternative; F1 values pile up at 0 and 1 and losses
per token have long tails, where those are wrong. Plain percentile intervals are too narrow on few rows, so they are widened
to what Student's t says (the expanded percentile interval of Hesterberg 2015). Needs numpy, and only when called.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quantkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 10_000
DRAWN_AT_ONCE = 1 << 21
"""Row numbers in memory at a time: 16 MB."""


def resample(
    columns: Sequence[Sequence[float]], statistic: "Callable[..., Floats]", *, seed: int, resamples: int = RESAMPLES
) -> "Floats":
    """Return the statistic of each of `resamples` draws of the rows, `[resamples]`.

    `columns` are equally long, one value per row; `statistic` gets each of them drawn, `[draws, rows]`, and returns `[draws]`.
    """
    import numpy as np

    data = [np.asarray(column, dtype=np.float64) for column in columns]
    n, chance = len(data[0]), np.random.default_rng(seed)
    size = max(1, DRAWN_AT_ONCE // n)
    parts = []
    for start in range(0, resamples, size):
        drawn = chance.integers(0, n, size=(min(size, resamples - start), n))
        parts.append(statistic(*(column[drawn] for column in data)))
    return np.concatenate(parts)


def interval(resampled: "Floats", n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentiles that enclose `level` of the resampled statistics, widened for a sample of only `n` rows."""
    import numpy as np

    tail = expanded_tail(n, level)
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return float(low), float(high)


def expanded_tail(n: int, level: float = 0.95) -> float:
    """Return the share of resamples to leave out on each side: less than (1 - level) / 2, the fewer rows the less.

    >>> round(expanded_tail(10), 4), round(expanded_tail(100_000), 4)
    (0.0086, 0.025)
    """
    from statistics import NormalDist

    if n < 2:
        return 0.0
    normal = NormalDist()
    t = student_quantile(1.0 - (1.0 - level) / 2.0, n - 1)
    return normal.cdf(-math.sqrt(n / (n - 1)) * t)


def student_quantile(share: float, df: int) -> float:
    """Return a quantile of Student's t (closed for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5).

    >>> [round(student_quantile(0.975, df), 2) for df in (1, 2, 5, 30)]
    [12.71, 4.3, 2.57, 2.04]
    """
    from statistics import NormalDist

    if df == 1:
        return math.tan(math.pi * (share - 0.5))
    if df == 2:
        return (2.0 * share - 1.0) / math.sqrt(2.0 * share * (1.0 - share))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(df) ** (power + 1) for power, term in enumerate(terms))


def mean_of(values: "Floats") -> "Floats":
    """Return the mean of each draw."""
    drawn: Floats = values.mean(axis=1)
    return drawn


def ratio_of(first: "Floats", second: "Floats") -> "Floats":
    """Return Σ first / Σ second of each draw; weights `second` must be positive."""
    drawn: Floats = first.sum(axis=1) / second.sum(axis=1)
    return drawn


def resampled_quantiles(rows: Sequence[Sequence[float]], q: float, *, seed: int, resamples: int = 1000) -> "Floats":
    """Return the `q` quantile of all values in each draw of whole rows, `[resamples]`.

    1,000 draws: each sorts as many values as there are positions, and the ends of a quantile's interval are coarse anyway.
    """
    import numpy as np

    values = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    chance, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(chance.integers(0, len(rows), size=len(rows)), minlength=len(rows))[owner]
        upto = times.cumsum()
        drawn.append(float(values[np.searchsorted(upto, q * upto[-1], side="left")]))
    return np.asarray(drawn)


def check_values(values: Sequence[float], what: str) -> None:
    """Raise `UsageError` where there is no value or one is not finite."""
    if not values:
        raise UsageError(f"{what} of no rows; at least one is needed")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise UsageError(f"{what}: value {index} is {value}; a row without a finite value must be counted, not averaged")
