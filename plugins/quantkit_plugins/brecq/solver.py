"""Which roundings of all layers of a block, taken together, keep the block's output where it was?

AdaRound asks each layer by itself, and cannot let one layer make up for another. BRECQ (Li et al. 2021, arXiv:2102.05426)
learns the same h(V) (`quantkit.numerics.soft_rounding`) for all layers of a block at once, by gradients through the block's
own forward pass: attention, gate and residual stream included. Whole networks at once would overfit the little text there is
(the paper's section 3.3); layers alone miss what they do to each other.

The loss of a step is the squared error of the block's output on a few rows of calibration text, from what the quantized
blocks before it put out to what the original block gave on the original stream. It is divided by the error that the start
leaves, and multiplied by the number of weights, so that it is about one per weight like the regulariser.

The paper weighs the error by the squared gradient of the task's loss (the Fisher diagonal). That takes a backward pass
through the whole model, which is what working by blocks is there to avoid. Here all outputs of a token count alike, and with
`equal_tokens` all tokens do: each one's error is divided by the squared length of its target, as the norm that opens the next
block does. In a plain mean the first token, a hundred times larger, is nearly all of the loss, and learning its exact value
did nothing for any other token.

The paper holds the scales of weights; here they are learnt beside the codes (`scale_learning_rate` 0 holds them). There are
few of them, so what they learn holds for other text. SmolLM2, 3 bits in groups of 64, calibrated on 32 × 256 tokens, relative
error of block 14's output on other text (its input alone brings 0.0361): GPTQ 0.0382, learnt by 64 steps on codes and scales
0.0320, with 16 more on the scales alone and a stronger regulariser, so that fewer codes are undecided at the end, 0.0315.

What a layer starts from aims half the way to its original output (`quantkit.numerics.drift`). Where the block before it left
little to undo, that is all the gain there is: block 0, error 0.0062 from GPTQ, 0.0044 from this start, which learning did
not improve and which therefore stayed; block 5, 0.0204 from GPTQ, 0.0161 learnt, from either start.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from quantkit.numerics.capture import Block
from quantkit.numerics.drift import moved_target, original_block, paired_moments
from quantkit.numerics.grids import QuantizedWeight, UniformGrid
from quantkit.numerics.soft_rounding import (
    Annealing,
    SoftCodes,
    Start,
    refit_scales,
    start_positions,
    start_rounding,
)

MEMORY = (0.9, 0.95)
"""Adam's decay of means and squares: runs are so short that the usual 0.999 would remember the first gradients to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How rounding is learnt."""

    annealing: Annealing
    start: Start = "gptq"
    learning_rate: float = 0.2
    scale_learning_rate: float = 0.02
    """Falls to zero along a cosine."""
    settling: float = 0.25
    """Further steps, as a share of the others, on the scales alone once all codes are decided."""
    reg_weight: float = 10.0
    damp_percent: float = 0.01
    refit: bool = True
    asymmetry: float = 0.5
    """How far the start of a layer aims from its output on the quantized model's inputs (0) to that on the original's (1)."""
    equal_tokens: bool = True
    seed: int = 0


def reconstruct_block(block: Block, grid: UniformGrid, settings: Settings) -> dict[str, QuantizedWeight]:
    """Round all layers of a block for its output; the block holds the result afterwards.

    What is learnt is kept if it lowers the error over all calibration text; otherwise the start is.
    """
    pairs = start_block(block, grid, settings)
    started = {name: start for name, (start, _) in pairs.items()}
    before = output_error(block, level=settings.equal_tokens)
    if before == 0:
        return started
    soft = {name: SoftCodes(start, positions, grid) for name, (start, positions) in pairs.items()}
    learn_block(block, soft, before, settings)
    learnt = {name: item.hard() for name, item in soft.items()}
    put(block, learnt)
    if output_error(block, level=settings.equal_tokens) < before:
        return learnt
    put(block, started)
    return started


@torch.no_grad()
def start_block(block: Block, grid: UniformGrid, settings: Settings) -> dict[str, tuple[QuantizedWeight, Tensor]]:
    """Round each layer by itself, on what the quantized ones before it put out; return name → (start, positions)."""
    pairs: dict[str, tuple[QuantizedWeight, Tensor]] = {}
    original = original_block(block) if settings.asymmetry else None
    for names in block.groups():
        cross = None
        if original is None:
            hessian = block.hessians([names], level=settings.equal_tokens)[0]
        else:
            hessian, cross = paired_moments(block, original, names[0], level=settings.equal_tokens)
        damped = hessian.clone()
        damped.diagonal().add_(max(settings.damp_percent * float(hessian.diagonal().mean()), 1e-20))
        for name in names:
            target = block.linears[name].weight.detach().float()
            if cross is not None:
                target = moved_target(target, hessian, cross, damped, asymmetry=settings.asymmetry)
            found = start_rounding(target, damped, grid, settings.start, damp_percent=0.0, layer=name)
            if settings.refit:
                found = refit_scales(target, damped, found, grid)
            pairs[name] = (found, start_positions(target, damped, found, settings.start))
            block.linears[name].weight.copy_(found.dequantize())
    return pairs


def learn_block(block: Block, soft: Mapping[str, SoftCodes], start_error: float, settings: Settings) -> None:
    """Take the steps: one batch of calibration text each, all of them in turn, in an order drawn from the seed."""
    targets, steps = block.targets or [], settings.annealing.steps
    generator = torch.Generator().manual_seed(settings.seed + block.index)
    gain = sum(item.logits.numel() for item in soft.values()) / start_error
    codes = torch.optim.Adam([item.logits for item in soft.values()], lr=settings.learning_rate, betas=MEMORY, fused=True)
    scales = torch.optim.Adam(
        [item.growth for item in soft.values()], lr=settings.scale_learning_rate, betas=MEMORY, fused=True
    )
    settled = int(settings.settling * steps) if settings.scale_learning_rate else 0
    order: list[int] = []
    for step in range(steps + settled):
        if step == steps:
            for item in soft.values():
                item.decide()
        order = order or torch.randperm(len(targets), generator=generator).tolist()
        batch = order.pop()
        leaves = {name: item.weight().requires_grad_() for name, item in soft.items()}
        with torch.enable_grad(), _weights(block, leaves):
            output = block.run(batch, block.hidden[batch])
            error = _squared_error(output, targets[batch], block.masks[batch], settings.equal_tokens)
            slopes = torch.autograd.grad(error * gain, list(leaves.values()))
        if settings.scale_learning_rate:
            scales.param_groups[0]["lr"] = settings.scale_learning_rate * (1 + cos(pi * step / (steps + settled))) / 2
            for item, slope in zip(soft.values(), slopes, strict=True):
                item.scale_backward(slope)
            scales.step()
        if step < steps:
            for item, slope in zip(soft.values(), slopes, strict=True):
                item.backward(slope, settings.annealing.beta(step), settings.reg_weight)
            codes.step()
        for item in soft.values():
            item.rescale()


@torch.no_grad()
def output_error(block: Block, *, level: bool = False) -> float:
    """Return the mean squared error of the block's output as it is, per batch; `level` makes each token's error relative."""
    targets = block.targets or []
    errors = [
        float(_squared_error(block.run(batch, hidden), targets[batch], block.masks[batch], level))
        for batch, hidden in enumerate(block.hidden)
    ]
    return sum(errors) / len(errors)


@torch.no_grad()
def put(block: Block, layers: Mapping[str, QuantizedWeight]) -> None:
    """Give the block's layers these weights."""
    for name, item in layers.items():
        block.linears[name].weight.copy_(item.dequantize())


def _squared_error(output: Tensor, target: Tensor, mask: Tensor | None, level: bool) -> Tensor:
    aim = target.to(output.device).float()
    error = (output.float() - aim).square().mean(-1)
    if level:
        error = error / aim.square().mean(-1).clamp(min=1e-12)
    return error.mean() if mask is None else error[mask.to(output.device)].mean()


@contextmanager
def _weights(block: Block, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the block's layers compute with these weights, through which gradients flow, for the length of a `with`."""

    def forward_with(linear: nn.Linear, weight: Tensor) -> None:
        def forward(inputs: Tensor) -> Tensor:
            return nn.functional.linear(inputs, weight.to(inputs.dtype), linear.bias)

        linear.__dict__["forward"] = forward

    try:
        for name, weight in weights.items():
            forward_with(block.linears[name], weight)
        yield
    finally:
        for name in weights:
            block.linears[name].__dict__.pop("forward", None)
