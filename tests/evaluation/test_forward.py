"""Batches of rows of unequal length against every way to cut them, on few rows."""

import random
from itertools import combinations, pairwise

import pytest

from quantkit.evaluation.forward import batches


def cost(lengths: list[int], cuts: list[int], one_pass: int) -> int:
    edges = [0, *cuts, len(lengths)]
    return sum((stop - start) * lengths[start] + one_pass for start, stop in pairwise(edges))


@pytest.mark.parametrize("one_pass", [0, 5, 1000])
def test_batches_cost_as_little_as_the_best_of_all_cuts(one_pass: int) -> None:
    chance = random.Random(0)
    for _ in range(20):
        lengths = sorted((chance.randint(1, 60) for _ in range(8)), reverse=True)
        found = batches(lengths, one_pass=one_pass, most_rows=5)
        assert [row for batch in found for row in batch] == list(range(8))
        ways = (list(cuts) for count in range(8) for cuts in combinations(range(1, 8), count))
        allowed = [cuts for cuts in ways if max(b - a for a, b in zip([0, *cuts], [*cuts, 8], strict=True)) <= 5]
        assert cost(lengths, [batch.start for batch in found[1:]], one_pass) == min(
            cost(lengths, cuts, one_pass) for cuts in allowed
        )


def test_a_row_longer_than_the_limit_goes_alone() -> None:
    assert batches([50, 9, 9], one_pass=100, most_positions=20) == [range(0, 1), range(1, 3)]


def test_no_rows_make_no_batch() -> None:
    assert batches([], one_pass=1) == []
