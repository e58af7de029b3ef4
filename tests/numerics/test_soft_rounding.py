"""Soft rounding: the formulas of the paper, their derivatives, and starts that round to what they started from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.numerics.hessian import quadratic_error
from quantkit.numerics.soft_rounding import (
    Annealing,
    SoftCodes,
    indecision_slope,
    inverse_rectified_sigmoid,
    positions_of,
    rectified_sigmoid,
    refit_scales,
    split_positions,
    start_positions,
    start_rounding,
)

GRID = UniformGrid(bits=3, group_size=8, scale_dtype=torch.float32, search="mse")


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `[12, 32]` and the H `[32, 32]` of correlated inputs."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 32) @ torch.randn(32, 32)
    return torch.randn(12, 32), inputs.T @ inputs * (2 / 200)


def test_the_inverse_leads_back_to_every_share_but_the_ends() -> None:
    shares = torch.linspace(0.01, 0.99, 50)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(shares)), shares, atol=1e-6)


@given(st.integers(1, 300), st.floats(0, 0.9))
def test_beta_is_off_in_the_warm_up_and_falls_from_first_to_last(steps: int, warmup: float) -> None:
    betas = [Annealing(steps, 20.0, 2.0, warmup).beta(step) for step in range(steps)]
    off = betas.count(None)
    assert betas[:off] == [None] * off
    assert off == int(warmup * steps)
    on = [beta for beta in betas if beta is not None]
    assert on == sorted(on, reverse=True)
    assert on[0] == 20.0
    assert on[-1] == (2.0 if len(on) > 1 else 20.0)


def test_the_slope_of_indecision_is_the_derivative_of_the_papers_regulariser() -> None:
    share = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for beta in (2.0, 7.3, 20.0):
        expected = (1 - (2 * share - 1).abs() ** beta).sum()
        (slope,) = torch.autograd.grad(expected, share)
        assert torch.allclose(indecision_slope(share.detach(), beta), slope)


def test_positions_are_where_rounding_gives_the_nearest_codes() -> None:
    for symmetric in (True, False):
        grid = UniformGrid(bits=3, group_size=8, symmetric=symmetric, scale_dtype=torch.float32)
        weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
        found = quantize(weight, grid)
        positions = positions_of(weight, found)  # type: ignore[arg-type]
        assert torch.equal(positions.round().clamp(grid.q_min, grid.q_max), found.codes.float())
        floor, logits = split_positions(positions, grid)
        tie = (positions - positions.floor() - 0.5).abs() < 1e-5
        assert torch.equal((floor + (rectified_sigmoid(logits) >= 0.5)).to(torch.int8)[~tie], found.codes[~tie])


def test_the_gradient_of_v_is_the_one_autograd_finds(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = problem
    grid = UniformGrid(bits=3, group_size=8, symmetric=False, scale_dtype=torch.float32)
    soft = SoftCodes(quantize(weight, grid), 7 * torch.rand(12, 32) - 4, grid)
    logits = soft.logits.clone().requires_grad_()
    share = rectified_sigmoid(logits)
    slope = torch.randn(12, 32)
    loss = ((soft.offset + share) * soft.scale * slope).sum() + 0.3 * (1 - (2 * share - 1).abs() ** 5).sum()
    assert torch.allclose(soft.weight(), (soft.offset + share) * soft.scale, atol=1e-6)
    soft.backward(slope.clone(), 5.0, 0.3)
    assert torch.allclose(soft.logits.grad, torch.autograd.grad(loss, logits)[0], atol=1e-5)  # type: ignore[arg-type]


def test_the_gradient_of_the_scales_is_the_one_autograd_finds(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = problem
    grid = UniformGrid(bits=3, group_size=8, symmetric=False, scale_dtype=torch.float32)
    soft = SoftCodes(quantize(weight, grid), 7 * torch.rand(12, 32) - 4, grid)
    growth = soft.growth.clone().requires_grad_()
    slope = torch.randn(12, 32)
    share = rectified_sigmoid(soft.logits)
    loss = ((soft.offset + share) * (soft.start.scale * growth.exp()).repeat_interleave(8, 1) * slope).sum()
    soft.weight()
    soft.scale_backward(slope)
    assert torch.allclose(soft.growth.grad, torch.autograd.grad(loss, growth)[0], atol=1e-4)  # type: ignore[arg-type]


def test_grown_scales_and_decided_codes_make_the_weight_that_is_kept(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = problem
    grid = UniformGrid(bits=3, group_size=8, scale_dtype=torch.bfloat16)
    soft = SoftCodes(quantize(weight, grid), 7 * torch.rand(12, 32) - 4, grid)
    soft.growth += 0.1 * torch.randn_like(soft.growth)
    soft.rescale()
    soft.decide()
    kept = soft.hard()
    assert not torch.equal(kept.scale, soft.start.scale)
    assert torch.equal(soft.weight().bfloat16(), kept.dequantize())


def test_a_start_rounds_to_itself(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = problem
    for start in ("gptq", "nearest"):
        found = start_rounding(weight, hessian, GRID, start, damp_percent=0.01, layer="a layer")  # type: ignore[arg-type]
        positions = start_positions(weight, hessian, found, start)  # type: ignore[arg-type]
        assert torch.equal(SoftCodes(found, positions, GRID).hard().codes, found.codes)


def test_the_other_candidate_of_a_code_lies_where_the_loss_falls(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = problem
    found = start_rounding(weight, hessian, GRID, "gptq", damp_percent=0.01, layer="a layer")
    soft = SoftCodes(found, start_positions(weight, hessian, found, "gptq"), GRID)
    slope = ((found.dequantize() - weight) @ hessian) * soft.scale  # by the code
    other = torch.where(found.codes == soft.floor, soft.floor + 1, soft.floor)
    inner = (found.codes > GRID.q_min) & (found.codes < GRID.q_max)
    assert bool((((other - found.codes) * slope) <= 0)[inner].all())


def test_refitted_scales_solve_the_least_squares_problem(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = problem
    for symmetric in (True, False):
        grid = UniformGrid(bits=3, group_size=8, symmetric=symmetric, scale_dtype=torch.float32)
        found = quantize(weight, grid)
        refit = refit_scales(weight, hessian, found, grid)
        root = torch.linalg.cholesky(hessian.double()).T  # ‖root·δ‖² = δᵀHδ
        for row in range(len(weight)):
            offsets = found.codes[row].double()
            if found.zero_point is not None:
                offsets = offsets - found.zero_point[row].double().repeat_interleave(8)
            design = torch.block_diag(*[part.unsqueeze(1) for part in offsets.split(8)])
            expected = torch.linalg.lstsq(root @ design, (root @ weight[row].double()).unsqueeze(1)).solution.squeeze(1)
            assert torch.allclose(refit.scale[row].double(), expected, rtol=1e-3, atol=1e-4)


def test_refitting_stored_scales_never_raises_a_rows_loss(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = problem
    grid = UniformGrid(bits=2, group_size=8, scale_dtype=torch.bfloat16)
    found = quantize(weight, grid)
    refit = refit_scales(weight, hessian, found, grid)
    before, after = (quadratic_error(item.dequantize().float() - weight, hessian) for item in (found, refit))
    assert bool((after <= before).all())
    assert float(after.sum()) < float(before.sum())
