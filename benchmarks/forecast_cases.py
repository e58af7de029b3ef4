"""On which models, and with which settings, are forecasts of memory judged?

Five shapes of decoders with random weights, unlike each other in what memory depends on: width, depth, vocabulary, tied heads,
grouped queries, norms of queries and keys, fused layers. Constants are fitted on two of them and judged on the other three, and
the other way round. Rows of different lengths get more steps: the heap's holes and the compiled products grow with them.
"""

from dataclasses import dataclass, field
from typing import Any

COMMON = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-40M": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "qwen3-112M": {
        "model_type": "qwen3",
        "vocab_size": 64000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "gemma3-75M": {
        "model_type": "gemma3_text",
        "vocab_size": 96000,
        "hidden_size": 384,
        "intermediate_size": 2304,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "sliding_window": 256,
    },
    "phi3-72M": {
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 640,
        "intermediate_size": 1792,
        "num_hidden_layers": 6,
        "num_attention_heads": 10,
        "num_key_value_heads": 10,
        "tie_word_embeddings": False,
    },
    "llama-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}
"""Name → configuration."""
FITTED_ON = ("llama-40M", "qwen3-112M")
MIXED_STEPS = 16
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512, "num_attention_heads": 4}
"""What makes a shape small enough for the short form."""


@dataclass(frozen=True)
class Case:
    """One training run: its shape, rows of equal length or up to that length (`mixed`), and what else it sets."""

    shape: str
    length: int
    rows: int
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 2
    mixed: bool = False

    @property
    def name(self) -> str:
        """Return what tells it from the others."""
        words = [str(value) for value in self.settings.values() if not isinstance(value, bool)]
        merged = ["merged"] if self.settings.get("merge_after_train") else []
        mixed = ["mixed"] if self.mixed else []
        return " ".join([self.shape, *words, *merged, *mixed, f"{self.rows}x{self.length}"])


def cases(shape: str) -> list[Case]:
    """Return the runs on one shape: methods, adapters, lengths, batches, recomputing, arithmetic, merging."""

    def case(length: int, rows: int, **settings: Any) -> Case:
        return Case(shape, length, rows, settings)

    return [
        case(64, 1),
        case(256, 4),
        case(512, 2, recompute="selective"),
        case(512, 2, recompute="full"),
        case(256, 2, compute_dtype="float32"),
        case(64, 1, peft_config="NoPeft"),
        case(128, 4, peft_config="NoPeft"),
        case(256, 4, peft_config="DoRa"),
        case(256, 4, peft_config="VeRa", lora_r=256),
        case(64, 8, lora_r=128, merge_after_train=True),
        case(256, 4, quant_method="QLORA"),
        case(512, 1, quant_method="BNB4BIT", peft_config="DoRa"),
        case(128, 4, quant_method="INT8"),
        Case(shape, 192, 8, steps=MIXED_STEPS, mixed=True),
        Case(shape, 128, 8, {"quant_method": "QLORA"}, steps=MIXED_STEPS, mixed=True),
    ]


def quick_cases() -> list[Case]:
    """Return two short runs on one shape."""
    return [Case("llama-40M", 64, 2), Case("llama-40M", 64, 2, {"quant_method": "QLORA"})]
