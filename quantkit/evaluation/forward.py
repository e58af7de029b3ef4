"""How are rows of unequal length run at once, so that the end of each can be read and gone on from?

Rows are padded on the left and told their positions, as generation has it: their ends line up, so one slice of logits holds
what follows every row, and a key/value cache can be continued. What a model's own forward does not take (`position_ids`,
`logits_to_keep`) is left out, and the slice is cut afterwards; the numbers are the same.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PASS_TOKENS = {"cpu": 32}
"""About how many tokens one more pass costs as much as, by type of device: reading the weights, starting the kernels."""
PASS_TOKENS_ELSEWHERE = 4096
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


def pass_tokens(model: Any) -> int:
    """Return about how many tokens one more pass of this model costs as much as."""
    return PASS_TOKENS.get(model.device.type, PASS_TOKENS_ELSEWHERE)


def batches(
    lengths: Sequence[int], *, one_pass: int, most_rows: int | None = None, most_positions: int | None = None
) -> list[range]:
    """Cut rows that stand in falling order of length into batches, so that padding and passes together cost least.

    A pass costs as much as `one_pass` tokens. No batch is of more than `most_rows` rows, nor, padding included, of more than
    `most_positions` tokens, but for one row alone.

    >>> batches([100, 98, 97, 20, 19], one_pass=32, most_rows=4), batches([9, 9, 9], one_pass=32, most_positions=20)
    ([range(0, 3), range(3, 5)], [range(0, 1), range(1, 3)])
    """
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the rows up to here, and where the last batch of them begins
    for stop in range(1, len(lengths) + 1):
        options = []
        for start in range(stop - 1, -1, -1):
            rows, tokens = stop - start, (stop - start) * lengths[start]
            too_many = most_rows is not None and rows > most_rows
            if rows > 1 and (too_many or (most_positions is not None and tokens > most_positions)):
                break
            options.append((best[start][0] + tokens + one_pass, start))
        best.append(min(options))
    found, stop = [], len(lengths)
    while stop:
        start = best[stop][1]
        found.append(range(start, stop))
        stop = start
    return found[::-1]


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
