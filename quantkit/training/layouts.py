"""Which tokens of a batch stand where, when its rows are one sequence without padding and shared beginnings stand once?

Half of an ungrouped batch is padding, and the system prompt stands in it once per row. Here the rows stand one behind
another; tokens that several rows begin with stand before them, as a tree: each block of tokens sees its ancestors and, from
left to right, itself. A row keeps for itself everything from the token that predicts its first label on, so a label belongs to
one row only and the loss is the padded batch's in exact arithmetic. One prefix for all rows, the alternative, shares nothing
as soon as two system prompts meet in a batch.

>>> rows = [([1, 2, 3, 4], [-100, -100, -100, 4]), ([1, 2, 5, 6], [-100, -100, -100, 6]), ([9, 8], [-100, 8])]
>>> flat = lay_out(rows, share=True, least_saved=1)
>>> flat.input_ids, flat.position_ids
([1, 2, 9, 8, 3, 4, 5, 6], [0, 1, 0, 1, 2, 3, 2, 3])
>>> flat.layout.blocks
(Block(rows=1, length=2), Block(rows=1, length=2), Block(rows=2, length=2, ancestors=(0,), start=2))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from quantkit.data.collate import Rows, pairs_of
from quantkit.data.encode import IGNORED

LEAST_SAVED = 8
"""Tokens that sharing must save at the least. A block more costs an attention call per layer, forward and backward: as much as
two tokens in a model 576 wide on a CPU, more where calls are dear."""

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids and labels of equal length."""


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` pieces of `length` tokens, one behind another, which see the same ancestors but not each other."""

    rows: int
    length: int
    ancestors: tuple[int, ...] = ()
    """Blocks, by their number, whose one piece stands before each piece of this one, outermost first."""
    start: int = 0
    """Position of a piece's first token in its row: how many tokens the ancestors have."""

    def __repr__(self) -> str:
        behind = f", ancestors={self.ancestors}, start={self.start}" if self.ancestors else ""
        return f"Block(rows={self.rows}, length={self.length}{behind})"


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one sequence, in order; an ancestor comes before its descendants."""

    blocks: tuple[Block, ...]
    tokens: int
    """Tokens of the rows, a shared one counted in each row."""

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return sum(block.rows * block.length for block in self.blocks)


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Rows as one sequence: lists of `layout.length` integers."""

    layout: Layout
    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    places: tuple[tuple[int, ...], ...]
    """For each row where its tokens stand in the sequence."""


@dataclass(frozen=True, slots=True)
class _Piece:
    row: int
    """The row whose tokens these are, or the first of those that share them."""
    start: int
    stop: int
    ancestors: tuple[int, ...] = ()


def lay_out(rows: Sequence[Row], *, share: bool, least_saved: int = LEAST_SAVED) -> FlatRows:
    """Return rows as one sequence; `share` lets tokens that saves at least `least_saved` others stand once.

    The first token of a row is never a label: nothing in the row predicts it.
    """
    shared, own = _pieces(rows, share=share, least_saved=least_saved)
    own.sort(key=lambda piece: (piece.ancestors, piece.stop - piece.start, piece.row))
    blocks, order = [], [*shared, *own]
    for piece in shared:
        blocks.append(Block(1, piece.stop - piece.start, piece.ancestors, piece.start))
    for (ancestors, length), group in groupby(own, key=lambda piece: (piece.ancestors, piece.stop - piece.start)):
        pieces = list(group)
        blocks.append(Block(len(pieces), length, ancestors, pieces[0].start))
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    at: list[range] = []
    for piece in order:
        at.append(range(len(ids), len(ids) + piece.stop - piece.start))
        ids += rows[piece.row][0][piece.start : piece.stop]
        learnt = list(rows[piece.row][1][piece.start : piece.stop])
        labels += [IGNORED, *learnt[1:]]
        positions += range(piece.start, piece.stop)
    places: list[tuple[int, ...]] = [()] * len(rows)
    for number, piece in enumerate(own, start=len(shared)):
        places[piece.row] = tuple(place for block in (*piece.ancestors, number) for place in at[block])
    return FlatRows(Layout(tuple(blocks), sum(len(row[0]) for row in rows)), ids, labels, positions, tuple(places))


@dataclass(frozen=True, slots=True)
class FlatCollator:
    """Makes one sequence of a batch's rows, without padding: LongTensors `[1, tokens]` and the `layout` that keeps them apart.

    `attention_mask` is all ones; `position_ids` start again with every row.

    >>> rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}]
    >>> batch = FlatCollator()(rows)
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7, 8, 9]], [[0, 1, 0, 1, 2]], [[-100, 6, -100, 8, 9]])
    """

    share: bool = False
    """Let tokens that several rows begin with stand once."""

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Lay rows (`EncodedRow`s, or mappings with `input_ids` and `labels`) out as one sequence."""
        import torch

        flat = lay_out(pairs_of(rows), share=self.share)
        lists = {"input_ids": flat.input_ids, "position_ids": flat.position_ids, "labels": flat.labels}
        batch: dict[str, Any] = {name: torch.tensor([values], dtype=torch.long) for name, values in lists.items()}
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"]), "layout": flat.layout}


def _pieces(rows: Sequence[Row], *, share: bool, least_saved: int) -> tuple[list[_Piece], list[_Piece]]:
    """Return the shared pieces, ancestors first, and each row's own piece."""
    shared: list[_Piece] = []
    own: list[_Piece] = []
    limits = [_sharable(*row) if share else 0 for row in rows]
    waiting: list[tuple[list[int], int, tuple[int, ...], int]] = [(list(range(len(rows))), 0, (), 0)]
    while waiting:  # rows whose first `start` tokens stand in `ancestors`, and whose first `equal` tokens are the same
        members, start, ancestors, equal = waiting.pop()
        if len(members) == 1:
            own.append(_Piece(members[0], start, len(rows[members[0]][0]), ancestors))
            continue
        limit = min(limits[member] for member in members)
        end = equal + _common([list(rows[member][0][equal:limit]) for member in members])
        if (end - start) * (len(members) - 1) >= max(least_saved, 1):
            shared.append(_Piece(members[0], start, end, ancestors))
            start, ancestors = end, (*ancestors, len(shared) - 1)
        parts: dict[int, list[int]] = {}
        for member in members:
            alone = limits[member] <= end
            parts.setdefault(-1 - member if alone else rows[member][0][end], []).append(member)
        waiting += [(part, start, ancestors, end) for part in parts.values()]
    return shared, own


def _sharable(ids: Sequence[int], labels: Sequence[int]) -> int:
    """Return how many leading tokens predict no label."""
    first = next((at for at, label in enumerate(labels) if at and label != IGNORED), len(ids))
    return max(first - 1, 0)


def _common(lists: Sequence[list[int]]) -> int:
    """Return how many leading elements all lists share: those that the smallest and the largest share.

    >>> _common([[1, 2, 3], [1, 2, 4], [1, 2]])
    2
    """
    low, high = min(lists), max(lists)
    return next(
        (at for at, (left, right) in enumerate(zip(low, high, strict=False)) if left != right), min(len(low), len(high))
    )
