"""Which of several evaluated artifacts is better, on which data, and which of them are broken?

Told by paired comparisons on the rows that both answered, never by the order of a column; the baseline is the best one that is
not marked, or the one that was named beforehand, which asks less of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.console import Column
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation.comparison import Comparison, compare_all
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.evaluation.table import metric_text, table_of

SCHEMA_VERSION = 1
"""Of the object that `quantkit evaluate --json` prints."""
COLUMNS = (
    Column("data\nmeasure"),
    Column("pair"),
    Column("difference\n95 % interval", "right"),
    Column("p", "right", priority=1),
    Column("verdict"),
)
CAPTION = (
    "First minus second on the same rows, in points of a percentage; perplexity and "
    "divergence in nats, where less is better. Right or wrong: exact McNemar test, "
    "Newcombe's interval; means: sign flips, paired bootstrap. p: after Holm's "
    "correction for all pairs looked at. Nobody wins who is marked."
)
MEANING = {
    "EMPTY": "most answers are empty",
    "LOOPS": "most answers repeat themselves",
    "NO STOP": "most answers go on past twice the reference's length (or --max-new-tokens is too low)",
    "CONSTANT": "one answer is given whatever is asked",
    "ECHO": "most answers repeat the question",
    "GIBBERISH": "most answers are no language",
    "UNLIKELY": "the reference model finds most answers about as likely as chance",
    "BROKEN": "its perplexity is no better than that of a uniform guess",
}


@dataclass(frozen=True, slots=True)
class Compared:
    """All comparisons of some artifacts, and what could not be compared."""

    comparisons: list[Comparison]
    refused: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"comparisons": [item.to_dict() for item in self.comparisons], "not_compared": self.refused}


def check_baseline(baseline: str | None, paths: Sequence[str]) -> None:
    """Raise `UsageError`, before anything is evaluated, where the baseline is none of the paths and no name of one."""
    if baseline is not None and baseline not in {*paths, *(Path(path).name for path in paths)}:
        raise UsageError(f"--baseline {baseline!r} is none of what is to be evaluated: {', '.join(paths)}")


def show(artifacts: list[ArtifactResult], *, baseline: str | None = None) -> dict[str, Any]:
    """Print one table of all results and one of their paired comparisons; return the latter as plain JSON data."""
    if artifacts:
        columns, rows, caption = table_of(artifacts)
        console.table("Evaluation", columns, rows, caption=caption)
    compared = compare_artifacts(artifacts, baseline=baseline)
    show_comparisons(compared)
    return compared.to_dict()


def compare_artifacts(artifacts: Sequence[ArtifactResult], *, baseline: str | None = None, seed: int = 0) -> Compared:
    """Compare artifacts on each task that two or more have a result of.

    Raises:
        UsageError: no artifact's name or path is `baseline`.
    """
    names = [artifact.name for artifact in artifacts]
    labels = [item.path if names.count(item.name) > 1 else item.name for item in artifacts]
    chosen = None
    if baseline is not None:
        known = [label for label, item in zip(labels, artifacts, strict=True) if baseline in (label, item.name, item.path)]
        if len(known) != 1:
            said = "names several of" if known else "is none of"
            raise UsageError(f"--baseline {baseline!r} {said} what was evaluated: {', '.join(labels)}")
        chosen = known[0]
    tasks: dict[str, list[tuple[str, TaskResult]]] = {}
    for label, artifact in zip(labels, artifacts, strict=True):
        for result in artifact.results:
            tasks.setdefault(result.task, []).append((label, result))
    found, refused = list[Comparison](), list[str]()
    for results in tasks.values():
        here = chosen if any(label == chosen for label, _ in results) else None
        some, not_possible = compare_all(results, baseline=here, seed=seed)
        found += some
        refused += not_possible
    return Compared(found, refused)


def show_comparisons(compared: Compared) -> None:
    """Print a table of them, and what could not be compared; nothing where there is neither.

    Artifacts are numbered in it and named below: two names of 70 characters in each row would leave no room on a terminal.
    """
    if compared.comparisons:
        names = dict.fromkeys(name for item in compared.comparisons for name in (item.second, item.first))
        number = {name: str(at) for at, name in enumerate(names, 1)}
        notes = dict.fromkeys(
            f"{number[item.first]} and {number[item.second]}: {caveat}"
            for item in compared.comparisons
            for caveat in item.caveats
        )
        legend = [f"{at}: {name}" for name, at in number.items()]
        rows = [_row(item, number) for item in compared.comparisons]
        console.table("Compared", COLUMNS, rows, caption="\n".join([*legend, *notes, CAPTION]))
    for text in compared.refused:
        console.warn(text)


def _row(item: Comparison, number: Mapping[str, str]) -> list[object]:
    digits = 1 if item.unit == "points" else 4
    bounds = f"{item.low:+.{digits}f} to {item.high:+.{digits}f}"
    p = "<0.001" if item.p_value < 0.001 else f"{item.p_value:.3f}"
    unit = "" if item.unit == "points" else f", {item.unit}"
    first, second = number[item.first], number[item.second]
    return [
        f"{item.task}\n{metric_text(item.measure)}{unit}",
        f"{first} – {second}",
        f"{item.difference:+.{digits}f}\n{bounds}",
        p,
        replace(item, first=first, second=second).verdict,
    ]


def warn_degenerate(artifacts: Sequence[ArtifactResult]) -> int:
    """Say which artifacts answer nothing sensible, and return the exit code: 3 where there is one, else 0."""
    code = 0
    for artifact in artifacts:
        for result in artifact.results:
            if result.degenerate:
                said = "; ".join(f"{mark}, {MEANING[mark]}" for mark in result.degenerate)
                console.warn(f"{artifact.name} is degenerate on {result.task}: {said}")
                code = VerificationError.exit_code
    return code
