"""Which models can be forecast by name where neither their files nor a network are at hand?

A few whose published memory figures stand beside ours, and the classical sizes of tables. What is kept are the sizes that
their makers published; `quantkit plan Qwen/Qwen3-8B` on a machine without them works, and says that it did.
"""

from collections.abc import Mapping
from typing import Any

LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "dtype": "float16"}

DESCRIBED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
    },
    "meta-llama/Llama-3.2-3B": {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "dtype": "bfloat16",
    },
    "meta-llama/Llama-2-7b-hf": LLAMA_2
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
    "meta-llama/Llama-2-13b-hf": LLAMA_2
    | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824},
    "meta-llama/Llama-2-70b-hf": LLAMA_2
    | {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
    },
    "huggyllama/llama-65b": LLAMA_2
    | {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "intermediate_size": 22016,
        "max_position_embeddings": 2048,
    },
}
"""Hub id → the sizes that its `config.json` states."""


def described(name: str) -> Mapping[str, Any] | None:
    """Return the configuration of a model that is described here, by its hub id or the last part of that."""
    wanted = name.lower()
    return next((config for key, config in DESCRIBED.items() if wanted in (key.lower(), key.lower().rpartition("/")[2])), None)
