"""How are rows of unequal length run at once, so that the end of each can be read and gone on from?

Rows are padded on the left and told their positions, as generation has it: their ends line up, so one slice of logits holds
what follows every row, and a key/value cache can be continued. What a model's own forward does not take (`position_ids`,
`logits_to_keep`) is left out, and the slice is cut afterwards; the numbers are the same.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLAIN_ATTENTION = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class End:
    """What is known after some rows: logits `[rows, keep, vocabulary]`, the attention mask so far, the cache if kept."""

    logits: Any
    mask: Any
    cache: Any


def logits_at_end(
    model: Any,
    rows: Any,
    keep: int,
    *,
    cached: bool = False,
    mask: Any = None,
    before: Any = None,
    cache: Any = None,
) -> End:
    """Run rows of token ids and return the logits of their last `keep` positions.

    `rows` is a list of rows, padded here on the left; or a tensor of ids with its `mask`, which goes on from a `cache` whose
    attention mask is `before`.
    """
    import torch
    from transformers import DynamicCache

    if mask is None:
        rows, mask = pad_left(rows)
    ids, mask = rows.to(model.device), mask.to(model.device)
    seen = mask if before is None else torch.cat([before.to(model.device), mask], dim=1)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": seen, "use_cache": cached}
    if cached:
        arguments["past_key_values"] = DynamicCache(config=model.config) if cache is None else cache
    taken = _parameters(model)
    if "position_ids" in taken:
        arguments["position_ids"] = (seen.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in taken:
        arguments["logits_to_keep"] = keep
    output = model(**arguments)
    return End(output.logits[:, -keep:], seen, arguments.get("past_key_values"))


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Return ids and attention mask, int64 `[rows, longest]`; padding is token 0 and masked."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(list(tokens), dtype=torch.long)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


def shares_prefix(model: Any) -> bool:
    """Say whether a cache of one row can be continued by several: attention can, a recurrent state of this cache may not."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) <= PLAIN_ATTENTION
    return not getattr(config, "is_encoder_decoder", False) and hasattr(config, "num_attention_heads")


def _parameters(model: Any) -> set[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)
