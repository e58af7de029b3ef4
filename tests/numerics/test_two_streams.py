"""Is the moved target the least-squares answer, and are both streams watched at the same tokens?"""

import torch

from quantkit.numerics.blockwise import quantize_blocks
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.numerics.two_streams import damped, moved_target, paired_moments, untouched
from tests.bench import load, plan_for, token_batch


def test_the_moved_target_is_the_least_squares_answer():
    draw = torch.Generator().manual_seed(0)
    full = torch.randn(200, 12, generator=draw)
    drifted = full + 0.3 * torch.randn(200, 12, generator=draw)
    weight = torch.randn(5, 12, generator=draw)
    hessian, cross = 2 / 200 * drifted.T @ drifted, 2 / 200 * full.T @ drifted
    found = moved_target(weight, hessian, cross, damped(hessian, 1e-7))
    wanted = torch.linalg.lstsq(drifted, full @ weight.T).solution.T
    assert torch.allclose(found, wanted, atol=1e-4)


def test_where_nothing_drifted_the_target_is_the_weight(tiny_model):
    model = load(tiny_model, plan_for("NoQuant"))
    grid = UniformGrid(4, 64, scale_dtype=torch.float32)
    gaps = []

    def solve(block):
        groups = block.groups()
        for names, (hessian, cross) in zip(groups, paired_moments(block, untouched(block), groups), strict=True):
            weight = block.linears[names[0]].weight.data
            gaps.append(float((moved_target(weight, hessian, cross, damped(hessian, 0.01)) - weight).norm() / weight.norm()))
        return {name: quantize(layer.weight.data, grid) for name, layer in block.linears.items()}

    quantize_blocks(model, [{"input_ids": token_batch()}], solve, reference=True)
    assert all(gap < 1e-5 for gap in gaps[:4])
    assert all(gap > 1e-3 for gap in gaps[4:])
