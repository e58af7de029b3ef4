"""What should a layer's weight be, now that its input is no longer the original model's?

The layers before it are quantized already, so x̃ enters where x did. Asking for Ŵx̃ ≈ Wx̃ rounds well and lets every earlier
error pass; asking for Ŵx̃ ≈ Wx takes back what can be taken back (the asymmetric reconstruction of AdaRound, arXiv:2004.10568,
section 3.4). With H = Σx̃ᵀx̃ and C = Σxᵀx̃ that is rounding of another target, T = W·C·H⁻¹, under the same H. An untouched copy
of the block runs beside it on the original stream; only the sums are kept, never the inputs.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quantkit.numerics.capture import Block
from quantkit.numerics.hessian import HessianSum


def untouched(block: Block) -> Block:
    """Return a copy of the block with weights of its own."""
    twin = copy.copy(block)
    twin.module = copy.deepcopy(block.module)
    twin.linears = {name: twin.module.get_submodule(name[len(block.name) + 1 :]) for name in block.linears}  # type: ignore[misc]
    return twin


@torch.no_grad()
def paired_moments(block: Block, original: Block, groups: Sequence[Sequence[str]]) -> list[tuple[Tensor, Tensor]]:
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


@torch.no_grad()
def moved_target(weight: Tensor, hessian: Tensor, cross: Tensor, damped_hessian: Tensor) -> Tensor:
    """Return T = W + W(C − H)(H + λI)⁻¹ `[out, in]`: what does on x̃ best what W does on x, held to W by the damping λ."""
    factor = torch.linalg.cholesky(damped_hessian.double())
    gap = (weight.float() @ (cross - hessian)).double()
    return weight.float() + torch.cholesky_solve(gap.T, factor).T.float()


def _noting(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        kept[name] = args[0]

    return note


def _counted(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return inputs `[tokens, in]` without padding."""
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs.reshape(-1, inputs.shape[-1])
    return inputs[mask.to(inputs.device)]
