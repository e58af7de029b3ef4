"""Which layers does a model have, told from its `config.json` alone, for the families whose blocks are laid out alike?

Importing transformers to ask it takes five seconds; for the models that nearly everyone trains, a forecast should not wait
that long. A table may be wrong, so each entry is compared with transformers' own model, name by name, in the tests; a
configuration that leaves out a size, or belongs to no entry, is read by way of transformers (`quantkit.forecasting.reading`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.forecasting.shape import LinearShape, ModelShape

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
"""Keys without which a configuration is not read here."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the blocks of a `model_type` differ from Llama's; defaults are those of the family's configuration class."""

    qkv_bias: bool = False
    output_bias: bool = False
    """Whether `attention_bias` gives the output projection a bias, too."""
    head_norms: bool = False
    norms: int = 2
    head_dim: int | None = None
    """Width of a head where the configuration names none; None: the model's width by its heads."""
    kv_heads: int | None = None
    """Heads of keys and values where the configuration names none; None: as many as there are heads."""
    tied: bool = False
    cap: bool = False
    """Whether attention caps its scores where the configuration does not say."""
    fused: bool = False
    """Whether q, k, v are one layer, and gate and up another."""


FAMILIES = {
    "llama": Family(output_bias=True),
    "mistral": Family(kv_heads=8),
    "qwen2": Family(qkv_bias=True, kv_heads=32),
    "qwen3": Family(output_bias=True, head_norms=True, head_dim=128, kv_heads=32),
    "granite": Family(output_bias=True),
    "phi3": Family(fused=True),
    "gemma2": Family(output_bias=True, norms=4, head_dim=256, kv_heads=4, tied=True, cap=True),
    "gemma3_text": Family(output_bias=True, head_norms=True, norms=4, head_dim=256, kv_heads=4, tied=True),
}


def known_shape(config: Mapping[str, Any], name: str) -> ModelShape | None:
    """Return the shape that a configuration describes; None where the family is not in the table, or a size is missing."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or not all(_size(config.get(key)) for key in NEEDED):
        return None
    width, blocks, heads, inner, vocabulary = (int(config[key]) for key in NEEDED)
    kv_heads = config.get("num_key_value_heads") or family.kv_heads or heads
    head_dim = config.get("head_dim") or family.head_dim or width // heads
    if not (_size(kv_heads) and _size(head_dim)):
        return None
    bias = bool(config.get("attention_bias", False)) and family.output_bias
    mlp_bias = bool(config.get("mlp_bias", False)) and family.output_bias
    queries, keys = heads * head_dim, kv_heads * head_dim
    attention = (
        [("qkv_proj", queries + 2 * keys, width, False)]
        if family.fused
        else [(f"{which}_proj", size, width, bias or family.qkv_bias) for which, size in _parts(queries, keys)]
    )
    attention.append(("o_proj", width, queries, bias))
    mlp = (
        [("gate_up_proj", 2 * inner, width, False)]
        if family.fused
        else [("gate_proj", inner, width, mlp_bias), ("up_proj", inner, width, mlp_bias)]
    )
    mlp.append(("down_proj", width, inner, mlp_bias))
    linears = []
    for number in range(blocks):
        for part, layers in (("self_attn", _ordered(attention, fused=family.fused)), ("mlp", mlp)):
            linears += [LinearShape(f"model.layers.{number}.{part}.{key}", *sizes) for key, *sizes in layers]
    tied = bool(config.get("tie_word_embeddings", family.tied))
    norms = blocks * (family.norms * width + (2 * head_dim if family.head_norms else 0)) + width
    return ModelShape(
        name=name,
        family=str(config["model_type"]),
        linears=tuple(linears),
        head=LinearShape("lm_head", vocabulary, width),
        tied=tied,
        embeddings=vocabulary * width,
        others=norms + sum(layer.outputs for layer in linears if layer.bias),
        blocks=blocks,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=inner,
        vocabulary=vocabulary,
        head_norms=family.head_norms,
        block_norms=family.norms,
        scores_kept=config.get("attn_logit_softcapping", 50.0 if family.cap else None) is not None,
        dtype=str(config.get("torch_dtype") or config.get("dtype") or "float32"),
        max_positions=config.get("max_position_embeddings"),
    )


def _parts(queries: int, keys: int) -> list[tuple[str, int]]:
    return [("q", queries), ("k", keys), ("v", keys)]


def _ordered(layers: list[Any], *, fused: bool) -> list[Any]:
    """Return an attention's layers in the order in which the family's modules stand."""
    return [layers[1], layers[0]] if fused else layers


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
