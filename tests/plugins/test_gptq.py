"""GPTQ: never worse than rounding for the loss it minimises, and as good as trying everything where that can be tried."""

import itertools

import pytest
import torch
from torch import nn

from quantkit import PlanContext, Stage, UsageError
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.methods import installed_methods
from quantkit.modeling import load_base
from quantkit.numerics.capture import Block, Calls
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.grids import Levels, UniformGrid, quantize
from quantkit.numerics.hessian import quadratic_error
from quantkit.plan import AdapterPlan
from quantkit_plugins.gptq.solver import gptq_block

GRID = UniformGrid(bits=2, group_size=-1, scale_dtype=torch.float32)


class Pair(nn.Module):
    """Two layers of the same input, and one that reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 16), nn.Linear(32, 16, bias=False), nn.Linear(16, 32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.c(torch.tanh(self.a(hidden) + self.b(hidden)))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    hidden = [torch.randn(4, 24, 32) * torch.linspace(0.1, 3, 32) @ torch.randn(32, 32) for _ in range(2)]
    found = Block("blocks.0", 0, Pair(), Calls(hidden, [None, None], [[((), {}), ((), {})]]), ignore=(), device="cpu")
    found.hidden = hidden
    return found


def hessian_of(columns: int, tokens: int = 64) -> torch.Tensor:
    inputs = torch.randn(tokens, columns) @ torch.randn(columns, columns)
    return 2 / tokens * inputs.T @ inputs


def test_with_two_columns_no_choice_of_codes_is_better_than_one_the_recursion_could_make():
    """The last column is rounded optimally given the others: only the first can be chosen wrongly."""
    torch.manual_seed(1)
    better = 0
    for _ in range(20):
        weight, hessian = torch.randn(1, 2), hessian_of(2)
        levels = Levels(torch.full((1, 1), 0.5), None)
        found = error_feedback(weight, hessian, GRID, damp_percent=0, levels=levels).weight.dequantize()
        every = [torch.tensor([codes]) * 0.5 for codes in itertools.product(range(-2, 2), repeat=2)]
        best = min(float(quadratic_error(candidate - weight, hessian)) for candidate in every)
        of_first = [item for item in every if item[0, 0] == found[0, 0]]
        best_of_first = min(float(quadratic_error(item - weight, hessian)) for item in of_first)
        error = float(quadratic_error(found - weight, hessian))
        assert error == pytest.approx(best_of_first, rel=1e-4)
        better += error <= best * (1 + 1e-4)
    assert better >= 12  # and mostly the first is chosen as an exhaustive search chooses it


@pytest.mark.parametrize(("symmetric", "search"), [(True, "mse"), (False, "minmax")])
def test_weights_that_stand_on_the_grid_are_left_where_they_are(block, symmetric, search):
    grid = UniformGrid(4, 16, symmetric, torch.float32, search)
    for linear in block.linears.values():
        codes = torch.randint(-7, 8, linear.weight.shape).float()
        codes[:, ::16], codes[:, 1::16] = -8, 7  # each group spans its grid
        linear.weight.data = codes * 0.125
    before = {name: linear.weight.data.clone() for name, linear in block.linears.items()}
    solved = gptq_block(block, grid)
    for name, weight in before.items():
        torch.testing.assert_close(solved[name].dequantize(), weight)


def test_inputs_that_do_not_correlate_make_it_plain_rounding():
    torch.manual_seed(2)
    weight = torch.randn(8, 32)
    grid = UniformGrid(bits=3, group_size=16, scale_dtype=torch.float32)
    found = error_feedback(weight, torch.diag(torch.rand(32) + 0.1), grid, damp_percent=0).weight
    assert torch.equal(found.dequantize(), quantize(weight, grid).dequantize())


def test_one_huge_token_decides_only_where_tokens_are_not_made_equal(block):
    (level, plain), huge = ([block.hessians(block.groups(), level=level)[0] for level in (True, False)]), block.hidden[0]
    huge[0, 0] *= 1e3
    after = [block.hessians(block.groups(), level=level)[0] for level in (True, False)]
    torch.testing.assert_close(after[0], level)
    assert float(after[1].norm()) > 1e3 * float(plain.norm())


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("grid", [GRID, UniformGrid(3, 16, False, torch.float32, "mse")])
def test_every_layer_is_solved_with_less_output_error_than_rounding(block, grid, true_sequential):
    weights = {name: linear.weight.data.clone() for name, linear in block.linears.items()}
    groups = block.groups()
    hessians = dict(zip([tuple(group) for group in groups], block.hessians(groups), strict=True))
    solved = gptq_block(block, grid, true_sequential=true_sequential, equal_tokens=False)
    assert set(solved) == set(weights)
    group = ("blocks.0.a", "blocks.0.b")
    for name in group:
        nearest = quantize(weights[name], grid).dequantize()
        error, rounding = (
            float(quadratic_error(item - weights[name], hessians[group]).sum()) for item in (solved[name].dequantize(), nearest)
        )
        assert error < 0.8 * rounding


def test_layers_of_one_input_are_solved_as_each_alone(block):
    grid = UniformGrid(4, 16, False, torch.float32)
    weights = {name: linear.weight.data.clone() for name, linear in block.linears.items()}
    (hessian,) = block.hessians([["blocks.0.a", "blocks.0.b"]])
    solved = gptq_block(block, grid, equal_tokens=False)
    for name in ("blocks.0.a", "blocks.0.b"):
        alone = error_feedback(weights[name], hessian, grid).weight
        assert torch.equal(solved[name].codes, alone.codes)
        assert torch.equal(solved[name].zero_point, alone.zero_point)


def test_later_layers_are_calibrated_on_the_quantized_ones_before_them(block):
    weight = block.linears["blocks.0.c"].weight.data.clone()
    first = gptq_block(block, GRID, true_sequential=True, equal_tokens=False)["blocks.0.c"]
    (hessian,) = block.hessians([["blocks.0.c"]])  # a and b are quantized now
    assert torch.equal(first.codes, error_feedback(weight, hessian, GRID).weight.codes)


def plan_of(**options):
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"), compute_dtype="float32")
    return installed_methods().plan("GPTQ", options, context)


def test_impossible_settings_are_refused_in_the_plan():
    with pytest.raises(UsageError, match=r"damp_percent is 2\.0; it is a fraction from 0 to 1"):
        plan_of(damp_percent=2.0)
    with pytest.raises(UsageError, match="group_size is 0; it must be a number of columns, or -1"):
        plan_of(group_size=0)


def test_a_group_size_that_does_not_fit_names_the_layer_and_the_sizes_that_do(tiny_model):
    rows = Calibration((tuple(range(3, 35)),), "numbers")
    with pytest.raises(UsageError, match=r"group_size 96 does not divide the 128 input columns of model.layers.0.self_attn"):
        load_base(str(tiny_model), plan=plan_of(group_size=96), methods=installed_methods(), device="cpu", calibration=rows)


def test_ignored_layers_stay_as_they_are_and_the_run_repeats_itself(tiny_model):
    rows = Calibration(tuple(tuple(range(start, start + 48)) for start in range(3, 400, 40)), "numbers")
    work = QuantizationWork(ignore=("down_proj",))
    weights = []
    for _ in range(2):
        plan, methods = plan_of(group_size=64, format="gptq"), installed_methods()
        model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu", calibration=rows, work=work)
        assert type(model.get_submodule("model.layers.0.mlp.down_proj")) is nn.Linear
        weights.append(model.get_submodule("model.layers.3.mlp.up_proj").qweight)
    assert torch.equal(*weights)
