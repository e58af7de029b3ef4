"""In which order are the layers of a block rounded, and towards what?

In the order they run, each on what the quantized ones before it put out; those that read the same tensor as one stacked
matrix, which is several times faster than one by one. For asymmetric reconstruction the target of each is what
`quantkit.numerics.drift` says.
"""

import torch

from quantkit.numerics.capture import Block
from quantkit.numerics.drift import original_block, paired_moments
from quantkit.numerics.grids import QuantizedWeight, UniformGrid
from quantkit_plugins.adaround.solver import Settings, round_layer


@torch.no_grad()
def round_block(
    block: Block, grid: UniformGrid, settings: Settings, *, equal_tokens: bool = True
) -> dict[str, QuantizedWeight]:
    """Solve a block's layers; the block holds the result afterwards."""
    original = original_block(block) if settings.asymmetry else None
    solved: dict[str, QuantizedWeight] = {}
    for names in block.groups():
        if original is None:
            hessian, cross = block.hessians([names], level=equal_tokens)[0], None
        else:
            hessian, cross = paired_moments(block, original, names[0], level=equal_tokens)
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
