"""Which rows of one sequence attend in one product, though they are not equally long?

Rows of a batch are short and differ in length, and a product for each of them is dear for its size: at 30 to 130 tokens
attention ran at a tenth of the processor's rate. Here rows that stand behind the same tokens are padded to the longest of those
that are nearly as long. Later tokens are hidden from earlier ones, so nothing sees what pads a row. Padding all rows to the
longest, the alternative, computes twice what is needed. Importing this module imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.training.layouts import Block, Layout

SIMILAR = 0.7
"""Length of a row by that of the longest it is padded to, at the least; with 0.5 or 0.99 attention takes a tenth longer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of similar length with the same ancestors."""

    rows: int
    length: int
    """Tokens of the longest row."""
    own: Tensor
    """Where its tokens stand in the sequence [rows · length]; beyond a row's end its last one again."""
    beyond: Tensor
    """Which of `own` are beyond a row's end."""
    before: tuple[slice, ...]
    """Where the ancestors stand in the sequence, outermost first."""
    hidden: Tensor
    """What is added to the scores [length, ancestors + length] in float32: minus infinity where a token is not to be seen."""
    causal: bool
    """Whether that hides all later tokens."""


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """All rows of a sequence in pieces."""

    pieces: tuple[Piece, ...]
    places: Tensor
    """Where each token of the sequence stands in the pieces, one behind another."""


def padded_rows(layout: Layout, hidden: Callable[[Block], Tensor]) -> PaddedRows:
    """Return a layout's rows in pieces; `hidden` gives what is added to the scores of a block's rows.

    >>> from quantkit.training.layouts import lay_out
    >>> rows = [([1, 2, 3], [-100] * 3), ([4, 5, 6, 7], [-100] * 4), ([8], [-100])]
    >>> layout = lay_out(rows, share=False).layout
    >>> found = padded_rows(layout, lambda block: torch.full([block.length] * 2, -torch.inf).triu(1))
    >>> [piece.own.tolist() for piece in found.pieces], found.places.tolist()
    ([[4, 5, 6, 7, 1, 2, 3, 3], [0]], [8, 4, 5, 6, 0, 1, 2, 3])
    """
    starts = [0]
    for block in layout.blocks:
        starts.append(starts[-1] + block.rows * block.length)
    families: dict[tuple[tuple[int, ...], int], list[range]] = {}
    for start, block in zip(starts, layout.blocks, strict=False):
        rows = families.setdefault((block.ancestors, block.start), [])
        rows += [range(at, at + block.length) for at in range(start, start + block.rows * block.length, block.length)]
    pieces: list[Piece] = []
    places, total = [0] * layout.length, 0
    for (ancestors, start), family in families.items():
        waiting = sorted(family, key=len, reverse=True)
        while waiting:
            length = len(waiting[0])
            added = hidden(Block(1, length, ancestors, start))
            later = torch.ones_like(added, dtype=torch.bool).triu(start + 1)
            causal = bool((added[later] == -torch.inf).all())
            rows = [row for row in waiting if len(row) >= (SIMILAR if causal else 1) * length]
            waiting = waiting[len(rows) :]
            beyond: list[int] = []
            for first, row in zip(range(0, len(rows) * length, length), rows, strict=True):
                beyond += range(first + len(row), first + length)
                places[row.start : row.stop] = range(total + first, total + first + len(row))
            total += len(rows) * length
            own = [min(at, row[-1]) for row in rows for at in range(row.start, row.start + length)]
            before = tuple(slice(starts[number], starts[number + 1]) for number in ancestors)
            pieces.append(Piece(len(rows), length, torch.tensor(own), torch.tensor(beyond).long(), before, added, causal))
    return PaddedRows(tuple(pieces), torch.tensor(places, dtype=torch.long))
