"""What the tests of streaming merges share: small model folders, adapters saved beside them, and the merge in memory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit import AdapterPlan, QuantizationPlan
from quantkit.adapters import attach_adapter
from quantkit.merging import fold_adapters, merge_streaming
from quantkit.modeling import load_base
from tests.bench import plan_for
from tests.tiny import tiny_config


def model_folder(folder: Path, *, family: str = "llama", dtype: str = "bfloat16", max_shard_size: str = "5GB", **changes: Any):
    """Save a random model of one or two layers and return its folder."""
    import torch

    torch.manual_seed(0)
    if family == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        model: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=512, bos_token_id=1, eos_token_id=2))
    else:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM(tiny_config(**({"num_hidden_layers": 2} | changes)))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def trained(base: Path, plan: QuantizationPlan, *, seed: int = 1, std: float = 0.3, **adapter: Any) -> Any:
    """Return the plan's base with an adapter that does something."""
    import torch

    from quantkit.methods import installed_methods

    model = load_base(str(base), plan=plan, methods=installed_methods(), device="cpu")
    model = attach_adapter(model, replace(plan.adapter, **adapter), seed=0)
    generator = torch.Generator().manual_seed(seed)
    for name, item in model.named_parameters():
        if ".lora_B." in name or "lambda_b" in name or "modules_to_save" in name:
            item.data.add_(torch.randn(item.shape, generator=generator) * std)
    return model


def saved_adapter(base: Path, folder: Path, plan: QuantizationPlan, **adapter: Any) -> tuple[Path, Any]:
    """Save such an adapter; return its folder and the `PeftModel`."""
    model = trained(base, plan, **adapter)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder, model


def in_memory(model: Any) -> dict[str, Any]:
    """Return the tensors of the merge in memory, a tied head once; the model is used up."""
    folded = fold_adapters(model)
    tensors = dict(folded.state_dict())
    if folded.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def streamed(base: Path, adapter: Path, out: Path, plan: QuantizationPlan | None, *, dtype: str = "float32", **more: Any):
    """Merge streaming; return the tensors of the written folder."""
    merge_streaming(base, adapter, out, fingerprint=None, recipe=plan, dtype=dtype, progress=False, **more)
    return read_tensors(out)


def read_tensors(folder: Path) -> dict[str, Any]:
    """Return all tensors of a folder."""
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(path).items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of tensors that are not bit-equal, or stand on one side only."""
    import torch

    return sorted(
        name for name in {*one, *other} if name not in one or name not in other or not torch.equal(one[name], other[name])
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Replace values of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Any) -> None:
    """Rewrite an adapter's tensors by `change(dict) -> dict`."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def simple(tmp_path: Path, method: str = "NoQuant", kind: str = "LoRa", **adapter: Any) -> tuple[Path, Path, QuantizationPlan]:
    """Return base folder, adapter folder and plan of an ordinary case."""
    base = model_folder(tmp_path / "base")
    plan = plan_for(method, kind)
    return base, saved_adapter(base, tmp_path / "adapter", plan, **adapter)[0], plan


__all__ = [
    "AdapterPlan", "differing", "edit_json", "edit_tensors", "in_memory", "model_folder", "read_tensors", "saved_adapter",
    "simple", "streamed", "trained",
]  # fmt: skip
