"""Tiny models of families that differ in their attention, and batches for them."""

from contextlib import nullcontext
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)

from quantkit.data import Collator, EncodedRow
from quantkit.training.attention import laid_out, rows_apart
from quantkit.training.layouts import FlatCollator
from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS: dict[str, Any] = {
    "Llama": LlamaConfig(**SMALL, **HEADS),
    "Qwen3": Qwen3Config(**SMALL, **HEADS),
    "Mistral with a sliding window": MistralConfig(**SMALL, **HEADS, sliding_window=5),
    "Gemma 3 with sliding windows and two rotations": Gemma3TextConfig(**SMALL, **HEADS, **SLIDING),
    "Gemma 2 with soft caps": Gemma2Config(
        **SMALL, **HEADS, **SLIDING, attn_logit_softcapping=0.5, final_logit_softcapping=1.0
    ),
    "Phi-3": Phi3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2),
    "GPT-2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "gpt-oss with sinks": GptOssConfig(
        **SMALL, **HEADS, sliding_window=5, layer_types=SLIDING["layer_types"], num_local_experts=2, num_experts_per_tok=1
    ),
    "Bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
}
BEGINNINGS = (list(range(1, 15)), [4, 3, *range(50, 60)])
ROWS = [
    EncodedRow(BEGINNINGS[0] + [20, 21, 22], [-100] * 15 + [21, 22], 1),
    EncodedRow(BEGINNINGS[0] + [20, 30, 31, 32, 33], [-100] * 15 + [30, 31, -100, 33], 2),
    EncodedRow(BEGINNINGS[1] + [20, 40, 41], [-100] * 14 + [41], 3),
    EncodedRow(BEGINNINGS[1] + [20, 50, 51], [-100] * 14 + [51], 4),
    EncodedRow([9, 8, 7, 6], [9, 8, 7, 6], 5),
]
"""Two beginnings, pieces of equal length, gaps in the labels, and a row that is learnt as a whole."""


def family(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with random weights large enough that every token matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def loss_and_gradients(
    model: Any, rows: list[EncodedRow] = ROWS, *, flat: bool, share: bool = False, items: int | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of one batch, by the number of supervised tokens or `items`, and the gradient of each parameter."""
    batch: dict[str, Any] = FlatCollator(share)(rows) if flat else Collator(0)(rows)
    layout, labels = batch.pop("layout", None), batch.pop("labels")
    model.zero_grad()
    with rows_apart(model) if flat else nullcontext(), laid_out(layout) if flat else nullcontext():
        with supervised_positions_only(output_head(model), labels) as kept:
            loss = supervised_loss(model(**batch, use_cache=False), labels, items, kept=kept)
        loss.backward()
    return loss.detach(), {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
