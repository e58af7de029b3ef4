"""In which order do the rows come, so that a resumed run sees exactly the rows it has not seen?

The order is a pure function of seed and epoch. transformers' samplers draw it from the global random state instead; with
grouping by length a run resumed in the middle of an epoch then sees another order, some rows twice and some never.
"""

import random
from collections.abc import Iterator, Sequence

BATCHES_PER_POOL = 50
"""Rows are sorted by length within random pools of this many batches: little padding, and batches still differ."""


class RowOrder:
    """A sampler over row numbers; `set_epoch` chooses the epoch."""

    def __init__(self, lengths: Sequence[int], *, seed: int, group: int | None = None) -> None:
        """`lengths` in tokens; rows of similar length stand together in groups of `group` rows, None: anywhere."""
        self._lengths, self._seed, self._group = lengths, seed, group
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}/{self._epoch}")
        rows = list(range(len(self._lengths)))
        chance.shuffle(rows)
        if self._group is None:
            yield from rows
            return
        pool = self._group * BATCHES_PER_POOL
        groups: list[list[int]] = []
        for start in range(0, len(rows), pool):
            ordered = sorted(rows[start : start + pool], key=lambda row: -self._lengths[row])
            groups += [ordered[at : at + self._group] for at in range(0, len(ordered), self._group)]
        last = [groups.pop()] if groups and len(groups[-1]) < self._group else []  # an incomplete batch can only be the last
        longest = max(range(len(groups)), key=lambda at: self._lengths[groups[at][0]], default=None)
        first = [groups.pop(longest)] if longest is not None else []  # what does not fit into memory fails at once
        chance.shuffle(groups)
        for group in first + groups + last:
            yield from group
