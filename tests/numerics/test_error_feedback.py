"""Error feedback: the recursion against plain algebra, brute force, and rounding to nearest."""

import itertools

import pytest
import torch

from quantkit.errors import QuantkitError, UsageError
from quantkit.numerics.codebooks import CodebookGrid, quantize_codebook
from quantkit.numerics.error_feedback import error_feedback, inverse_factor
from quantkit.numerics.grids import Levels, UniformGrid, quantize
from quantkit.numerics.hessian import HessianSum, quadratic_error


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    sums = HessianSum(columns)
    sums.add(inputs)
    return torch.randn(rows, columns, generator=generator) * 0.05, sums.value() / sums.value().diagonal().mean()


def damped(hessian: torch.Tensor, percent: float) -> torch.Tensor:
    return hessian + percent * hessian.diagonal().mean() * torch.eye(len(hessian))


def textbook(weight: torch.Tensor, hessian: torch.Tensor, levels: Levels, grid: UniformGrid) -> torch.Tensor:
    """Optimal brain quantization in fixed order: after each column, the exact least-squares update of all later ones."""
    work, codes = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    columns = weight.shape[1]
    for column in range(columns):
        column_levels = Levels(levels.scale[:, 0], None if levels.zero_point is None else levels.zero_point[:, 0])
        chosen = grid.encode(work[:, column], column_levels)
        codes[:, column] = chosen
        error = grid.decode(chosen.float(), column_levels).double() - work[:, column]
        rest = slice(column + 1, columns)
        if column + 1 < columns:
            work[:, rest] -= error[:, None] * torch.linalg.solve(hessian[rest, rest].double(), hessian[rest, column].double())
        work[:, column] += error
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [5, 16, 160])
def test_the_recursion_is_the_exact_least_squares_update_column_by_column(symmetric, columns):
    weight, hessian = problem(6, columns)
    grid = UniformGrid(4, -1, symmetric, torch.float32)
    result = error_feedback(weight, hessian, grid, damp_percent=0.01)
    levels = Levels(result.weight.scale, result.weight.zero_point)
    expected = textbook(weight, damped(hessian, 0.01), levels, grid)
    assert (result.weight.codes == expected).float().mean() > 0.99  # float32 against float64: a tie may fall the other way


@pytest.mark.parametrize(
    "grid", [UniformGrid(4, 32), UniformGrid(3, 32, symmetric=False, search="mse"), CodebookGrid(block_size=64)]
)
def test_the_losses_are_the_quadratic_error_itself(grid):
    weight, hessian = problem(6, 192)
    result = error_feedback(weight, hessian, grid, damp_percent=0.05)
    true = quadratic_error(result.weight.dequantize().float() - weight, damped(hessian, 0.05))
    assert torch.allclose(result.losses, true, rtol=1e-3)


def test_uncorrelated_inputs_give_rounding_to_nearest():
    weight, _ = problem(6, 64)
    for grid in (UniformGrid(4, 32), UniformGrid(2, 64, symmetric=False)):
        assert torch.equal(error_feedback(weight, torch.eye(64), grid).weight.codes, quantize(weight, grid).codes)
    nf4 = CodebookGrid()
    assert torch.equal(error_feedback(weight, torch.eye(64), nf4).weight.codes, quantize_codebook(weight, nf4).codes)


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize(
    "grid", [UniformGrid(4, 32), UniformGrid(3, 64), UniformGrid(2, -1, search="mse"), CodebookGrid(search="mse")]
)
def test_correlated_inputs_lose_less_than_with_rounding_to_nearest(grid, desc_act):
    weight, hessian = problem(16, 192)
    solved = error_feedback(weight, hessian, grid, desc_act=desc_act).weight
    plain = quantize_codebook(weight, grid) if isinstance(grid, CodebookGrid) else quantize(weight, grid)
    errors = [quadratic_error(item.dequantize().float() - weight, hessian).sum() for item in (solved, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_on_tiny_matrices_it_comes_close_to_the_best_of_all_codes():
    ratios = []
    for seed in range(12):
        weight, hessian = problem(1, 5, seed)
        grid = UniformGrid(2, -1, scale_dtype=torch.float32)
        levels = Levels(quantize(weight, grid).scale, None)
        every = torch.tensor(list(itertools.product(range(-2, 2), repeat=5)), dtype=torch.float32)
        best = quadratic_error(every * levels.scale - weight, hessian).min()
        solved = error_feedback(weight, hessian, grid, damp_percent=0.0, levels=levels).weight
        nearest = quadratic_error(quantize(weight, grid).dequantize() - weight, hessian)
        loss = quadratic_error(solved.dequantize() - weight, hessian)
        assert loss >= best * (1 - 1e-4)
        ratios.append((float(loss / best), float(nearest / best)))
    solved_ratio, nearest_ratio = (sum(item) / len(ratios) for item in zip(*ratios, strict=True))
    assert solved_ratio < nearest_ratio


def test_levels_given_beforehand_are_kept():
    weight, hessian = problem(4, 64)
    grid = UniformGrid(4, 32)
    levels = Levels(torch.full((4, 2), 0.03, dtype=torch.bfloat16), None)
    assert torch.equal(error_feedback(weight, hessian, grid, levels=levels).weight.scale, levels.scale)


def test_layers_solved_in_one_stack_come_out_as_if_solved_alone():
    weight, hessian = problem(8, 64)
    grid = UniformGrid(4, 32, search="mse")
    whole = error_feedback(weight, hessian, grid).weight.dequantize()
    parts = [error_feedback(weight[rows], hessian, grid).weight.dequantize() for rows in (slice(0, 3), slice(3, 8))]
    assert torch.equal(whole, torch.cat(parts))


def test_columns_that_no_input_reaches_are_rounded_to_nearest():
    weight, hessian = problem(4, 64)
    hessian[:, 7] = hessian[7, :] = 0
    grid = UniformGrid(8, 64)
    solved = error_feedback(weight, hessian, grid).weight
    assert (solved.dequantize().float()[:, 7] - weight[:, 7]).abs().max() <= solved.scale.float().abs().max() * 0.51


def test_r_is_the_upper_cholesky_factor_of_the_inverse():
    _, hessian = problem(1, 32)
    factor, used = inverse_factor(hessian, 0.01)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped(hessian, 0.01).double()), upper=True)
    assert used == 0.01
    assert torch.allclose(factor.double(), expected, rtol=1e-3, atol=1e-4)


def test_damping_grows_until_the_hessian_is_positive_definite_and_is_reported():
    vector = torch.ones(16, 1)
    factor, used = inverse_factor(vector @ vector.T, 0.0)
    assert used >= 1e-3
    assert bool(factor.isfinite().all())


def test_a_hessian_that_cannot_be_used_is_an_error_that_names_the_layer():
    with pytest.raises(QuantkitError, match="the inputs of q_proj are not finite"):
        inverse_factor(torch.full((2, 2), float("nan")), 0.01, layer="q_proj")
    with pytest.raises(QuantkitError, match="the Hessian of q_proj is not positive definite even with damp_percent"):
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), 0.01, layer="q_proj")


def test_a_group_size_that_does_not_divide_the_columns_is_refused_by_name():
    with pytest.raises(UsageError, match="does not divide the 48 input columns of o_proj"):
        error_feedback(torch.zeros(2, 48), torch.eye(48), UniformGrid(4, 32), layer="o_proj")


def test_a_hessian_is_the_mean_outer_product_of_its_inputs_times_two():
    for dtype in (torch.float32, torch.bfloat16):
        inputs = torch.randn(50, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
        sums = HessianSum(300)
        sums.add(inputs[:20].reshape(4, 5, 300))
        sums.add(inputs[20:])
        expected = 2 / 50 * inputs.double().T @ inputs.double()
        assert torch.allclose(sums.value().double(), expected, atol=1e-5)
        assert torch.equal(sums.value(), sums.value().T)


def test_the_weight_that_goes_in_is_left_alone():
    for rows in (1, 4):
        weight, hessian = problem(rows, 32)
        before = weight.clone()
        error_feedback(weight, hessian, UniformGrid(4, 32))
        assert torch.equal(weight, before)


def test_no_gradient_is_recorded_for_weights_that_could_have_one():
    weight, hessian = problem(4, 64)
    weight.requires_grad_()
    assert not error_feedback(weight, hessian, UniformGrid(4, 32)).losses.requires_grad
    assert not quantize(weight, UniformGrid(4, 32, search="mse")).scale.requires_grad
    assert not quantize_codebook(weight, CodebookGrid(search="mse")).absmax.requires_grad
