"""Who is better than the baseline, on the same rows? The paired comparisons of `quantkit.evaluation.comparison`, per board.

Intervals side by side hide most real differences; these comparisons do not. What cannot be paired is said with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.console import Column
from quantkit.errors import UsageError, did_you_mean
from quantkit.evaluation.comparison import Comparison, best_of, compare_all
from quantkit.evaluation.results import TaskResult
from quantkit.reporting.facts import Subject
from quantkit.reporting.ranking import Board

COLUMNS = (
    Column("artifact"),
    Column("task\nmeasure"),
    Column("difference\n95 % interval", "right"),
    Column("p\n(Holm)", "right", priority=1),
    Column("verdict"),
)
CAPTION = (
    "Difference: artifact minus baseline, row by row on the same rows. It counts as real "
    "where p, after Holm's correction, is below 0.05 and the interval leaves out zero; "
    "nobody who is marked wins. Other measures stand on the page and in the JSON."
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One board's artifacts against one of them."""

    board: Board
    baseline: str
    chosen: bool
    """Whether the baseline was asked for; else it is the best unmarked result, or the best of all where all are marked."""
    comparisons: tuple[Comparison, ...]
    refused: tuple[str, ...]

    @property
    def why(self) -> str:
        """Return why this one is the baseline."""
        if self.chosen:
            return "as asked for"
        return "the best result without marks" if any(not row.marks for row in self.board.rows) else "every result is marked"


def find_baseline(subjects: Sequence[Subject], wanted: str) -> Subject:
    """Return the artifact of this name, or whose hash begins so.

    Raises:
        UsageError: none fits, or several contents have this name.
    """
    fits = [item for item in subjects if item.name == wanted]
    fits = fits or [item for item in subjects if len(wanted) >= 4 and item.artifact.startswith(wanted.removeprefix("sha256:"))]
    if len(fits) > 1:
        known = ", ".join(item.artifact[:12] for item in fits)
        raise UsageError(f"--baseline {wanted}: {len(fits)} contents have this name; give the beginning of a hash: {known}")
    if not fits:
        hint = did_you_mean(wanted, [item.name for item in subjects])
        raise UsageError(f"--baseline {wanted}: no artifact of this report is called so.{hint}")
    return fits[0]


def compare_boards(boards: Sequence[Board], subjects: Sequence[Subject], baseline: Subject | None = None) -> list[Compared]:
    """Return each board's comparisons with the baseline, or with its best unmarked result where none is named."""
    names = labels(subjects)
    by_number = {subject.number: subject for subject in subjects}
    found = []
    for board in boards:
        results = [(names[row.number], result_of(board, by_number[row.number])) for row in board.rows]
        if baseline is not None and baseline.number not in {row.number for row in board.rows}:
            found.append(Compared(board, names[baseline.number], True, (), (f"{names[baseline.number]} has no result here",)))
        elif len(results) > 1:
            name = names[baseline.number] if baseline is not None else best_of(results)
            made, refused = compare_all(results, baseline=None if baseline is None else name, seed=board.first.seed)
            found.append(Compared(board, name, baseline is not None, tuple(made), tuple(refused)))
    return found


def result_of(board: Board, subject: Subject) -> TaskResult:
    """Return the result behind an artifact's row of a board."""
    return next(
        item
        for item in subject.results
        if item.task == board.first.task and item.data_fingerprint == board.first.data_fingerprint
    )


def labels(subjects: Sequence[Subject]) -> dict[int, str]:
    """Return number → name, with the beginning of the hash where several contents have one name."""
    names = [subject.name for subject in subjects]
    return {
        subject.number: subject.name if names.count(subject.name) == 1 else f"{subject.name} [{subject.artifact[:12]}]"
        for subject in subjects
    }


def table_rows(compared: Sequence[Compared]) -> list[list[object]]:
    """Return one line per artifact and task for the console: what the task's own measure says, where it can be compared."""
    return [
        [
            item.first,
            f"{item.task}\n{item.measure.replace('_', ' ')}",
            f"{difference_text(item)}\n{item.low:+.3g} to {item.high:+.3g}",
            f"{item.p_value:.3g}",
            "\n".join([item.verdict, *item.caveats]),
        ]
        for each in compared
        for item in each.comparisons
        if item.measure == each.comparisons[0].measure
    ]


def difference_text(item: Comparison) -> str:
    """Return a difference with its sign and unit."""
    return f"{item.difference:+.3g} {item.unit}"
