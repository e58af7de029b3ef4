"""Which 8-bit floating-point number does a weight become?

float8_e4m3fn has 4 bits of exponent and 3 of mantissa, no infinities, and ±448 as its largest numbers (Micikevicius et al.
2022, arXiv:2209.05433). One scale a row brings the row's largest weight to 448; the spacing of the numbers then follows
their size, so a few large weights cost the small ones less than on an integer grid of 8 bits, and evenly spread ones more.
Scales are stored, and weights multiplied, in the model's own data type, as compressed-tensors does it.
"""

import torch
from torch import Tensor

from quantkit.errors import UsageError
from quantkit.numerics.grids import QuantizedWeight

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
