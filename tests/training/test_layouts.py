"""Does every token stand where the layout says, once where rows may share it?"""

import random

import pytest

from quantkit.data.packing import packs
from quantkit.training.layouts import Block, FlatCollator, lay_out


def row(beginning: list[int], own: list[int], learnt: int = 1) -> tuple[list[int], list[int]]:
    ids = beginning + own
    return ids, [-100] * (len(ids) - learnt) + ids[len(ids) - learnt :]


def random_rows(seed: int) -> list[tuple[list[int], list[int]]]:
    chance = random.Random(seed)
    beginnings = [[chance.randrange(3) for _ in range(chance.randrange(12))] for _ in range(3)]
    return [row(chance.choice(beginnings), [chance.randrange(3) for _ in range(chance.randrange(1, 9))], 1) for _ in range(9)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [False, True])
def test_every_row_can_be_read_back(seed: int, share: bool) -> None:
    rows = random_rows(seed)
    flat = lay_out(rows, share=share, least_saved=1)
    assert flat.layout.tokens == sum(len(ids) for ids, _ in rows)
    assert flat.layout.length == len(flat.input_ids) == len(flat.labels) == len(flat.position_ids)
    for (ids, labels), places in zip(rows, flat.places, strict=True):
        assert [flat.input_ids[place] for place in places] == ids
        assert [flat.position_ids[place] for place in places] == list(range(len(ids)))
        assert [flat.labels[place] for place in places[1:]] == labels[1:]
    learnt = sum(label != -100 for _, labels in rows for label in labels[1:])
    assert sum(label != -100 for label in flat.labels[1:]) == learnt
    if not share:
        assert flat.layout.length == flat.layout.tokens


@pytest.mark.parametrize("seed", range(20))
def test_a_block_stands_behind_its_ancestors_and_begins_where_they_end(seed: int) -> None:
    blocks = lay_out(random_rows(seed), share=True, least_saved=1).layout.blocks
    for number, block in enumerate(blocks):
        assert all(ancestor < number and blocks[ancestor].rows == 1 for ancestor in block.ancestors)
        assert block.start == sum(blocks[ancestor].length for ancestor in block.ancestors)


def test_beginnings_of_beginnings_are_shared() -> None:
    system, first, second = list(range(10)), list(range(20, 30)), list(range(40, 50))
    rows = [row(system + text, [90 + number, 7]) for number, text in enumerate((first, first, second, second))]
    flat = lay_out(rows, share=True)
    assert flat.layout.blocks[:3] == (Block(1, 10), Block(1, 10, (0,), 10), Block(1, 10, (0,), 10))
    assert [block.ancestors for block in flat.layout.blocks[3:]] == [(0, 1), (0, 2)]
    assert flat.layout.length == 10 + 2 * 10 + 4 * 2


def test_the_token_that_predicts_the_first_label_is_never_shared() -> None:
    flat = lay_out([row(list(range(12)), [5, 6], 2)] * 2, share=True)
    assert flat.layout.blocks == (Block(1, 11), Block(2, 3, (0,), 11))


def test_few_tokens_are_not_worth_a_block() -> None:
    rows = [row([1, 2, 3], [4 + number, 5]) for number in range(2)]
    assert lay_out(rows, share=True).layout.length == 10
    assert lay_out(rows, share=True, least_saved=3).layout.length == 7


def test_what_a_few_share_is_shared_though_all_share_too_little() -> None:
    rows = [row([1], [9 + number, 5]) for number in range(2)] + [
        row([1, *range(30, 40)], [9 + number, 5]) for number in range(2)
    ]
    flat = lay_out(rows, share=True)
    assert flat.layout.blocks[0] == Block(1, 11)
    assert flat.layout.length == flat.layout.tokens - 11


def test_rows_of_equal_length_are_one_block() -> None:
    assert lay_out([row([1], [2]), row([3, 4], [5]), row([6], [7])], share=False).layout.blocks == (Block(2, 2), Block(1, 3))


def test_the_first_token_of_a_row_is_predicted_by_no_other_row() -> None:
    batch = FlatCollator()([{"input_ids": [4, 5], "labels": [4, 5]}, {"input_ids": [6, 7], "labels": [6, 7]}])
    assert batch["labels"].tolist() == [[-100, 5, -100, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("capacity", [7, 20, 64])
def test_packs_hold_every_row_once_and_no_more_than_fits(capacity: int) -> None:
    lengths = [(37 * number) % 20 + 1 for number in range(100)]
    made = packs(lengths, capacity)
    assert sorted(row for pack in made for row in pack) == list(range(100))
    assert all(sum(lengths[row] for row in pack) <= capacity or len(pack) == 1 for pack in made)
    if capacity == 64:
        assert len(made) <= sum(lengths) / capacity + 1
