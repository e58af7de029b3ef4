"""What is a group's number, when its members were measured one by one?

lm-eval's own aggregation of its members' numbers. Where that is the share of right answers over all rows, its interval is
Wilson's; else the members' intervals are combined as those of independent numbers. Judging a group by rows drawn over all
members would mix tasks of unlike size.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.errors import VerificationError
from quantkit.evaluation.harness.tasks import filed_as
from quantkit.evaluation.results import Cost, TaskResult
from quantkit.evaluation.statistics import Floor, Score, share_score


def group_result(group: Any, members: Mapping[str, TaskResult], reported: Mapping[str, Mapping[str, Any]]) -> TaskResult:
    """Return the result of a group that aggregates; `reported` is what lm-eval says of each member."""
    numbers, parts = group.aggregate(dict(reported)), list(members.values())
    scores: dict[str, Score] = {}
    for wanted in group.aggregate_metric_list:
        for label in (label for label in parts[0].scores if label.partition(",")[0] == wanted.metric):
            metric, _, name = label.partition(",")
            value = numbers.get(f"{metric},{name or 'none'}")
            own = [part.scores[label] for part in parts if label in part.scores]
            if isinstance(value, int | float):
                scores[label] = _combined(
                    own, float(value), by_size=bool(wanted.weight_by_size), where=f"{group.name}, {label}"
                )
    if not scores:
        raise VerificationError(f"lm-eval group {group.name}: none of the metrics it aggregates was measured by its members")
    rows = [replace(row, row=index) for index, row in enumerate(row for part in parts for row in part.rows)]
    joined = "".join(part.data_fingerprint for part in parts)
    settings = {key: value for key, value in parts[0].settings.items() if all(p.settings.get(key) == value for p in parts)}
    reports = {key: value for key, value in numbers.items() if "," in key}
    return TaskResult(
        task=filed_as(group.name),
        kind=parts[0].kind,
        metric=next(iter(scores)),
        source=f"lm-eval group {group.name}: {', '.join(members)}",
        data_fingerprint=hashlib.sha256(joined.encode()).hexdigest(),
        n=len(rows),
        seed=parts[0].seed,
        settings=settings | {"members": list(members), "as_reported": reports},
        scores=scores,
        cost=_sum([part.cost for part in parts]),
        rows=rows,
    )


def _combined(scores: Sequence[Score], reported: float, *, by_size: bool, where: str) -> Score:
    total = sum(score.n for score in scores)
    weights = [score.n / total if by_size else 1 / len(scores) for score in scores]
    value = sum(weight * score.value for weight, score in zip(weights, scores, strict=True))
    if not abs(value - reported) <= 1e-9 * max(1.0, abs(value)):
        raise VerificationError(f"lm-eval group {where} is reported as {reported}, its members give {value}")
    names = [name for name in (floor.name for floor in scores[0].floors) if all(name in _named(score) for score in scores)]
    floors = [
        Floor(name=name, value=sum(w * _named(score)[name] for w, score in zip(weights, scores, strict=True))) for name in names
    ]
    coverage = min(1.0, sum(weight * score.coverage for weight, score in zip(weights, scores, strict=True)))
    if by_size and all(score.interval == "wilson" for score in scores):
        right = sum(round(score.value * score.n) for score in scores)
        found = share_score(right, total, coverage=coverage, floors=floors)
        return replace(found, higher_is_better=scores[0].higher_is_better)
    below = math.hypot(*(w * (score.value - score.low) for w, score in zip(weights, scores, strict=True)))
    above = math.hypot(*(w * (score.high - score.value) for w, score in zip(weights, scores, strict=True)))
    return Score(
        value=value,
        n=total,
        low=value - below,
        high=value + above,
        interval="combined",
        coverage=coverage,
        floors=tuple(floors),
        higher_is_better=scores[0].higher_is_better,
    )


def _named(score: Score) -> dict[str, float]:
    return {floor.name: floor.value for floor in score.floors}


def _sum(costs: Sequence[Cost]) -> Cost:
    tokens, seconds = sum(cost.generated_tokens for cost in costs), sum(cost.generation_s for cost in costs)
    return Cost(
        generated_tokens=tokens,
        generation_s=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 1) if seconds else 0.0,
        perplexity_s=round(sum(cost.perplexity_s for cost in costs), 3),
        peak_rss_bytes=max(cost.peak_rss_bytes for cost in costs),
        peak_allocated_bytes=_largest([cost.peak_allocated_bytes for cost in costs]),
        peak_reserved_bytes=_largest([cost.peak_reserved_bytes for cost in costs]),
    )


def _largest(peaks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {device: max(peak.get(device, 0) for peak in peaks) for device in dict.fromkeys(d for peak in peaks for d in peak)}
