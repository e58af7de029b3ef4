"""What stands beside the weights of a merged model? A configuration that no longer speaks of quantization, and the tokenizer.

The base's small files are copied as they are; loading and saving them again would rewrite them in this version's way. A merged
model that keeps its base's `quantization_config` does not load, or loads its dense weights as codes.
"""

import shutil
from pathlib import Path
from typing import Any

from quantkit.files import write_json
from quantkit.merging.model_facts import BaseFolder

COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
NOT_COPIED = (
    "config.json", "adapter_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json",
    "quantization_metadata.json", "training_metadata.json", "quantkit_manifest.json", "recipe.yaml",
)  # fmt: skip
"""Files that speak of the base's or the adapter's own weights."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def write_dense_config(base: BaseFolder, folder: Path, *, dtype: str, tied: bool, vocab_size: int | None) -> None:
    """Write the base's configuration as that of dense weights in `dtype`."""
    config = _dense(base.config, dtype, base.stored(f"{base.embeddings}.weight"), vocab_size)
    if base.tied and not tied:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"]["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)


def _dense(config: dict[str, Any], dtype: str, embeddings: Any, vocab_size: int | None) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    if "dtype" in config or "torch_dtype" in config or "architectures" in config:
        found["dtype"] = dtype
    if vocab_size is not None and embeddings is not None and config.get("vocab_size") == embeddings.shape[0]:
        found["vocab_size"] = vocab_size
    return {
        key: _dense(value, dtype, embeddings, vocab_size) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in found.items()
    }


def copy_companions(base: Path, adapter: Path, folder: Path) -> None:
    """Copy a base's small files; the tokenizer is the adapter's, if it has one: it knows the tokens that were added."""
    for pattern in COMPANIONS:
        for path in sorted(base.glob(pattern)):
            if path.name not in NOT_COPIED and not path.name.endswith(".index.json") and path.is_file():
                shutil.copyfile(path, folder / path.name)
    if (adapter / "tokenizer_config.json").is_file():
        for name in TOKENIZER:
            (folder / name).unlink(missing_ok=True)
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
