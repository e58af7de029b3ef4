"""SmoothQuant: equation 4 to the letter, folding that changes nothing, and a search that never does worse than none."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage, UsageError
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.methods import installed_methods
from quantkit.numerics.capture import Block, find_blocks, record_calls
from quantkit.numerics.graph import fold_sites
from quantkit.numerics.grids import UniformGrid
from quantkit_plugins.smoothquant import SmoothQuantOptions
from quantkit_plugins.smoothquant.solver import Inputs, factors_of, output_error, search_factors, smooth_block

GRID = UniformGrid(8, -1, scale_dtype=torch.float32)


@pytest.fixture
def block(tiny_model) -> Block:
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    name, modules = find_blocks(model)
    ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    calls = record_calls(model, list(modules), [{"input_ids": ids}])
    block = Block(f"{name}.0", 0, modules[0], calls, ignore=(), device="cpu")
    block.hidden = calls.hidden
    return block


def test_factors_are_equation_4():
    x, w = torch.tensor([100.0, 1.0]), torch.tensor([0.5, 2.0])
    found = factors_of(x, w, torch.arange(2), 0.75)
    assert torch.allclose(found, torch.tensor([100**0.75 / 0.5**0.25, 1 / 2**0.25]))


def test_at_one_half_activations_and_weights_end_up_with_the_same_maxima():
    x, w = torch.rand(16) * 50 + 0.1, torch.rand(16) + 0.1
    factors = factors_of(x, w, torch.arange(16), 0.5)
    assert torch.allclose(x / factors, w * factors)


def test_channels_of_one_producer_share_the_factor_of_their_maxima():
    found = factors_of(torch.tensor([1.0, 4.0, 2.0, 3.0]), torch.ones(4), torch.tensor([0, 1, 0, 1]), 1.0)
    assert torch.equal(found, torch.tensor([2.0, 4.0]))


def test_channels_that_carry_nothing_are_left_alone():
    assert torch.equal(factors_of(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.0]), torch.arange(2), 0.5), torch.ones(2))


def test_smoothing_alone_changes_nothing_that_the_block_computes(block, monkeypatch):
    kept = {}

    def exact(weight, grid, *, layer):
        kept[layer] = weight
        return weight

    monkeypatch.setattr("quantkit_plugins.smoothquant.solver.quantize", exact)
    before = block.outputs(block.hidden)[0]
    smooth_block(block, fold_sites(block), GRID, alpha=0.5, activations_bits=8)
    for name, weight in kept.items():
        block.linears[name].weight.data = weight
    after = block.outputs(block.hidden)[0]
    assert not torch.allclose(block.module.input_layernorm.weight, torch.ones(128))
    assert float((after - before).norm() / before.norm()) < 1e-5


def test_layers_on_the_ignore_list_are_folded_into_but_not_rounded(block):
    before = block.outputs(block.hidden)[0]
    ignored = [name for name in block.linears if name.endswith(("k_proj", "down_proj"))]
    dense = [block.linears.pop(name) for name in ignored]
    weights = [linear.weight.detach().clone() for linear in dense]
    layers = smooth_block(block, fold_sites(block), GRID, alpha=0.5, activations_bits=8)
    assert set(layers) == set(block.linears)
    assert not torch.equal(dense[0].weight, weights[0])
    assert torch.equal(dense[1].weight, weights[1])  # its only site has no layer to round
    for name, item in layers.items():
        block.linears[name].weight.data = item.dequantize()
    after = block.outputs(block.hidden)[0]
    assert float((after - before).norm() / before.norm()) < 0.02


def test_outliers_cost_less_after_smoothing():
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    x[:, 3] *= 100
    weights = {"a": torch.randn(32, 64), "b": torch.randn(16, 64)}
    largest = torch.stack([weight.abs().amax(0) for weight in weights.values()]).amax(0)
    plain = output_error(x, weights, torch.ones(64), GRID, 8)
    smooth = output_error(x, weights, factors_of(x.abs().amax(0), largest, torch.arange(64), 0.5), GRID, 8)
    assert smooth < plain / 4
    seen = Inputs(x.abs().amax(0), x)
    best = search_factors(seen, weights, weights, torch.arange(64), grid=GRID, activations_bits=8)
    assert output_error(x, weights, best, GRID, 8) <= smooth


def test_one_huge_token_does_not_decide():
    torch.manual_seed(0)
    x, weights = torch.randn(32, 16), {"a": torch.randn(8, 16)}
    huge = torch.cat([x, 1e4 * x[:1]])
    ones = torch.ones(16)
    assert output_error(huge, weights, ones, GRID, 8) < 1.2 * output_error(x, weights, ones, GRID, 8)


def test_the_search_leaves_layers_alone_where_smoothing_does_not_help():
    x = torch.sign(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))  # every value sits on the grid already
    weights = {"a": torch.eye(8)}
    best = search_factors(Inputs(x.abs().amax(0), x), weights, weights, torch.arange(8), grid=GRID, activations_bits=8)
    assert torch.equal(best, torch.ones(8))


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(UsageError, match=r"alpha is .*; it must be between 0 and 1, or 'search'"):
        SmoothQuantOptions(alpha=alpha)


def test_a_model_without_a_place_to_fold_into_is_refused(tiny_model, monkeypatch):
    methods = installed_methods()
    plan = methods.plan("SmoothQuant", {}, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    model: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    monkeypatch.setattr("quantkit.numerics.graph.fold_sites", lambda _: [])
    with pytest.raises(UsageError, match=r"model\.layers\.0: no norm feeds linear layers only"):
        methods.quantize_model(plan, model, Calibration(((3, 4, 5, 6),), "test"), QuantizationWork())
