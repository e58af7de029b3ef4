"""How sure can one be of the number, and of the order of two?"""

import math
from collections.abc import Iterator, Sequence

from quantkit.audit.derived import interval_of
from quantkit.audit.differences import Difference, differences
from quantkit.audit.facts import Finding, Measured, Severity
from quantkit.evaluation.statistics import wilson_interval

FEW = 30


def uncertain(measured: Measured) -> Iterator[Finding]:
    """Find numbers without n or without an interval."""
    scored = [number for number in measured.numbers if number.main and number.kind != "other" and number.is_finite]
    if scored and measured.n is None:
        yield measured.finding(
            "warning", "no n", "n", "how many rows were asked is not said", "n; without it no number can be judged"
        )
        return
    n = measured.n or 0
    for number in scored:
        if n < 1 or number.has_interval:
            continue
        if number.kind == "share":
            low, high = wilson_interval(n // 2, n)
            said = f"no interval; with n {n} a share is known to within {50 * (high - low):.0f} points at most"
            severity: Severity = "warning"
            yield measured.finding(
                severity, "no interval", number.where, said, "the 95 % interval beside the number" + _more(n)
            )
        elif number.kind in ("difference", "perplexity"):
            said = f"no interval, n {n}"
            yield measured.finding(
                "warning", "no interval", number.where, said, "the value of every row, or a bootstrap interval"
            )


def _more(n: int) -> str:
    return f"; more than {n} rows" if n < FEW else ""


def standard_errors(measured: Measured) -> Iterator[Finding]:
    """Find standard errors that are not those of the share they stand beside."""
    n = measured.n
    if not n or n < 2:
        return
    for number in measured.numbers:
        if number.stderr is None or not number.countable or not 0 <= number.value <= 1 or not math.isfinite(number.stderr):
            continue
        expected = [math.sqrt(number.value * (1 - number.value) / m) for m in (n - 1, n)]
        slack = 1e-6 if measured.source == "lm-eval" else 0.002
        if min(abs(number.stderr - value) for value in expected) > slack + 0.02 * expected[0]:
            said = f"standard error {number.stderr:.4g}; {number.shown} of n {n} has {expected[0]:.4g}"
            yield measured.finding("warning", "standard error", number.where, said, "value, n and standard error of one run")


def within_noise(group: Sequence[Measured]) -> tuple[list[Difference], list[Finding]]:
    """Return each model's difference from the best of its task, and what is no difference at all."""
    found = differences(group)
    findings = []
    for item in found:
        if item.real:
            continue
        sure = all(
            number.has_interval for side in (item.best, item.other) for number in side.numbers if number.name == item.metric
        )
        findings.append(
            item.other.finding(
                "note" if sure else "warning",
                "within noise",
                item.metric,
                f"{_points(item.other, item.metric)}; {item.best.model} has {_points(item.best, item.metric)}: {item.said}",
                "no order claimed between the two, or more rows",
            )
        )
    return found, findings


def _points(measured: Measured, metric: str) -> str:
    number = next(number for number in measured.numbers if number.name == metric)
    interval = interval_of(measured, number)
    text = f"{100 * number.value:.1f}%"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
