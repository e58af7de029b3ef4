"""How does a W8A8 checkpoint run on a CPU as what it is, integers?

transformers loads int8 weights with int8 activations and computes with the rounded numbers in floating point: right, and slower
than a dense model. The product of codes is one instruction of every newer CPU. `use_integer_kernels` exchanges the layers of a
loaded model; sums are exact int32, so what differs from the loader's arithmetic is its rounding of products and sums.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantkit.backends import LayerFacts, layer_facts
from quantkit.errors import UsageError


class IntegerLinear(nn.Module):
    """A linear layer that multiplies int8 codes by int8 codes; for inference.

    y = (q_x · Q_wᵀ) ⊙ s_x s_w + b, with one scale s_x a token and s_w a row; shapes as `nn.Linear`'s.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None, facts: LayerFacts) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.facts = facts
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.float().reshape(1, -1))
        self.register_buffer("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, in the input's data type."""
        tokens = input.reshape(-1, self.in_features)
        scale = tokens.abs().amax(-1, keepdim=True).float().div_(127.5).clamp_(min=torch.finfo(torch.float32).tiny)
        codes = (tokens / scale).clamp_(-128, 127).round_().to(torch.int8)
        sums: Tensor = torch._int_mm(codes, self.codes.t())
        output = (sums * scale).mul_(self.scale).to(input.dtype)
        if self.bias is not None:
            output += self.bias
        return output.reshape(*input.shape[:-1], self.out_features)


def use_integer_kernels(model: Any) -> Any:
    """Let a model with int8 weights and activations multiply integers on the CPU, in place; return the model.

    Call it right after loading, before the first forward pass, after which transformers' layers hold floats.

    Raises:
        UsageError: the model is not on the CPU, or has no such layers any more.
    """
    from quantkit.layers import linear_layers

    found = {name: layer for name, layer in linear_layers(model).items() if _is_w8a8(layer)}
    if not found:
        raise UsageError(
            "no layer of the model has int8 weights and int8 activations (DynamicINT8, SmoothQuant); if it had when loaded,"
            " it has run since: load it again and call use_integer_kernels first"
        )
    for name, layer in found.items():
        if layer.weight.device.type != "cpu":
            raise UsageError(f"{name} is on {layer.weight.device}; these kernels run on the CPU, vLLM has some for GPUs")
        bias = None if layer.bias is None else layer.bias.data
        model.set_submodule(name, IntegerLinear(layer.weight.data, layer.weight_scale.data, bias, layer_facts(layer)))
    return model.eval()


def _is_w8a8(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != torch.int8 or not hasattr(layer, "weight_scale"):
        return False
    facts = layer_facts(layer)
    return (facts.weights_bits, facts.group_size, facts.symmetric, facts.activations_bits) == (8, -1, True, 8)
