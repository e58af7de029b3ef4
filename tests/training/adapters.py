"""Models whose adapters do something, and how far their gradients are apart."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from quantkit.adapters import attach_adapter
from quantkit.backends import dense_layer
from quantkit.layers import linear_layers
from quantkit.plan import AdapterPlan
from tests.bench import token_batch

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"kind": "LoRa"},
    "rsLoRA": {"kind": "LoRa", "use_rslora": True},
    "DoRA": {"kind": "DoRa"},
    "VeRA": {"kind": "VeRa"},
    "VeRA of a large rank": {"kind": "VeRa", "r": 68},
}


def with_adapters(model: Any, kind: str = "LoRA", **changes: Any) -> Any:
    """Return a model in training mode whose adapters do something."""
    plan = {"r": 4, "lora_alpha": 8, "target_modules": ("all-linear",)} | KINDS[kind] | changes
    return moved(attach_adapter(model, AdapterPlan(**plan), seed=1)).train()


def moved(model: Any) -> Any:
    """Move the trained parameters of a model, the same way for the same model."""
    generator = torch.Generator().manual_seed(3)
    for item in model.parameters():
        if item.requires_grad:
            item.data = item.data + 0.1 * torch.randn(item.shape, generator=generator).to(item.dtype)
    return model


def dense_float64(folder: Path, model: Any, kind: str, **changes: Any) -> Any:
    """Return a float64 model with the dequantized weights and the adapters of a quantized one."""
    reference = with_adapters(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), kind, **changes)
    reference.load_state_dict(
        {name: item for name, item in model.state_dict().items() if item.is_floating_point()}, strict=False
    )
    for layer, quantized in zip(linear_layers(reference).values(), linear_layers(model).values(), strict=True):
        layer.weight.data = dense_layer(quantized).weight.data.double()
    return reference.double()


def on_a_batch(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and gradients of the tiny model in training mode."""
    model.train()
    model.zero_grad()
    loss = model(input_ids=token_batch(), labels=token_batch()).loss
    loss.backward()
    return loss.detach(), {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest relative L2 difference of two sets of gradients."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).norm() / other[name].double().norm()) for name in one)
