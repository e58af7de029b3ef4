"""How full is the fullest batch of a run? Counted from its rows, in the order in which they will come.

Peaks are decided by one batch: of rows of very different lengths it is half as long as `max_length` times the rows, and
prefixes that are computed once make it shorter again. Taking the product, as a plan without data must, would refuse runs
that fit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.data.encode import EncodedRow
from quantkit.data.packing import packs
from quantkit.training.layouts import lay_out
from quantkit.training.order import RowOrder, total_steps

if TYPE_CHECKING:
    from quantkit.config import RunConfig

MOST_EPOCHS = 20
"""Epochs whose orders are looked at; later ones are drawn alike."""
LAID_OUT = 8
"""Batches of the most tokens for which shared prefixes are looked for."""


@dataclass(frozen=True, slots=True)
class Fullest:
    """The largest of each over the batches of a run."""

    items: int
    """Rows or packs of a forward pass: the batch size, or all there are where that is less."""
    tokens: int
    """Positions of a forward pass: padding counted, shared ones once."""
    supervised: int
    """Positions a loss is taken on."""
    longest: int
    """Tokens of the longest row."""
    mean_length: float
    """Tokens of an average row."""
    steps: int
    """Optimizer steps of the run."""


def fullest_batch(rows: Sequence[EncodedRow], config: "RunConfig", *, processes: int = 1) -> Fullest:
    """Return how full the fullest batch of a run is; of several processes, that of any of them."""
    lengths = [len(row.input_ids) for row in rows]
    learnt = [row.supervised for row in rows]
    items = packs(lengths, config.max_length) if config.packing else [[number] for number in range(len(rows))]
    batches = list(_batches(items, lengths, config, processes))

    def size(batch: Sequence[int]) -> int:
        return sum(lengths[row] for row in batch) if config.padding_free else len(batch) * max(lengths[row] for row in batch)

    fullest = sorted(batches, key=size, reverse=True)
    tokens = size(fullest[0])
    if config.padding_free and config.prefix_sharing:
        tokens = max(_laid_out([rows[row] for row in batch]) for batch in fullest[:LAID_OUT])
    return Fullest(
        items=min(config.per_device_train_batch_size, len(items)),
        tokens=tokens,
        supervised=max(sum(learnt[row] for row in batch) for batch in batches),
        longest=max(lengths),
        mean_length=sum(lengths) / len(lengths),
        steps=total_steps(len(items), config, processes),
    )


def _batches(
    items: Sequence[Sequence[int]], lengths: Sequence[int], config: "RunConfig", processes: int
) -> Iterator[list[int]]:
    """Yield the rows of each forward pass."""
    size = config.per_device_train_batch_size
    per_step = size * config.gradient_accumulation_steps * processes
    wanted = total_steps(len(items), config, processes) * per_step
    order = RowOrder(
        [sum(lengths[row] for row in item) for item in items],
        seed=config.seed,
        group=per_step if config.group_by_length else None,
    )
    for epoch in range(min(math.ceil(wanted / len(items)), MOST_EPOCHS)):
        order.set_epoch(epoch)
        numbers = list(order)[: wanted - epoch * len(items)]
        for start in range(0, len(numbers), size):
            yield [row for number in numbers[start : start + size] for row in items[number]]


def _laid_out(rows: Sequence[EncodedRow]) -> int:
    return lay_out([(row.input_ids, row.labels) for row in rows], share=True).layout.length
