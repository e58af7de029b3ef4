"""AWQ: folding changes nothing, searching never harms, and what cannot be scaled is said."""

import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from quantkit import PlanContext, Stage, UsageError
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import QuantkitError
from quantkit.methods import installed_methods
from quantkit.modeling import load_base
from quantkit.numerics.blockwise import quantize_blocks
from quantkit.numerics.capture import Block
from quantkit.numerics.graph import fold_sites
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.numerics.hessian import quadratic_error
from quantkit.plan import AdapterPlan
from quantkit_plugins.awq import solver

IDS = torch.randint(3, 500, (6, 48), generator=torch.Generator().manual_seed(0))
GRID = UniformGrid(bits=3, group_size=64, scale_dtype=torch.float32)


@pytest.fixture
def model(tiny_model) -> nn.Module:
    """The tiny model in float32, some channels of its norms large, as real models have them."""
    found = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        for layer in found.model.layers:
            for norm, readers in (
                (layer.input_layernorm, [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
            ):
                norm.weight[::17] *= 20
                for reader in readers:
                    reader.weight[:, ::17] /= 8
    return found


def run(model: nn.Module, solve, ignore=()) -> dict:
    return quantize_blocks(model, [{"input_ids": IDS}], solve, ignore=ignore)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def fold_only(block: Block) -> dict:
    """Scale as AWQ does and put the scaled weights back unrounded."""
    weights = {name: linear.weight.data.clone() for name, linear in block.linears.items()}
    for site in fold_sites(block):
        count = solver._module(block, site.producer).weight.shape[0]
        scale = torch.logspace(-1, 1, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
        solver.fold_scale(block, site, scale, weights)
    for name, weight in weights.items():
        block.linears[name].weight.data.copy_(weight)
    return {name: Unrounded(weight) for name, weight in weights.items()}


class Unrounded:
    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def dequantize(self) -> torch.Tensor:
        return self.weight

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}


def test_folding_scales_from_a_tenth_to_ten_leaves_the_logits_as_they_are(model):
    before, norm = logits(model), model.model.layers[0].input_layernorm.weight.clone()
    run(model, fold_only)
    assert not torch.equal(model.model.layers[0].input_layernorm.weight, norm)
    assert float((logits(model) - before).abs().max()) <= 1e-4


def test_all_layers_of_a_llama_can_be_scaled_grouped_queries_too(model, capfd):
    seen = {}

    def solve(block: Block) -> dict:
        solved, seen[block.name] = solver.awq_block(block, GRID, n_grid=2)
        return solved

    run(model, solve)
    assert seen == {f"model.layers.{index}": [] for index in range(4)}


def test_with_large_channels_it_beats_plain_rounding_by_far(model):
    dense = logits(model)
    rounded = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=torch.float32).eval()
    rounded.load_state_dict(model.state_dict())
    run(rounded, lambda block: {name: quantize(item.weight.data, GRID) for name, item in block.linears.items()})
    run(model, lambda block: solver.awq_block(block, GRID)[0])
    awq, nearest = (float((logits(item) - dense).square().mean()) for item in (model, rounded))
    assert awq < 0.5 * nearest


@pytest.mark.parametrize("duo_scaling", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_neither_search_is_ever_worse_than_rounding_for_the_error_it_minimises(symmetric, duo_scaling):
    torch.manual_seed(0)
    grid = UniformGrid(bits=3, group_size=32, symmetric=symmetric, scale_dtype=torch.float32)
    for spread in (0.0, 1.0, 2.0):
        inputs = torch.randn(256, 64) * (spread * torch.randn(64)).exp()
        hessian, weights = 2 / 256 * inputs.T @ inputs, [torch.randn(16, 64), torch.randn(8, 64)]
        scale = solver.search_scale(
            weights, hessian, inputs.abs().mean(0), grid, channels=torch.arange(64), duo_scaling=duo_scaling
        )
        for weight in weights:
            plain = quadratic_error(quantize(weight, grid).dequantize() - weight, hessian).sum()
            ones = solver._error([weight], hessian, torch.ones(64), grid)
            assert ones == pytest.approx(float(plain))
        errors = [solver._error(weights, hessian, columns, grid) for columns in (scale, torch.ones(64))]
        assert errors[0] <= errors[1]
        if spread == 2.0:
            assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("level", [True, False])
def test_one_huge_token_decides_only_where_tokens_are_not_made_equal(model, level):
    found = []

    def solve(block: Block) -> dict:
        original, groups = block.watch, block.groups()
        for factor in (1.0, 1e3):
            block.watch = lambda see, names, hidden, factor=factor: original(
                lambda name, inputs: see(name, torch.cat([inputs[:1] * factor, inputs[1:]])), names, hidden
            )
            moments, sizes = solver._statistics(block, groups, level)
            found.append([*moments, *sizes])
        block.watch = original
        return {name: quantize(linear.weight.data, GRID) for name, linear in block.linears.items()}

    run(model, solve)
    for first, second in zip(found[0], found[1], strict=True):
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-5) == level


def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(model):
    model.model.layers[0].mlp.up_proj.weight.data[3, 4] = float("inf")
    with pytest.raises(UsageError, match=r"layers.0.mlp.up_proj holds weights that are not finite"):
        run(model, lambda block: solver.awq_block(block, GRID, n_grid=1)[0])


def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(model, monkeypatch):
    monkeypatch.setattr(Block, "watch", lambda _self, see, names, _hidden: see(names[0], torch.full((2, 128), float("nan"))))
    block = Block.__new__(Block)
    block.linears, block.device, block.hidden = {"blocks.0.q": nn.Linear(128, 8)}, "cpu", []
    with pytest.raises(QuantkitError, match=r"the inputs of blocks.0.q are not finite on the calibration data"):
        solver._statistics(block, [["blocks.0.q"]], True)


def test_clipping_keeps_the_range_of_least_output_error_of_all_that_are_tried():
    torch.manual_seed(3)
    grid = UniformGrid(bits=2, group_size=8, scale_dtype=torch.float32)
    inputs = torch.randn(64, 8) @ torch.randn(8, 8)
    weight, hessian = torch.randn(4, 8), 2 / 64 * inputs.T @ inputs
    found = quadratic_error(solver.clip_and_round(weight, hessian, grid).dequantize() - weight, hessian)
    for shrink in torch.linspace(0.5, 1, 21):
        clipped = UniformGrid(bits=2, group_size=8, scale_dtype=torch.float32)
        levels = solver.fit_minmax(clipped, weight.reshape(4, 1, 8) * shrink).spread()
        values = clipped.decode(clipped.encode(weight.reshape(4, 1, 8), levels), levels).reshape(4, 8)
        assert bool((found <= quadratic_error(values - weight, hessian) * (1 + 1e-4)).all())


def test_scales_are_powers_of_two_where_an_ignored_layer_reads_the_same_norm(model):
    model = model.bfloat16()
    before = model.model.layers[0].self_attn.q_proj.weight.clone().float()
    run(model, lambda block: solver.awq_block(block, UniformGrid(3, 64), n_grid=4)[0], ignore=("q_proj", "up_proj"))
    ratio = (model.model.layers[0].self_attn.q_proj.weight.float() / before)[0]
    assert not torch.equal(ratio, torch.ones_like(ratio))
    assert torch.equal(ratio.log2(), ratio.log2().round())


def test_biases_carry_the_inverse_too():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4
    )
    model = Qwen2ForCausalLM(config).eval().bfloat16()
    attention = model.model.layers[0].self_attn
    nn.init.normal_(attention.v_proj.bias)
    before = attention.v_proj.bias.clone()
    run(model, lambda block: solver.awq_block(block, UniformGrid(4, 32), n_grid=4)[0])
    assert not torch.equal(attention.v_proj.bias, before)


def test_folding_that_changes_the_block_is_an_error_and_nothing_is_rounded(model, monkeypatch):
    monkeypatch.setattr(solver, "divide_outputs", lambda _producer, _site, factors: factors)  # divides nothing
    with pytest.raises(QuantkitError, match=r"model.layers.0: folding the scales changed the block's output by [\d.]+"):
        run(model, lambda block: solver.awq_block(block, GRID, n_grid=2)[0])


def test_what_cannot_be_scaled_is_rounded_and_said(model):
    attention = model.model.layers[0].self_attn
    attention.o_proj = nn.Sequential(nn.Tanh(), attention.o_proj)  # nothing before a tanh can carry a scale
    left = {}

    def solve(block: Block) -> dict:
        solved, left[block.name] = solver.awq_block(block, GRID, n_grid=2)
        return solved

    assert "model.layers.0.self_attn.o_proj.1" in run(model, solve)
    assert left["model.layers.0"] == ["model.layers.0.self_attn.o_proj.1"]
    assert solver.unscaled_layers(left).startswith("AWQ rounded self_attn.o_proj.1 in 1 of 4 blocks without scaling")


def plan_of(**options):
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    return installed_methods().plan("AWQ", options, context)


def test_the_format_decides_about_zero_points_unless_told():
    assert (plan_of().spec.symmetric, plan_of().spec.tags) == (True, ())
    assert (plan_of(format="awq").spec.symmetric, plan_of(format="awq").spec.tags) == (False, ("asym", "awq"))
    assert plan_of(symmetric=False).spec.symmetric is False


def test_impossible_settings_are_refused_in_the_plan():
    with pytest.raises(UsageError, match="n_grid is 0; it must be at least 1"):
        plan_of(n_grid=0)
    with pytest.raises(UsageError, match="group_size is -3; it must be a number of columns, or -1"):
        plan_of(group_size=-3)


def test_a_killed_run_goes_on_with_norms_and_ignored_layers_as_it_left_them(tiny_model, tmp_path):
    methods, plan = installed_methods(), plan_of(group_size=64, n_grid=2)
    rows = Calibration(tuple(tuple(row.tolist()) for row in IDS), "random tokens")
    results = []
    for _ in range(2):
        work = QuantizationWork(folder=tmp_path, ignore=("gate_proj",))
        model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu", calibration=rows, work=work)
        results.append(model.state_dict())
        for index in (2, 3):
            shutil.rmtree(tmp_path / f"block-{index:04d}")
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_the_whole_method_is_better_than_rounding_on_the_tiny_model(tiny_model):
    methods, plan = installed_methods(), plan_of(group_size=64, weights_bits=2)
    rtn = methods.plan("RTN", {"group_size": 64, "weights_bits": 2}, PlanContext(stage=Stage.TRAINED, adapter=plan.adapter))
    rows = Calibration(tuple(tuple(row.tolist()) for row in IDS), "random tokens")
    dense = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    awq = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu", calibration=rows)
    nearest = load_base(str(tiny_model), plan=rtn, methods=methods, device="cpu")
    distance, plain = (float((logits(item) - logits(dense)).float().square().mean()) for item in (awq, nearest))
    assert distance < plain
