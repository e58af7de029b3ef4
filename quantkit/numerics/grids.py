"""Which real numbers can a weight of b bits be, and which of them should it become?

A uniform grid is w = (q − z)·s with q in −2^(b−1) … 2^(b−1)−1, one scale s (and, if asymmetric, one zero point z) for each
group of `group_size` neighbouring input columns of a row. Codes are signed and dequantization happens in the scale's own
data type, exactly as compressed-tensors does it, so what a solver optimised is bit for bit what a loader computes.
Choosing codes for float32 scales and rounding the scales when saving, the common shortcut, changes every weight afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.errors import UsageError

ScaleSearch = Literal["minmax", "mse"]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight matrix on a uniform grid, or in 8-bit floating point (`quantkit.numerics.float8`)."""

    codes: Tensor
    """int8 `[out, in]`, −2^(bits−1) … 2^(bits−1)−1; or float8_e4m3fn."""
    scale: Tensor
    """`[out, groups]` in the data type that is stored."""
    zero_point: Tensor | None
    """int8 `[out, groups]` on the codes' own axis; None: symmetric."""
    bits: int
    group_size: int
    """Columns that share a scale; -1: the whole row."""

    @property
    def weights_dtype(self) -> str:
        """Return the grid's name as specs write it."""
        return str(self.codes.dtype).removeprefix("torch.") if self.codes.is_floating_point() else f"int{self.bits}"

    def dequantize(self) -> Tensor:
        """Return (codes − zero_point)·scale, `[out, in]` in the scale's data type: what loaders compute."""
        rows, groups = self.scale.shape
        values = self.codes.reshape(rows, groups, -1).to(self.scale.dtype)
        if self.zero_point is not None:
            values = values - self.zero_point.unsqueeze(-1).to(self.scale.dtype)
        weight: Tensor = values * self.scale.unsqueeze(-1)
        return weight.reshape(rows, -1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that state the weight; `UniformGrid.restore` is the inverse."""
        zero_point = {} if self.zero_point is None else {"zero_point": self.zero_point}
        return {"codes": self.codes, "scale": self.scale} | zero_point


@dataclass(frozen=True, slots=True)
class Levels:
    """The fitted grid of some groups: scale and zero point (None: symmetric), each of the shape of the groups."""

    scale: Tensor
    zero_point: Tensor | None

    def spread(self) -> "Levels":
        """Return the same levels with a trailing axis, to broadcast over the columns of each group."""
        return Levels(self.scale.unsqueeze(-1), None if self.zero_point is None else self.zero_point.unsqueeze(-1))


@dataclass(frozen=True, slots=True)
class UniformGrid:
    """b-bit integers in groups of columns.

    Raises:
        UsageError: the width or the group size is not one that formats carry.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16
    """Data type in which scales are stored."""
    search: ScaleSearch = "minmax"
    """`minmax`: the range of the group; `mse`: the range that leaves the least (weighted) squared error."""

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise UsageError(f"bits is {self.bits}; a uniform grid has 2, 3, 4 or 8")
        if self.group_size != -1 and self.group_size <= 0:
            raise UsageError(f"group_size is {self.group_size}; it is a number of columns, or -1 for the whole row")
        if self.search not in ("minmax", "mse"):
            raise UsageError(f"search is {self.search!r}; known: 'minmax', 'mse'")

    @property
    def q_min(self) -> int:
        """Return the lowest code."""
        return int(-(2 ** (self.bits - 1)))

    @property
    def q_max(self) -> int:
        """Return the highest code."""
        return int(2 ** (self.bits - 1) - 1)

    def block_columns(self, columns: int, layer: str = "this layer") -> int:
        """Return how many columns share a scale in a layer of this many columns.

        Raises:
            UsageError: `group_size` does not divide them; names the layer and the sizes that fit.
        """
        return columns if self.group_size == -1 else require_divisor(columns, self.group_size, layer)

    def fit(self, groups: Tensor, importance: Tensor | None = None) -> Levels:
        """Choose scale and zero point of groups `[..., size]`; `importance` (same or broadcastable shape) weighs the errors."""
        return fit_minmax(self, groups) if self.search == "minmax" else fit_mse(self, groups, importance)

    def encode(self, values: Tensor, levels: Levels) -> Tensor:
        """Return the nearest codes (float, integral) of values; levels broadcast against them, computed in float32."""
        codes = values / levels.scale.to(values.dtype)
        if levels.zero_point is not None:
            codes = codes + levels.zero_point.to(values.dtype)
        return codes.round_().clamp_(self.q_min, self.q_max)

    def decode(self, codes: Tensor, levels: Levels) -> Tensor:
        """Return the values of codes in the codes' data type, rounded exactly as `QuantizedWeight.dequantize` rounds them."""
        offset = codes if levels.zero_point is None else codes - levels.zero_point.to(codes.dtype)
        return (offset.to(levels.scale.dtype) * levels.scale).to(codes.dtype)

    def assemble(self, codes: Tensor, levels: Levels) -> QuantizedWeight:
        """Return codes `[out, in]` and levels `[out, groups]` as a weight."""
        return QuantizedWeight(codes.to(torch.int8), levels.scale, levels.zero_point, self.bits, self.group_size)

    def restore(self, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """Return the weight of this grid that these tensors state."""
        return QuantizedWeight(tensors["codes"], tensors["scale"], tensors.get("zero_point"), self.bits, self.group_size)


def require_divisor(columns: int, group_size: int, layer: str) -> int:
    """Return `group_size` if it divides the layer's columns.

    Raises:
        UsageError: it does not; names the layer and the usual sizes that fit.
    """
    if columns % group_size:
        fitting = [str(size) for size in (256, 128, 64, 32, 16) if columns % size == 0]
        raise UsageError(
            f"group_size {group_size} does not divide the {columns} input columns of {layer}; sizes that fit:"
            f" {', '.join([*fitting, '-1'])}; or put the layer on the ignore list"
        )
    return group_size


@torch.no_grad()
def fit_minmax(grid: UniformGrid, groups: Tensor, shrink: float = 1.0) -> Levels:
    """Return the levels that span the range of groups `[..., size]` (zero included), times `shrink`.

    Symmetric: s = max|w| / ((2^b − 1)/2). Asymmetric: s = (max − min)/(2^b − 1), z = q_min − min/s, rounded.
    compressed-tensors `calculate_qparams` is the same formula; an all-zero group gets the scale 1.
    """
    low = groups.amin(-1).clamp(max=0) * shrink
    high = groups.amax(-1).clamp(min=0) * shrink
    steps = grid.q_max - grid.q_min
    if grid.symmetric:
        return Levels(_storable(torch.maximum(-low, high) / (steps / 2), grid), None)
    scale = _storable((high - low) / steps, grid)
    zero_point = (grid.q_min - low / scale.to(low.dtype)).round().clamp(grid.q_min, grid.q_max)
    return Levels(scale, zero_point.to(torch.int8))


def candidate_levels(grid: UniformGrid, groups: Tensor, shrink: float = 1.0) -> list[Levels]:
    """Return the levels that a range of groups `[..., size]`, times `shrink`, can be given: one fit, two if symmetric.

    Symmetric grids have one more level below zero than above; a negative scale puts it on the other side. The second fit puts
    the extreme weight on that level, whichever its sign (as llama.cpp's `Q4_0` does), which matters most at 2 and 3 bits.
    """
    found = [fit_minmax(grid, groups, shrink)]
    if grid.symmetric:
        extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        found.append(Levels(_storable(extreme * (shrink / grid.q_min), grid), None))
    return found


def better_levels(best: Levels, other: Levels, better: Tensor) -> Levels:
    """Return `other` for the groups in which it is better, `best` for the rest."""
    return Levels(torch.where(better, other.scale, best.scale), _where(better, other.zero_point, best.zero_point))


@torch.no_grad()
def fit_mse(grid: UniformGrid, groups: Tensor, importance: Tensor | None = None, *, steps: int = 16) -> Levels:
    """Return the levels of least Σ_j importance_j·(w_j − ŵ_j)² among ranges shrunk to 1 … 0.4 of the group's own."""
    values = groups.float()
    best = fit_minmax(grid, values)
    least = _error(grid, values, best, importance)
    for step in range(steps):
        for levels in candidate_levels(grid, values, 1 - 0.6 * step / steps):
            error = _error(grid, values, levels, importance)
            best, least = better_levels(best, levels, error < least), torch.minimum(error, least)
    return best


@torch.no_grad()
def quantize(
    weight: Tensor, grid: UniformGrid, *, importance: Tensor | None = None, layer: str = "this layer"
) -> QuantizedWeight:
    """Round a weight `[out, in]` to the nearest level of each group; `importance` `[in]` weighs columns in an `mse` search.

    Raises:
        UsageError: the group size does not divide the columns, or a weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise UsageError(f"{layer} holds weights that are not finite; nothing can be quantized from them")
    size = grid.block_columns(weight.shape[1], layer)
    groups = weight.float().reshape(weight.shape[0], -1, size)
    levels = grid.fit(groups, None if importance is None else importance.reshape(-1, size))
    return grid.assemble(grid.encode(groups, levels.spread()).flatten(1), levels)


def _storable(scale: Tensor, grid: UniformGrid) -> Tensor:
    rounded = scale.to(grid.scale_dtype)
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def _where(better: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    return None if new is None or old is None else torch.where(better, new, old)


def _error(grid: UniformGrid, groups: Tensor, levels: Levels, importance: Tensor | None) -> Tensor:
    spread = levels.spread()
    square = (grid.decode(grid.encode(groups, spread), spread) - groups).square_()
    return (square if importance is None else square * importance).sum(-1)
