"""Which grid does a weight fit best when there is no data, and a few outliers must not decide it?

HQQ (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", mobiusml.github.io/hqq_blog) looks
for the grid of least Σ|W − Ŵ|^p with p < 1, which large errors hardly count in. The norm is not convex; half-quadratic
splitting alternates two steps that are solved exactly, with an error E of its own and a growing weight β:

    E ← argmin |E|^p + β/2·(E − (W − Ŵ))²    a shrinkage: sign(x)·max(|x| − (p/β)·|x|^(p−1), 0), x = W − Ŵ
    Ŵ ← argmin ‖Ŵ − (W − E)‖²               the grid, fitted to what the outliers leave of W

hqq (0.2.8) asks for p = 0.7, but with its β no error below 0.17 passes the shrinkage: on SmolLM2 3 in 100,000 do at 4 bits,
3 in 100 at 2. What it really does is least squares, for a real-valued zero point under a fixed scale. Here p is 2 by default,
which is the same aim, said aloud; there E is zero. The true minimum for p = 0.7 clips whole tails, and models suffer: KL 2 to
4 times that of p = 2 on a small model trained in full precision.

Standard formats store integer zero points, and rounding hqq's when saving would give its gain away. So the second step is a
straight line through (code, W − E), which moves scale and zero point, the zero point is rounded, and the scale fitted again; a
symmetric grid is a line through zero. It starts from the best of many ranges, not from the whole range, since iterates stay
close to where they start: SmolLM2 at 3 bits, perplexity 2.19 times the dense one's; from the whole range with p = 0.7, 2.42.
Each group of each iterate is judged by the objective itself, on stored values, and the best is kept: it never rises.

What integer zero points cost, relative error of twelve layers' weights in groups of 64 beside real-valued ones fitted as well:
at 4 bits 0.088 and 0.068 on SmolLM2, whose file sat on a grid with real-valued offsets before, 0.087 and 0.082 on normally
distributed weights; at 3 bits 0.184 and 0.172, 0.176 and 0.165.
"""

import torch
from torch import Tensor

from quantkit.errors import UsageError
from quantkit.numerics.grids import Levels, QuantizedWeight, UniformGrid, better_levels, candidate_levels, fit_minmax

RANGES = 16
"""Ranges tried as starts: 1 … 0.44 of a group's own."""
CHUNK = 1 << 17
"""Weights that are worked on at a time: what stays in a core's cache is several times faster."""


@torch.no_grad()
def half_quadratic(
    weight: Tensor,
    grid: UniformGrid,
    *,
    lp_norm: float = 2.0,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 5,
    layer: str = "this layer",
) -> QuantizedWeight:
    """Return a weight `[out, in]` on the grid that leaves the least Σ|W − Ŵ|^p found.

    `beta` is the splitting's first weight and grows by `kappa` a step; at `lp_norm` 2 nothing is split. Errors are shrunk in
    units of the group's scale: in the weights' own, as hqq does it, almost every error lies below the threshold.

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
    """Return the levels of least objective among ranges of groups `[groups, size]` and all iterates from the best of them."""
    best = fit_minmax(grid, groups)
    least = torch.full_like(best.scale, torch.inf, dtype=torch.float32)
    for step in range(RANGES):
        for levels in candidate_levels(grid, groups, 1 - 0.6 * step / RANGES):
            for moved in _neighbours(levels, grid):
                found = objective(_codes_and_errors(groups, moved, grid)[1], lp_norm)
                best, least = better_levels(best, moved, found < least), torch.minimum(found, least)
    levels = best
    for step in range(iterations):
        values = groups
        codes, error = _codes_and_errors(groups, levels, grid)
        if lp_norm < 2:
            unit = levels.spread().scale.float().abs()
            values = groups - shrink(error / unit, beta * kappa**step, lp_norm).mul_(unit)
        levels = fit_line(values, codes, levels, grid)
        found = objective(_codes_and_errors(groups, levels, grid)[1], lp_norm)
        best, least = better_levels(best, levels, found < least), torch.minimum(found, least)
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
    return error.square().sum(-1) if lp_norm == 2 else power(error.abs(), lp_norm).sum(-1)


def power(base: Tensor, exponent: float) -> Tensor:
    """Return base^exponent for base ≥ 0 (1e-30 at least): on a CPU several times faster than the library's."""
    return base.clamp(min=1e-30).log_().mul_(exponent).exp_()


def _storable(scale: Tensor, zero_point: Tensor | None, levels: Levels, grid: UniformGrid) -> Levels:
    rounded = scale.to(grid.scale_dtype)
    return better_levels(levels, Levels(rounded, zero_point), rounded.isfinite() & (rounded != 0))


def _neighbours(levels: Levels, grid: UniformGrid) -> list[Levels]:
    """Return levels with their zero point and with those beside it; symmetric ones alone."""
    if levels.zero_point is None:
        return [levels]
    moved = [(levels.zero_point + step).clamp(grid.q_min, grid.q_max) for step in (0, -1, 1)]
    return [Levels(levels.scale, zero_point) for zero_point in moved]


def _codes_and_errors(groups: Tensor, levels: Levels, grid: UniformGrid) -> tuple[Tensor, Tensor]:
    spread = levels.spread()
    codes = grid.encode(groups, spread)
    return codes, groups - grid.decode(codes, spread)
