"""Is each number possible at all, and do the numbers of one model agree with each other?"""

import math
from collections.abc import Iterator
from dataclasses import replace

from quantkit.audit.derived import tokens_per_answer
from quantkit.audit.facts import Finding, Measured, Number, Severity

MOST_WRONG = 2.0
"""Factor by which two statements of one speed may differ: means of rates and rates of means are not the same."""
AMOUNTS = (
    "n",
    "bits",
    "bits_per_weight",
    "latency_s",
    "answer_tokens",
    "total_tokens",
    "total_s",
    "tokens_per_s",
    "memory_bytes",
    "parameters",
    "overlap",
)
SHARES = ("empty", "repetition", "stopped", "coverage", "no_answer")
LARGEST = 1e18
LARGEST_VOCABULARY = 1_000_000
LONGER_UNITS = ("word", "line", "document")
"""Beginnings of perplexities that are not per token, and have no such bound."""
RIGHT_AGAIN = "evaluate again; no such number can be averaged, ranked or plotted"


def impossible(measured: Measured) -> Iterator[Finding]:
    """Find values that nothing can have."""
    for number in measured.numbers:
        fault = _fault(number)
        if fault is not None:
            yield measured.finding("error", "impossible", number.where, fault, RIGHT_AGAIN)
        if (
            number.is_finite
            and number.low is not None
            and number.high is not None
            and not (number.low - number.step <= number.value <= number.high + number.step)
        ):
            said = f"{number.shown} lies outside its own interval [{number.low:.4g}, {number.high:.4g}]"
            yield measured.finding("error", "impossible", number.where, said, "which of the three is right")
        if number.percent and 0 < number.value < 0.01 and number.shown.startswith(("0.", ".")):
            said = f"{number.shown} stands in a column of percentages"
            whole = measured.n is not None and measured.n <= 100
            severity: Severity = "error" if whole else "warning"
            yield measured.finding(severity, "mixed scales", number.where, said, "one scale for the whole column")
        for floor in number.floors:
            if not math.isfinite(floor.value):
                yield measured.finding("error", "impossible", number.where, f"floor {floor.name} is {floor.value}", RIGHT_AGAIN)
    for name in AMOUNTS:
        value = getattr(measured, name)
        if value is not None and not _is_amount(name, value):
            yield measured.finding("error", "impossible", name, f"{name} is {value:g}", RIGHT_AGAIN)
    for name in SHARES:
        value = getattr(measured, name)
        if value is not None and not 0 <= value <= 1:
            yield measured.finding("error", "impossible", name, f"a share of {value:.4g}", RIGHT_AGAIN)


def _is_amount(name: str, value: float) -> bool:
    return math.isfinite(value) and 0 <= value < LARGEST and not (value == 0 and name in ("n", "bits"))


def possible(measured: Measured) -> Measured:
    """Return it without the amounts and shares that nothing can have, for the checks that calculate with them."""
    amounts = {name: getattr(measured, name) for name in AMOUNTS}
    shares = {name: getattr(measured, name) for name in SHARES}
    wrong = {name: None for name, value in amounts.items() if value is not None and not _is_amount(name, value)}
    wrong |= {name: None for name, value in shares.items() if value is not None and not 0 <= value <= 1}
    return replace(measured, **wrong)  # type: ignore[arg-type]


def _fault(number: Number) -> str | None:
    if not number.is_finite:
        return f"{number.shown} is not finite"
    faults = (
        (
            number.kind == "share" and not -number.step <= number.value <= 1 + number.step,
            f"{number.shown} is no share of anything",
        ),
        (number.kind == "difference" and number.value < 0, f"{number.shown}: an absolute difference is not negative"),
        (number.kind == "perplexity" and number.value < 1 - 1e-6, f"{number.shown}: a perplexity is at least 1"),
        (not 0 <= (number.stderr or 0.0) < math.inf, f"its standard error is {number.stderr}"),
        (not 0 <= (number.coverage or 0.0) <= 1, f"its coverage is {number.coverage}"),
    )
    return next((said for wrong, said in faults if wrong), None)


def destroyed(measured: Measured) -> Iterator[Finding]:
    """Find perplexities that a model without any knowledge would beat."""
    for number in measured.numbers:
        per_token = number.kind == "perplexity" and not number.name.startswith(LONGER_UNITS)
        if per_token and number.is_finite and number.value > LARGEST_VOCABULARY:
            said = f"perplexity {number.shown}: guessing evenly among all tokens of any vocabulary is better"
            yield measured.finding(
                "error",
                "destroyed model",
                number.where,
                said,
                "the weights checked: a merge into repacked 4-bit weights does this",
            )


def not_a_count(measured: Measured) -> Iterator[Finding]:
    """Find shares of right answers that are no k/n."""
    for number in measured.numbers:
        n = number.n or measured.n or 0
        if not number.countable or not number.is_finite or not 0 <= number.value <= 1 or not 0 < n < 1e9:
            continue
        k = number.value * n
        if abs(k - round(k)) <= n * number.step + 1e-6 * n + 1e-6:
            continue
        covered = measured.coverage
        parsed = None if covered is None else round(covered * n)
        said = f"{number.shown} is no k/{n}: {k:.2f} right answers"
        if parsed and abs(number.value * parsed - round(number.value * parsed)) <= parsed * number.step + 1e-6:
            said += f"; it is {round(number.value * parsed)}/{parsed} of the parsed ones only"
        yield measured.finding("error", "not k of n", number.where, said, "the n it was measured on, unparsed answers counted")


def speed(measured: Measured) -> Iterator[Finding]:
    """Find speeds, times and tokens that contradict each other."""
    tokens, rate = tokens_per_answer(measured), measured.tokens_per_s
    if rate is not None and rate > 0 and measured.total_tokens and measured.total_s:
        implied = measured.total_tokens / measured.total_s
        if implied > 0 and not 1 / MOST_WRONG < implied / rate < MOST_WRONG:
            said = f"{rate:g} tokens/s, but {measured.total_tokens:g} tokens in {measured.total_s:g} s are {implied:.3g}"
            yield measured.finding("error", "speed", "tokens per second", said, "tokens, seconds and speed of the same run")
    elif rate is not None and rate > 0 and tokens and measured.latency_s and measured.source == "study":
        implied = tokens / measured.latency_s
        if not 1 / MOST_WRONG < implied / rate < MOST_WRONG:
            said = f"{rate:g} tokens/s, but {tokens:g} tokens in {measured.latency_s:g} s are {implied:.3g}"
            yield measured.finding("error", "speed", "tokens per second", said, "tokens, latency and speed of the same answers")
    limit = measured.settings.get("max_new_tokens", "")
    if limit.isdigit() and tokens is not None and tokens > int(limit):
        said = f"{tokens:g} tokens an answer where max_new_tokens is {limit}"
        yield measured.finding("error", "impossible", "tokens", said, "settings of the run that gave these answers")
    whole = [row.tokens for row in measured.rows if row.tokens is not None]
    total = measured.total_tokens
    if (
        total is not None
        and len(whole) == len(measured.rows) > 0
        and abs(sum(whole) - total) > 0.01 * max(total, sum(whole)) + 1
    ):
        said = f"{total:g} tokens are reported, the rows add up to {sum(whole)}"
        yield measured.finding("error", "rows disagree", "tokens", said, "rows and summary of one run")


def rows_disagree(measured: Measured) -> Iterator[Finding]:
    """Find numbers that are not what the rows beside them give."""
    rows = measured.rows
    if measured.n is not None and rows and measured.n != len(rows):
        said = f"n is {measured.n}, but {len(rows)} answers stand in the file"
        yield measured.finding("error", "rows disagree", "n", said, "all rows, or the n they are")
        return
    yield from _stated_coverage(measured)
    judged = [row.correct for row in rows if row.correct is not None]
    main = measured.main
    if main is None or not rows or len(judged) != len(rows) or not main.countable or not main.is_finite:
        return
    share = sum(judged) / len(rows)
    if abs(share - main.value) > main.step + 1e-6:
        answered = [row.correct for row in rows if row.answer is not None]
        said = f"{main.shown} is reported, the rows give {sum(judged)}/{len(rows)} = {share:.4g}"
        conditional = bool(answered) and abs(sum(map(bool, answered)) / len(answered) - main.value) <= main.step + 1e-6
        if conditional:
            said += f"; it is the mean over the {len(answered)} parsed answers only"
        check = "conditional mean" if conditional else "rows disagree"
        yield measured.finding("error", check, main.where, said, "a mean over all rows, unparsed answers counted as wrong")


def _stated_coverage(measured: Measured) -> Iterator[Finding]:
    main, rows, stated = measured.main, measured.rows, measured.coverage
    if main is None or not main.countable or not rows or stated is None or not measured.answers_recorded:
        return
    parsed = sum(row.answer is not None for row in rows)
    if measured.source == "quantkit" and abs(stated - parsed / len(rows)) > 1e-6:
        said = f"coverage {stated:.4g} is stated, {parsed}/{len(rows)} answers parsed"
        yield measured.finding("error", "rows disagree", main.where, said, "rows and scores of one run")


def refused(measured: Measured) -> Iterator[Finding]:
    """Find results of quantkit that its own reader refuses or that another version wrote."""
    if measured.old_schema is not None:
        needed = "quantkit evaluate again: what the fields meant then is not what they mean now"
        yield measured.finding("warning", "old schema", "", measured.old_schema, needed)
    if measured.refused is not None:
        yield measured.finding("error", "not whole", "", measured.refused, "the file as quantkit wrote it; evaluate again")
