"""What do layers have in common whose weights are codes, scales and zero points under a checkpoint format's own names?

The formats differ in how words are packed and agree in everything else: which layers may be stored (`checked_layers`), that
the layer in memory computes what the checkpoint's loaders do, and that it can say what it holds. The other way, a dense model
in memory and packing while saving, lets memory and disk differ without anyone noticing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantkit.backends.facts import LayerFacts
from quantkit.errors import UsageError
from quantkit.numerics.grids import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StoredLinear(nn.Linear):
    """A linear layer whose parameters are the tensors that a checkpoint format stores.

    Each forward pass unpacks anew; gradients flow to the input only. To train, unpack it, and for many passes hold what it
    unpacks to (`quantkit.backends.unpacked`).
    """

    facts: LayerFacts
    held: Tensor | None = None
    """Its weight `[out, in]`, dequantized for a while."""

    def __init__(
        self, facts: LayerFacts, shape: tuple[int, int], tensors: Mapping[str, Tensor], bias: nn.Parameter | None
    ) -> None:
        nn.Module.__init__(self)
        self.facts = facts
        self.out_features, self.in_features = shape
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=False))
        self.register_parameter("bias", bias)

    def quantized(self) -> QuantizedWeight:
        """Return the weight that the parameters hold."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """Return input · Wᵀ + b."""
        weight = self.quantized().dequantize() if self.held is None else self.held
        return nn.functional.linear(input, weight.to(input.dtype), self.bias)

    def extra_repr(self) -> str:
        """Return sizes and facts for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.facts}"


def checked_layers(
    model: "PreTrainedModel", layers: Mapping[str, QuantizedWeight], *, format: str
) -> tuple[dict[str, nn.Linear], LayerFacts]:
    """Return the model's linear layers by name, and what the ones in `layers` will be; nothing is changed yet.

    Raises:
        UsageError: a name is no linear layer, shapes or scale types disagree with the model, or the grids differ.
    """
    if not layers:
        raise UsageError(f"no layer was quantized, so there is nothing to store in the {format} format")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    embeddings = getattr(model.get_input_embeddings(), "weight", None)
    for name, quantized in layers.items():
        linear = linears.get(name)
        if linear is None:
            raise UsageError(f"{name} is no linear layer of the model, so no codes can be stored for it")
        shape = (linear.out_features, linear.in_features)
        if tuple(quantized.codes.shape) != shape:
            raise UsageError(f"{name} has the shape {shape}, its codes {tuple(quantized.codes.shape)}")
        if quantized.scale.dtype != linear.weight.dtype:
            raise UsageError(
                f"{name} is {linear.weight.dtype} and its scales are {quantized.scale.dtype}; loaders convert scales to the"
                " model's data type, so quantize with scale_dtype set to it"
            )
        if linear.weight is embeddings:
            raise UsageError(f"{name} shares its weight with the input embeddings, which stay dense; put it on the ignore list")
    grids = {(item.bits, item.group_size, item.zero_point is None, item.weights_dtype) for item in layers.values()}
    if len(grids) > 1:
        raise UsageError(f"the layers use {len(grids)} different grids {sorted(grids)}; one checkpoint holds one")
    bits, group_size, symmetric, dtype = grids.pop()
    return linears, LayerFacts(bits, dtype, format=format, group_size=group_size, symmetric=symmetric)


def unsigned(quantized: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Return codes `[out, in]` and zero points `[out, groups]` as both formats count them: from 0 (int16)."""
    middle = 1 << (quantized.bits - 1)
    codes = quantized.codes.to(torch.int16) + middle
    if quantized.zero_point is None:
        return codes, torch.full_like(quantized.scale, middle, dtype=torch.int16)
    return codes, quantized.zero_point.to(torch.int16) + middle


def signed(codes: Tensor, scale: Tensor, zero_point: Tensor, facts: LayerFacts) -> QuantizedWeight:
    """Return codes and zero points counted from 0 as a weight; the inverse of `unsigned`."""
    middle = 1 << (facts.weights_bits - 1)
    offsets = None if facts.symmetric else (zero_point.to(torch.int16) - middle).to(torch.int8)
    shifted = (codes.to(torch.int16) - middle).to(torch.int8)
    return QuantizedWeight(shifted, scale, offsets, facts.weights_bits, facts.group_size or -1)
