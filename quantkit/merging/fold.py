"""What does a dense model look like that computes what base and adapter compute together?

Every layer of the base is dequantized as its own forward pass does it, the update is added in float32, and what comes back
is a plain float32 transformers model. PEFT's `merge_and_unload` on a 4-bit base rounds the sum back to the 4-bit grid: on NF4
not one code of SmolLM2 changed and 1.6 % of the update survived. The arithmetic of the update itself (LoRA, rsLoRA, DoRA,
VeRA) is PEFT's: `get_delta_weight`, and `merge_safe` for DoRA.

A base in LLM.int8 also quantizes its activations; a dense model cannot repeat that, so there the merged model only comes
close to base plus adapter.
"""

import warnings
from typing import Any

from quantkit.errors import UsageError, VerificationError

QUANTIZED_MARKS = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""Attributes by which transformers, accelerate and PEFT take a model for a quantized one."""


def fold_adapters(model: Any) -> Any:
    """Return the base of a `PeftModel` as a dense float32 model with its adapter folded in; the given model is used up.

    A model without adapters comes back dense and float32. Trained copies of `modules_to_save` replace the originals; where
    that (or an adapter on the output head) parts the head from the embeddings, the model is no longer tied.

    Raises:
        UsageError: the adapter is of a kind that cannot be folded, or there are several.
        VerificationError: weights are not finite, cannot be dequantized, or the adapter changes nothing.
    """
    import torch

    from quantkit.layers import bare_model

    inner = bare_model(model)
    with torch.no_grad():
        if inner is not model:
            _check_foldable(model)
            inner = _fold(model, inner)
        _densify(inner)
        inner.float()
    inner.requires_grad_(False)
    inner.tie_weights()
    return inner.eval()


def _check_foldable(model: Any) -> None:
    active = list(model.active_adapters)
    if len(model.peft_config) != 1 or len(active) != 1:
        raise UsageError(f"the model carries the adapters {', '.join(model.peft_config)}; exactly one can be folded in")
    kind = model.peft_config[active[0]].peft_type.value
    if kind not in ("LORA", "VERA"):
        raise UsageError(f"adapters of type {kind} cannot be folded in; LoRA, DoRA and VeRA can")


def _fold(model: Any, inner: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    from quantkit.backends import dense_layer
    from quantkit.layers import is_linear, unwrapped

    adapter = model.active_adapters[0]
    changed = False
    for name, layer in list(inner.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        if not is_linear(unwrapped(layer)):
            raise UsageError(f"{name}: adapters on a {type(unwrapped(layer)).__name__} cannot be folded in")
        if getattr(layer, "lora_bias", {}).get(adapter, False):
            raise UsageError(f"{name}: adapters with a bias of their own (lora_bias) cannot be folded in")
        base = _own_copy(dense_layer(unwrapped(layer)))
        layer.base_layer = base
        before = base.weight.data
        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if variant is None:
            after = before + layer.get_delta_weight(adapter).to(before)
        else:
            after = variant.merge_safe(layer, adapter, before)
        if not bool(after.isfinite().all()):
            raise VerificationError(f"{name}: the folded weight is not finite; the adapter is broken")
        changed = changed or not bool(after.equal(before))
        base.weight.data = after
        layer.merged_adapters.append(adapter)
    if not changed and not model.peft_config[adapter].modules_to_save:
        raise VerificationError("folding the adapter in changed no weight; it was never trained, or does not fit this base")
    _unmark(inner)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(All adapters are already merged|Input and output embeddings|Model has)")
        return model.base_model.merge_and_unload()


def _own_copy(dense: Any) -> Any:
    """Give a layer a weight of its own: one shared with the embeddings must not change along."""
    from torch import nn

    dense.weight = nn.Parameter(dense.weight.detach().clone(), requires_grad=False)
    return dense


def _densify(inner: Any) -> None:
    from quantkit.backends import dense_layer, layer_facts
    from quantkit.layers import linear_layers

    for name, module in linear_layers(inner).items():
        if layer_facts(module).format != "dense" or type(module).__module__.startswith("bitsandbytes."):
            inner.set_submodule(name, _as_the_model_had_it(dense_layer(module)))
        else:
            inner.set_submodule(name, _as_the_model_had_it(module))
    _unmark(inner)


def _as_the_model_had_it(module: Any) -> Any:
    """Return GPT-2's `Conv1D`, which keeps its weight as [in, out], where quantizing had put a linear layer in its place."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D) or vars(module).get("source_cls") is not Conv1D:
        return module
    convolution: Any = Conv1D(module.out_features, module.in_features)
    convolution.weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=False)
    if module.bias is not None:
        convolution.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return convolution


def _unmark(inner: Any) -> None:
    for mark in QUANTIZED_MARKS:
        if mark in vars(inner):
            delattr(inner, mark)
    inner.is_quantized = False
    if hasattr(inner, "_weight_conversions"):  # how a stored quantized model was read; a dense one is not written that way
        inner._weight_conversions = [item for item in inner._weight_conversions or () if _can_be_written(item)]
    for part in {id(module.config): module.config for module in inner.modules() if hasattr(module, "config")}.values():
        for mark in ("quantization_config", "_is_quantized"):
            if hasattr(part, mark):
                delattr(part, mark)


def _can_be_written(conversion: Any) -> bool:
    """Whether transformers can undo on saving what it did to the names or layout of tensors on loading."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
