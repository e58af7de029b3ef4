"""How do rows that stand in one sequence attend to themselves only, in any model that dispatches its attention?

transformers lets an attention function be registered by name, and modules pass it queries, keys and values of the whole
sequence. Here they are split at the layout's blocks, and each block runs through transformers' own attention (in bfloat16 on a
CPU through `quantkit.training.tiled_attention`) with the keys of its ancestors before its own. What a token may see in its row
(sliding windows, chunks) is read from the mask function that the model hands over, so no family is named. One mask over the
whole sequence, the alternative, has the square of its length and hides nearly all of it. Importing this module imports
transformers.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from quantkit.errors import QuantkitError
from quantkit.layers import bare_model
from quantkit.training.layouts import Block, Layout
from quantkit.training.padded_rows import PaddedRows, padded_rows
from quantkit.training.tiled_attention import fits, tiled_attention

NAME = "quantkit_rows"
ONLY_EAGER = ("softcap", "s_aux")
"""Keywords of attention modules (soft-capped scores, sinks) that torch's fused attention does not know."""

_current: ContextVar[Layout | None] = ContextVar("layout", default=None)
_fused: ContextVar[bool] = ContextVar("fused", default=False)


class BlockMasks:
    """The layout of a forward pass and what its tokens may see."""

    def __init__(self, layout: Layout, may_see: Any, device: Any) -> None:
        self.layout, self._may_see, self._device = layout, may_see, device

    @cached_property
    def visible(self) -> list[Any]:
        """Per block what its queries may see: booleans [length, start + length], or None where that is every token up to its
        own and nothing stands before.
        """
        return [_visible(block, self._may_see, self._device) for block in self.layout.blocks]

    @cached_property
    def together(self) -> PaddedRows:
        """Rows of similar length together."""
        return padded_rows(self.layout, self._hidden)

    def _hidden(self, block: Block) -> torch.Tensor:
        """Return what is added to a block's scores [length, start + length]: minus infinity where nothing may be seen."""
        visible = _visible(block, self._may_see, "cpu")
        size = block.start + block.length
        visible = torch.ones(block.length, size, dtype=torch.bool).tril(block.start) if visible is None else visible
        return torch.zeros(block.length, size).masked_fill_(~visible, -torch.inf)


@contextmanager
def laid_out(layout: Layout | None, *, fused: bool = False) -> Iterator[None]:
    """Say how the batch of the forward passes within is laid out; None: as usual, padded.

    `fused`: through torch's own attention everywhere, so that logits are comparable to those of padded batches bit for bit.
    """
    tokens = _current.set(layout), _fused.set(fused)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        _fused.reset(tokens[1])


@contextmanager
def rows_apart(model: Any) -> Iterator[None]:
    """Let a model's attention follow `laid_out` within; its configuration is as before afterwards."""
    configs = {id(module.config): module.config for module in bare_model(model).modules() if hasattr(module, "config")}
    kept = [(item, item._attn_implementation_internal) for item in configs.values() if hasattr(item, "_attn_implementation")]
    try:
        for item, _ in kept:
            item._attn_implementation_internal = NAME
        yield
    finally:
        for item, before in kept:
            item._attn_implementation_internal = before


def block_masks(*, mask_function: Any, device: Any = "cpu", **arguments: Any) -> Any:
    """Return what each block may see; the usual mask where no layout is set."""
    layout = _current.get()
    if layout is None:
        return sdpa_mask(mask_function=mask_function, device=device, **arguments)
    return BlockMasks(layout, mask_function, device)


def block_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **named: Any
) -> tuple[Any, None]:
    """Return attention [1, tokens, heads, dim] of query [1, heads, tokens, dim] and key, value [1, groups, tokens, dim].

    Raises:
        QuantkitError: the model makes a mask of its own, or adds a bias of its own to the scores.
    """
    if not isinstance(attention_mask, BlockMasks):
        if _current.get() is None:
            return _attend(module, query, key, value, attention_mask, named), None
        raise QuantkitError("its attention gets a mask that does not come from transformers' mask functions")
    if named.get("position_bias") is not None:
        raise QuantkitError("its attention adds a bias that depends on the distance of two tokens")
    fused = _fused.get() or named.get("dropout") or any(named.get(word) is not None for word in ONLY_EAGER)
    if fits(query) and not fused:
        scale = float(query.shape[-1] ** -0.5 if named.get("scaling") is None else named["scaling"])
        return tiled_attention(query, key, value, attention_mask.together, scale=scale), None
    blocks = attention_mask.layout.blocks
    sizes = [block.rows * block.length for block in blocks]
    queries, keys, values = (states.split(sizes, dim=2) for states in (query, key, value))
    outputs = []
    for number, (block, visible) in enumerate(zip(blocks, attention_mask.visible, strict=True)):
        states = (
            _pieces(queries[number], block),
            _with_ancestors(keys, block, number),
            _with_ancestors(values, block, number),
        )
        output = _attend(module, *states, None if visible is None else visible[None, None], named)
        outputs.append(output.reshape(1, sizes[number], *output.shape[2:]))
    return torch.cat(outputs, dim=1), None


def _visible(block: Block, may_see: Any, device: Any) -> Any:
    if not block.ancestors and may_see is causal_mask_function:
        return None
    size = block.start + block.length
    query, key = torch.arange(block.start, size)[:, None], torch.arange(size)[None, :]
    first = torch.zeros((), dtype=torch.long)
    seen = torch.broadcast_to(may_see(first, first, query, key).cpu(), (block.length, size))
    plain = not block.ancestors and torch.equal(seen, (key <= query))
    return None if plain else seen.to(device)


def _pieces(states: Any, block: Block) -> Any:
    """Return states [1, heads, rows · length, dim] as [rows, heads, length, dim], the same memory."""
    return states[0].unflatten(1, (block.rows, block.length)).transpose(0, 1)


def _with_ancestors(states: tuple[Any, ...], block: Block, number: int) -> Any:
    own = _pieces(states[number], block)
    if not block.ancestors:
        return own
    return torch.cat([*(states[each].expand(block.rows, -1, -1, -1) for each in block.ancestors), own], dim=2)


def _attend(module: Any, query: Any, key: Any, value: Any, visible: Any, named: dict[str, Any]) -> Any:  # noqa: PLR0917
    """Return attention [rows, length, heads, dim]; `visible` None means causal."""
    if all(named.get(word) is None for word in ONLY_EAGER):
        return sdpa_attention_forward(module, query, key, value, visible, **named)[0]
    if visible is None:
        visible = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    added = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, added if added.ndim == 4 else added[None, None], **named)[0]


AttentionInterface.register(NAME, block_attention)
AttentionMaskInterface.register(NAME, block_masks)
