"""Which modules of a model are its linear layers, and which one is the output head?

Names are those of the bare model, whatever PEFT has wrapped around it: measuring, choosing adapter targets and merging
must mean the same layer by the same name. Matching on module names would need a list per model family.
"""

from collections.abc import Iterator
from typing import Any


def bare_model(model: Any) -> Any:
    """Return the `PreTrainedModel` inside a `peft.PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def unwrapped(module: Any) -> Any:
    """Return the layer that an adapter or a `modules_to_save` wrapper stands for: the base layer, or the trained copy."""
    if hasattr(module, "base_layer"):
        return unwrapped(module.base_layer)
    if hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        return unwrapped(module.modules_to_save[active[0]] if active else module.original_module)
    return module


def is_linear(module: Any) -> bool:
    """Whether a module multiplies by one weight matrix: `nn.Linear`, GPT-2's `Conv1D`, or a quantized form of them."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def output_head(model: Any) -> tuple[str, Any]:
    """Return name and module of the output head; ("", None) where the model has none."""
    inner = bare_model(model)
    head = inner.get_output_embeddings()
    if head is None:
        return "", None
    target = unwrapped(head)
    return next((name for name, module in _leaves(inner, "") if module is target), ""), target


def linear_layers(model: Any) -> dict[str, Any]:
    """Return full name → module of every linear layer but the output head, in the model's order.

    Adapter wrappers are seen through: the module is the base layer, the name has no `base_layer` in it.
    """
    inner = bare_model(model)
    head = output_head(inner)[1]
    return {name: module for name, module in _leaves(inner, "") if module is not head and is_linear(module)}


def features(module: Any) -> tuple[int, int]:
    """Return (in, out) of a linear layer.

    >>> from torch import nn
    >>> features(nn.Linear(3, 5))
    (3, 5)
    """
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.weight.shape[0]), int(module.weight.shape[1])  # Conv1D keeps [in, out]


def _leaves(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    module = unwrapped(module)
    children = list(module.named_children())
    if not children or is_linear(module):
        yield name, module
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}" if name else key)
