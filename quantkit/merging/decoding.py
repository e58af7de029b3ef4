"""What dense weight do the stored tensors of one quantized layer stand for?

One function per storage format, each the arithmetic with which the layers of that format compute in quantkit, so that a merge
folds into what the adapter learnt against. Letting transformers dequantize gives the same for a whole model at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError, VerificationError
from quantkit.headers import StoredTensor
from quantkit.merging.round_trip import int8_values
from quantkit.merging.tensorfiles import read_tensor

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as Dtype

LEAVES = {
    "bitsandbytes": ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
                     "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4", "SCB", "weight_format"),
    "compressed-tensors": ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
                           "weight_global_scale", "input_scale", "input_zero_point"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "fp8": ("weight", "weight_scale_inv", "input_scale", "activation_scale"),
}  # fmt: skip
"""Storage format to the tensors that together state one layer's weight."""
MARKS = {
    "bitsandbytes": ("SCB", "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"),
    "compressed-tensors": ("weight_scale", "weight_packed"),
    "gptq": ("qweight",),
    "awq": ("qweight",),
    "fp8": ("weight_scale_inv",),
}
"""The tensors whose presence makes a layer a quantized one."""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """The tensors of a quantized layer, and what is needed to decode them."""

    leaves: Mapping[str, StoredTensor]
    config: Mapping[str, Any]
    """The `quantization_config` of the folder."""
    dtype: "Dtype"
    """Data type that the layer computes with."""
    where: str
    device: str

    def read(self) -> "dict[str, Tensor]":
        """Return the tensors by what follows the layer's name."""
        return {leaf: read_tensor(stored) for leaf, stored in self.leaves.items()}


def decode_layer(layer: StoredLayer, stored_format: str) -> "Tensor":
    """Return a layer's weight as it computes with it, float32 `[out, in]`.

    Raises:
        UsageError: the layout is one that is not read here.
        VerificationError: a tensor of the layer is missing.
    """
    try:
        return DECODERS[stored_format](layer, layer.read())
    except KeyError as missing:
        raise VerificationError(
            f"{layer.where}: {missing.args[0]} is missing beside {', '.join(sorted(layer.leaves))}"
        ) from None


def _bitsandbytes(layer: StoredLayer, parts: "dict[str, Tensor]") -> "Tensor":
    import torch
    from bitsandbytes import functional

    from quantkit.backends.bitsandbytes import quiet

    quiet()
    codes = parts.pop("weight")
    if "SCB" in parts:
        return int8_values(codes, parts["SCB"])
    state = functional.QuantState.from_dict(parts, device=torch.device(layer.device))
    state.dtype = layer.dtype
    weight: Tensor = functional.dequantize_4bit(codes.to(layer.device), state).to("cpu", torch.float32)
    return weight


def _packed(layer: StoredLayer, parts: "dict[str, Tensor]") -> "Tensor":
    from quantkit.backends.awq_format import read_awq
    from quantkit.backends.gptq_format import read_gptq

    parts["scales"] = parts["scales"].to(layer.dtype)
    read = read_gptq if layer.config["quant_method"] == "gptq" else read_awq
    return read(parts, None, layer.config, layer=layer.where).quantized().dequantize().float()


def _compressed(layer: StoredLayer, parts: "dict[str, Tensor]") -> "Tensor":
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.numerics.packing import unpack_compressed_tensors

    groups = list((layer.config.get("config_groups") or {}).values())
    weights = groups[0].get("weights") or {} if len(groups) == 1 else {}
    if weights.get("strategy") not in ("group", "channel") or "weight_g_idx" in parts or "weight_global_scale" in parts:
        raise UsageError(
            f"{layer.where}: {len(groups)} groups of layers, strategy {weights.get('strategy')!r}: such compressed-tensors"
            " weights cannot be decoded here; one group with scales per row or per group of columns can"
        )
    bits, scale, zero_point = int(weights["num_bits"]), parts["weight_scale"], parts.get("weight_zero_point")
    if "weight_packed" in parts:
        outputs, columns = (int(size) for size in parts["weight_shape"])
        codes = unpack_compressed_tensors(parts["weight_packed"], bits, columns)
        if zero_point is not None:
            zero_point = unpack_compressed_tensors(zero_point, bits, outputs, dim=0)
    else:
        codes = parts["weight"]
    held = QuantizedWeight(codes, scale, zero_point, bits, int(weights.get("group_size") or -1))
    return held.dequantize().to(layer.dtype).float()


def _fp8(layer: StoredLayer, parts: "dict[str, Tensor]") -> "Tensor":
    weight, scale = parts["weight"].float(), parts["weight_scale_inv"].float()
    if scale.dim() == 2 and scale.numel() > 1:
        rows, columns = (-(-size // count) for size, count in zip(weight.shape, scale.shape, strict=True))
        rows, columns = (layer.config.get("weight_block_size") or (rows, columns))[:2]
        scale = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    return weight.mul_(scale).to(layer.dtype).float()


DECODERS: "dict[str, Callable[[StoredLayer, dict[str, Tensor]], Tensor]]" = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _packed,
    "awq": _packed,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
}
