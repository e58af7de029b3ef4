"""Is the best model of a table really better than the next one?

Row by row where both models' answers are there (McNemar's exact test), otherwise by n alone (Newcombe 1998), which needs a
larger difference to see one. Looking whether two intervals overlap would answer another question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.audit.facts import Measured, Number
from quantkit.evaluation.measures import mcnemar
from quantkit.evaluation.statistics import wilson_interval

ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The best model of a task against another one."""

    metric: str
    best: Measured
    other: Measured
    value: float
    """Share of the best less that of the other."""
    real: bool
    said: str
    """How it was judged, for people."""


def differences(group: Sequence[Measured]) -> list[Difference]:
    """Return the difference of every model of one task from the best, by the first share that all of them report."""
    found: list[Difference] = []
    names = [number.name for item in group for number in item.numbers if _fits(item, number)]
    common = [name for name in dict.fromkeys(names) if all(_of(item, name) is not None for item in group)]
    if not common or len({(item.model, item.artifact) for item in group}) < 2:
        return found
    metric = common[0]
    best = max(group, key=lambda item: _value(item, metric))
    for other in group:
        if other is not best and (other.model, other.artifact) != (best.model, best.artifact):
            found.append(_difference(metric, best, other))
    return found


def _fits(item: Measured, number: Number) -> bool:
    return (
        number.main and number.countable and number.is_finite and 0 <= number.value <= 1 and bool(item.n) and (item.n or 0) > 0
    )


def _of(item: Measured, name: str) -> Number | None:
    return next((number for number in item.numbers if number.name == name and _fits(item, number)), None)


def _value(item: Measured, name: str) -> float:
    number = _of(item, name)
    return -1.0 if number is None else number.value


def _difference(metric: str, best: Measured, other: Measured) -> Difference:
    value = _value(best, metric) - _value(other, metric)
    here = {row.key: row.correct for row in best.rows if row.correct is not None}
    there = {row.key: row.correct for row in other.rows if row.correct is not None}
    main = best.main
    paired = main is not None and main.name == metric and bool(here) and here.keys() == there.keys() and len(here) == best.n
    if paired:
        outcome = mcnemar([(here[key] is True, there[key] is True) for key in here])
        low, high, p = outcome["low"], outcome["high"], outcome["p_value"]
        said = f"difference {100 * value:.1f} points, 95 % interval {low:.1f} to {high:.1f}, paired by row, p {p:.2g}"
        return Difference(metric=metric, best=best, other=other, value=value, real=p < ALPHA and low > 0, said=said)
    low, high = newcombe(_value(best, metric), best.n or 1, _value(other, metric), other.n or 1)
    said = f"difference {100 * value:.1f} points, 95 % interval {100 * low:.1f} to {100 * high:.1f}, unpaired"
    return Difference(metric=metric, best=best, other=other, value=value, real=low > 0, said=said)


def newcombe(one: float, n: int, other: float, m: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two independent shares (Newcombe 1998, Stat Med 17:873, method 10).

    >>> [round(bound, 3) for bound in newcombe(56 / 70, 70, 48 / 80, 80)]
    [0.052, 0.334]
    """
    (low, high), (low_other, high_other) = wilson_interval(round(one * n), n), wilson_interval(round(other * m), m)
    value = one - other
    below = math.hypot(one - low, high_other - other)
    above = math.hypot(high - one, other - low_other)
    return value - below, value + above
