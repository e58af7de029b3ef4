"""What enters a layer in the quantized model and in the original one, at the same token?

A block's layers are solved in the order they run, each on what the quantized ones before it put out. For the paper's
asymmetric reconstruction an untouched copy of the block runs beside it, on the original model's stream, and the two inputs
of a layer are multiplied batch by batch: only the sums are kept, never the inputs.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from quantkit.numerics.capture import Block
from quantkit.numerics.grids import QuantizedWeight, UniformGrid
from quantkit.numerics.hessian import HessianSum
from quantkit_plugins.adaround.solver import Settings, round_layer


@torch.no_grad()
def round_block(block: Block, grid: UniformGrid, settings: Settings, *, asymmetric: bool) -> dict[str, QuantizedWeight]:
    """Solve a block's layers, those that read the same tensor together; the block holds the result afterwards."""
    original = original_block(block) if asymmetric else None
    solved: dict[str, QuantizedWeight] = {}
    for names in block.groups():
        if original is None:
            hessian, cross = block.hessians([names])[0], None
        else:
            hessian, cross = paired_moments(block, original, names[0])
        weight = torch.cat([block.linears[name].weight.detach() for name in names])
        found = round_layer(weight, hessian, cross, grid, settings, layer=", ".join(names))
        first = 0
        for name in names:
            linear = block.linears[name]
            rows = slice(first, first + linear.out_features)
            solved[name] = grid.restore({key: value[rows].contiguous() for key, value in found.tensors().items()})
            linear.weight.copy_(solved[name].dequantize())
            first += linear.out_features
    return solved


def original_block(block: Block) -> Block:
    """Return a copy of the block with weights of its own."""
    twin = copy.copy(block)
    twin.module = copy.deepcopy(block.module)
    twin.linears = {name: twin.module.get_submodule(name[len(block.name) + 1 :]) for name in block.linears}  # type: ignore[misc]
    return twin


@torch.no_grad()
def paired_moments(block: Block, original: Block, name: str) -> tuple[Tensor, Tensor]:
    """Return H = 2/n·Σx̃ᵀx̃ and C = 2/n·Σxᵀx̃ of a layer's inputs over all batches, x from the original block."""
    features = block.linears[name].in_features
    total, cross = HessianSum(features, block.device), torch.zeros(features, features, device=block.device)
    seen: list[Tensor] = []

    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    handles = [item.linears[name].register_forward_pre_hook(note) for item in (original, block)]
    try:
        for batch, (full, hidden) in enumerate(zip(block.reference or [], block.hidden, strict=True)):
            seen.clear()
            original.run(batch, full)
            block.run(batch, hidden)
            x, quantized = (_counted(item, block.masks[batch]) for item in seen)
            total.add(quantized)
            cross.addmm_(x.float().T, quantized.float())
    finally:
        for handle in handles:
            handle.remove()
    return total.value(), cross * (2 / max(total.tokens, 1))


def _counted(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return inputs `[tokens, in]` without padding."""
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs.reshape(-1, inputs.shape[-1])
    return inputs[mask.to(inputs.device)]
