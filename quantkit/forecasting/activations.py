"""What does a forward pass keep for its backward pass, per block and at the loss?

Counted operation by operation from this project's step: norms keep float32 copies of their inputs, adapters computed in place
keep a layer's input and x·A, attention its queries, keys, values and output, an MLP its inner tensors (`tests/forecasting`
compares the counts with what autograd really holds). The usual formula, 34 bytes per token and width, knows neither grouped
queries nor gated MLPs, adapters or recomputing.
"""

from dataclasses import dataclass

from quantkit.forecasting.adapters import AdapterSize
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import LinearShape, ModelShape
from quantkit.training.tiles import tile_rows

SMALL_RANK = 64
"""Rank of VeRA up to which its product of rank r is not kept (`quantkit.training.frozen_linear`)."""
LOGIT_COPIES = 12
"""Bytes per logit that cross entropy in float32 takes beside the logits: their copy, their logarithms, their gradient."""
COMPILED_LOGIT_COPIES = 8
"""The same where the copy is fused into what follows."""
CHUNKS = 8
"""Chunks of torchtune's chunked cross entropy."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes kept of one block and at the end, for the tokens of the fullest batch."""

    attention: int
    """Of a block: norms, queries, keys, values, outputs, inputs of adapters."""
    mlp: int
    """Of a block: what only its MLP keeps."""
    hidden: int
    """One hidden state of each token, as it passes between blocks."""
    last: int
    """The last norm, and the states that the head gets."""
    logits: int
    """Logits and what the loss makes of them, at their peak."""
    backward: int
    """Gradients of a block's widest part that live at once in its backward pass."""
    dequantized: int
    """The widest weight in the data type of the arithmetic, where the held one is another."""

    def kept(self, settings: RunSettings, blocks: int) -> int:
        """Return what all blocks keep at the end of a forward pass."""
        if settings.offload:
            return self.hidden
        each = {"none": self.attention + self.mlp, "selective": self.attention + self.hidden, "full": self.hidden}
        return blocks * each[settings.recompute]

    def again(self, settings: RunSettings) -> int:
        """Return what the backward pass of one block holds beside what was kept: what it computed again."""
        if settings.offload:
            return self.attention + self.mlp
        return {"none": 0, "selective": self.mlp, "full": self.attention + self.mlp}[settings.recompute]


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
        hidden=tokens * shape.width * wide,
        last=tokens * shape.width * 4 + 2 * settings.learnt_tokens * shape.width * wide,
        logits=_logits(shape, settings),
        backward=tokens * routed * wide * max(2 * shape.intermediate, 3 * shape.width),
        dequantized=_dequantized(shape, settings, first),
    )


def _attention(shape: ModelShape, settings: RunSettings, size: AdapterSize, layers: list[LinearShape]) -> int:
    """Return bytes per token that a block keeps outside of its MLP."""
    wide, whole = settings.computes_in_bytes, settings.adapter.kind == "NoPeft"
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = wide if settings.compiled else 4
    kept = shape.block_norms * shape.width * norm
    kept += (queries + keys) * norm if shape.head_norms else 0
    kept += (2 * queries + 2 * keys) * wide + 4 * shape.heads
    into = [layer for layer in layers if layer.inputs == shape.width and not _is_output(layer)]
    out = [layer for layer in layers if layer not in into]
    if whole or _needs_input(into, settings, size):
        kept += shape.width * wide
    if (whole or _needs_input(out, settings, size)) and not settings.compiled:
        kept += queries * wide  # the outputs of the rows, put together
    return kept + sum(_of_adapter(layer, settings, size, elsewhere=layer.ending in ("v_proj",)) for layer in layers)


def _mlp(shape: ModelShape, settings: RunSettings, size: AdapterSize, layers: list[LinearShape]) -> int:
    """Return bytes per token that a block's MLP keeps."""
    wide, whole = settings.computes_in_bytes, settings.adapter.kind == "NoPeft"
    inner = shape.intermediate
    into = [layer for layer in layers if layer.outputs >= inner or layer.outputs > layer.inputs]
    out = [layer for layer in layers if layer not in into]
    gated = sum(layer.outputs for layer in into) >= 2 * inner or shape.experts > 0
    kept = (3 - settings.compiled if gated else 1) * inner * wide
    if whole or _needs_input(into, settings, size):
        kept += shape.width * wide
    if whole or _needs_input(out, settings, size):
        kept += inner * wide
    return kept + sum(_of_adapter(layer, settings, size, elsewhere=layer in into) for layer in layers)


def _of_adapter(layer: LinearShape, settings: RunSettings, size: AdapterSize, *, elsewhere: bool) -> int:
    """Return bytes per token that a layer's adapter keeps beside the layer's input; `elsewhere`: the output is kept anyway."""
    adapter, wide = settings.adapter, settings.computes_in_bytes
    if adapter.kind == "NoPeft" or layer.name not in size.names:
        return 0
    kept = adapter.r * wide
    if (adapter.kind == "DoRa" and not elsewhere) or (adapter.kind == "VeRa" and adapter.r > SMALL_RANK):
        kept += layer.outputs * wide
    return kept


def _needs_input(layers: list[LinearShape], settings: RunSettings, size: AdapterSize) -> bool:
    """Whether one of the layers keeps its input: LoRA's and DoRA's gradients are made of it, VeRA's are not."""
    return settings.adapter.kind in ("LoRa", "DoRa") and any(layer.name in size.names for layer in layers)


def _logits(shape: ModelShape, settings: RunSettings) -> int:
    wide, all_of_them = settings.computes_in_bytes, settings.batch_tokens * shape.vocabulary
    copies = COMPILED_LOGIT_COPIES if settings.compiled else LOGIT_COPIES
    if settings.logits == "all":
        return all_of_them * (wide + copies)
    if settings.logits == "chunks":
        return all_of_them * wide + all_of_them // CHUNKS * copies
    rows = min(tile_rows(shape.vocabulary), settings.learnt_tokens)
    in_place = settings.arithmetic == "float32" and settings.adapter.kind != "NoPeft"
    return rows * shape.vocabulary * (4 if in_place else wide + LOGIT_COPIES)


def _dequantized(shape: ModelShape, settings: RunSettings, layers: list[LinearShape]) -> int:
    if not settings.plan.spec.is_quantized and settings.arithmetic == settings.plan.compute_dtype:
        return 0
    return max((layer.weights for layer in layers), default=shape.largest) * settings.computes_in_bytes


def _in_attention(layer: LinearShape) -> bool:
    from quantkit.adapters import ATTENTION

    return any(ATTENTION.search(part) for part in layer.name.split(".")[:-1])


def _is_output(layer: LinearShape) -> bool:
    return layer.ending in ("o_proj", "out_proj", "dense", "c_proj", "wo")
