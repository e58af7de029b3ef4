"""Which channels of a weight are scaled up before rounding, by how much, and where does the inverse go?

AWQ (Lin et al. 2023, arXiv:2306.00978): y = Wx = (W·diag(s))·(diag(1/s)·x). Rounding W·diag(s) instead of W makes the error of
channel j smaller by 1/s_j as long as s_j does not raise the largest weight of its group. The inverse is folded into what
produces x: the norm before q, k, v or gate, up; the rows of v before o; the rows of up before down.

* **Scale search** (section 3.2): s_j = x̄_j^α, x̄_j the mean |x_j|, for n_grid exponents α in 0 … 1; with `duo_scaling`
  s_j = x̄_j^α / w̄_j^(1−α), w̄_j the mean of |w_j| relative to its group's largest. The s is kept that leaves the least output
  error E‖(Q(W·s)/s − W)x‖² over all layers that share x; s = 1, plain rounding, is always among the candidates. That
  error is tr(ΔHΔᵀ), so one matrix H `[in, in]` stands for all calibration tokens.
* **Clip search**: for each group the range is shrunk in steps to half; the one that leaves the least δ·H_gg·δᵀ is kept, H_gg
  the group's own block of H `[size, size]`: the error of that group's part of the output. A symmetric grid has one level
  more on one side; both sides are tried (`quantkit.numerics.grids.candidate_levels`), which the paper does not do.
* **Folding**: where, is found by trying (`quantkit.numerics.graph`). Scales are chosen after the norm's new weight has been
  rounded to its data type, and linear weights are held in float32 until they are rounded to the grid, so folding
  costs nothing; where a layer on the ignore list is touched, scales are powers of two. That the block still computes the
  same is checked before anything is rounded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quantkit.errors import QuantkitError, UsageError
from quantkit.numerics.capture import Block
from quantkit.numerics.graph import Site, divide_outputs, fold_sites
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, better_levels, candidate_levels, fit_minmax, quantize
from quantkit.numerics.hessian import HessianSum, quadratic_error
from quantkit.numerics.hessian import equal_tokens as equally_long

CLIP_STEPS = 20
"""Steps in which a range is shrunk to half."""
SAME = 1e-4
"""Largest relative change (norm) of a block's output by folding, in float32."""


@torch.no_grad()
def awq_block(
    block: Block,
    grid: UniformGrid,
    *,
    n_grid: int = 20,
    duo_scaling: bool = True,
    apply_clip: bool = True,
    equal_tokens: bool = True,
) -> tuple[dict[str, QuantizedWeight], list[str]]:
    """Return name → quantized weight of a block's linear layers, and the names of those that could not be scaled.

    Norms and biases of the block are changed in place: they carry the inverse scales.

    Raises:
        UsageError: the group size does not divide a layer's columns, or a weight is not finite; names the layer.
        QuantkitError: folding changed what the block computes, or inputs are not finite.
    """
    weights = {name: linear.weight.data.float() for name, linear in block.linears.items()}
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise UsageError(f"{name} holds weights that are not finite; nothing can be quantized from them")
    groups = block.groups()
    moments, sizes = _statistics(block, groups, equal_tokens)
    before = _output(block, {})
    sites = fold_sites(block)
    unscaled = []
    for index, names in enumerate(groups):
        grid.block_columns(weights[names[0]].shape[1], names[0])
        site = next((item for item in sites if set(names) <= set(item.consumers)), None)
        if site is None:
            unscaled += names
            continue
        count = _module(block, site.producer).weight.shape[0]
        scale = search_scale(
            [weights[name] for name in names],
            moments[index],
            _per_channel(sizes[index], site.channels, count),
            grid,
            channels=site.channels,
            n_grid=n_grid,
            duo_scaling=duo_scaling,
            powers_of_two=_touches_dense(block, site),
        )
        applied = fold_scale(block, site, scale, weights)[site.channels.to(scale.device)]
        moments[index] = moments[index] / torch.outer(applied, applied)
    _require_same(block, before, _output(block, weights))
    solved = {}
    for names, hessian in zip(groups, moments, strict=True):
        for name in names:
            rounded = clip_and_round(weights[name], hessian, grid, layer=name) if apply_clip else None
            solved[name] = rounded or quantize(weights[name], grid, layer=name)
    return solved, unscaled


@torch.no_grad()
def search_scale(
    weights: Sequence[Tensor],
    hessian: Tensor,
    size: Tensor,
    grid: UniformGrid,
    *,
    channels: Tensor,
    n_grid: int = 20,
    duo_scaling: bool = True,
    powers_of_two: bool = False,
) -> Tensor:
    """Return the scale of each producer channel, float32 `[channels]`, that leaves the least output error.

    `weights` `[out, in]` share inputs of second moments `hessian` `[in, in]`; `size` `[channels]` is the mean |x| of each
    producer channel, `channels` `[in]` tells which of them each column reads. Powers of two change no digit of a dense weight.
    """
    channels = channels.to(hessian.device)
    own = torch.ones_like(size)
    if duo_scaling:
        relative = torch.cat([_relative_sizes(weight, grid) for weight in weights]).mean(0)
        own = _per_channel(relative, channels, len(size))
    best, least = torch.ones_like(size), _error(weights, hessian, torch.ones_like(size)[channels], grid)
    for step in range(n_grid):
        alpha = step / n_grid
        scale = size.pow(alpha) / own.pow(1 - alpha).add(1e-4) if duo_scaling else size.pow(alpha)
        scale = scale.clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        if not bool(scale.isfinite().all()):
            continue
        scale = scale.log2().round().exp2() if powers_of_two else scale
        error = _error(weights, hessian, scale[channels], grid)
        if error < least:
            best, least = scale, error
    return best


@torch.no_grad()
def fold_scale(block: Block, site: Site, scale: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Divide a producer's outputs by `scale` `[channels]`, multiply its consumers' columns; return what was really applied.

    `weights` holds the float32 weights of the layers that will be quantized, and is changed; other layers (ignored ones that
    read the same tensor) are changed in place.
    """
    producer = _module(block, site.producer)
    if site.producer in weights:
        bias = producer.bias
        if isinstance(bias, Tensor):
            divided = (bias.float() / scale).to(bias.dtype)
            usable = (bias != 0) & (divided != 0)
            scale = torch.where(usable, bias.float() / torch.where(usable, divided.float(), 1.0), scale)
            bias.copy_(divided)
        weights[site.producer] = weights[site.producer] / scale.unsqueeze(1)
        applied = scale
    else:
        applied = divide_outputs(producer, site, scale)
    columns = applied[site.channels.to(applied.device)]
    for name in site.consumers:
        if name in weights:
            weights[name] = weights[name] * columns
        else:
            dense = _module(block, name).weight
            dense.copy_(dense.float() * columns)
    return applied


@torch.no_grad()
def clip_and_round(weight: Tensor, hessian: Tensor, grid: UniformGrid, *, layer: str = "this layer") -> QuantizedWeight:
    """Round a weight `[out, in]` with each group's range shrunk to what leaves the least error of its part of the output."""
    size = grid.block_columns(weight.shape[1], layer)
    groups = weight.reshape(len(weight), -1, size)
    own = torch.stack([hessian[at : at + size, at : at + size] for at in range(0, weight.shape[1], size)])
    best = fit_minmax(grid, groups)
    least = torch.full(best.scale.shape, float("inf"), device=weight.device)
    for step in range(CLIP_STEPS + 1):
        for levels in candidate_levels(grid, groups, 1 - 0.5 * step / CLIP_STEPS):
            delta = grid.decode(grid.encode(groups, levels.spread()), levels.spread()) - groups
            error = (torch.einsum("ogi,gij->ogj", delta, own) * delta).sum(-1)
            best, least = better_levels(best, levels, error < least), torch.minimum(error, least)
    return grid.assemble(grid.encode(groups, best.spread()).flatten(1), best)


def unscaled_layers(left: Mapping[str, Sequence[str]]) -> str:
    """Return a sentence on the layers that could not be scaled, by block name; empty when there are none.

    >>> unscaled_layers({"layers.0": ["layers.0.o"], "layers.1": ["layers.1.o"], "layers.2": []})
    'AWQ rounded o in 2 of 3 blocks without scaling: nothing before these layers can carry the inverse exactly'
    """
    short = [name.removeprefix(f"{block}.") for block, names in left.items() for name in names]
    if not short:
        return ""
    blocks = sum(1 for names in left.values() if names)
    return (
        f"AWQ rounded {', '.join(dict.fromkeys(short))} in {blocks} of {len(left)} blocks without scaling: nothing before"
        " these layers can carry the inverse exactly"
    )


def _touches_dense(block: Block, site: Site) -> bool:
    """Whether folding at this site changes a linear layer that stays dense, in its own data type."""
    touched = [*site.consumers, *([site.producer] if site.kind == "linear" else [])]
    return any(name not in block.linears for name in touched)


def _statistics(block: Block, groups: Sequence[Sequence[str]], level: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return H `[in, in]` and mean |x| `[in]` for each group of layers, in one run of the block."""
    firsts = [names[0] for names in groups]
    sums = {name: HessianSum(block.linears[name].in_features, block.device) for name in firsts}
    sizes = {name: torch.zeros(block.linears[name].in_features, device=block.device) for name in firsts}

    def see(name: str, inputs: Tensor) -> None:
        if not bool(inputs.isfinite().all()):
            raise QuantkitError(f"the inputs of {name} are not finite on the calibration data; nothing can be learnt from them")
        tokens = equally_long(inputs) if level else inputs
        sums[name].add(tokens)
        sizes[name].add_(tokens.abs().sum(0, dtype=torch.float32))

    block.watch(see, firsts, block.hidden)
    return [sums[name].value() for name in firsts], [sizes[name] / max(sums[name].tokens, 1) for name in firsts]


def _error(weights: Sequence[Tensor], hessian: Tensor, columns: Tensor, grid: UniformGrid) -> float:
    """Return Σ tr(ΔHΔᵀ) for Δ = Q(W·s)/s − W."""
    total = 0.0
    for weight in weights:
        rounded = quantize(weight * columns, grid).dequantize().float()
        total += float(quadratic_error(rounded / columns - weight, hessian).sum())
    return total


def _relative_sizes(weight: Tensor, grid: UniformGrid) -> Tensor:
    """Return |w| relative to the largest of its group, `[out, in]`."""
    groups = weight.abs().reshape(len(weight), -1, grid.block_columns(weight.shape[1]))
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-6)).flatten(1)


def _per_channel(values: Tensor, channels: Tensor, count: int) -> Tensor:
    """Return the mean of `values` `[in]` over the columns that read each producer channel, `[count]`."""
    channels = channels.to(values.device)
    sums = torch.zeros(count, device=values.device).index_add_(0, channels, values)
    return sums / torch.bincount(channels, minlength=count).clamp(min=1)


def _module(block: Block, name: str) -> Any:
    return block.module.get_submodule(name.removeprefix(f"{block.name}."))


def _require_same(block: Block, before: Tensor, after: Tensor) -> None:
    change = float((after - before).norm() / before.norm().clamp(min=1e-30))
    if not change <= SAME:
        raise QuantkitError(
            f"{block.name}: folding the scales changed the block's output by {change:.2g} (relative); nothing was rounded."
            " Please report the architecture, and use another method for it"
        )


def _output(block: Block, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the block's float32 output for the first batch, its linear layers computing with these weights."""
    with _in_float32(block, weights):
        return block.run(0, block.hidden[0])


@contextmanager
def _in_float32(block: Block, weights: Mapping[str, Tensor]) -> Iterator[None]:
    kept = [(parameter, parameter.data) for parameter in block.module.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        for name, weight in weights.items():
            block.linears[name].weight.data = weight
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
