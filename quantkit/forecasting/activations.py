"""What does a forward pass keep for its backward pass, per block and at the loss?

Counted operation by operation from this project's step: norms keep float32 copies of their inputs, adapters computed in place
keep a layer's input and x·A, attention its queries, keys, values and output, an MLP its inner tensors (`tests/forecasting`
compares the counts with what autograd really holds). The usual formula, 34 bytes per token and width, knows neither grouped
queries nor gated MLPs, adapters or recomputing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from quantkit.adapters import ATTENTION
from quantkit.forecasting.adapters import AdapterSize
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import LinearShape, ModelShape
from quantkit.forecasting.storage import UNPACKED
from quantkit.recompute import Recompute, mlp_owner
from quantkit.spec import QuantizationSpec
from quantkit.training.tiles import tile_rows

SMALL_RANK = 64
"""Rank of VeRA up to which its product of rank r is not kept (`quantkit.training.frozen_linear`)."""
CHUNKS = 8
"""Chunks of torchtune's chunked cross entropy."""
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
"""What layers after attention are called."""
SPARED = ("v_proj", "qkv_proj")
"""Attention layers whose output attention keeps as it is."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes kept of one block and at the end, for the tokens of the fullest batch."""

    attention: int
    """Of a block: norms, queries, keys, values, outputs, inputs of adapters."""
    mlp: int
    """Of a block: what only its MLP keeps."""
    boundary: int
    """The hidden states between two blocks."""
    mlp_input: int
    last: int
    """Beside the blocks: the last norm, rotary tables, the states that the head gets in tiles and their gradient."""
    logits: int
    """Logits and what the loss makes of them, at their peak."""
    head_gradient: int
    """The gradient of a trained head, where it is formed with the loss, tile by tile."""
    weight_copies: int
    """Copies of trained weights that autocast makes and keeps."""
    backward: int
    """Gradients of a block's widest part that live at once in its backward pass."""
    dequantized: int
    """The widest weight in the data type of the arithmetic, where the held one is another, and DoRA's scaled gradient."""
    recomputed: Recompute
    """Which blocks are computed again."""

    def kept(self, settings: RunSettings, blocks: int) -> int:
        """Return what the first so many blocks keep at the end of a forward pass.

        Inputs of what is computed again are not offloaded (`quantkit.training.offload`), as autograd does not hold them.
        """
        some = self.recomputed.within(blocks)
        if settings.offload:
            return self.boundary + some.full * self.boundary + some.selective * self.mlp_input
        whole = (blocks - some.full - some.selective) * (self.attention + self.mlp)
        return whole + some.selective * (self.attention + self.mlp_input) + some.full * self.boundary

    def again(self, settings: RunSettings, number: int = 0) -> int:
        """Return what the backward pass of a block holds beside what was kept: what it computed, or fetched, again."""
        if settings.offload:
            return self.attention + self.mlp
        return {"none": 0, "selective": self.mlp, "full": self.attention + self.mlp}[self.recomputed.kind(number)]

    def turns(self, blocks: int) -> Iterator[int]:
        """Yield how many blocks the backward pass has before it where it comes to blocks of another kind, and where it ends."""
        full, selective = self.recomputed.full, self.recomputed.selective
        yield from sorted({count for count in (full + selective, full) if 1 < count < blocks} | {1}, reverse=True)


def activations(shape: ModelShape, settings: RunSettings, size: AdapterSize) -> Activations:
    """Return what a forward pass over the fullest batch keeps."""
    tokens, wide = settings.batch_tokens, settings.computes_in_bytes
    first = list(shape.block_of(0)) or list(shape.linears)
    attention = [layer for layer in first if _in_attention(layer)]
    mlp = [layer for layer in first if layer not in attention]
    routed = max(shape.experts_per_token, 1) if shape.experts else 1
    return Activations(
        attention=tokens * _attention(shape, settings, size, attention),
        mlp=tokens * routed * _mlp(shape, settings, size, mlp),
        boundary=tokens * shape.width * settings.hidden_bytes,
        mlp_input=tokens * shape.width * settings.hidden_bytes,
        last=_last(shape, settings),
        logits=_logits(shape, settings),
        head_gradient=_head_gradient(shape, settings),
        weight_copies=_weight_copies(shape, settings, mlp),
        backward=tokens * routed * wide * max(2 * shape.intermediate, 3 * shape.width),
        dequantized=_dequantized(shape, settings, first),
        recomputed=recomputed_blocks(shape, settings),
    )


def recomputed_blocks(shape: ModelShape, settings: RunSettings) -> Recompute:
    """Return which blocks are computed again; no MLP alone where blocks have no module for it.

    Raises:
        UsageError: more blocks are named than the model has.
    """
    asked = Recompute.of(settings.recompute, shape.blocks)
    return asked if asked.selective == 0 or has_mlps(shape) else Recompute(asked.full)


def has_mlps(shape: ModelShape) -> bool:
    """Return whether blocks have a module for the MLP alone, which `selective` computes again."""
    layers = list(shape.block_of(0))
    if not layers:
        return False
    parts = layers[0].name.split(".")
    block = ".".join(parts[: parts.index("0") + 1])
    return mlp_owner({layer.name: max(layer.inputs, layer.outputs) for layer in layers}, block) is not None


def _attention(shape: ModelShape, settings: RunSettings, size: AdapterSize, layers: list[LinearShape]) -> int:
    """Return bytes per token that a block keeps outside of its MLP."""
    wide, whole = settings.computes_in_bytes, settings.adapter.kind == "NoPeft"
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kept = shape.block_norms * _norm(shape.width, settings)
    kept += _norm(queries + keys, settings) if shape.head_norms else 0
    kept += _scores(shape, settings)
    out = [layer for layer in layers if layer.ending in OUTPUTS]
    into = [layer for layer in layers if layer not in out]
    if len(into) == 1:
        kept += (queries + keys) * wide  # values are a part of one tensor with queries and keys
    kept += _inputs(into, settings, size) * shape.width * wide
    if (whole or _needs_input(out, settings, size)) and not settings.compiled:
        kept += queries * wide  # the outputs of all rows, one behind another
    normed = {"q_proj", "k_proj"} if shape.head_norms else set()
    normed |= {layer.ending for layer in out} if shape.block_norms > 2 else set()
    spared = {*SPARED, *(normed if wide == 4 else ())}  # a norm keeps its float32 input as it is
    return kept + sum(_of_adapter(layer, settings, size, elsewhere=layer.ending in spared) for layer in layers)


def _scores(shape: ModelShape, settings: RunSettings) -> int:
    """Return bytes per token of queries, keys, values and what attention makes of them."""
    wide = settings.computes_in_bytes
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.scores_kept:  # a capped score, a softmax in float32 and its cast; keys and values repeated for each head
        cast = wide if wide < 4 else 0
        return 3 * queries * wide + shape.heads * settings.length * (wide + 4 + cast)
    kept = (queries + 2 * keys) * wide
    if not settings.composes_attention:
        kept += queries * wide + 4 * shape.heads  # its output, and the logarithm of each softmax's sum
    elif (length := int(settings.mean_length or settings.length)) <= 2 * shape.head_dim:
        kept += shape.heads * length * wide  # the softmax, which is kept of short rows
    return kept


def _mlp(shape: ModelShape, settings: RunSettings, size: AdapterSize, layers: list[LinearShape]) -> int:
    """Return bytes per token that a block's MLP keeps."""
    wide, whole, inner = settings.computes_in_bytes, settings.adapter.kind == "NoPeft", shape.intermediate
    into = [layer for layer in layers if layer.outputs > layer.inputs]
    out = [layer for layer in layers if layer not in into]
    gated = shape.experts > 0 or sum(layer.outputs for layer in into) >= 2 * inner
    kept = (3 - settings.compiled if gated else 1) * inner * wide
    kept += _inputs(into, settings, size) * shape.width * wide
    if whole or _needs_input(out, settings, size):
        kept += inner * wide
    normed = out if shape.block_norms > 2 and wide == 4 else []
    elsewhere = [*(into if gated else []), *normed]
    return kept + sum(_of_adapter(layer, settings, size, elsewhere=layer in elsewhere) for layer in layers)


def _norm(width: int, settings: RunSettings) -> int:
    """Return bytes per token of a norm: its input in float32 and a root; where it is trained, its output before the weight."""
    whole = settings.adapter.kind == "NoPeft"
    if settings.compiled:
        return width * settings.computes_in_bytes
    return 4 * width + 4 + (width * (4 if settings.trained_dtype == "float32" else settings.computes_in_bytes) if whole else 0)


def _of_adapter(layer: LinearShape, settings: RunSettings, size: AdapterSize, *, elsewhere: bool) -> int:
    """Return bytes per token that a layer's adapter keeps beside the layer's input; `elsewhere`: the output is kept anyway."""
    adapter, wide = settings.adapter, settings.computes_in_bytes
    if adapter.kind == "NoPeft" or layer.name not in size.names:
        return 0
    kept = adapter.r * wide
    if (adapter.kind == "DoRa" and not elsewhere) or (adapter.kind == "VeRa" and adapter.r > SMALL_RANK):
        kept += layer.outputs * wide
    return kept


def _inputs(layers: list[LinearShape], settings: RunSettings, size: AdapterSize) -> int:
    """Return how many copies of their common input layers keep: adapters share one.

    Autocast makes one for each trained layer where hidden states are wider.
    """
    if settings.adapter.kind == "NoPeft":
        return len(layers) if settings.computes_in_bytes < settings.hidden_bytes else min(len(layers), 1)
    return int(_needs_input(layers, settings, size))


def _needs_input(layers: list[LinearShape], settings: RunSettings, size: AdapterSize) -> bool:
    """Whether one of the layers keeps its input: LoRA's and DoRA's gradients are made of it, VeRA's are not."""
    return settings.adapter.kind in ("LoRa", "DoRa") and any(layer.name in size.names for layer in layers)


def _last(shape: ModelShape, settings: RunSettings) -> int:
    tokens, wide, whole = settings.batch_tokens, settings.computes_in_bytes, settings.adapter.kind == "NoPeft"
    norm = tokens * _norm(shape.width, settings)
    if not whole and not recomputed_blocks(shape, settings).full:
        norm -= tokens * _norm(shape.width, settings)  # the first block's first norm sees embeddings, which are not trained
    states = 0
    if settings.logits == "tiles" and settings.learnt_tokens > tile_rows(shape.vocabulary, settings.device):
        states = 2 * settings.learnt_tokens * shape.width * wide
    elif whole:
        states = settings.learnt_tokens * shape.width * wide
    return norm + states + 2 * tokens * shape.head_dim * wide


def _logits(shape: ModelShape, settings: RunSettings) -> int:
    """Return the most that logits and loss take: logits, a float32 copy, logarithms, two gradients; in place, one of them."""
    wide, every = settings.computes_in_bytes, settings.batch_tokens * shape.vocabulary
    copies = (8 if settings.compiled else 12) + (wide if wide < 4 else 0)
    if settings.logits == "all":
        return every * copies
    if settings.logits == "chunks":  # a compiled loss reads a chunk as it is and writes its gradient alone
        return every * wide + every // CHUNKS * (wide if settings.compiled else copies)
    rows = tile_rows(shape.vocabulary, settings.device)
    frozen = settings.adapter.kind != "NoPeft"
    in_place = settings.arithmetic == "float32" and frozen and settings.learnt_tokens > rows
    tile = min(rows, settings.learnt_tokens) * shape.vocabulary
    if summed := _head_gradient(shape, settings):  # the sum over tiles beside a tile's own, or what that is cast from
        cast = summed // settings.trained_bytes * wide if wide < settings.trained_bytes else tile * 4
        return summed + max(tile * copies, summed + cast)
    return tile * (4 if in_place else copies)


def _head_gradient(shape: ModelShape, settings: RunSettings) -> int:
    """Return the bytes of a trained head's gradient where it is formed with the loss; 0 where the backward pass makes it."""
    tiled = settings.logits == "tiles" and settings.learnt_tokens > tile_rows(shape.vocabulary, settings.device)
    if not tiled or settings.adapter.kind != "NoPeft":
        return 0
    return shape.vocabulary * shape.width * settings.trained_bytes


def _dequantized(shape: ModelShape, settings: RunSettings, layers: list[LinearShape]) -> int:
    if settings.adapter.kind == "NoPeft":
        return 0
    wide = settings.computes_in_bytes
    as_it_is = settings.held_dtype(shape.dtype) == settings.arithmetic and not stays_quantized(settings.plan.spec)
    weights = max((layer.weights for layer in layers), default=shape.largest) * (0 if as_it_is else wide)
    if settings.adapter.kind == "DoRa":  # the gradient of the widest layer's output times its factors
        weights += settings.batch_tokens * max((layer.outputs for layer in layers), default=0) * wide
    return weights


def stays_quantized(spec: QuantizationSpec) -> bool:
    """Return whether layers stay in the method's own format while training."""
    return spec.is_quantized and spec.format not in UNPACKED


def _weight_copies(shape: ModelShape, settings: RunSettings, mlp: list[LinearShape]) -> int:
    """Return the copies of trained weights that stay until the backward pass; blocks computed again make theirs again.

    Weights that are gathered from several processes (FSDP2) come in the data type of the arithmetic, but for the head.
    """
    if settings.adapter.kind != "NoPeft" or settings.computes_in_bytes >= settings.trained_bytes:
        return 0
    head, again = 0 if shape.head is None else shape.head.weights, recomputed_blocks(shape, settings)
    head_bytes = head * settings.computes_in_bytes
    if settings.strategy == "fsdp":
        return head_bytes
    whole = shape.linear_weights * (shape.blocks - again.full) // shape.blocks
    return (whole - again.selective * sum(layer.weights for layer in mlp)) * settings.computes_in_bytes + head_bytes


def _in_attention(layer: LinearShape) -> bool:
    return any(ATTENTION.search(part) for part in layer.name.split(".")[:-1])
