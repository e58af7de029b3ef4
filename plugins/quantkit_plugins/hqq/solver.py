"""Which grid does a weight fit best when a few outliers must not decide it, and there is no data?

HQQ (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", mobiusml.github.io/hqq_blog) looks
for the grid of least Σ|W − Ŵ|^p with p < 1, which large errors hardly count in. The norm is not convex; half-quadratic
splitting alternates two steps that are solved exactly, with an error E of its own and a growing weight β:

    E ← argmin |E|^p + β/2·(E − (W − Ŵ))²    a shrinkage: sign(x)·max(|x| − (p/β)·|x|^(p−1), 0), x = W − Ŵ
    Ŵ ← argmin ‖Ŵ − (W − E)‖²               the grid, fitted to what the outliers leave of W

hqq fits a real-valued zero point and holds the scale. Standard formats store integer zero points, and rounding hqq's when
saving would give its gain away; so here the second step is a straight line through (code, W − E), which moves scale and zero
point, the zero point is rounded, and the scale fitted again. A symmetric grid is a line through zero. Each group of each
iterate is judged by the objective itself, on stored values, and the best is kept: it never rises.
"""

import torch
from torch import Tensor

from quantkit.errors import UsageError
from quantkit.numerics.grids import Levels, QuantizedWeight, UniformGrid, fit_minmax

CHUNK = 1 << 17
"""Weights that are worked on at a time: what stays in a core's cache is several times faster."""


@torch.no_grad()
def half_quadratic(
    weight: Tensor,
    grid: UniformGrid,
    *,
    lp_norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
    layer: str = "this layer",
) -> QuantizedWeight:
    """Return a weight `[out, in]` on the grid that leaves the least Σ|W − Ŵ|^p found.

    `beta` is the splitting's first weight and grows by `kappa` a step. Errors are shrunk in units of the group's scale: in
    the weights' own, as hqq does it, a weight of usual size (0.01) lies below every threshold and E is always zero.

    Raises:
        UsageError: the group size does not divide the columns, or a weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise UsageError(f"{layer} holds weights that are not finite; nothing can be quantized from them")
    groups = weight.float().reshape(-1, grid.block_columns(weight.shape[1], layer))
    parts = []
    for part in torch.split(groups, max(1, CHUNK // groups.shape[1])):
        levels = best_levels(part, grid, lp_norm=lp_norm, beta=beta, kappa=kappa, iterations=iterations)
        parts.append((levels, grid.encode(part, levels.spread())))
    shape = (len(weight), -1)
    scale = torch.cat([levels.scale for levels, _ in parts]).reshape(shape)
    offsets = [levels.zero_point for levels, _ in parts if levels.zero_point is not None]
    zero_point = torch.cat(offsets).reshape(shape) if offsets else None
    return grid.assemble(torch.cat([codes for _, codes in parts]).reshape(shape), Levels(scale, zero_point))


def best_levels(groups: Tensor, grid: UniformGrid, *, lp_norm: float, beta: float, kappa: float, iterations: int) -> Levels:
    """Return the levels of least objective among the range of groups `[groups, size]` and all iterates."""
    levels = best = fit_minmax(grid, groups)
    least = torch.full_like(best.scale, torch.inf, dtype=torch.float32)
    for step in range(iterations + 1):
        spread = levels.spread()
        codes = grid.encode(groups, spread)
        error = groups - grid.decode(codes, spread)
        found = objective(error, lp_norm)
        better = found < least
        least, best = torch.where(better, found, least), _choose(better, levels, best)
        if step < iterations:
            unit = spread.scale.float().abs()
            outliers = shrink(error / unit, beta * kappa**step, lp_norm).mul_(unit)
            levels = fit_line(groups - outliers, codes, levels, grid)
    return best


def shrink(values: Tensor, beta: float, lp_norm: float) -> Tensor:
    """Return sign(x)·max(|x| − |x|^(p−1)/β, 0), the generalised soft threshold as hqq has it (p = 1: the usual one)."""
    size = values.abs()
    return values.sign() * (size - power(size, lp_norm - 1) / beta).clamp_(min=0)


def fit_line(values: Tensor, codes: Tensor, levels: Levels, grid: UniformGrid) -> Levels:
    """Return scale and zero point of least squares for values ≈ (codes − z)·s in each group `[..., size]`.

    Groups whose codes are all equal keep the levels they have.
    """
    if grid.symmetric:
        scale = (values * codes).sum(-1) / codes.square().sum(-1).clamp(min=1e-12)
        return _storable(scale, None, levels, grid)
    centre, middle = codes.mean(-1, keepdim=True), values.mean(-1, keepdim=True)
    deviation = codes - centre
    slope = ((values - middle) * deviation).sum(-1) / deviation.square().sum(-1).clamp(min=1e-12)
    slope = torch.where(slope.isfinite() & (slope != 0), slope, levels.scale.float())
    zero_point = (centre.squeeze(-1) - middle.squeeze(-1) / slope).round().clamp(grid.q_min, grid.q_max)
    offset = codes - zero_point.unsqueeze(-1)
    scale = (values * offset).sum(-1) / offset.square().sum(-1).clamp(min=1e-12)
    return _storable(scale, zero_point.to(torch.int8), levels, grid)


def objective(error: Tensor, lp_norm: float) -> Tensor:
    """Return Σ|error|^p over the last axis."""
    return power(error.abs(), lp_norm).sum(-1)


def power(base: Tensor, exponent: float) -> Tensor:
    """Return base^exponent for base ≥ 0 (1e-30 at least): on a CPU several times faster than the library's."""
    return base.clamp(min=1e-30).log_().mul_(exponent).exp_()


def _storable(scale: Tensor, zero_point: Tensor | None, levels: Levels, grid: UniformGrid) -> Levels:
    rounded = scale.to(grid.scale_dtype)
    return _choose(rounded.isfinite() & (rounded != 0), Levels(rounded, zero_point), levels)


def _choose(condition: Tensor, new: Levels, old: Levels) -> Levels:
    zero_point = None
    if new.zero_point is not None and old.zero_point is not None:
        zero_point = torch.where(condition, new.zero_point, old.zero_point)
    return Levels(torch.where(condition, new.scale, old.scale), zero_point)
