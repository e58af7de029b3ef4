"""What does a model see of a row, and which of it is learnt? The row's own token ids, decoded piece by piece, with the mask.

Decoding each id alone would lose spaces with some tokenizers and break letters that take several tokens with others, so a
piece is what its tokens add to the text before them. Rendering the row again would show what should be trained on, not what is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from quantkit.data.encode import IGNORED, EncodedRow
from quantkit.preflight.look import Look, place

BROKEN = "\ufffd"
"""What decoders write for part of a letter."""
LONGEST_LETTER = 8
"""Tokens after which a letter that is still broken is shown as it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token, or of the few that make up one letter."""

    text: str
    learnt: bool
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row as it is trained on."""

    place: str
    """Where it stands in its source."""
    why: str
    """Why it is shown."""
    tokens: int
    supervised: int
    cut_tokens: int
    """Tokens that were cut off."""
    pieces: tuple[Piece, ...]

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """Return the row's text in parts that are learnt or not."""
        return [("".join(piece.text for piece in part), learnt) for learnt, part in groupby(self.pieces, lambda p: p.learnt)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "place": self.place,
            "why": self.why,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "cut_tokens": self.cut_tokens,
            "segments": [{"text": text, "learnt": learnt} for text, learnt in self.segments],
        }


def choose(look: Look, number: int) -> list[Sample]:
    """Return `number` training rows worth looking at: the first, the one least is learnt of, the longest, and some between."""
    rows, part = look.train.encoded.rows, look.train
    wanted: dict[int, str] = {}
    if rows:
        wanted[0] = "the first row"
        wanted.setdefault(min(range(len(rows)), key=lambda index: rows[index].supervised), "the row least is learnt of")
        wanted.setdefault(max(range(len(rows)), key=part.encoded.lengths.__getitem__), "the longest row")
    for step in range(1, number):
        wanted.setdefault(step * len(rows) // number, "one of those between")
    return [
        Sample(
            place=place(part, index),
            why=why,
            tokens=len(rows[index].input_ids),
            supervised=rows[index].supervised,
            cut_tokens=part.encoded.lengths[index] - len(rows[index].input_ids),
            pieces=tuple(_pieces(rows[index], look.tokenizer)),
        )
        for index, why in list(wanted.items())[: min(number, len(rows))]
    ]


def _pieces(row: EncodedRow, tokenizer: Any) -> Iterator[Piece]:
    learnt = [label != IGNORED for label in row.labels]

    def decoded(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before = done = 0  # the text up to `done` has been shown; what follows is decoded together with the piece from `before`
    for stop in range(1, len(row.input_ids) + 1):
        known, now = decoded(row.input_ids[before:done]), decoded(row.input_ids[before:stop])
        same_mask = stop < len(row.input_ids) and learnt[stop] == learnt[done]
        if now.endswith(BROKEN) and same_mask and stop - done < LONGEST_LETTER:
            continue
        yield Piece(now[len(known) :], learnt[done], tuple(row.input_ids[done:stop]))
        before, done = done, stop
