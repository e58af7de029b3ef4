"""How do 4-bit codebooks such as NF4 hold a weight, and how do codes of our own get into a bitsandbytes layer?

A block of 64 neighbouring weights shares one number, absmax; each weight is code_book[q]·absmax. NF4's 16 values are
quantiles of a normal distribution (QLoRA, arXiv:2305.14314, section 3), FP4's are a 1-2-1 floating point. Everything here
equals bitsandbytes bit for bit, except that absmax may be chosen: by error, or by a solver. Such a choice cannot be handed
over as dense weights: a block whose absmax no weight attains would get another one. Codes and absmax are packed directly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from quantkit.errors import UsageError
from quantkit.numerics.grids import Levels, ScaleSearch

CodebookName = Literal["nf4", "fp4"]
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Magnitudes of codes 0 to 7, in twelfths; codes 8 to 15 are their negatives."""
NESTED_BLOCK = 256
"""Absmax numbers that share one scale after double quantization."""


@cache
def codebook(name: CodebookName) -> Tensor:
    """Return the 16 values, float32, in the order of their codes."""
    if name == "nf4":
        return torch.tensor(NF4)
    if name == "fp4":
        positive = torch.tensor(FP4) / 12
        return torch.cat([positive, -positive])
    raise UsageError(f"{name!r} is no codebook; known: nf4, fp4")


@dataclass(frozen=True, slots=True)
class NestedAbsmax:
    """Absmax numbers that are quantized themselves (QLoRA, section 3): code_book[q]·scale + offset."""

    codes: Tensor
    """uint8 `[out · blocks]`."""
    scale: Tensor
    """float32, one for 256 codes."""
    offset: Tensor
    """float32 scalar: the mean that was taken off first."""

    def state(self) -> Any:
        """Return the `bitsandbytes.functional.QuantState` of the codes."""
        from bitsandbytes.functional import QuantState, create_dynamic_map

        values = create_dynamic_map().to(self.codes.device)
        return QuantState(absmax=self.scale, code=values, blocksize=NESTED_BLOCK, dtype=torch.float32)

    def value(self) -> Tensor:
        """Return the absmax that loaders compute with, float32 `[out · blocks]`."""
        from bitsandbytes.functional import dequantize_blockwise

        restored: Tensor = dequantize_blockwise(self.codes, self.state()) + self.offset
        return restored


@dataclass(frozen=True, slots=True)
class CodebookWeight:
    """A weight matrix in blocks of a codebook."""

    codes: Tensor
    """uint8 `[out, in]`, 0 … 15."""
    absmax: Tensor
    """float32 `[out, blocks]`."""
    name: CodebookName
    dtype: torch.dtype
    """Data type of the weight that the layer computes with."""
    nested: NestedAbsmax | None = None
    """How absmax is stored, where it has been double quantized already: `absmax` is exactly what it reads as."""

    def dequantize(self) -> Tensor:
        """Return the weight `[out, in]` in `dtype`, as `bitsandbytes.functional.dequantize_4bit` does."""
        rows, blocks = self.absmax.shape
        values = codebook(self.name).to(self.codes.device)[self.codes.long()].reshape(rows, blocks, -1)
        return (values * self.absmax.unsqueeze(-1)).reshape(rows, -1).to(self.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that state the weight; `CodebookGrid.restore` is the inverse."""
        stored = self.nested
        nested = {} if stored is None else {f"nested_{key}": getattr(stored, key) for key in ("codes", "scale", "offset")}
        return {"codes": self.codes, "absmax": self.absmax} | nested

    def nest(self) -> "CodebookWeight":
        """Return the same codes with absmax double quantized: the weight as it will be read back."""
        absmax, nested = double_quantize(self.absmax)
        return replace(self, absmax=absmax, nested=nested)

    def to(self, device: torch.device) -> "CodebookWeight":
        """Return the weight on another device."""
        return CodebookGrid(self.name, dtype=self.dtype).restore({k: v.to(device) for k, v in self.tensors().items()})


@dataclass(frozen=True, slots=True)
class CodebookGrid:
    """NF4 or FP4 in blocks along the rows; speaks as `UniformGrid` does, with absmax as the scale."""

    name: CodebookName = "nf4"
    block_size: int = 64
    dtype: torch.dtype = torch.bfloat16
    search: ScaleSearch = "minmax"
    """`minmax`: absmax is the block's largest magnitude; `mse`: the one of least (weighted) squared error."""
    signed: bool = True
    """Whether an `mse` search may choose a negative absmax, which mirrors the codebook. Double quantization keeps fewer digits
    of absmax when its signs are mixed; where codes are not chosen anew for what it keeps, say False."""

    def block_columns(self, columns: int, layer: str = "this layer") -> int:
        """Return the block size.

        Raises:
            UsageError: blocks would straddle rows, which a solver that works column by column cannot follow.
        """
        if columns % self.block_size:
            raise UsageError(
                f"blocks of {self.block_size} do not divide the {columns} input columns of {layer}; bitsandbytes lets them"
                " straddle rows, error feedback cannot: put the layer on the ignore list"
            )
        return self.block_size

    @torch.no_grad()
    def fit(self, groups: Tensor, importance: Tensor | None = None) -> Levels:
        """Choose absmax of blocks `[..., size]`; `importance` weighs the squared errors of an `mse` search."""
        values = groups.float()
        best = Levels(values.abs().amax(-1), None)
        if self.search == "minmax":
            return best
        extreme = values.gather(-1, values.abs().argmax(-1, keepdim=True)).squeeze(-1)
        least = self._error(values, best, importance)
        for shrink in (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7):
            for scale in (extreme * shrink, extreme * -shrink) if self.signed else (extreme.abs() * shrink,):
                error = self._error(values, Levels(scale, None), importance)
                better = error < least
                least = torch.where(better, error, least)
                best = Levels(torch.where(better, scale, best.scale), None)
        return best

    def encode(self, values: Tensor, levels: Levels) -> Tensor:
        """Return the nearest codes; absmax broadcasts against the values, the arithmetic is bitsandbytes'."""
        bounds, order = _bounds(self.name)
        scale = levels.scale
        inverse = 1.0 / torch.where(scale.abs() < 1e-38, torch.full_like(scale, 1e-38), scale)
        codes = torch.bucketize((values * inverse).clamp_(-1, 1), bounds.to(values.device))
        return codes if order is None else order.to(values.device)[codes]

    def decode(self, codes: Tensor, levels: Levels) -> Tensor:
        """Return the float32 values of codes, rounded as the layer's weights are."""
        return (codebook(self.name).to(codes.device)[codes] * levels.scale).to(self.dtype).float()

    def assemble(self, codes: Tensor, levels: Levels) -> CodebookWeight:
        """Return codes `[out, in]` and absmax `[out, blocks]` as a weight."""
        return CodebookWeight(codes.to(torch.uint8), levels.scale.float(), self.name, self.dtype)

    def restore(self, tensors: Mapping[str, Tensor]) -> CodebookWeight:
        """Return the weight of this grid that these tensors state."""
        parts = [tensors[key] for key in ("nested_codes", "nested_scale", "nested_offset") if key in tensors]
        return CodebookWeight(
            tensors["codes"], tensors["absmax"], self.name, self.dtype, NestedAbsmax(*parts) if parts else None
        )

    def _error(self, values: Tensor, levels: Levels, importance: Tensor | None) -> Tensor:
        spread = levels.spread()
        square = (self.decode(self.encode(values, spread), spread) - values).square_()
        return (square if importance is None else square * importance).sum(-1)


@torch.no_grad()
def quantize_codebook(
    weight: Tensor, grid: CodebookGrid, *, importance: Tensor | None = None, layer: str = "this layer"
) -> CodebookWeight:
    """Round a weight `[out, in]` to the nearest code of each block; `importance` `[in]` weighs columns in an `mse` search."""
    size = grid.block_columns(weight.shape[1], layer)
    groups = weight.float().reshape(weight.shape[0], -1, size)
    levels = grid.fit(groups, None if importance is None else importance.reshape(-1, size))
    return grid.assemble(grid.encode(groups, levels.spread()).flatten(1), levels)


def double_quantize(absmax: Tensor) -> tuple[Tensor, NestedAbsmax]:
    """Return absmax as it reads after double quantization, and how bitsandbytes stores it.

    absmax minus its mean goes to 8-bit dynamic codes in blocks of 256 (QLoRA, section 3).
    """
    from bitsandbytes.functional import quantize_blockwise

    offset = absmax.mean()
    codes, state = quantize_blockwise(absmax.flatten() - offset, blocksize=NESTED_BLOCK)
    nested = NestedAbsmax(codes, state.absmax, offset)
    return nested.value().reshape(absmax.shape), nested


def params_4bit(weight: CodebookWeight, *, double_quant: bool, storage: torch.dtype = torch.uint8) -> Any:
    """Return a quantized `bitsandbytes.nn.Params4bit` that holds exactly these codes, as bytes of `storage`, and this absmax.

    With `double_quant`, absmax is rounded once more, unless the weight has been through `nest` and says how it is stored.
    """
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    flat = weight.codes.flatten()
    packed = (flat[::2] << 4 | flat[1::2]).view(storage).unsqueeze(1)
    block_size = weight.codes.shape[1] // weight.absmax.shape[1]
    values = codebook(weight.name).to(flat.device, copy=True)
    settings = {"shape": weight.codes.shape, "code": values, "blocksize": block_size, "quant_type": weight.name}
    if double_quant:
        nested = weight.nested or double_quantize(weight.absmax)[1]
        stored = {"absmax": nested.codes, "offset": nested.offset, "state2": nested.state()}
    else:
        stored = {"absmax": weight.absmax.flatten().contiguous()}
    return Params4bit(
        packed,
        quant_state=QuantState(dtype=weight.dtype, **stored, **settings),
        blocksize=block_size,
        compress_statistics=double_quant,
        quant_type=weight.name,
        quant_storage=storage,
        bnb_quantized=True,
    )


def linear_4bit(weight: CodebookWeight, bias: Tensor | None, *, double_quant: bool, storage: torch.dtype = torch.uint8) -> Any:
    """Return a `bitsandbytes.nn.Linear4bit` that computes with exactly this weight; its CPU repacking is switched off."""
    from bitsandbytes.nn import Linear4bit

    outputs, inputs = weight.codes.shape
    layer = Linear4bit(
        inputs,
        outputs,
        bias=bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=double_quant,
        quant_type=weight.name,
        quant_storage=storage,
        device="meta",
    )
    layer.weight = params_4bit(weight, double_quant=double_quant, storage=storage)
    layer.weight.module = layer
    layer.quant_state = layer.weight.quant_state
    layer.support_avx512bf16_for_cpu = False
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return layer


@cache
def _bounds(name: CodebookName) -> tuple[Tensor, Tensor | None]:
    values = codebook(name)
    order = torch.argsort(values)
    ordered = values[order]
    return (ordered[:-1] + ordered[1:]) / 2, None if name == "nf4" else order
