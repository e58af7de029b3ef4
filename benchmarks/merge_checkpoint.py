"""A checkpoint of any size and an adapter on it, written without ever being a model in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTH, INNER, VOCABULARY, RANK = 2048, 5632, 8192, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write a Llama of this many layers in bfloat16, in shards of 500 MB; return its bytes."""
    import torch
    from transformers import LlamaConfig

    from quantkit.merging.tensorfiles import Entry, ShardWriter

    folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    entries = [Entry(name, "BF16", shape) for name, shape in shapes(layers)]
    noise = torch.randn(WIDTH * INNER + 4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    with ShardWriter(folder, entries, max_shard_bytes=500_000_000) as writer:
        for number, entry in enumerate(entries):
            count = entry.size_bytes // 2
            values = noise[number % 4096 :][:count] if count <= WIDTH * INNER else noise[:VOCABULARY].repeat(WIDTH)[:count]
            writer.write(entry.name, [values.reshape(entry.shape)])
    return sum(entry.size_bytes for entry in entries)


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for name in TARGETS:
            yield f"{stem}.{part_of(name)}.{name}.weight", linear(name)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{stem}.{name}.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def part_of(name: str) -> str:
    """Return the block in which a layer stands."""
    return "self_attn" if name in TARGETS[:4] else "mlp"


def linear(name: str) -> tuple[int, int]:
    """Return (out, in) of a layer."""
    return (WIDTH, INNER) if name == "down_proj" else (WIDTH if name in TARGETS[:4] else INNER, WIDTH)


def write_adapter(folder: Path, layers: int) -> None:
    """Write a LoRA adapter on all linear layers of such a checkpoint."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Any] = {}
    for layer in range(layers):
        for name in TARGETS:
            out, columns = linear(name)
            stem = f"base_model.model.model.layers.{layer}.{part_of(name)}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.02
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=sorted(TARGETS), task_type="CAUSAL_LM").to_dict()
    config["peft_type"], config["task_type"] = "LORA", "CAUSAL_LM"
    text = json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    (folder / "adapter_config.json").write_text(text)
