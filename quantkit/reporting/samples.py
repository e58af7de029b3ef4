"""What did several artifacts answer to the same row? Texts side by side, chosen by a stated rule.

Rows on which the artifacts disagree come first: they say most about the difference. They are no fair sample, and the page says
so; rows picked by hand would be neither fair nor reproducible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.evaluation.results import RowResult
from quantkit.reporting.comparing import result_of
from quantkit.reporting.facts import Row, Subject
from quantkit.reporting.ranking import Board

DISAGREEING, AGREEING = 4, 2
MOST_ARTIFACTS = 12
"""Artifacts side by side: the first ones of the board."""
LONGEST_TEXT = 600
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One artifact's answer to one row; None where it was not asked."""

    text: str
    answer: str | None
    correct: bool
    stopped: bool | None
    left_out: int
    """Characters of the text that are not shown."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set, with the answers in the order of the board's artifacts."""

    row: int
    gold: str
    agree: bool
    answers: tuple[Answer | None, ...]


def samples(board: Board, subjects: Sequence[Subject]) -> list[Sample]:
    """Return rows of a board's task that were answered in words: disputed ones first, then others, each in file order."""
    results = [result_of(board, next(item for item in subjects if item.number == row.number)) for row in shown(board)]
    asked = [{row.row: row for row in result.rows if row.stopped is not None} for result in results]
    everywhere = sorted(set().union(*asked)) if asked else []
    made = [_sample(row, [rows.get(row) for rows in asked]) for row in everywhere]
    disputed = [item for item in made if not item.agree][:DISAGREEING]
    return disputed + [item for item in made if item.agree][: AGREEING + DISAGREEING - len(disputed)]


def shown(board: Board) -> tuple[Row, ...]:
    """Return the rows of the artifacts whose answers stand side by side."""
    return board.rows[:MOST_ARTIFACTS]


def _sample(row: int, answers: Sequence[RowResult | None]) -> Sample:
    here = [answer for answer in answers if answer is not None]
    return Sample(
        row, here[0].gold, len({answer.correct for answer in here}) == 1, tuple(None if a is None else _cut(a) for a in answers)
    )


def _cut(row: RowResult) -> Answer:
    shown = row.text[:LONGEST_TEXT]
    return Answer(shown, row.answer, row.correct, row.stopped, len(row.text) - len(shown))
