"""How do codes and scales become a checkpoint in the AWQ format (`gemm`), as AutoAWQ introduced it and vLLM reads it?

Per layer: `qweight` and `qzeros` (4-bit codes and zero points, eight output columns a word, interleaved) and `scales`. The
format has no group index and no symmetric variant that its kernels read, so weights here are asymmetric and 4 bits wide. The
layers left out are named under `modules_to_not_convert`, which loaders match as parts of names.

AutoAWQ stores scales as float16; here they have the model's data type, to which every loader converts them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantkit.backends.emission import StoredLinear, checked_layers, signed, unsigned
from quantkit.backends.facts import LayerFacts
from quantkit.errors import UsageError
from quantkit.numerics.grids import QuantizedWeight
from quantkit.numerics.packing import AwqTensors, pack_awq, unpack_awq

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AwqLinear(StoredLinear):
    """A linear layer as the AWQ format stores it; shapes as in `quantkit.numerics.packing.AwqTensors`."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(self, tensors: AwqTensors, facts: LayerFacts, bias: nn.Parameter | None) -> None:
        parts = {name: getattr(tensors, name) for name in ("qweight", "qzeros", "scales")}
        super().__init__(facts, (tensors.scales.shape[1], tensors.qweight.shape[0]), parts, bias)

    def quantized(self) -> QuantizedWeight:
        """Return the weight that the parameters hold."""
        return signed(*unpack_awq(AwqTensors(self.qweight.data, self.qzeros.data, self.scales.data)), self.facts)


def store_awq(model: "PreTrainedModel", layers: Mapping[str, QuantizedWeight]) -> "PreTrainedModel":
    """Replace these linear layers, in place, by AWQ ones, and state the format in the model's configuration.

    Raises:
        UsageError: layers do not fit the model or the format; names the layer.
    """
    linears, facts = checked_layers(model, layers, format="awq")
    if facts.weights_bits != 4 or facts.symmetric:
        raise UsageError(
            f"the AWQ format holds 4-bit weights with zero points; these have {facts.weights_bits} bits and"
            f" {'none' if facts.symmetric else 'zero points'}"
        )
    new = {}
    for name, quantized in layers.items():
        codes, zero_point = unsigned(quantized)
        new[name] = AwqLinear(pack_awq(codes, quantized.scale, zero_point), facts, linears[name].bias)
    for name, module in new.items():
        model.set_submodule(name, module)
    model.config.quantization_config = quantization_config(facts, [name for name in linears if name not in layers])
    return model


def quantization_config(facts: LayerFacts, left_out: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`, as AutoAWQ writes it."""
    return {
        "quant_method": "awq",
        "bits": facts.weights_bits,
        "group_size": facts.group_size,
        "zero_point": not facts.symmetric,
        "version": "gemm",
        "modules_to_not_convert": left_out or None,
    }


def read_awq(tensors: Mapping[str, Tensor], bias: nn.Parameter | None, config: Mapping[str, Any], *, layer: str) -> AwqLinear:
    """Return the layer that a checkpoint's tensors (`qweight`, …) state, under its `quantization_config`.

    Raises:
        UsageError: the layout is another than `gemm`.
    """
    layout = str(config.get("version") or "gemm").lower()
    if layout != "gemm":
        raise UsageError(f"{layer}: AWQ layout {layout!r} cannot be read here; gemm can")
    group_size = int(config.get("group_size", config.get("q_group_size", 128)))
    facts = LayerFacts(4, "int4", format="awq", group_size=group_size, symmetric=not config.get("zero_point", True))
    return AwqLinear(AwqTensors(tensors["qweight"], tensors["qzeros"], tensors["scales"]), facts, bias)
