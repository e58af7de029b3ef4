"""Uniform grids: levels, rounding, and agreement with compressed-tensors to the last bit."""

import itertools

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.numerics.grids import Levels, QuantizedWeight, UniformGrid, fit_minmax, quantize


def weights(rows: int = 12, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


GRIDS = [
    UniformGrid(bits, group_size, symmetric, scale_dtype=dtype, search=search)
    for bits, group_size, symmetric, dtype, search in itertools.product(
        (2, 3, 4, 8), (32, -1), (True, False), (torch.bfloat16, torch.float16, torch.float32), ("minmax", "mse")
    )
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_compressed_tensors_dequantizes_our_codes_to_our_weights_bit_for_bit(grid):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    weight = quantize(weights(), grid)
    args = QuantizationArgs(num_bits=grid.bits, symmetric=grid.symmetric, group_size=grid.group_size)
    theirs = dequantize(weight.codes, weight.scale, weight.zero_point, args)
    assert torch.equal(theirs, weight.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_levels_are_those_of_compressed_tensors(symmetric):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    values = weights().reshape(12, 2, 32)
    ours = fit_minmax(UniformGrid(4, 32, symmetric, torch.float32), values)
    scale, zero_point = calculate_qparams(values.amin(-1), values.amax(-1), QuantizationArgs(num_bits=4, symmetric=symmetric))
    assert torch.equal(ours.scale, scale)
    if not symmetric:
        assert torch.equal(ours.zero_point, zero_point)


@pytest.mark.parametrize("grid", GRIDS[::5], ids=str)
def test_each_code_is_the_nearest_one_for_the_scale_as_it_is_stored(grid):
    values = weights()
    weight = quantize(values, grid)
    groups = weight.scale.shape[1]
    every = torch.arange(grid.q_min, grid.q_max + 1).repeat(12, groups, 1).to(weight.scale.dtype)
    levels = Levels(weight.scale, weight.zero_point).spread()
    offset = every if levels.zero_point is None else every - levels.zero_point.to(every.dtype)
    distance = ((offset * levels.scale).float().unsqueeze(2) - values.reshape(12, groups, -1, 1)).abs().amin(-1)
    chosen = (weight.dequantize().float() - values).abs().reshape(12, groups, -1)
    rounding = weight.dequantize().float().abs().reshape(12, groups, -1) * torch.finfo(weight.scale.dtype).eps
    assert bool((chosen <= distance + rounding + 1e-7).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_searching_the_scale_leaves_less_error_than_the_range_does(bits, symmetric):
    values = weights(64, 128)
    errors = [
        (quantize(values, UniformGrid(bits, 32, symmetric, search=search)).dequantize().float() - values).square().mean()
        for search in ("minmax", "mse")
    ]
    assert errors[1] < errors[0]


def test_important_columns_are_rounded_better_at_the_cost_of_others():
    values, importance = weights(64, 32), torch.ones(32)
    importance[3] = 1000.0
    grid = UniformGrid(2, 32, search="mse")
    plain, weighted = (
        (quantize(values, grid, importance=item).dequantize().float() - values).square() for item in (None, importance)
    )
    assert weighted[:, 3].sum() < plain[:, 3].sum()
    assert weighted.sum() > plain.sum()


def test_zero_weights_stay_zero():
    for symmetric in (True, False):
        assert quantize(torch.zeros(2, 32), UniformGrid(4, 32, symmetric)).dequantize().abs().max() == 0


def test_a_weight_is_rebuilt_from_its_tensors():
    grid = UniformGrid(3, 32, symmetric=False)
    weight = quantize(weights(), grid)
    again = grid.restore(weight.tensors())
    assert isinstance(again, QuantizedWeight)
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_a_group_size_that_does_not_fit_names_the_layer_and_the_sizes_that_do():
    with pytest.raises(
        UsageError, match="group_size 128 does not divide the 576 input columns of q_proj; sizes that fit: 64, 32, 16, -1"
    ):
        UniformGrid(4, 128).block_columns(576, "q_proj")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 5}, "bits is 5; a uniform grid has 2, 3, 4 or 8"),
        ({"group_size": 0}, "group_size is 0; it is a number of columns, or -1"),
        ({"search": "best"}, "search is 'best'; known: 'minmax', 'mse'"),
    ],
)
def test_settings_that_no_grid_has_are_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        UniformGrid(**settings)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="v_proj holds weights that are not finite"):
        quantize(torch.tensor([[float("nan")] * 32]), UniformGrid(4, 32), layer="v_proj")
