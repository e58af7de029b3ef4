"""How do small integer codes become the 32-bit words that each checkpoint format stores?

Every layout here is one primitive, a little-endian bit stream over int32 words (`pack_bits`), applied along some axis, in
some order, with some offset. Writing each layout as shifts of its own, as the libraries do, hides that the 3-bit GPTQ
layout and the "dense" compressed-tensors layout are the same stream.

Sources: compressed-tensors `pack_quantized/helpers.py`; AutoGPTQ/GPTQModel `qlinear` (checkpoint formats `gptq`, whose
zero points are stored minus one, and `gptq_v2`); AutoAWQ `packing_utils.py` (`gemm` order).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.errors import UsageError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of 8 neighbouring output columns stands in which nibble of an AWQ word, lowest bits first."""


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes `[rows, n]` (each below 2^bits) into int32 words `[rows, ceil(n·bits/32)]`.

    Value i occupies the bits i·bits … (i+1)·bits−1 of its row's stream; words are filled from their lowest bit.

    >>> pack_bits(torch.tensor([[1, 2, 3]]), 4).tolist()
    [[801]]
    >>> pack_bits(torch.zeros(2, 33, dtype=torch.int8), 3).shape
    torch.Size([2, 4])
    """
    _require_bits(bits, range(1, 9), "a bit stream")
    rows, count = values.shape
    padded = torch.nn.functional.pad(values.to(torch.int64), (0, -count % 32)).reshape(rows, -1, 32)
    words = torch.zeros(rows, padded.shape[1], bits, dtype=torch.int64, device=values.device)
    for position in range(32):
        word, shift = divmod(position * bits, 32)
        words[..., word] |= (padded[..., position] << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[..., word + 1] |= padded[..., position] >> (32 - shift)
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return signed.reshape(rows, -1)[:, : -(-count * bits // 32)].contiguous()


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the unsigned codes `[rows, count]` (uint8) of a stream of int32 words; the inverse of `pack_bits`."""
    _require_bits(bits, range(1, 9), "a bit stream")
    rows, width = words.shape
    stream = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, -width % bits)).reshape(rows, -1, bits)
    values = torch.empty(rows, stream.shape[1], 32, dtype=torch.uint8, device=words.device)
    for position in range(32):
        word, shift = divmod(position * bits, 32)
        value = stream[..., word] >> shift
        if shift + bits > 32:
            value = value | (stream[..., word + 1] << (32 - shift))
        values[..., position] = (value & (2**bits - 1)).to(torch.uint8)
    return values.reshape(rows, -1)[:, :count].contiguous()


def pack_compressed_tensors(codes: Tensor, bits: int, *, dim: int = 1) -> Tensor:
    """Pack signed codes (−2^(bits−1) … 2^(bits−1)−1) as `weight_packed` (`dim=1`) or `weight_zero_point` (`dim=0`)."""
    unsigned = codes.to(torch.int16) + (1 << (bits - 1))
    return pack_bits(unsigned, bits) if dim == 1 else pack_bits(unsigned.T, bits).T.contiguous()


def unpack_compressed_tensors(words: Tensor, bits: int, count: int, *, dim: int = 1) -> Tensor:
    """Return the signed int8 codes; `count` is the length of the packed axis before packing."""
    unsigned = unpack_bits(words, bits, count) if dim == 1 else unpack_bits(words.T.contiguous(), bits, count).T.contiguous()
    return (unsigned.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


@dataclass(frozen=True, slots=True)
class GptqTensors:
    """What a GPTQ checkpoint stores for one linear layer (bits 2, 3, 4 or 8)."""

    qweight: Tensor
    """int32 `[in·bits/32, out]`: the codes packed along the input axis."""
    qzeros: Tensor
    """int32 `[groups, out·bits/32]`: zero points packed along the output axis, minus one in format `gptq`."""
    scales: Tensor
    """`[groups, out]`, usually float16."""
    g_idx: Tensor
    """int32 `[in]`: the group of each input column."""


def pack_gptq(
    codes: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, g_idx: Tensor | None = None, v2: bool = False
) -> GptqTensors:
    """Pack unsigned codes `[out, in]`, scale and zero point `[out, groups]` (0 … 2^bits−1) into the GPTQ layout.

    Raises:
        UsageError: the width is not 2, 3, 4 or 8, or a packed axis does not fill whole words.
    """
    _require_bits(bits, (2, 3, 4, 8), "the GPTQ format")
    outputs, inputs = codes.shape
    _require_whole_words(inputs, bits, "input", "GPTQ")
    _require_whole_words(outputs, bits, "output", "GPTQ")
    groups = scale.shape[1]
    index = torch.arange(inputs, device=codes.device) // (inputs // groups) if g_idx is None else g_idx
    zeros = zero_point.T.to(torch.int64) - (0 if v2 else 1)
    return GptqTensors(
        qweight=pack_bits(codes, bits).T.contiguous(),
        qzeros=pack_bits(zeros & (2**bits - 1), bits),
        scales=scale.T.contiguous(),
        g_idx=index.to(torch.int32),
    )


def unpack_gptq(tensors: GptqTensors, *, bits: int, v2: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes `[out, in]`, scale and zero point `[out, groups]`; the inverse of `pack_gptq`."""
    inputs, outputs = tensors.g_idx.numel(), tensors.scales.shape[1]
    codes = unpack_bits(tensors.qweight.T.contiguous(), bits, inputs)
    zeros = unpack_bits(tensors.qzeros, bits, outputs).to(torch.int16) + (0 if v2 else 1)
    return codes, tensors.scales.T.contiguous(), (zeros & (2**bits - 1)).to(torch.uint8).T.contiguous()


@dataclass(frozen=True, slots=True)
class AwqTensors:
    """What an AWQ (`gemm`) checkpoint stores for one linear layer (4 bits)."""

    qweight: Tensor
    """int32 `[in, out/8]`."""
    qzeros: Tensor
    """int32 `[groups, out/8]`."""
    scales: Tensor
    """float16 `[groups, out]`."""


def pack_awq(codes: Tensor, scale: Tensor, zero_point: Tensor) -> AwqTensors:
    """Pack unsigned 4-bit codes `[out, in]`, scale and zero point `[out, groups]` into the AWQ layout.

    Raises:
        UsageError: the output axis does not fill whole words.
    """
    _require_whole_words(codes.shape[0], 4, "output", "AWQ")
    return AwqTensors(_interleave(codes.T), _interleave(zero_point.T), scale.T.contiguous())


def unpack_awq(tensors: AwqTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes `[out, in]`, scale and zero point `[out, groups]`; the inverse of `pack_awq`."""
    return _separate(tensors.qweight).T.contiguous(), tensors.scales.T.contiguous(), _separate(tensors.qzeros).T.contiguous()


def _interleave(codes: Tensor) -> Tensor:
    rows, columns = codes.shape
    return pack_bits(codes.reshape(rows, columns // 8, 8)[..., list(AWQ_ORDER)].reshape(rows, columns), 4)


def _separate(words: Tensor) -> Tensor:
    rows, width = words.shape
    inverse = sorted(range(8), key=AWQ_ORDER.__getitem__)
    return unpack_bits(words, 4, width * 8).reshape(rows, width, 8)[..., inverse].reshape(rows, width * 8)


def _require_bits(bits: int, allowed: range | tuple[int, ...], what: str) -> None:
    if bits not in allowed:
        raise UsageError(f"{what} holds codes of {', '.join(str(item) for item in allowed)} bits; {bits} were asked for")


def _require_whole_words(size: int, bits: int, axis: str, layout: str) -> None:
    if size * bits % 32:
        raise UsageError(
            f"the {layout} format packs {bits}-bit codes into whole 32-bit words, which {size} {axis} columns do not fill;"
            " put the layer on the ignore list or choose the compressed-tensors format"
        )
