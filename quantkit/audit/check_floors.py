"""Would a predictor that understands nothing have got this score too?"""

from collections.abc import Iterator, Mapping, Sequence

from quantkit.audit.derived import QA_WITHOUT_ANSWER, floors_of, interval_of
from quantkit.audit.facts import Finding, Measured, Number, Severity
from quantkit.evaluation.statistics import Floor

TaskFloors = Mapping[tuple[str, int | None], tuple[Floor, ...]]
"""Task and n → floors that the rows of another model in the same set give."""
PART = ("hasans", "noans", "HasAns", "NoAns")
"""Beginnings of metrics that are measured on a part of the rows."""


def known_floors(measured: Sequence[Measured]) -> TaskFloors:
    """Return the floors that rows anywhere in the set give, for files that hold the summary only."""
    found: dict[tuple[str, int | None], tuple[Floor, ...]] = {}
    for item in measured:
        if item.rows and (floors := floors_of(item.rows)):
            found.setdefault((item.task, item.n), floors)
    return found


def floor(measured: Measured, others: TaskFloors) -> Iterator[Finding]:
    """Find scores that are not above what a predictor without understanding gets on the same rows."""
    computed = floors_of(measured.rows)
    if measured.source == "quantkit":
        yield from _understated(measured, computed)
    for number in measured.numbers:
        if not number.is_finite or (not number.main and number.kind != "perplexity"):
            continue
        floors = number.floors
        if number.kind == "share" and not number.name.startswith(PART) and measured.source != "quantkit":
            rows = computed or others.get((measured.task, measured.n), ())
            given = () if measured.no_answer is None else (Floor(name="empty or '!!!!'", value=measured.no_answer),)
            floors = tuple(item for item in (*rows, *given) if number.countable or item.name.startswith("empty"))
            if not floors and measured.source == "study":
                yield _unknown(measured, number)
        yield from _judged(measured, number, floors)


def _judged(measured: Measured, number: Number, floors: tuple[Floor, ...]) -> Iterator[Finding]:
    if not floors:
        return
    up = number.higher_is_better
    best = (max if up else min)(floors, key=lambda item: item.value)
    height = f"{best.value:.1%}" if number.kind == "share" else f"{best.value:.4g}"
    score = f"{number.value:.1%}" if number.kind == "share" else number.shown
    if (number.value <= best.value + 1e-9) if up else (number.value >= best.value - 1e-9):
        said = f"{score}, and a predictor that understands nothing gets {height} ({best.name}) on the same rows"
        severity: Severity = "error" if number.main else "warning"
        yield measured.finding(severity, "floor", number.where, said, "a score above its floor, or no claim of ability")
        return
    interval = interval_of(measured, number)
    if interval is not None and ((interval[0] <= best.value) if up else (interval[1] >= best.value)):
        said = f"{score} is not above {height} ({best.name}) by its 95 % interval, {_span(number, interval)}"
        yield measured.finding("warning", "floor", number.where, said, "more rows")


def _span(number: Number, interval: tuple[float, float]) -> str:
    if number.kind == "share":
        return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def _unknown(measured: Measured, number: Number) -> Finding:
    said = "what empty, constant and majority predictors get on these rows is not in the file"
    if QA_WITHOUT_ANSWER.search(measured.task):
        said += "; in SQuAD v2 an always-empty one gets the share of questions without an answer"
    return measured.finding(
        "warning", "floor unknown", number.where, said, "the reference answers of the rows, or these floors"
    )


def _understated(measured: Measured, computed: tuple[Floor, ...]) -> Iterator[Finding]:
    main = measured.main
    if main is None or not main.countable or not main.floors or not computed:
        return
    golds = [row.gold[0] for row in measured.rows if row.gold]
    if not golds or len(golds) != len(measured.rows):
        return
    most = max(map(golds.count, set(golds))) / len(golds)
    stated = max(item.value for item in main.floors)
    if stated < most - 1e-6:
        said = f"the best floor is stated as {stated:.1%}, but the most frequent reference is {most:.1%} of the rows"
        yield measured.finding("error", "floor", main.where, said, "floors of the same rows")
