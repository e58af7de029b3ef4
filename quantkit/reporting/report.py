"""What goes into a report? Artifacts with results become ranked boards, and what is not there is said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from quantkit.errors import UsageError, did_you_mean
from quantkit.reporting.comparing import Compared, compare_boards, find_baseline
from quantkit.reporting.facts import Row, Subject, row_of
from quantkit.reporting.listing import plain
from quantkit.reporting.ranking import Board, boards

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a table, a file or a page is made of."""

    title: str
    subjects: tuple[Subject, ...]
    boards: tuple[Board, ...]
    missing: tuple[str, ...]
    """What one could expect here and will not find, in sentences."""
    faults: tuple[str, ...]
    """What was there and could not be read, in sentences."""
    made_at: str
    compared: tuple[Compared, ...] = ()
    """Paired comparisons; empty where none were asked for."""

    @classmethod
    def of(cls, subjects: Sequence[Subject], *, title: str, tasks: Sequence[str] = (), faults: Sequence[str] = ()) -> Self:
        """Build a report of these artifacts; `tasks` names and orders the tasks wanted, all of them where it is empty.

        Raises:
            UsageError: there is no result for a task that was named.
        """
        known = sorted({result.task for subject in subjects for result in subject.results})
        for task in tasks:
            if task not in known:
                raise UsageError(
                    f"no artifact here has a result for the task {task!r}.{did_you_mean(task, known)}"
                    f" Tasks with results: {', '.join(known) or 'none'}."
                )
        chosen = [result_row for subject in subjects for result_row in _rows(subject, tasks)]
        ordered = boards(chosen, order=tasks)
        return cls(
            title=title,
            subjects=tuple(subjects),
            boards=tuple(ordered),
            missing=tuple(_missing(subjects, ordered)),
            faults=tuple(faults),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def with_comparisons(self, baseline: str | None = None) -> Self:
        """Return the report with each task's artifacts compared with `baseline`, by default with its best unmarked result.

        Raises:
            UsageError: no artifact of the report, or more than one, is called `baseline`.
        """
        named = None if baseline is None else find_baseline(self.subjects, baseline)
        return replace(self, compared=tuple(compare_boards(self.boards, self.subjects, named)))

    @property
    def rows(self) -> list[Row]:
        """Return all rows, board by board, each best first."""
        return [row for board in self.boards for row in board.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "title": self.title,
            "made_at": self.made_at,
            "rows": [plain(row) for row in self.rows],
            "comparisons": [item.to_dict() for each in self.compared for item in each.comparisons],
            "not_compared": [reason for each in self.compared for reason in each.refused],
            "missing": list(self.missing),
            "faults": list(self.faults),
        }


def _rows(subject: Subject, tasks: Sequence[str]) -> list[Row]:
    return [row_of(subject, result) for result in subject.results if not tasks or result.task in tasks]


def _missing(subjects: Sequence[Subject], ordered: Sequence[Board]) -> list[str]:
    """Return who has no result where others have one, who has none at all, and who is known from results only."""
    none = [subject.name for subject in subjects if not subject.results]
    said = [f"No results at all (quantkit evaluate makes them): {', '.join(none)}."] if none else []
    for task in dict.fromkeys(board.first.task for board in ordered):
        lack = [item.name for item in subjects if item.results and task not in {result.task for result in item.results}]
        said += [f"No result for {task}: {', '.join(lack)}."] if lack else []
    gone = [f"{subject.name} [{subject.artifact[:12]}]" for subject in subjects if not subject.here]
    if gone:
        said.append(
            f"Known from results only, so without lineage, recipe and gate: {', '.join(gone)}. No artifact with this content is"
            " in the registry: a base, a folder elsewhere, or one that was made anew since."
        )
    return said
