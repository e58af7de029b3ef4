"""In which order do the rows come, so that a resumed run sees exactly the rows it has not seen?

The order is a pure function of seed and epoch. transformers' samplers draw it from the global random state instead; with
grouping by length a run resumed in the middle of an epoch then sees another order, some rows twice and some never.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quantkit.console import say
from quantkit.data.encode import IGNORED, EncodedRow
from quantkit.data.packing import packs
from quantkit.layout import counted

if TYPE_CHECKING:
    from quantkit.config import RunConfig

BATCHES_PER_POOL = 50
"""Rows are sorted by length within random pools of this many batches: little padding, and batches still differ."""


class RowOrder:
    """A sampler over row numbers; `set_epoch` chooses the epoch."""

    def __init__(self, lengths: Sequence[int], *, seed: int, group: int | None = None, fill: int = 0) -> None:
        """`lengths` in tokens; rows of similar length stand together in groups of `group` rows, None: anywhere.

        After every epoch come `fill` numbers past the last row.
        """
        self._lengths, self._seed, self._group, self._fill = lengths, seed, group, fill
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) + self._fill

    def __iter__(self) -> Iterator[int]:
        yield from self._rows()
        yield from range(len(self._lengths), len(self))

    def _rows(self) -> Iterator[int]:
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


def items_of(rows: Sequence[EncodedRow], config: "RunConfig", *, packing: bool) -> list[list[EncodedRow]]:
    """Return what a batch has `per_device_train_batch_size` of: packs of rows, or single rows."""
    if not packing:
        return [[row] for row in rows]
    return [[rows[number] for number in pack] for pack in packs([len(row.input_ids) for row in rows], config.max_length)]


def total_steps(items: int, config: "RunConfig", processes: int = 1) -> int:
    """Return the number of optimizer steps: `max_steps`, else what `num_train_epochs` over so many rows or packs gives."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(items / (config.per_device_train_batch_size * processes))
    return math.ceil(config.num_train_epochs * math.ceil(batches / config.gradient_accumulation_steps))


@dataclass(frozen=True, slots=True)
class WithRows:
    """A collator of items (lists of rows) that also says which rows of the data set a batch holds; it can be pickled."""

    collate: Any

    def __call__(self, items: Sequence[Sequence[Any]]) -> dict[str, Any]:
        import torch

        rows = [row for item in items for row in item]
        learnt = [row for row in rows if row.supervised]
        numbers = torch.tensor([row.row for row in learnt], dtype=torch.long)
        return {**self.collate(rows), "rows": numbers, "tokens": sum(len(row.input_ids) for row in learnt)}


def fillers(items: Sequence[list[Any]], count: int, *, own_loss: bool = False, notice: bool = True) -> list[list[Any]]:
    """Return items that fill up an epoch's last batches, so that every process has as many: two tokens without a label.

    Rows from the beginning, the usual way, would be trained on twice; only a loss of the model's own leaves no choice.
    """
    if own_loss and count:
        if notice:
            twice = f"{counted(count, 'row')} repeated in an epoch"
            say(f"{twice}, so that all processes have as many: this model has a loss of its own")
        return [items[number % len(items)] for number in range(count)]
    row = items[0][0]
    return [[replace(row, input_ids=row.input_ids[:2], labels=[IGNORED, IGNORED])]] * count
