"""How are results put side by side so that no number stands without what it takes to judge it?

A score's cell holds its interval and its marks, the next ones its best floor and what share of the rows it is over; none of
them can be dropped where space is short. A column of bare numbers is read as a ranking, whatever the caption says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.console import Column, format_bytes, format_duration
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.evaluation.statistics import Score
from quantkit.layout import digits

Cell = Callable[[ArtifactResult, TaskResult], object]

PERPLEXITIES = ("perplexity_response", "perplexity_all")
RATES = (
    *("empty_rate", "repetition_rate", "stop_rate", "constant_rate", "echo_rate", "gibberish_rate"),
    *("unlikely_rate", "parsed_rate"),
)
"""Scores that a column of their own, a mark or the coverage tells."""
CAPTION = (
    "FLOOR: the 95 % interval reaches to what a predictor that understands nothing "
    "gets on the same rows (best floor). Judged: share of rows whose answer parsed "
    "(UNPARSED: at most half), or of what fitted the context; what does not parse is wrong. Stopped: answers "
    "that ended by themselves. Perplexity: of responses, then of all tokens."
)


@dataclass(frozen=True, slots=True)
class _Shown:
    column: Column
    cell: Cell
    always: bool = False
    """Whether it is shown though no result has anything there."""


def table_of(artifacts: Sequence[ArtifactResult]) -> tuple[list[Column], list[list[object]], str]:
    """Return columns, one row of cells per artifact and data set, and the caption; a column that nothing fills is left out."""
    pairs = [(artifact, result) for artifact in artifacts for result in artifact.results]
    filled = [item for item in SHOWN if item.always or any(item.cell(*pair) is not None for pair in pairs)]
    return [item.column for item in filled], [[item.cell(*pair) for item in filled] for pair in pairs], CAPTION


def is_share(score: Score) -> bool:
    """Whether a score is a share of rows, or a mean between 0 and 1 of which more is better, and so shown in percent."""
    return score.interval == "wilson" or (score.higher_is_better and score.low >= 0.0 and score.high <= 1.0)


def value_text(score: Score) -> str:
    """Return a score's value for people."""
    return f"{score.value:.1%}" if is_share(score) else digits(score.value)


def interval_text(score: Score) -> str:
    """Return a score's interval for people."""
    if is_share(score):
        return f"{score.low * 100:.1f}–{score.high * 100:.1f}"
    return f"{digits(score.low)}–{digits(score.high)}"


def metric_text(name: str) -> str:
    """Return a metric's name for people.

    >>> metric_text("exact_match")
    'exact match'
    """
    return name.replace("_", " ")


def _score(_: ArtifactResult, result: TaskResult) -> object:
    return "\n".join([value_text(result.main), interval_text(result.main), *result.marks])


def _floor(_: ArtifactResult, result: TaskResult) -> object:
    floor = result.main.best_floor
    if floor is None:
        return None
    return f"{floor.name}\n{floor.value:.1%}" if is_share(result.main) else f"{floor.name}\n{digits(floor.value)}"


def _judged(_: ArtifactResult, result: TaskResult) -> object:
    stopped = result.scores.get("stop_rate")
    return f"{result.main.coverage:.1%}" + (f"\n{value_text(stopped)}" if stopped else "")


def _perplexity(_: ArtifactResult, result: TaskResult) -> object:
    lines = []
    for name in PERPLEXITIES:
        score = result.scores.get(name)
        if score is not None and name != result.metric:
            mark = " FLOOR" if score.is_floor else ""
            lines.append(f"{value_text(score)} ({interval_text(score)}){mark}")
    return "\n".join(lines) or None


def _further(_: ArtifactResult, result: TaskResult) -> object:
    """Return the scores that no other column tells, each with its interval and, where it is not all, its coverage."""
    lines = []
    for name, score in result.scores.items():
        if name in (result.metric, *PERPLEXITIES, *RATES):
            continue
        of = f", of {score.coverage:.0%}" if score.coverage < 1 else ""
        lines.append(
            f"{metric_text(name)} {value_text(score)} ({interval_text(score)}{of}){' FLOOR' if score.is_floor else ''}"
        )
    return "\n".join(lines) or None


def _rates(_: ArtifactResult, result: TaskResult) -> object:
    found = [result.scores.get(name) for name in ("empty_rate", "repetition_rate")]
    return "\n".join(value_text(score) for score in found if score is not None) or None


def _memory(_: ArtifactResult, result: TaskResult) -> object:
    on_gpu = "\n".join(f"{device} {format_bytes(size)}" for device, size in result.cost.peak_reserved_bytes.items())
    return on_gpu or (format_bytes(result.cost.peak_rss_bytes) if result.cost.peak_rss_bytes else None)


def _speed(_: ArtifactResult, result: TaskResult) -> object:
    return f"{result.cost.tokens_per_s:.0f}" if result.cost.generated_tokens else None


def _latency(_: ArtifactResult, result: TaskResult) -> object:
    found = [format_duration(result.cost.latency_s[name]) for name in ("p50", "p99") if name in result.cost.latency_s]
    return "\n".join(found) or None


def _size(artifact: ArtifactResult, _: TaskResult) -> object:
    bits = "" if artifact.bits_per_weight is None else f"{artifact.bits_per_weight:.2f}"
    size = "" if artifact.size_bytes is None else format_bytes(artifact.size_bytes)
    return "\n".join(filter(None, [bits, size])) or None


def _load(artifact: ArtifactResult, _: TaskResult) -> object:
    found = (stage["duration_s"] for stage in artifact.memory.get("stages", ()) if stage["stage"] == "load")
    duration_s = next(found, None)
    return None if duration_s is None else format_duration(duration_s)


SHOWN = (
    _Shown(Column("artifact"), lambda artifact, _: artifact.name, always=True),
    _Shown(
        Column("data\nmetric"), lambda _, result: f"{result.task}\n{metric_text(result.metric)}\nn = {result.n}", always=True
    ),
    _Shown(Column("score\n95 %", "right"), _score, always=True),
    _Shown(Column("best\nfloor", "right"), _floor, always=True),
    _Shown(Column("judged\nstopped", "right"), _judged, always=True),
    _Shown(Column("perplexity", "right", priority=1), _perplexity),
    _Shown(Column("peak memory", "right", priority=2), _memory),
    _Shown(Column("tokens/s", "right", priority=3), _speed),
    _Shown(Column("bits/weight\nsize", "right", priority=4), _size),
    _Shown(Column("further scores", "right", priority=5), _further),
    _Shown(Column("latency\np50, p99", "right", priority=6), _latency),
    _Shown(Column("empty\nloops", "right", priority=7), _rates),
    _Shown(Column("load", "right", priority=8), _load),
)
