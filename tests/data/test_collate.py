"""Rows of different lengths become one batch, and labels never depend on the pad token."""

import torch

from quantkit.data import Collator, EncodedRow


def test_rows_are_padded_on_the_right_with_a_mask() -> None:
    batch = Collator(pad_token_id=9)([EncodedRow([1, 2, 3], [-100, 2, 3], 1), EncodedRow([4], [4], 2)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}


def test_an_end_token_equal_to_the_pad_token_stays_a_label() -> None:
    batch = Collator(pad_token_id=2)([EncodedRow([1, 2], [-100, 2], 1), EncodedRow([1, 5, 2], [-100, 5, 2], 2)])
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 5, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_mappings_are_collated_like_rows() -> None:
    rows = [EncodedRow([1, 2], [-100, 2], 1), EncodedRow([3], [3], 2)]
    mappings = [{"input_ids": row.input_ids, "labels": row.labels, "row": row.row} for row in rows]
    ours, theirs = Collator(0)(rows), Collator(0)(mappings)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
