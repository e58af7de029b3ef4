"""How do short sequences attend in bfloat16 on a CPU without paying more for it than for the products around it?

torch's fused attention takes a quarter of a training step there: at rows of 100 tokens its backward pass runs at a twentieth of
the processor's rate. Here attention is composed of batched products over tiles of queries: a tile's scores fit into the
processor's cache, what lies after its last query is not computed, heads that share keys are rows of one product, and scores and
softmax are float32. Only the inputs and the output are kept; the backward pass takes the softmax again. Forward and backward
together took 0.36 of the fused one's time at 100 tokens, 0.45 at 128, 0.6 at 512, the same from 1,024 on, with errors a third
smaller. In float32 there is no gain, on a GPU or with AMX the fused one is what it is made for: `fits` says no. Unrolling
the softmax by hand, an alternative, is slower than torch's one kernel for it. Importing this module imports torch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TILE = 2**16
"""Scores of one tile and head of keys: 256 kB in float32, what the cache of one core holds beside the rest."""
FEWEST = 16
"""Queries of a tile, at least."""


def fits(query: Tensor) -> bool:
    """Whether this is faster than torch's fused attention: bfloat16, or autocast to it, on a CPU without AMX."""
    if query.device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype is torch.bfloat16


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, added: Tensor, *, scale: float, causal: bool) -> Tensor:
    """Return attention [rows, heads, length, dim] of query, its shape, over key and value [rows, groups, size, dim].

    `added` [length, size] in float32 is added to the scores: minus infinity where a token must not see another. With
    `causal` the last `length` of the `size` tokens are the queries' own, and nothing after one's own is seen.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    states = (item.to(dtype) for item in (query, key, value))
    apply: Any = _Attention.apply
    return torch.as_tensor(apply(*states, added, scale, causal))


class _Attention(Function):
    """softmax(scale · q·kᵀ + added) · v, in tiles of queries."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Return the output in the inputs' data type; arguments: query, key, value, added, scale, causal."""
        query, key, value, added, scale, causal = arguments
        with torch.autocast("cpu", enabled=False):
            grouped = _grouped(query, key)
            output = torch.empty_like(grouped, memory_format=torch.contiguous_format)
            keys = key.float().transpose(-1, -2)
            for first, last, seen in _tiles(grouped, key, causal):
                weights = _weights(grouped[..., first:last, :], keys[..., :seen], added[first:last, :seen], scale)
                output[..., first:last, :] = (weights.to(value.dtype) @ value[..., :seen, :]).unflatten(2, (-1, last - first))
        ctx.save_for_backward(query, key, value, added)
        ctx.scale, ctx.causal = scale, causal
        return output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradients of query, key and value."""
        query, key, value, added = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grouped, of_output = _grouped(query, key), _grouped(outer[0], key)
            of_query = torch.empty_like(grouped, memory_format=torch.contiguous_format)
            of_key, of_value = (torch.zeros(item.shape) for item in (key, value))
            keys = key.float().transpose(-1, -2)
            for first, last, seen in _tiles(grouped, key, ctx.causal):
                queries = grouped[..., first:last, :]
                weights = _weights(queries, keys[..., :seen], added[first:last, :seen], ctx.scale)
                of_tile = of_output[..., first:last, :].flatten(2, 3)
                of_weights = (of_tile @ value[..., :seen, :].transpose(-1, -2)).float()
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32).to(query.dtype)
                of_query[..., first:last, :] = (of_scores @ key[..., :seen, :]).unflatten(2, (-1, last - first))
                of_key[..., :seen, :] += of_scores.transpose(-1, -2) @ queries.flatten(2, 3)
                of_value[..., :seen, :] += weights.to(value.dtype).transpose(-1, -2) @ of_tile
            of_query.mul_(ctx.scale)
            of_key.mul_(ctx.scale)
        return of_query.view(query.shape), of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _grouped(states: Any, key: Tensor) -> Any:
    """Return states [rows, heads, length, dim] as [rows, groups, heads of a group, length, dim]."""
    return states.unflatten(1, (key.shape[1], -1))


def _tiles(grouped: Tensor, key: Tensor, causal: bool) -> Iterator[tuple[int, int, int]]:
    """Yield first query, last query and how many tokens they see, both ends after the last one."""
    heads, length, size = grouped.shape[2], grouped.shape[3], key.shape[2]
    parts = -(-length // max(FEWEST, TILE // (heads * size)))
    step = -(-length // parts)
    for first in range(0, length, step):
        last = min(first + step, length)
        yield first, last, size - length + last if causal else size


def _weights(queries: Tensor, keys: Tensor, added: Tensor, scale: float) -> Tensor:
    """Return the softmax [rows, groups, heads · queries, size] in float32 for keys [rows, groups, dim, size]."""
    scores: Any = (queries.float() * scale).flatten(2, 3) @ keys
    scores.unflatten(2, queries.shape[2:4]).add_(added)
    return torch.softmax(scores, -1)
