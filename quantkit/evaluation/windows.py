"""How is a row judged that is longer than the model's context?

A plain text is cut into windows as long as the context, each beginning with the last token of the one before, so that every
token but the first is judged once, by what stands before it in its window (the rolling likelihood of other harnesses). A
conversation is cut at its end instead, and says so: an answer without its question would be judged by other rules than the
rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class LabelledRow(Protocol):
    """A row of token ids with labels of the same length, -100 where not supervised (`quantkit.data.EncodedRow`)."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A row, or one window of it, that fits into the context; what its first label says does not matter."""

    row: int
    """Number of the row it is of, from 0."""
    input_ids: list[int]
    labels: list[int]


def pieces(rows: Sequence[LabelledRow], context: int) -> list[Piece]:
    """Return the rows as pieces of at most `context` tokens, row after row."""
    found = []
    for number, row in enumerate(rows):
        ids, labels = row.input_ids, row.labels
        plain = all(label != -100 for label in labels[1:])
        starts = range(0, len(ids) - 1, context - 1) if plain and len(ids) > context > 1 else (0,)
        found += [Piece(number, ids[start : start + context], labels[start : start + context]) for start in starts]
    return found


def cut_tokens(row: LabelledRow, judged: Sequence[Piece]) -> int:
    """Return how many tokens of a row no piece of it holds."""
    return len(row.input_ids) - sum(len(piece.input_ids) for piece in judged) + len(judged) - 1
