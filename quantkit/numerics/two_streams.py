"""How are the inputs of all layers of a block compared with the original model's in one run of each?

`quantkit.numerics.drift` says what the comparison is for, and makes it for one group of layers at a time, so that each sees the
quantized groups before it. Here all groups are watched at once, before any is quantized: two runs of the block instead of two
for each group.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quantkit.numerics.capture import Block
from quantkit.numerics.hessian import HessianSum


@torch.no_grad()
def all_paired_moments(block: Block, original: Block, groups: Sequence[Sequence[str]]) -> list[tuple[Tensor, Tensor]]:
    """Return H = 2/n·Σx̃ᵀx̃ and C = 2/n·Σxᵀx̃, each `[in, in]`, of the inputs of each group of layers.

    Each pair of x and x̃ is multiplied by the factor that brings x̃ to the length √in, so that all tokens count alike
    (`quantkit.numerics.hessian.equal_tokens`). `block.reference` is needed.
    """
    firsts = [group[0] for group in groups]
    sums = {name: HessianSum(block.linears[name].in_features, block.device) for name in firsts}
    crosses = {name: torch.zeros_like(item.upper) for name, item in sums.items()}
    full: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    handles = [
        part.linears[name].register_forward_pre_hook(_noting(kept, name))
        for part, kept in ((original, full), (block, seen))
        for name in firsts
    ]
    try:
        for batch, (before, hidden) in enumerate(zip(block.reference or [], block.hidden, strict=True)):
            original.run(batch, before)
            block.run(batch, hidden)
            for name in firsts:
                x, moved = (_counted(item[name], block.masks[batch]).float() for item in (full, seen))
                factor = x.shape[-1] ** 0.5 / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                moved = moved * factor
                sums[name].add(moved)
                crosses[name].addmm_((x * factor).T, moved)
    finally:
        for handle in handles:
            handle.remove()
    return [(sums[name].value(), crosses[name] * (2 / max(sums[name].tokens, 1))) for name in firsts]


def damped(hessian: Tensor, damp_percent: float) -> Tensor:
    """Return H + λI, λ this share of the mean diagonal; positive definite even where no token came."""
    result = hessian.float().clone()
    share = damp_percent * float(result.diagonal().mean())
    result.diagonal().add_(share if share > 0 else 1.0)
    return result


def _noting(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        kept[name] = args[0]

    return note


def _counted(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return inputs `[tokens, in]` without padding."""
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs.reshape(-1, inputs.shape[-1])
    return inputs[mask.to(inputs.device)]
