"""In which words is it said what a layer's weights are? The answer that every library's module gives, and what they all ask."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What the weights of one linear layer are; the fields are those of `QuantizationSpec`."""

    weights_bits: int
    weights_dtype: str
    format: str = "dense"
    group_size: int | None = None
    symmetric: bool | None = None
    double_quant: bool = False
    activations_bits: int | None = None

    def __str__(self) -> str:
        parts = [self.weights_dtype, self.format]
        parts += [f"group_size {self.group_size}"] if self.group_size is not None else []
        parts += ["double_quant"] if self.double_quant else []
        parts += [f"activations {self.activations_bits} bit"] if self.activations_bits is not None else []
        return " ".join(parts)


def is_torchao(module: Any) -> bool:
    """Whether a layer's weight is one of torchao's tensors; the library is not imported to find out."""
    return type(getattr(module, "weight", None)).__module__.startswith("torchao.")


def dtype_name(dtype: Any) -> str:
    """Return `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
