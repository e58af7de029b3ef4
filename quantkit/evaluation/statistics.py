"""How sure is a number, and would a predictor that knows nothing have got it too?

A `Score` cannot be built without n, a 95 % interval, its coverage and its floors, so none can be shown without them. The
alternative, a bare float in a dictionary, is how a silenced model came to lead a table: only its few parsed answers were
averaged.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from quantkit.errors import UsageError
from quantkit.spec import read_fields

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""
RESAMPLES = 1000


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
    share, z2 = successes / n, Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def share_score(successes: int, n: int, *, coverage: float = 1.0, floors: Sequence[Floor] = ()) -> Score:
    """Return the share of rows for which something holds, with its Wilson interval."""
    low, high = wilson_interval(successes, n)
    return Score(value=successes / n, n=n, low=low, high=high, interval="wilson", coverage=coverage, floors=tuple(floors))


def bootstrap_ratio(pairs: Sequence[tuple[float, float]], *, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of Σ first / Σ second over rows drawn with replacement (1000 resamples)."""
    chance = random.Random(seed)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = chance.choices(pairs, k=len(pairs))
        ratios.append(sum(pair[0] for pair in drawn) / sum(pair[1] for pair in drawn))
    ratios.sort()
    return ratios[round(0.025 * (RESAMPLES - 1))], ratios[round(0.975 * (RESAMPLES - 1))]
