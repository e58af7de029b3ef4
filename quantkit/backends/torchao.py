"""How are torchao's layers made, measured and turned back into dense ones?

torchao keeps a quantized weight as a tensor subclass inside an ordinary `nn.Linear`; transformers writes it with safetensors
and reads it back by `TorchAoConfig`. So a layer is known by its weight, not by its class. Two facts decide what is offered:

* **Weights only.** Layers that round activations too (`Int8DynamicActivationInt8WeightConfig`) load and save, but hand no
  gradients to what stands before them: half of the LoRA matrices get zeros only. They are measured, not made.
* **Fewer than 8 bits stand in a byte each** (`IntxUnpackedToInt8Tensor`): the layout that is packed asks for a GPU library.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup, PerRow
from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import IntxUnpackedToInt8Tensor

from quantkit.backends.facts import LayerFacts, dtype_name, is_torchao
from quantkit.errors import UsageError, VerificationError
from quantkit.numerics.grids import QuantizedWeight, require_divisor
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec


def load_kwargs(plan: QuantizationPlan) -> dict[str, Any]:
    """Return the `quantization_config` that quantizes a base while it is loaded; the head is left out by transformers."""
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(_layer_config(plan.spec))}


def round_weight(weight: torch.Tensor, spec: QuantizationSpec, *, layer: str) -> QuantizedWeight:
    """Return a weight `[out, in]` as torchao rounds it.

    Raises:
        UsageError: the group size does not divide its columns, or a weight is not finite; names the layer.
    """
    if spec.group_size not in (None, -1):
        require_divisor(weight.shape[1], int(spec.group_size or 0), layer)
    if not bool(weight.isfinite().all()):
        raise UsageError(f"{layer} holds weights that are not finite; nothing can be quantized from them")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(linear, _layer_config(spec))
    rounded: Any = linear.weight
    return QuantizedWeight(rounded.qdata, rounded.scale, None, spec.weights_bits, spec.group_size or -1)


def store_torchao(model: Any, layers: Mapping[str, QuantizedWeight], spec: QuantizationSpec) -> Any:
    """Give these linear layers torchao's tensors, in place, and let `save_pretrained` write them as transformers reads them.

    Raises:
        UsageError: no layer was quantized.
    """
    from transformers import TorchAoConfig
    from transformers.quantizers import AutoHfQuantizer

    from quantkit.layers import linear_layers, output_head

    if not layers:
        raise UsageError("no layer was quantized, so there is nothing to store in the torchao format")
    for name, quantized in layers.items():
        linear = model.get_submodule(name)
        linear.weight = nn.Parameter(_tensor(quantized, linear.weight.dtype), requires_grad=False)
    left_out = [output_head(model)[0], *(name for name in linear_layers(model) if name not in layers)]
    config = TorchAoConfig(_layer_config(spec), modules_to_not_convert=left_out)
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
    return model


def compute_in(model: Any, dtype: str) -> Any:
    """Let torchao's layers hand out this data type, not the one they were stored beside; return the model."""
    for module in model.modules():
        if is_torchao(module) and module.weight.dtype != getattr(torch, dtype):
            module.weight = nn.Parameter(module.weight.data.to(dtype=getattr(torch, dtype)), requires_grad=False)
    return model


def layer_facts(module: Any) -> LayerFacts:
    """Return what a layer with a torchao weight holds.

    Raises:
        VerificationError: it is of a kind that is not known here.
    """
    weight = module.weight
    kind = type(weight).__name__
    if kind not in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
        raise VerificationError(f"torchao weights of type {kind} cannot be measured yet")
    rows, columns = weight.block_size
    if rows != 1:
        raise VerificationError(f"a torchao {kind} shares a scale among {rows} rows; such weights cannot be measured yet")
    dtype = "int8" if kind == "Int8Tensor" else dtype_name(weight.target_dtype)
    zero_point = weight.zero_point
    rounds_inputs = getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None)
    return LayerFacts(
        weights_bits=int(dtype.removeprefix("int")),
        weights_dtype=dtype,
        format="torchao",
        group_size=-1 if columns == weight.shape[-1] else columns,
        symmetric=zero_point is None or not bool(zero_point.any()),
        activations_bits=8 if rounds_inputs else None,
    )


def dense_layer(module: Any) -> Any:
    """Return the float32 `nn.Linear` that computes with the same weights."""
    weight = module.weight.data
    if isinstance(weight, IntxUnpackedToInt8Tensor):
        weight = weight.to(dtype=torch.float32)
    dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(
        weight.dequantize(torch.float32) if isinstance(weight, Int8Tensor) else weight.dequantize(), requires_grad=False
    )
    bias = None if module.bias is None else nn.Parameter(module.bias.detach().float(), requires_grad=False)
    dense.register_parameter("bias", bias)
    return dense


def _layer_config(spec: QuantizationSpec) -> Any:
    groups = None if spec.group_size in (None, -1) else PerGroup(int(spec.group_size or 0))
    if spec.weights_bits == 8:
        return Int8WeightOnlyConfig(granularity=groups or PerRow())
    return IntxWeightOnlyConfig(weight_dtype=getattr(torch, spec.weights_dtype), granularity=groups or PerAxis(0))


def _tensor(quantized: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor that torchao itself makes of these codes and scales; its zero points are all zero."""
    rows, groups = quantized.scale.shape
    block_size = [1, quantized.codes.shape[1] // groups]
    zeros = torch.zeros((rows, groups), dtype=torch.int8, device=quantized.codes.device)
    if quantized.bits == 8:
        return cast(torch.Tensor, Int8Tensor(quantized.codes, quantized.scale, block_size, dtype, zero_point=zeros))
    target = getattr(torch, quantized.weights_dtype)
    made = IntxUnpackedToInt8Tensor(quantized.codes, quantized.scale, zeros, target, tuple(block_size), dtype, None)
    return cast(torch.Tensor, made)
