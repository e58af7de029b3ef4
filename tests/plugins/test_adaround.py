"""AdaRound: as good as trying every rounding where that can be tried, and never worse than what it starts from."""

import itertools
from typing import Any, Literal

import pytest
import torch
from torch import nn

from quantkit import UsageError
from quantkit.numerics.capture import Block, Calls
from quantkit.numerics.grids import Levels, UniformGrid, quantize
from quantkit.numerics.hessian import quadratic_error
from quantkit.numerics.soft_rounding import Annealing, positions_of, start_rounding
from quantkit_plugins.adaround import AdaRoundOptions
from quantkit_plugins.adaround.block import round_block
from quantkit_plugins.adaround.solver import Settings, learn_rounding, round_layer, sweep

GRID = UniformGrid(bits=3, group_size=8, scale_dtype=torch.float32, search="mse")


def settings(steps: int = 200, **changes: Any) -> Settings:
    return Settings(annealing=Annealing(steps), **changes)


def problem(columns: int, rows: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and the H of correlated inputs."""
    torch.manual_seed(seed)
    inputs = torch.randn(20 * columns, columns) @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns))
    return torch.randn(rows, columns), inputs.T @ inputs / (10 * columns)


def best_of_all(weight: torch.Tensor, hessian: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Return each row's least loss over all 2^n ways to round down or up."""
    positions = positions_of(weight, levels)
    floor = positions.floor().clamp(GRID.q_min, GRID.q_max - 1)
    ways = torch.tensor(list(itertools.product((0, 1), repeat=weight.shape[1])), dtype=torch.float32)
    least = [
        quadratic_error((floor[row] + ways) * levels.scale[row].repeat_interleave(8) - weight[row], hessian).min()
        for row in range(len(weight))
    ]
    return torch.stack(least)


def test_learnt_rounding_comes_close_to_the_best_of_all_roundings() -> None:
    nearest, learnt, best = 0.0, 0.0, 0.0
    for seed in range(3):
        weight, hessian = problem(8, seed=seed)
        start = quantize(weight, GRID)
        found = learn_rounding(weight, hessian, start, GRID, settings(400, start="nearest", learning_rate=0.05))
        least = best_of_all(weight, hessian, Levels(start.scale, None))
        losses = quadratic_error(found.dequantize() - weight, hessian)
        assert bool((losses >= least - 1e-5).all())
        nearest += float(quadratic_error(start.dequantize() - weight, hessian).sum())
        learnt, best = learnt + float(losses.sum()), best + float(least.sum())
    assert best < 0.9 * nearest, "the problem is too easy to tell anything"
    assert learnt - best < 0.25 * (nearest - best)


@pytest.mark.parametrize("start", ["nearest", "gptq"])
def test_no_row_is_worse_than_its_start(start: Literal["nearest", "gptq"]) -> None:
    weight, hessian = problem(32)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32)
    before = start_rounding(weight, damped, GRID, start, damp_percent=0.01, layer="a layer")
    after = round_layer(weight, hessian, None, GRID, settings(100, start=start))
    losses = [quadratic_error(item.dequantize() - weight, damped) for item in (before, after)]
    assert bool((losses[1] <= losses[0] * (1 + 1e-5)).all())
    assert float(losses[1].sum()) < 0.95 * float(losses[0].sum())


def test_a_sweep_never_raises_the_loss_and_ends_where_no_single_code_can_improve() -> None:
    weight, hessian = problem(16)
    found = quantize(weight, GRID)
    for _ in range(20):
        before = quadratic_error(found.dequantize() - weight, hessian)
        found = sweep(weight, hessian, found, GRID)
        assert bool((quadratic_error(found.dequantize() - weight, hessian) <= before * (1 + 1e-6)).all())
    settled = quadratic_error(found.dequantize() - weight, hessian)
    for column, step in itertools.product(range(16), (-1, 1)):
        codes = found.codes.clone()
        codes[:, column] = (codes[:, column] + step).clamp(GRID.q_min, GRID.q_max)
        other = GRID.assemble(codes, Levels(found.scale, None))
        assert bool((quadratic_error(other.dequantize() - weight, hessian) >= settled * (1 - 1e-5)).all())


class Pair(nn.Module):
    """Two layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.b(torch.tanh(self.a(hidden)))


@pytest.fixture
def block() -> Block:
    """A block whose input in the quantized model differs from the original one's; its second batch is padded."""
    torch.manual_seed(0)
    reference = [torch.randn(4, 24, 32) @ torch.randn(32, 32) * 0.3 for _ in range(2)]
    masks = [None, torch.arange(24).expand(4, 24) < 20]
    found = Block("blocks.0", 0, Pair(), Calls(reference, masks, [[((), {}), ((), {})]]), ignore=(), device="cpu")
    found.reference, found.hidden = reference, [item + 0.1 * torch.randn_like(item) for item in reference]
    found.targets = found.outputs(reference)
    return found


def error(block: Block) -> float:
    """Return the squared error of the block's output against the original one, padding left out."""
    outputs = block.outputs(block.hidden)
    assert block.targets is not None
    return sum(
        float((a - b).square().sum(-1)[slice(None) if mask is None else mask].sum())
        for a, b, mask in zip(outputs, block.targets, block.masks, strict=True)
    )


def test_aiming_at_the_original_models_output_lowers_the_blocks_error(block: Block) -> None:
    grid = UniformGrid(bits=3, group_size=32, scale_dtype=torch.float32, search="mse")
    weights = {name: linear.weight.detach().clone() for name, linear in block.linears.items()}
    errors = {}
    for asymmetry in (1.0, 0.5, 0.0):
        for name, linear in block.linears.items():
            linear.weight.data.copy_(weights[name])
        solved = round_block(block, grid, settings(60, asymmetry=asymmetry), equal_tokens=False)
        assert all(torch.equal(block.linears[name].weight, item.dequantize()) for name, item in solved.items())
        errors[asymmetry] = error(block)
    for name, linear in block.linears.items():
        linear.weight.data.copy_(quantize(weights[name], grid).dequantize())
    assert errors[1.0] < errors[0.5] < errors[0.0] < error(block)


def test_the_result_is_the_same_every_time() -> None:
    weight, hessian = problem(32)
    first, second = (round_layer(weight, hessian, None, GRID, settings(30)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size is 0; it must be a number of columns, or -1"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"rounding_learning_rate": 0.0}, "rounding_learning_rate is 0.0; it must be a positive number"),
        ({"sweeps": -1}, "sweeps is -1; it must be 0 or a positive number"),
        ({"asymmetric_reconstruction": 2.0}, "asymmetric_reconstruction is 2.0; it is a fraction from 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaRoundOptions(**options)
