"""Does a pass over the codes only ever lower the error, on every grid, and end where no single code could do better?"""

from typing import Any

import pytest
import torch

from quantkit.numerics.codebooks import CodebookGrid
from quantkit.numerics.descent import codes_and_levels, descend
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.float8 import Float8Grid, quantize_float8
from quantkit.numerics.grids import Levels, UniformGrid
from quantkit.numerics.hessian import quadratic_error

GRIDS: list[Any] = [
    CodebookGrid("nf4", dtype=torch.float32),
    CodebookGrid("fp4", dtype=torch.bfloat16),
    UniformGrid(4, 64, scale_dtype=torch.float32),
    UniformGrid(3, 32, symmetric=False),
    Float8Grid(torch.float32),
]


def layer(rows: int = 24, columns: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and a positive definite Hessian with correlated inputs."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, columns, generator=draw) @ torch.randn(columns, columns, generator=draw) / columns**0.5
    return torch.randn(rows, columns, generator=draw) * 0.05, inputs.T @ inputs / 200 + 0.01 * torch.eye(columns)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
def test_no_row_gets_worse_and_most_get_better(grid):
    weight, hessian = layer()
    start = error_feedback(weight, hessian, grid).weight
    end = descend(start, weight, hessian, grid)
    before, after = (quadratic_error(item.dequantize().float() - weight, hessian) for item in (start, end))
    assert bool((after <= before * 1.0001).all())
    assert float(after.sum()) < float(before.sum())


def test_it_ends_where_no_single_code_could_do_better():
    weight, hessian = layer(rows=2, columns=16)
    grid = UniformGrid(3, 16, scale_dtype=torch.float32)
    found = error_feedback(weight, hessian, grid).weight
    for _ in range(20):
        found = descend(found, weight, hessian, grid)
    codes, levels = codes_and_levels(found)
    least = quadratic_error(found.dequantize() - weight, hessian)
    for column in range(16):
        for code in range(-4, 4):
            other = codes.clone()
            other[:, column] = code
            error = quadratic_error(grid.assemble(other, levels).dequantize() - weight, hessian)
            assert bool((error >= least - 1e-6).all())


def test_the_grid_of_8_bit_floats_rounds_as_the_function_does():
    weight, _ = layer()
    grid = Float8Grid(torch.bfloat16)
    wanted = quantize_float8(weight, torch.bfloat16)
    levels = grid.fit(weight)
    found = grid.assemble(grid.encode(weight, levels.spread()), Levels(levels.scale.unsqueeze(1), None))
    assert torch.equal(found.dequantize(), wanted.dequantize())
    assert torch.equal(grid.restore(found.tensors()).dequantize(), wanted.dequantize())
    assert torch.equal(grid.decode(codes_and_levels(found)[0], levels.spread()), wanted.dequantize().float())
