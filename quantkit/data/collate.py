"""How do rows of different lengths become one batch? Padded on the right, with a mask; labels are padded with -100.

Labels come from the rows alone. Masking labels wherever the id equals the pad id, as `DataCollatorForLanguageModeling`
does, erases the end token of tokenizers with pad = eos, and the model never learns to stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.data.encode import IGNORED, EncodedRow

if TYPE_CHECKING:
    from torch import Tensor

Rows = Sequence[EncodedRow] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes `input_ids`, `attention_mask` and `labels`, LongTensors `[batch, length]` of the longest row's length.

    >>> batch = Collator(pad_token_id=0)([EncodedRow([5, 6], [-100, 6], 1), EncodedRow([7], [-100], 2)])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]], [[-100, 6], [-100, -100]])
    """

    pad_token_id: int

    def __call__(self, rows: Rows) -> "dict[str, Tensor]":
        """Pad rows (`EncodedRow`s, or mappings with `input_ids` and `labels`) into one batch."""
        import torch

        pairs = pairs_of(rows)
        length = max(len(ids) for ids, _ in pairs)
        batch = {
            "input_ids": torch.full((len(pairs), length), self.pad_token_id, dtype=torch.long),
            "attention_mask": torch.zeros((len(pairs), length), dtype=torch.long),
            "labels": torch.full((len(pairs), length), IGNORED, dtype=torch.long),
        }
        for index, (ids, labels) in enumerate(pairs):
            batch["input_ids"][index, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
            batch["attention_mask"][index, : len(ids)] = 1
            batch["labels"][index, : len(labels)] = torch.as_tensor(labels, dtype=torch.long)
        return batch


def pairs_of(rows: Rows) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return each row's token ids and labels."""
    return [(row.input_ids, row.labels) if isinstance(row, EncodedRow) else (row["input_ids"], row["labels"]) for row in rows]
