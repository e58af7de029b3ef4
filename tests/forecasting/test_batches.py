"""Is the fullest batch of a run counted as the run will have it?"""

from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit.data.encode import IGNORED, EncodedRow
from quantkit.forecasting.batches import fullest_batch
from quantkit.training.layouts import lay_out
from quantkit.training.order import RowOrder

LENGTHS = [10, 30, 20, 50, 40, 15, 25, 35]


def rows(lengths: list[int], *, shared: int = 0) -> list[EncodedRow]:
    """Return rows of these lengths that begin with `shared` equal tokens and learn their last five."""
    made = []
    for number, length in enumerate(lengths, start=1):
        ids = [1] * shared + [100 * number + at for at in range(length - shared)]
        made.append(EncodedRow(ids, [IGNORED] * (length - 5) + ids[-5:], number))
    return made


def config(**changes: Any) -> RunConfig:
    settings = {"model_name_or_path": "tiny", "per_device_train_batch_size": 4, "max_length": 64, "max_steps": 2, "seed": 3}
    return RunConfig(**(settings | changes))


def batches(epoch: int = 0) -> list[list[int]]:
    """Return the lengths in each batch of an epoch, in the order of the run."""
    order = RowOrder(LENGTHS, seed=3)
    order.set_epoch(epoch)
    numbers = list(order)
    return [[LENGTHS[row] for row in numbers[at : at + 4]] for at in (0, 4)]


def test_rows_that_stand_one_behind_another_take_their_sum_in_the_order_they_come() -> None:
    found = fullest_batch(rows(LENGTHS), config())
    assert found.tokens == max(sum(batch) for batch in batches())
    assert (found.supervised, found.longest, found.mean_length, found.steps) == (20, 50, sum(LENGTHS) / 8, 2)


def test_padding_makes_every_row_as_long_as_the_longest_of_its_batch() -> None:
    found = fullest_batch(rows(LENGTHS), config(padding_free=False, prefix_sharing=False))
    assert found.tokens == 4 * 50


def test_only_steps_that_are_done_and_all_their_epochs_count() -> None:
    assert fullest_batch(rows(LENGTHS), config(max_steps=1)).tokens == sum(batches()[0])
    every = [sum(batch) for epoch in range(3) for batch in batches(epoch)]
    found = fullest_batch(rows(LENGTHS), config(max_steps=-1, num_train_epochs=3))
    assert (found.tokens, found.steps) == (max(every), 3 * 2)


def test_shared_beginnings_stand_once() -> None:
    alike = rows([40] * 4, shared=20)
    expected = lay_out([(row.input_ids, row.labels) for row in alike], share=True).layout.length
    assert expected == 20 + 4 * 20
    assert fullest_batch(alike, config()).tokens == expected
    assert fullest_batch(alike, config(prefix_sharing=False)).tokens == 4 * 40


def test_packs_are_batched_like_rows() -> None:
    found = fullest_batch(rows([30] * 8), config(packing=True, per_device_train_batch_size=2))
    assert found.tokens == 2 * 60


def test_a_batch_holds_no_more_than_there_is() -> None:
    packed = config(packing=True, padding_free=True, per_device_train_batch_size=64)
    found = fullest_batch(rows(LENGTHS), packed)
    assert found.items < len(LENGTHS)
    assert found.tokens == sum(LENGTHS)
    assert fullest_batch(rows(LENGTHS), config()).items == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_has_batches_of_its_own(processes: int) -> None:
    assert fullest_batch(rows([30] * 8), config(max_steps=1), processes=processes).tokens == 4 * 30
