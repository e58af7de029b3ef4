"""Are both streams of a block watched at the same tokens, for all its layers?"""

import torch

from quantkit.numerics.blockwise import quantize_blocks
from quantkit.numerics.drift import moved_target, original_block, paired_moments
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.numerics.two_streams import all_paired_moments, damped
from tests.bench import load, plan_for, token_batch


def test_where_nothing_drifted_the_target_is_the_weight(tiny_model):
    model = load(tiny_model, plan_for("NoQuant"))
    grid = UniformGrid(4, 64, scale_dtype=torch.float32)
    gaps = []

    def solve(block):
        groups = block.groups()
        original = original_block(block)
        for names, (hessian, cross) in zip(groups, all_paired_moments(block, original, groups), strict=True):
            one = paired_moments(block, original, names[0], level=True)
            assert torch.allclose(one[0], hessian, rtol=1e-4, atol=1e-4)
            assert torch.allclose(one[1], cross, rtol=1e-4, atol=1e-4)
            weight = block.linears[names[0]].weight.data
            gaps.append(float((moved_target(weight, hessian, cross, damped(hessian, 0.01)) - weight).norm() / weight.norm()))
        return {name: quantize(layer.weight.data, grid) for name, layer in block.linears.items()}

    quantize_blocks(model, [{"input_ids": token_batch()}], solve, reference=True)
    assert all(gap < 1e-5 for gap in gaps[:4])
    assert all(gap > 1e-3 for gap in gaps[4:])
