"""Which 8-bit floating-point number does a weight become?

float8_e4m3fn has 4 bits of exponent and 3 of mantissa, no infinities, and ±448 as its largest numbers (Micikevicius et al.
2022, arXiv:2209.05433). One scale a row brings the row's largest weight to 448; the spacing of the numbers then follows
their size, so a few large weights cost the small ones less than on an integer grid of 8 bits, and evenly spread ones more.
Scales are stored, and weights multiplied, in the model's own data type, as compressed-tensors does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.errors import UsageError
from quantkit.numerics.grids import Levels, QuantizedWeight

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Largest number of float8_e4m3fn."""


@torch.no_grad()
def quantize_float8(weight: Tensor, scale_dtype: torch.dtype, *, layer: str = "this layer") -> QuantizedWeight:
    """Round a weight `[out, in]` to float8_e4m3fn with one scale `[out, 1]` a row.

    Raises:
        UsageError: a weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise UsageError(f"{layer} holds weights that are not finite; nothing can be quantized from them")
    scale = (weight.float().abs().amax(1, keepdim=True) / LARGEST).to(scale_dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (weight.float() / scale.float()).clamp(-LARGEST, LARGEST).to(FLOAT8)
    return QuantizedWeight(codes, scale, None, 8, -1)


def round_tokens_to_float8(values: Tensor) -> Tensor:
    """Round each token `[..., features]` to float8_e4m3fn scaled to its own range (dynamic per-token quantization).

    The arithmetic is compressed-tensors', in the data type of the values.
    """
    scale = values.abs().amax(-1, keepdim=True) / LARGEST
    scale = torch.where(scale == 0, torch.full_like(scale, torch.finfo(scale.dtype).eps), scale)
    rounded: Tensor = (values / scale).clamp(-LARGEST, LARGEST).to(FLOAT8).to(values.dtype) * scale
    return rounded


@dataclass(frozen=True, slots=True)
class Float8Grid:
    """float8_e4m3fn with one scale a row, as `quantkit.numerics.error_feedback` asks for a grid; codes are the floats' bits."""

    scale_dtype: torch.dtype = torch.bfloat16

    def block_columns(self, columns: int, layer: str = "this layer") -> int:  # noqa: ARG002 - every grid is asked so
        """Return all columns: they share the row's scale."""
        return columns

    def fit(self, groups: Tensor, importance: Tensor | None = None) -> Levels:  # noqa: ARG002 - the range is the whole row
        """Return the scales that bring the largest magnitude of rows `[..., in]` to 448."""
        scale = (groups.float().abs().amax(-1) / LARGEST).to(self.scale_dtype)
        return Levels(torch.where(scale == 0, torch.ones_like(scale), scale), None)

    def encode(self, values: Tensor, levels: Levels) -> Tensor:
        """Return the bits of the nearest floats, uint8."""
        return (values / levels.scale.float()).clamp(-LARGEST, LARGEST).to(FLOAT8).view(torch.uint8)

    def decode(self, codes: Tensor, levels: Levels) -> Tensor:
        """Return the float32 values of codes, rounded as loaders compute them."""
        floats = codes.to(torch.uint8).view(FLOAT8).to(levels.scale.dtype)
        return (floats * levels.scale).float()

    def assemble(self, codes: Tensor, levels: Levels) -> QuantizedWeight:
        """Return codes `[out, in]` and scales `[out, 1]` as a weight."""
        return QuantizedWeight(codes.to(torch.uint8).view(FLOAT8), levels.scale, None, 8, -1)

    def restore(self, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """Return the weight of this grid that these tensors state."""
        return QuantizedWeight(tensors["codes"], tensors["scale"], None, 8, -1)
