"""How do short sequences attend in bfloat16 on a CPU without paying more for it than for the products around it?

torch's fused attention takes a quarter of a training step there: at rows of 100 tokens its backward pass runs at a twentieth of
the processor's rate. Here attention is composed of batched products over tiles of scores that fit into the processor's cache:
several short rows (`quantkit.training.padded_rows`), or some queries of a long one, where what lies after the last of them is
not computed. Heads that share keys are rows of one product; scores and softmax are float32. The inputs are kept and a small
softmax; a larger one is taken again. Forward and backward together took 0.36 of the fused one's time at 100 tokens, 0.45 at
128, 0.6 at 512 and the same from 1,024 on, row by row, at smaller errors; rows together and the softmax that is kept take
another quarter off at 30 to 130 tokens; scores by bfloat16 units and larger tiles an eighth to a quarter more. In float32 there
is no gain, on a GPU or with AMX the fused one is what it is made for: `fits` says no. Unrolling the softmax by hand, an
alternative, is slower than torch's one kernel for it. Importing this module imports torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from quantkit.training.padded_rows import PaddedRows, Piece

TILE = 2**19
"""Scores of one tile: 2 MB in float32, 1 MB in bfloat16. Half of it took a tenth longer, twice as much is no faster."""
FEWEST = 16
"""Queries of a tile, at least."""
KEPT = 2
"""The softmax of rows of at most this many times `dim` tokens is kept for the backward pass rather than taken again: at 100
tokens a fifth of attention's time for at most twice the memory of its queries."""


def fits(query: Tensor) -> bool:
    """Whether this is faster than torch's fused attention: bfloat16, or autocast to it, on a CPU without AMX."""
    if query.device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return False
    return _dtype(query) is torch.bfloat16


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, rows: PaddedRows, *, scale: float) -> Tensor:
    """Return attention [1, tokens, heads, dim] of query [1, heads, tokens, dim] over key and value [1, groups, tokens, dim]."""
    dtype = _dtype(query)
    apply: Any = _Attention.apply
    states = (item[0].to(dtype).transpose(0, 1) for item in (query, key, value))
    return torch.as_tensor(apply(*states, rows, scale)).unsqueeze(0)


def _dtype(query: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype


class _Attention(Function):
    """softmax(scale · q·kᵀ + hidden) · v for q [tokens, heads, dim], k and v [tokens, groups, dim]."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Return the output [tokens, heads, dim] in the inputs' data type; arguments: q, k, v, rows, scale."""
        *states, rows, scale = arguments
        gathered, kept = _room(rows, states[0].shape[1], states[2]), list[Tensor]()
        with torch.autocast("cpu", enabled=False):
            for piece, part in zip(rows.pieces, _parts(gathered, rows), strict=True):
                queries, keys, values = _gathered(piece, states)
                outputs = _grouped(part, piece, keys.shape[1])
                for tile in _tiles(queries, keys, piece):
                    weights = _weights(queries, keys, piece, tile, scale)
                    if _is_kept(keys):
                        kept.append(weights)
                    product = torch.bmm(weights, tile.of_keys(values))
                    place = tile.of_queries(outputs)
                    place.copy_(product.view(place.shape))
        ctx.save_for_backward(*states, *kept)
        ctx.rows, ctx.scale = rows, scale
        return gathered.index_select(0, rows.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradients of q, k and v."""
        saved, rows, scale = ctx.saved_tensors, ctx.rows, ctx.scale  # asked for once: checkpointing gives them no second time
        states, kept = saved[:3], iter(saved[3:])
        gathered = [_room(rows, item.shape[1], item) for item in states]
        earlier: list[tuple[Piece, list[Tensor]]] = []
        with torch.autocast("cpu", enabled=False):
            for piece, *parts in zip(rows.pieces, *(_parts(item, rows) for item in gathered), strict=True):
                queries, keys, values = _gathered(piece, states)
                of_output = outer[0].index_select(0, piece.own).index_fill_(0, piece.beyond, 0)
                of_queries, of_output = (_grouped(item, piece, keys.shape[1]) for item in (parts[0], of_output))
                sums = _backward((queries, keys, values), of_output, of_queries, piece, scale, kept)
                start = keys.shape[2] - piece.length
                for part, of_them in zip(parts[1:], sums, strict=True):
                    part.view(piece.rows, piece.length, *part.shape[1:]).copy_(of_them[:, :, start:].transpose(1, 2))
                if start:
                    earlier.append((piece, [of_them[:, :, :start].sum(0).transpose(0, 1) for of_them in sums]))
        results = [item.index_select(0, rows.places) for item in gathered]
        for piece, sums in earlier:
            for result, of_them in zip(results[1:], sums, strict=True):
                first = 0
                for span in piece.before:
                    first, before = first + span.stop - span.start, first
                    result[span] += of_them[before:first]
        return *results, None, None


def _backward(  # noqa: PLR0917
    states: tuple[Tensor, ...], of_output: Tensor, of_queries: Tensor, piece: Piece, scale: float, kept: Iterator[Tensor]
) -> list[Tensor]:
    """Return the gradients of a piece's keys and values in float32; write that of its queries."""
    queries, keys, values = states
    of_keys, of_values = (torch.zeros(item.shape) for item in (keys, values))
    for tile in _tiles(queries, keys, piece):
        weights = next(kept) if _is_kept(keys) else _weights(queries, keys, piece, tile, scale)
        part = _flat(tile.of_queries(queries))
        of_tile = _flat(tile.of_queries(of_output))
        of_weights = torch.bmm(of_tile, tile.of_keys(values).transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        place = tile.of_queries(of_queries)
        torch.mul(torch.bmm(of_scores, tile.of_keys(keys)).view(place.shape), scale, out=place)
        of_seen = of_keys[tile.rows, :, : tile.seen], of_values[tile.rows, :, : tile.seen]
        of_seen[0].add_(torch.bmm(of_scores.transpose(1, 2), part).view(of_seen[0].shape), alpha=scale)
        of_seen[1].add_(torch.bmm(weights.transpose(1, 2), of_tile).view(of_seen[1].shape))
    return [of_keys, of_values]


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some rows of a piece, some of their queries, and how many tokens these see."""

    rows: slice
    queries: slice
    seen: int

    def of_queries(self, states: Tensor) -> Tensor:
        """Return the tile's part of states [rows, groups, heads, length, dim]."""
        return states[self.rows, :, :, self.queries]

    def of_keys(self, states: Tensor) -> Tensor:
        """Return the tile's part of states [rows, groups, size, dim], as [rows · groups, seen, dim]."""
        return states[self.rows, :, : self.seen].flatten(0, 1)


def _tiles(queries: Tensor, keys: Tensor, piece: Piece) -> Iterator[_Tile]:
    """Yield what makes about `TILE` scores at a time: whole rows, or some queries of one row."""
    size = keys.shape[2]
    of_query = queries.shape[1] * queries.shape[2] * size
    together = TILE // (of_query * piece.length)
    if together:
        for first in range(0, piece.rows, together):
            yield _Tile(slice(first, first + together), slice(0, piece.length), size)
        return
    parts = -(-piece.length // max(FEWEST, TILE // of_query))
    step = -(-piece.length // parts)
    for row in range(piece.rows):
        for first in range(0, piece.length, step):
            last = min(first + step, piece.length)
            yield _Tile(slice(row, row + 1), slice(first, last), size - piece.length + last if piece.causal else size)


def _is_kept(keys: Tensor) -> bool:
    return keys.shape[2] <= KEPT * keys.shape[3]


def _weights(queries: Tensor, keys: Tensor, piece: Piece, tile: _Tile, scale: float) -> Tensor:
    """Return a tile's softmax [rows · groups, heads · queries, seen] in the inputs' data type, taken in float32."""
    hidden = piece.hidden[tile.queries, : tile.seen].repeat(queries.shape[2], 1)
    part = _flat(tile.of_queries(queries))
    with _products_of_bfloat16(queries.dtype):
        scores = torch.baddbmm(hidden, part.float(), tile.of_keys(keys).float().transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1).to(queries.dtype)


@contextmanager
def _products_of_bfloat16(dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 numbers that were bfloat16 ones be taken by bfloat16 units, which add up in float32: exact, and
    half the time. A product of bfloat16 tensors, the alternative, would be rounded to bfloat16.
    """
    library: Any = torch.backends.mkldnn
    products = library.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16" if dtype is torch.bfloat16 else before
    try:
        yield
    finally:
        products.fp32_precision = before


def _flat(states: Tensor) -> Tensor:
    """Return states [rows, groups, heads, length, dim] as [rows · groups, heads · length, dim]."""
    return states.reshape(states.shape[0] * states.shape[1], -1, states.shape[-1])


def _gathered(piece: Piece, states: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [rows, groups, heads, length, dim], and keys and values [rows, groups, size, dim] of a piece."""
    queries, *seen = (item.index_select(0, piece.own) for item in states)
    keys, values = (
        torch.cat(
            [*(item[span].expand(piece.rows, -1, -1, -1) for span in piece.before), own.view(piece.rows, -1, *own.shape[1:])], 1
        )
        .transpose(1, 2)
        .contiguous()
        for item, own in zip(states[1:], seen, strict=True)
    )
    return _grouped(queries, piece, keys.shape[1]), keys, values


def _grouped(states: Tensor, piece: Piece, groups: int) -> Tensor:
    """Return states [rows · length, heads, dim] as [rows, groups, heads of a group, length, dim], the same memory."""
    return states.view(piece.rows, piece.length, groups, -1, states.shape[-1]).permute(0, 2, 3, 1, 4)


def _room(rows: PaddedRows, heads: int, like: Tensor) -> Tensor:
    return like.new_empty(sum(len(piece.own) for piece in rows.pieces), heads, like.shape[-1])


def _parts(states: Tensor, rows: PaddedRows) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(states, [len(piece.own) for piece in rows.pieces])
