"""How are results put side by side so that no number stands without what it takes to judge it?

A score's cell holds its interval and its marks, the next one its best floor; neither can be dropped where space is short.
A column of bare numbers is read as a ranking, whatever the caption says.
"""

from collections.abc import Sequence

from quantkit.console import Column, format_bytes, format_duration
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.evaluation.statistics import Score

COLUMNS = (
    Column("artifact"),
    Column("data\nrows"),
    Column("exact match\n95 % interval", "right"),
    Column("best floor", "right"),
    Column("parsed\nstopped", "right"),
    Column("perplexity", "right", priority=1),
    Column("peak memory", "right", priority=2),
    Column("tokens/s", "right", priority=3),
    Column("boxed", "right", priority=4),
    Column("empty/loops", "right", priority=5),
    Column("load", "right", priority=6),
)
CAPTION = (
    "FLOOR: the 95 % interval reaches down to what a predictor that understands\n"
    "nothing gets on the same rows (best floor). Unparsed answers count as wrong.\n"
    "Perplexity: above over response tokens, below over all tokens but the first."
)


def table_rows(artifacts: Sequence[ArtifactResult]) -> list[list[object]]:
    """Return one row of cells per artifact and data set, in the order of `COLUMNS`."""
    return [_row(artifact, result) for artifact in artifacts for result in artifact.results]


def _row(artifact: ArtifactResult, result: TaskResult) -> list[object]:
    score, scores, cost = result.main, result.scores, result.cost
    floor = score.best_floor
    load_s = next((stage["duration_s"] for stage in artifact.memory.get("stages", ()) if stage["stage"] == "load"), None)
    gpu = "\n".join(f"{device} {format_bytes(size)}" for device, size in cost.peak_reserved_bytes.items())
    return [
        artifact.name,
        f"{result.task}\n{result.n}",
        "\n".join([percent(score), interval(score), *result.marks]),
        f"{floor.name}\n{floor.value:.1%}" if floor else None,
        f"{percent(scores['parsed_rate'])}\n{percent(scores['stop_rate'])}",
        "\n".join(_perplexity(scores[name]) for name in ("perplexity_response", "perplexity_all")),
        gpu or format_bytes(cost.peak_rss_bytes),
        f"{cost.tokens_per_s:.0f}",
        percent(scores["boxed_rate"]) if "boxed_rate" in scores else None,
        f"{percent(scores['empty_rate'])}\n{percent(scores['repetition_rate'])}",
        None if load_s is None else format_duration(load_s),
    ]


def percent(score: Score) -> str:
    """Return a share for people."""
    return f"{score.value:.1%}"


def interval(score: Score) -> str:
    """Return a share's interval for people."""
    return f"{score.low * 100:.1f}–{score.high * 100:.1f}"


def _perplexity(score: Score) -> str:
    mark = " FLOOR" if score.is_floor else ""
    return f"{score.value:.3g} ({score.low:.3g}–{score.high:.3g}){mark}"
