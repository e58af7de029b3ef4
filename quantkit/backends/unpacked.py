"""How does one train on integer weights? As dense ones that stand on the grid, and can prove it.

Packed layers have no weight that PEFT could attach adapters to, and a library's own unpacked layers no longer tell what
they are. An `UnpackedLinear` holds the dequantized weight beside its scales: gradients pass, and measuring it checks that
every value still is a level of its grid. Believing the folder a model was loaded from would miss a base changed in memory.

To run a model as it is packed, many times, no layer changes: `holding_unpacked` lets each hold its dense weight meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quantkit.backends.compressed_tensors import round_inputs, stored_layers
from quantkit.backends.emission import StoredLinear
from quantkit.backends.facts import LayerFacts
from quantkit.console import format_bytes, say
from quantkit.errors import VerificationError
from quantkit.files import read_json
from quantkit.memory import free_bytes
from quantkit.numerics.grids import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_SHARE = 0.5
"""Share of the free memory that the weights of a packed model may take while they are held dense."""


@runtime_checkable
class Packed(Protocol):
    """A linear layer that holds codes and scales, of whatever storage format."""

    facts: LayerFacts
    bias: nn.Parameter | None

    def quantized(self) -> QuantizedWeight:
        """Return the weight that its parameters hold."""
        ...


class UnpackedLinear(nn.Linear):
    """A linear layer whose dense weight stands on an integer grid.

    `weight` is `[out, in]`, dequantized in the scales' data type, as loaders do it, then cast to the computing one. With
    8-bit activations the input is rounded per token as the packed layer rounds it; gradients pass the rounding unchanged
    (straight-through estimator, arXiv:1308.3432).
    """

    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        quantized: QuantizedWeight,
        bias: nn.Parameter | None,
        facts: LayerFacts,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = quantized.codes.shape
        self.facts = facts
        self.weight = nn.Parameter(quantized.dequantize().to(dtype), requires_grad=False)
        self.register_parameter("bias", bias)
        self.register_buffer("weight_scale", quantized.scale, persistent=False)
        self.register_buffer("weight_zero_point", quantized.zero_point, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return input · Wᵀ + b, the input rounded per token first when activations are quantized."""
        if self.facts.activations_bits is not None:
            input = input + (round_inputs(input, self.facts) - input).detach()
        return nn.functional.linear(input, self.weight, self.bias)

    @torch.no_grad()
    def measured(self) -> LayerFacts:
        """Return what the layer holds, after looking whether each value is a level of its grid.

        Raises:
            VerificationError: a value is not; the weight was changed after it was unpacked.
        """
        high = 2 ** (self.facts.weights_bits - 1) - 1
        groups = self.weight.data.reshape(*self.weight_scale.shape, -1)
        offset = 0 if self.weight_zero_point is None else self.weight_zero_point.unsqueeze(-1).float()
        codes = groups.float() / self.weight_scale.unsqueeze(-1).float() + offset
        if self.facts.weights_dtype.startswith("float"):
            codes = codes.to(getattr(torch, self.facts.weights_dtype)).float()
        else:
            codes = codes.round_().clamp_(-high - 1, high)
        levels = (codes - offset).to(self.weight_scale.dtype) * self.weight_scale.unsqueeze(-1)
        if not torch.equal(levels.to(groups.dtype), groups):
            raise VerificationError(
                f"an unpacked layer no longer stands on its {self.facts.weights_dtype} grid; its weight was changed"
            )
        return self.facts


def unpack_model(model: Any) -> Any:
    """Replace every packed layer of a model, in place, by an unpacked one that computes the same; return the model."""
    from quantkit.layers import linear_layers

    for name, module in linear_layers(model).items():
        if isinstance(module, Packed):
            model.set_submodule(name, UnpackedLinear(module.quantized(), module.bias, module.facts))
    return model


@contextmanager
def holding_unpacked(model: Any) -> Iterator[None]:
    """Let every packed layer of a model hold its dequantized weight meanwhile: same numbers, without unpacking in each pass.

    Where memory does not hold them, a line says so and each pass unpacks, as ever.
    """
    from quantkit.layers import linear_layers

    packed = [module for module in linear_layers(model).values() if isinstance(module, StoredLinear)]
    needed = sum(module.in_features * module.out_features for module in packed) * model.dtype.itemsize
    if needed > HELD_SHARE * (free := free_bytes(str(model.device))):
        say(
            f"packed weights are unpacked at every token, which is slow: unpacked once they take {format_bytes(needed)}, and"
            f" {format_bytes(free)} are free"
        )
        packed = []
    try:
        with torch.no_grad():
            for module in packed:
                module.held = module.quantized().dequantize()
        yield
    finally:
        for module in packed:
            module.held = None


def mark_unpacked(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Turn the dense layers of a model that was loaded with `dequantize` into unpacked ones that know their grid, in place.

    Raises:
        VerificationError: a layer in memory is not what the folder's codes and scales say.
    """
    for name, quantized, facts in stored_layers(folder):
        linear = model.get_submodule(name)
        unpacked = UnpackedLinear(quantized, linear.bias, facts, dtype=model.dtype)
        if type(linear) is not nn.Linear or not torch.equal(linear.weight.cpu(), unpacked.weight):
            raise VerificationError(f"{folder}: {name} in memory is not what the folder holds; load it again")
        model.set_submodule(name, unpacked.to(linear.weight.device))
    model.config.quantization_config = read_json(folder / "config.json")["quantization_config"]
    return model
