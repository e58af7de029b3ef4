"""HQQ: the objective falls, outliers do not decide the grid, and grids that a weight lies on are found."""

import itertools

import pytest
import torch

from quantkit import UsageError
from quantkit.numerics.grids import UniformGrid, fit_minmax, quantize
from quantkit_plugins.hqq import HqqOptions
from quantkit_plugins.hqq.solver import best_levels, fit_line, half_quadratic, objective, power, shrink

SETTINGS = {"lp_norm": 0.7, "beta": 10.0, "kappa": 1.01}


@pytest.fixture
def weight() -> torch.Tensor:
    """A weight with heavy tails, as trained ones have."""
    torch.manual_seed(0)
    return torch.randn(64, 128) * torch.randn(64, 128).exp() * 0.02


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_more_steps_never_raise_the_objective_of_a_group_and_lower_it_in_all(
    weight: torch.Tensor, bits: int, symmetric: bool
) -> None:
    grid = UniformGrid(bits, 32, symmetric)
    groups = weight.reshape(-1, 32)
    losses = []
    for iterations in (0, 1, 5, 20):
        spread = best_levels(groups, grid, iterations=iterations, **SETTINGS).spread()
        losses.append(objective(groups - grid.decode(grid.encode(groups, spread), spread), 0.7))
    assert all(bool((after <= before).all()) for before, after in itertools.pairwise(losses))
    assert float(losses[-1].sum()) < float(losses[0].sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("lp_norm", [0.7, 2.0])
def test_the_result_beats_rounding_and_a_search_of_ranges_under_its_own_norm(
    weight: torch.Tensor, symmetric: bool, lp_norm: float
) -> None:
    grid = UniformGrid(3, 32, symmetric)
    errors = [
        float((item.dequantize().float() - weight).abs().pow(lp_norm).sum())
        for item in (
            half_quadratic(weight, grid, lp_norm=lp_norm),
            quantize(weight, grid),
            quantize(weight, UniformGrid(3, 32, symmetric, search="mse")),
        )
    ]
    assert errors[0] < min(errors[1:])


def test_zero_points_are_fitted_as_well_as_real_ones_where_the_weights_lie_on_no_grid(weight: torch.Tensor) -> None:
    grid = UniformGrid(3, 32, symmetric=False)
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    steps = 7 / (high - low)
    offset = -low * steps
    for _ in range(20):  # hqq's own rule: the scale stays, the zero point is the mean that least squares wants
        codes = (groups * steps + offset).round().clamp(0, 7)
        offset = (codes - groups * steps).mean(-1, keepdim=True)
    theirs = ((groups * steps + offset).round().clamp(0, 7) - offset) / steps
    ours = half_quadratic(weight, grid).dequantize().float().reshape(-1, 32)
    assert float((ours - groups).square().sum()) < float((theirs - groups).square().sum())


def test_cutting_into_parts_changes_nothing(weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = UniformGrid(4, 32, symmetric=False)
    whole = half_quadratic(weight, grid)
    monkeypatch.setattr("quantkit_plugins.hqq.solver.CHUNK", 96)
    parts = half_quadratic(weight, grid)
    assert all(torch.equal(value, parts.tensors()[key]) for key, value in whole.tensors().items())


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_line_is_least_squares_for_the_zero_point_it_rounds_to(symmetric: bool) -> None:
    torch.manual_seed(1)
    grid = UniformGrid(4, 16, symmetric, scale_dtype=torch.float32)
    values, start = torch.randn(10, 16) + 0.5, fit_minmax(grid, torch.randn(10, 16))
    codes = torch.randint(grid.q_min, grid.q_max + 1, (10, 16)).float()
    levels = fit_line(values, codes, start, grid)
    offsets = codes if levels.zero_point is None else codes - levels.zero_point.float().unsqueeze(-1)
    for row in range(10):
        expected = torch.linalg.lstsq(offsets[row].unsqueeze(1), values[row].unsqueeze(1)).solution
        assert torch.allclose(levels.scale[row], expected.squeeze(), atol=1e-5)


def test_groups_of_zeros_or_of_one_value_stay_finite() -> None:
    weight = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 0.3)])
    for symmetric in (True, False):
        found = half_quadratic(weight, UniformGrid(4, 16, symmetric)).dequantize().float()
        assert torch.allclose(found, weight, atol=0.01)


def test_shrinking_is_the_usual_soft_threshold_at_p_1() -> None:
    values = torch.tensor([-2.0, -0.3, 0.0, 0.3, 2.0])
    assert torch.allclose(shrink(values, 2.0, 1.0), torch.nn.functional.softshrink(values, 0.5))
    assert torch.allclose(power(values.abs(), 0.7), values.abs().pow(0.7), atol=1e-6)


def test_a_grid_that_the_weights_lie_on_is_found_despite_outliers() -> None:
    torch.manual_seed(2)
    on_grid = torch.randint(-7, 8, (200, 64)) * 0.01
    weight = on_grid.clone()
    weight[:, 5] = 0.083
    grid = UniformGrid(4, 64, symmetric=False)
    exact = [
        float(((item.dequantize().float() - on_grid).abs() < 2e-4).float().mean())
        for item in (half_quadratic(weight, grid), quantize(weight, grid))
    ]
    assert exact[0] > exact[1] + 0.2


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="the third layer holds weights that are not finite"):
        half_quadratic(torch.full((2, 16), torch.nan), UniformGrid(4, 16), layer="the third layer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": -2}, "group_size is -2; it must be a number of columns, or -1"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"lp_norm": 0.0}, "lp_norm is 0.0; it must be above 0 and at most 2"),
        ({"beta": 0.0}, "beta is 0.0; it must be a positive number"),
        ({"kappa": 1.1}, "kappa is set, but lp_norm 2 is plain least squares"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HqqOptions(**options)  # type: ignore[arg-type]
