"""Error feedback over NF4: absmax against least squares, rounding against bitsandbytes, storage bit for bit."""

import pytest
import torch

from quantkit.numerics.codebook_feedback import joint_absmax, solve_codebook
from quantkit.numerics.codebooks import CodebookGrid, codebook, linear_4bit, quantize_codebook
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.hessian import quadratic_error

GRID = CodebookGrid(dtype=torch.float32, search="mse")


def layer(rows: int = 24, columns: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight, and the Hessian of inputs that hang together as those of real layers do."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(1024, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator) * 0.05, 2 / 1024 * inputs.T @ inputs


def output_error(quantized, weight, hessian):
    return quadratic_error(quantized.dequantize().float() - weight, hessian)


def test_joint_absmax_is_the_least_squares_solution_of_each_row():
    weight, hessian = layer()
    found = error_feedback(weight, hessian, GRID).weight
    joint = joint_absmax(weight, hessian, found.codes, found.absmax, "nf4")
    root = torch.linalg.cholesky(hessian.double()).T
    for row in range(3):
        parts = torch.block_diag(*codebook("nf4")[found.codes[row].long()].reshape(3, 1, 64)).double()
        expected = torch.linalg.lstsq(root @ parts.T, root @ weight[row].double()).solution
        assert torch.allclose(joint[row].double(), expected, rtol=2e-3)


def test_absmax_stays_where_no_output_depends_on_it():
    weight, hessian = layer()
    hessian[64:128] = 0
    hessian[:, 64:128] = 0
    codes = quantize_codebook(weight, GRID).codes
    codes[:, 128:] = 7  # the code of zero
    joint = joint_absmax(weight, hessian, codes, torch.full((24, 3), 0.5), "nf4")
    assert torch.equal(joint[:, 1:], torch.full((24, 2), 0.5))
    assert not torch.isclose(joint[:, 0], torch.tensor(0.5)).any()


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_each_step_leaves_less_output_error_than_the_one_before(name, double_quant):
    weight, hessian = layer()
    grid = CodebookGrid(name, dtype=torch.float32, search="mse")
    plain = quantize_codebook(weight, CodebookGrid(name, dtype=torch.float32))
    fed_back = error_feedback(weight, hessian, grid).weight
    if double_quant:
        plain, fed_back = plain.nest(), fed_back.nest()
    solved = solve_codebook(weight, hessian, grid, double_quant=double_quant)
    errors = [float(output_error(item, weight, hessian).sum()) for item in (plain, fed_back, solved)]
    assert errors[2] < errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bitsandbytes_layer_computes_with_exactly_the_weight_that_was_solved_for(dtype, double_quant):
    from bitsandbytes.functional import dequantize_4bit

    weight, hessian = layer()
    solved = solve_codebook(weight.to(dtype), hessian, CodebookGrid(dtype=dtype, search="mse"), double_quant=double_quant)
    stored = linear_4bit(solved, None, double_quant=double_quant).weight
    assert torch.equal(dequantize_4bit(stored.data, stored.quant_state), solved.dequantize())


def test_what_a_killed_run_keeps_is_the_whole_weight():
    weight, hessian = layer()
    solved = solve_codebook(weight, hessian, GRID, double_quant=True)
    again = GRID.restore(solved.tensors())
    assert again.nested is not None
    assert all(torch.equal(value, again.tensors()[key]) for key, value in solved.tensors().items())
    assert torch.equal(solved.to(torch.device("cpu")).dequantize(), solved.dequantize())


def test_columns_that_no_input_reaches_do_no_harm():
    weight, hessian = layer()
    hessian[:70] = 0
    hessian[:, :70] = 0
    assert solve_codebook(weight, hessian, GRID, double_quant=True).dequantize().isfinite().all()
