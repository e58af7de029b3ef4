"""How does rounding one column of a weight make up for the error of the columns before it?

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) minimises tr(ΔHΔᵀ), Δ = Ŵ − W, where H = 2/n·Σxxᵀ over the layer's
inputs. Columns are rounded in turn; after column i, its error is spread over the columns not yet rounded along row i of R,
the upper Cholesky factor of H⁻¹ (H⁻¹ = RᵀR). Each step's loss is (error/R_ii)², so their sum is tr(ΔHΔᵀ) itself.

The grid is a parameter: uniform groups, whose scales are fitted when the recursion reaches them, on weights that already
carry the compensation, or NF4 blocks in the same way. Rows do not interact, so layers that see the same input are solved
together, stacked. R comes from one Cholesky factorisation of H in reversed order and one triangular inverse; the usual
road (factor, invert, factor again) does three times the work and loses digits twice.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.numerics.grids import Levels

W_co = TypeVar("W_co", covariant=True)


class Grid(Protocol[W_co]):
    """What the recursion asks of a grid; `UniformGrid` and `CodebookGrid` are two."""

    def block_columns(self, columns: int, layer: str = ...) -> int:
        """Return how many neighbouring columns share levels."""
        ...

    def fit(self, groups: Tensor, importance: Tensor | None = None) -> Levels:
        """Choose the levels of groups `[..., size]`."""
        ...

    def encode(self, values: Tensor, levels: Levels) -> Tensor:
        """Return the nearest codes."""
        ...

    def decode(self, codes: Tensor, levels: Levels) -> Tensor:
        """Return the float32 values of codes."""
        ...

    def assemble(self, codes: Tensor, levels: Levels) -> W_co:
        """Return codes `[out, in]` and levels `[out, groups]` as a weight."""
        ...


@dataclass(frozen=True, slots=True)
class Feedback(Generic[W_co]):
    """What came out of the recursion."""

    weight: W_co
    losses: Tensor
    """float32 `[out]`: each row's ΔHΔᵀ, with the damped H."""
    damp_percent: float
    """The damping that was used; larger than asked for when H was not positive definite with that."""


@torch.no_grad()
def error_feedback(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid[W_co],
    *,
    damp_percent: float = 0.01,
    desc_act: bool = False,
    levels: Levels | None = None,
    layer: str = "this layer",
) -> Feedback[W_co]:
    """Round a weight `[out, in]` to a grid with GPTQ's recursion under a Hessian `[in, in]`.

    `damp_percent` (a fraction, as everywhere in the field) of the mean diagonal is added to the diagonal. `desc_act` rounds
    the columns of largest diagonal first, with levels fitted to the original weights, so that the stored layout stays the
    natural one. `levels` `[out, groups]` fixes all levels beforehand. Columns that no input ever reached are rounded to
    the nearest level and take no part.

    Raises:
        UsageError: the group size does not divide the columns.
        QuantkitError: the Hessian is not finite or has no positive definite damping.
    """
    rows, columns = weight.shape
    size = grid.block_columns(columns, layer)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if desc_act else None
    factor, used = inverse_factor(hessian if order is None else hessian[order][:, order], damp_percent, layer=layer)
    diagonal = factor.diagonal()
    if desc_act and levels is None:
        importance = hessian.diagonal().clamp(min=0).reshape(-1, size)
        levels = grid.fit(weight.float().reshape(rows, -1, size), importance)
    work = weight.float().T if order is None else weight.float().T[order]
    work = work.clone(memory_format=torch.contiguous_format)  # [in, out]: columns are contiguous
    codes = torch.empty(columns, rows, dtype=torch.int16, device=weight.device)
    losses = torch.zeros(rows, device=weight.device)
    fitted: list[Levels] = []
    spans = [] if levels is None else [_column(levels, group) for group in range(columns // size)]
    for start, end in _chunks(columns, size):
        errors = torch.empty(end - start, rows, device=weight.device)
        for column in range(start, end):
            if levels is not None:
                current = spans[column // size if order is None else int(order[column]) // size]
            elif column % size == 0:
                current = grid.fit(work[column : column + size].T.contiguous(), diagonal[column : column + size] ** -2)
                fitted.append(current)
            values = work[column]
            chosen = grid.encode(values, current)
            error = values.sub_(grid.decode(chosen, current)).div_(diagonal[column])
            codes[column] = chosen
            errors[column - start] = error
            if column + 1 < end:
                work[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        losses += errors.square().sum(0)
        if end < columns:
            work[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    if order is not None:
        codes = codes[torch.argsort(order)]
    return Feedback(grid.assemble(codes.T.contiguous(), _stack(fitted) if levels is None else levels), losses, used)


@torch.no_grad()
def inverse_factor(hessian: Tensor, damp_percent: float, *, layer: str = "this layer") -> tuple[Tensor, float]:
    """Return the upper triangular R with (H + damping)⁻¹ = RᵀR, and the damping that made H positive definite.

    With J the reversal of order, JHJ = LLᵀ gives H = UUᵀ for the upper U = JLJ, so R = U⁻¹.
    """
    if not bool(hessian.isfinite().all()):
        raise QuantkitError(f"the inputs of {layer} are not finite on the calibration data; nothing can be learnt from them")
    damped = hessian.float().clone()
    diagonal = damped.diagonal()
    dead = diagonal <= 0
    mean = float(diagonal.mean())
    diagonal[dead] = mean if mean > 0 else 1.0
    fraction = max(damp_percent, 0.0)
    diagonal += fraction * mean
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(failed) == 0:
            identity = torch.eye(len(damped), device=damped.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), fraction
        larger = max(fraction * 10, 1e-3)
        if larger > 10:
            raise QuantkitError(f"the Hessian of {layer} is not positive definite even with damp_percent {fraction:g}")
        diagonal += (larger - fraction) * mean
        fraction = larger


def _chunks(columns: int, size: int, target: int = 128) -> list[tuple[int, int]]:
    """Split the columns so that updates are applied in bulk: whole groups together, or one group in parts."""
    step = target // size * size if size <= target else size
    parts: list[tuple[int, int]] = []
    for start in range(0, columns, step):
        end = min(start + step, columns)
        parts += [(at, min(at + max(target, 1), end)) for at in range(start, end, target)]
    return parts


def _column(levels: Levels, group: int) -> Levels:
    zero_point = None if levels.zero_point is None else levels.zero_point[:, group].contiguous()
    return Levels(levels.scale[:, group].contiguous(), zero_point)


def _stack(fitted: list[Levels]) -> Levels:
    zero_points = [item.zero_point for item in fitted if item.zero_point is not None]
    return Levels(torch.stack([item.scale for item in fitted], 1), torch.stack(zero_points, 1) if zero_points else None)
