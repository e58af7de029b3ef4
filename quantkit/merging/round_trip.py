"""What does a 16-bit weight become in a base that bitsandbytes quantizes while loading?

The loader quantizes, and the forward pass dequantizes; here both happen to one weight, bit for bit as bitsandbytes does it,
and nothing stays behind. NF4 and FP4 on the CPU count how many of the 15 bounds between codes a value exceeds, all values at
once, where bitsandbytes searches for each value by itself: a quarter of the time. That the result is equal is tested for every
grid and data type. On CUDA bitsandbytes itself is asked: its kernels decide ties in their own way.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as Dtype

BLOCK = 64
"""Weights that share one 4-bit scale where transformers quantizes."""
NESTED_BLOCK = 256
"""Absmax numbers that share one scale after double quantization."""
ROWS_BYTES = 512 * 1024
"""Bytes of float32 values that are rounded at once, so that they stay in the processor's cache."""


def held_in_4bit(weight: "Tensor", name: str, *, double_quant: bool, dtype: "Dtype", device: str = "cpu") -> "Tensor":
    """Return the float32 weight `[out, in]` that a 4-bit layer (`nf4` or `fp4`) computes with in `dtype`."""
    import torch
    from bitsandbytes import functional

    from quantkit.backends.bitsandbytes import quiet

    quiet()
    weight = weight.to(dtype)
    if device != "cpu" or weight.shape[-1] % BLOCK:  # rows that blocks straddle, bitsandbytes 0.50 misreads on CPUs; so do we
        codes, state = functional.quantize_4bit(
            weight.contiguous().to(device), blocksize=BLOCK, quant_type=name, compress_statistics=double_quant
        )
        restored: Tensor = functional.dequantize_4bit(codes, state).to("cpu", torch.float32)
        return restored
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(-1)
    held = _nested(absmax) if double_quant else absmax
    result = torch.empty_like(blocks)
    step = max(1, ROWS_BYTES // (4 * BLOCK))
    for start in range(0, blocks.shape[0], step):
        part = slice(start, start + step)
        result[part] = _nearest(blocks[part], absmax[part], name).mul_(held[part].unsqueeze(-1)).to(dtype)
    return result.reshape(weight.shape)


def held_in_int8(weight: "Tensor", *, dtype: "Dtype", device: str = "cpu") -> "Tensor":
    """Return the float32 weight `[out, in]` that an LLM.int8 layer's codes and scales stand for."""
    import torch
    from bitsandbytes import functional

    from quantkit.backends.bitsandbytes import quiet

    quiet()
    half = weight.to(dtype).contiguous().to(device=device, dtype=torch.float16)
    codes, scales, _ = functional.int8_vectorwise_quant(half)
    return int8_values(codes, scales).cpu()


def int8_values(codes: "Tensor", scales: "Tensor") -> "Tensor":
    """Return codes · scale / 127, as `quantkit.backends.bitsandbytes.dense_weight` computes it."""
    import torch

    return codes.to(torch.float32).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))


def _nested(absmax: "Tensor") -> "Tensor":
    """Return absmax as it reads after double quantization (QLoRA, arXiv:2305.14314, section 3)."""
    from bitsandbytes import functional

    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    restored: Tensor = functional.dequantize_blockwise(codes, state) + offset
    return restored


def _nearest(blocks: "Tensor", absmax: "Tensor", name: str) -> "Tensor":
    """Return the codebook's nearest value to each float32 weight over its block's absmax."""
    import numpy
    import torch

    values, bounds = _sorted_values(name)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38)).unsqueeze(-1)).clamp_(-1, 1).numpy()
    rank = numpy.zeros(scaled.shape, numpy.uint8)
    for bound in bounds:
        rank += (scaled > bound).view(numpy.uint8)
    return torch.from_numpy(numpy.take(values, rank))


@cache
def _sorted_values(name: str) -> tuple[Any, Any]:
    """Return a codebook's values in rising order, and the bounds halfway between them, as float32 arrays."""
    from quantkit.numerics.codebooks import codebook

    values = codebook(name).sort().values
    return values.numpy(), ((values[:-1] + values[1:]) / 2).numpy()
