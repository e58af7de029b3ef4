"""Is each code still the best one, now that all the others are known?

Error feedback decides a column before the later ones, and never comes back to it. Coordinate descent does: column after
column, each code moves to the level that is best given all other columns, which never raises tr(ΔHΔᵀ). Behind error feedback
over NF4 three passes take another sixth of the error away (the tests' model, 28 layers: from 24 % of plain rounding's to 20 %).
"""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from quantkit.numerics.codebooks import CodebookWeight
from quantkit.numerics.error_feedback import Grid
from quantkit.numerics.grids import Levels, QuantizedWeight

W = TypeVar("W", QuantizedWeight, CodebookWeight)
CHUNK = 128
"""Columns after which the later ones are told of all moves at once, which is several times faster than one by one."""


@torch.no_grad()
def descend(weight: W, target: Tensor, hessian: Tensor, grid: Grid[W]) -> W:
    """Return the weight after one pass over its columns; `target` `[out, in]`, positive definite `hessian` `[in, in]`.

    Levels stay as they are; only codes change.
    """
    codes, levels = codes_and_levels(weight)
    spread = _columns(levels, target.shape[1])
    codes, values = codes.T.contiguous(), weight.dequantize().float().T.contiguous()
    slope = (hessian @ (values - target.float().T)).contiguous()  # [in, out]
    curvatures = hessian.diagonal().tolist()
    for start in range(0, len(codes), CHUNK):
        end = min(start + CHUNK, len(codes))
        steps = torch.empty(end - start, values.shape[1], device=values.device)
        for column in range(start, end):
            current = Levels(spread.scale[column], None if spread.zero_point is None else spread.zero_point[column])
            best = grid.encode(values[column] - slope[column] / curvatures[column], current)
            value = grid.decode(best, current)
            steps[column - start] = value - values[column]
            slope[column + 1 : end].addr_(hessian[column + 1 : end, column], steps[column - start])
            codes[column] = best.to(codes.dtype)
        slope[end:].addmm_(hessian[end:, start:end], steps)
    return _with_codes(weight, codes.T.contiguous())


def codes_and_levels(weight: QuantizedWeight | CodebookWeight) -> tuple[Tensor, Levels]:
    """Return codes `[out, in]`, of 8-bit floats their bits, and levels `[out, groups]`."""
    if isinstance(weight, CodebookWeight):
        return weight.codes, Levels(weight.absmax, None)
    codes = weight.codes.view(torch.uint8) if weight.codes.is_floating_point() else weight.codes
    return codes, Levels(weight.scale, weight.zero_point)


def _with_codes(weight: W, codes: Tensor) -> W:
    floats = weight.codes.is_floating_point()
    return replace(weight, codes=codes.view(weight.codes.dtype) if floats else codes)


def _columns(levels: Levels, columns: int) -> Levels:
    """Return levels `[out, groups]` as `[in, out]`, in their own data types."""
    times = columns // levels.scale.shape[1]
    zero_point = levels.zero_point
    spread = None if zero_point is None else zero_point.repeat_interleave(times, 1).T.contiguous()
    return Levels(levels.scale.repeat_interleave(times, 1).T.contiguous(), spread)
