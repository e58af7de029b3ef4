"""How can gradient descent choose between rounding down and rounding up, and end with a choice?

AdaRound (Nagel et al. 2020, arXiv:2004.10568) makes each code floor + h(V): h is a sigmoid stretched beyond 0 and 1 and cut
there (eq. 23), so that it can reach both ends with a gradient left on the way, and Σ 1 − |2h − 1|^β (eq. 24) is added to the
loss. β falls while V is learnt: early the term only pushes codes that are nearly decided, late it pushes all of them, and
at the end nothing lies between. A straight-through estimator instead would have gradients that are not the loss's own.

The two levels between which a weight is left to choose need not be the neighbours of the weight itself: given real-valued
positions on the codes' axis, each chooses between the levels around its position, and starts where it lies.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.grids import Levels, QuantizedWeight, UniformGrid, quantize
from quantkit.numerics.hessian import quadratic_error

Start = Literal["gptq", "nearest"]

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""γ and ζ of AdaRound's eq. 23."""
UNDECIDED = 0.01
"""How close to 0 or 1 a start may lie, so that its gradient has not vanished."""

DECIDED = 10.0
"""A V whose h(V) is exactly 1; with the sign changed, exactly 0."""


@dataclass(frozen=True, slots=True)
class Annealing:
    """How β falls over the steps of a run."""

    steps: int
    first: float = 20.0
    last: float = 2.0
    warmup: float = 0.2
    """Share of the steps at the start without regularisation."""

    def beta(self, step: int) -> float | None:
        """Return β of a step (0 … steps − 1); None during the warm-up.

        >>> [Annealing(10, warmup=0.2).beta(step) for step in (1, 2, 9)]
        [None, 20.0, 2.0]
        """
        begin = int(self.warmup * self.steps)
        if step < begin:
            return None
        return self.first + (self.last - self.first) * (step - begin) / max(self.steps - 1 - begin, 1)


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Return h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1).

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def inverse_rectified_sigmoid(share: Tensor) -> Tensor:
    """Return V with h(V) = share; shares (0 … 1) are first brought inside 0.01 … 0.99."""
    return torch.logit((share.clamp(UNDECIDED, 1 - UNDECIDED) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW))


def indecision_slope(share: Tensor, beta: float) -> Tensor:
    """Return the derivative by h of Σ 1 − |2h − 1|^β, the undecided codes as β sees them: −2β·|2h − 1|^(β−1)·sign(2h − 1)."""
    centred = share.mul(2).sub_(1)
    return _power(centred.abs(), beta - 1).copysign_(centred).mul_(-2 * beta)


class SoftCodes:
    """The codes of one weight while they are learnt: floor + h(V), with the levels of a start.

    Its scales may be learnt as well: each is the start's times exp(`growth`), so that it keeps its sign.
    """

    def __init__(self, start: QuantizedWeight, positions: Tensor, grid: UniformGrid) -> None:
        self.start, self.grid = start, grid
        spread = spread_columns(Levels(start.scale, start.zero_point), start.codes.shape[1])
        self.scale = spread.scale
        self.growth = torch.zeros_like(start.scale, dtype=torch.float32)
        """`[out, groups]`; moves only where an optimizer is given it."""
        self.floor, self.logits = split_positions(positions, grid)
        self.offset = self.floor if spread.zero_point is None else self.floor - spread.zero_point
        self._sigmoid = self._share = self.logits

    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return the weight `[out, in]` as V has it now, float32."""
        self._sigmoid = torch.sigmoid(self.logits)
        self._share = self._sigmoid.mul(STRETCH_HIGH - STRETCH_LOW).add_(STRETCH_LOW).clamp_(0, 1)
        return (self.offset + self._share).mul_(self.scale)

    @torch.no_grad()
    def scale_backward(self, slope: Tensor) -> None:
        """Set the gradient of `growth` from the loss's slope `[out, in]` by the weight that `weight` returned."""
        grown = (self.offset + self._share).mul_(self.scale).mul_(slope)
        self.growth.grad = grown.reshape(*self.growth.shape, -1).sum(-1)

    @torch.no_grad()
    def rescale(self) -> None:
        """Let weights be made with the scales as `growth` has them now."""
        levels = Levels(self._grown().float(), None)
        self.scale = spread_columns(levels, self.offset.shape[1]).scale

    def _grown(self) -> Tensor:
        """Return the scales `[out, groups]` in the data type that is stored; as they were where nothing was learnt."""
        return (self.start.scale.float() * self.growth.exp()).to(self.start.scale.dtype)

    @torch.no_grad()
    def backward(self, slope: Tensor, beta: float | None, reg_weight: float) -> None:
        """Set V's gradient from the loss's slope by the weight that `weight` returned; the regulariser joins where β is set.

        `slope` `[out, in]` is used up.
        """
        slope.mul_(self.scale)
        if beta is not None:
            slope.add_(indecision_slope(self._share, beta), alpha=reg_weight)
        inside = (self._share > 0).logical_and_(self._share < 1)
        chain = (1 - self._sigmoid).mul_(self._sigmoid).mul_(inside)
        self.logits.grad = slope.mul_(chain).mul_(STRETCH_HIGH - STRETCH_LOW)

    @torch.no_grad()
    def decide(self) -> None:
        """Move each code to the end of its choice that is nearer, so that from here on only scales are learnt."""
        self.logits.copy_(torch.where(rectified_sigmoid(self.logits) >= 0.5, DECIDED, -DECIDED))

    @torch.no_grad()
    def hard(self) -> QuantizedWeight:
        """Return the weight with each code decided."""
        codes = self.floor + (rectified_sigmoid(self.logits) >= 0.5)
        return self.grid.assemble(codes, Levels(self._grown(), self.start.zero_point))


@torch.no_grad()
def start_rounding(
    target: Tensor, hessian: Tensor, grid: UniformGrid, start: Start, *, damp_percent: float, layer: str
) -> QuantizedWeight:
    """Return a first rounding of a target `[out, in]`: to the nearest level, or with GPTQ's error feedback."""
    if start == "nearest":
        return quantize(target, grid, importance=hessian.diagonal().clamp(min=0), layer=layer)
    return error_feedback(target, hessian, grid, damp_percent=damp_percent, desc_act=True, layer=layer).weight


@torch.no_grad()
def start_positions(target: Tensor, hessian: Tensor, found: QuantizedWeight, start: Start) -> Tensor:
    """Return where each code's two candidates are to be looked for, `[out, in]` on the codes' axis.

    From `nearest`, around the target weight itself, as in the paper. From `gptq`, each code and its neighbour on the side to
    which the loss falls: at the optimum of this one code, all others held, but no further than where it rounds to itself.
    """
    levels = Levels(found.scale, found.zero_point)
    if start == "nearest":
        return positions_of(target, levels)
    delta = found.dequantize().float() - target.float()
    curvature = hessian.diagonal().float().clamp(min=1e-20)
    way = (delta @ hessian.float()) / curvature / spread_columns(levels, target.shape[1]).scale
    return found.codes.float() - way.clamp(-0.49, 0.49)


@torch.no_grad()
def refit_scales(target: Tensor, hessian: Tensor, found: QuantizedWeight, grid: UniformGrid) -> QuantizedWeight:
    """Return the same codes with the scales that minimise each row's (Ŵ − T)H(Ŵ − T)ᵀ; rows that lose keep their own.

    With Q `[in, groups]` a row's codes, each in its group's column, the scales solve (QᵀHQ)s = QᵀHt.
    """
    rows, columns = target.shape
    groups = found.scale.shape[1]
    size = columns // groups
    offsets = found.codes.float()
    if found.zero_point is not None:
        offsets = offsets - found.zero_point.float().repeat_interleave(size, 1)
    split = offsets.reshape(rows, groups, size)
    normal = torch.empty(rows, groups, groups, device=target.device)
    for group in range(groups):
        part = split[:, group] @ hessian[group * size : (group + 1) * size].float()
        normal[:, group] = (part.reshape(rows, groups, size) * split).sum(-1)
    right = ((target.float() @ hessian.float()).reshape(rows, groups, size) * split).sum(-1)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.mean(1, keepdim=True) + 1e-20
    scale = torch.linalg.solve(normal, right).to(found.scale.dtype)
    scale = torch.where(scale.isfinite() & (scale != 0), scale, found.scale)
    return better_rows(target, hessian, found, grid.assemble(found.codes, Levels(scale, found.zero_point)))


@torch.no_grad()
def better_rows(target: Tensor, hessian: Tensor, old: QuantizedWeight, new: QuantizedWeight) -> QuantizedWeight:
    """Return the new weight, with the rows of the old one (same grid and zero points) where their loss is smaller."""
    losses = [quadratic_error(item.dequantize().float() - target.float(), hessian) for item in (old, new)]
    keep = (losses[0] <= losses[1]).unsqueeze(1)
    codes, scale = torch.where(keep, old.codes, new.codes), torch.where(keep, old.scale, new.scale)
    return QuantizedWeight(codes, scale, old.zero_point, old.bits, old.group_size)


def split_positions(positions: Tensor, grid: UniformGrid) -> tuple[Tensor, Tensor]:
    """Return the lower of the two codes around each position, and V that starts there; both of the positions' shape.

    >>> floor, logits = split_positions(torch.tensor([-9.0, 1.25, 9.0]), UniformGrid(bits=4))
    >>> floor.tolist(), [round(share, 2) for share in rectified_sigmoid(logits).tolist()]
    ([-8.0, 1.0, 6.0], [0.01, 0.25, 0.99])
    """
    floor = positions.floor().clamp(grid.q_min, grid.q_max - 1)
    return floor, inverse_rectified_sigmoid(positions - floor)


def positions_of(weight: Tensor, levels: Levels) -> Tensor:
    """Return where on the codes' axis weights `[out, in]` lie, w/s + z, for levels `[out, groups]`; float32."""
    spread = spread_columns(levels, weight.shape[1])
    codes = weight.float() / spread.scale
    return codes if spread.zero_point is None else codes + spread.zero_point


def spread_columns(levels: Levels, columns: int) -> Levels:
    """Return levels `[out, groups]` as float32 `[out, in]`, one for each column."""
    times = columns // levels.scale.shape[1]
    zero_point = None if levels.zero_point is None else levels.zero_point.float().repeat_interleave(times, 1)
    return Levels(levels.scale.float().repeat_interleave(times, 1), zero_point)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return base^exponent for base ≥ 0, in place: several times faster than the library's power on a CPU."""
    return base.clamp_(min=1e-30).log_().mul_(exponent).exp_()
