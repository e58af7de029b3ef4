"""BRECQ: all layers of a block rounded together give the block's output back better than each by itself."""

from typing import Any

import pytest
import torch
from torch import nn

from quantkit import UsageError
from quantkit.numerics.capture import Block, Calls
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.numerics.soft_rounding import Annealing, SoftCodes
from quantkit_plugins.brecq import BrecqOptions
from quantkit_plugins.brecq.solver import Settings, learn_block, output_error, put, reconstruct_block, start_block

GRID = UniformGrid(bits=2, group_size=16, scale_dtype=torch.float32, search="mse")


class Gated(nn.Module):
    """A residual block with a gate, as in Llama's MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.gate, self.up, self.down = (nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inputs = self.norm(hidden)
        return hidden + self.down(torch.nn.functional.silu(self.gate(inputs)) * self.up(inputs))


def make_block() -> Block:
    """A block with 8 batches of correlated inputs; one is padded."""
    torch.manual_seed(0)
    mixing = torch.randn(32, 32)
    hidden = [torch.randn(2, 40, 32) @ mixing for _ in range(8)]
    masks = [None] * 7 + [torch.arange(40).expand(2, 40) < 30]
    module = Gated()
    for linear in (module.gate, module.up, module.down):
        nn.init.normal_(linear.weight, std=0.4)
    found = Block("blocks.0", 0, module, Calls(hidden, masks, [[((), {})] * 8]), ignore=(), device="cpu")
    found.reference, found.hidden = hidden, [item + 0.05 * torch.randn_like(item) for item in hidden]
    found.targets = found.outputs(hidden)
    return found


def settings(**changes: Any) -> Settings:
    return Settings(annealing=Annealing(150), **changes)


def test_a_block_rounded_together_beats_its_layers_rounded_alone_and_these_beat_nearest() -> None:
    errors = {}
    for start in ("nearest", "gptq"):
        block = make_block()
        start_block(block, GRID, settings(start=start))
        alone = output_error(block, level=True)
        block = make_block()
        solved = reconstruct_block(block, GRID, settings(start=start))
        assert all(torch.equal(block.linears[name].weight, item.dequantize()) for name, item in solved.items())
        errors[start] = (alone, output_error(block, level=True))
    block = make_block()
    put(block, {name: quantize(linear.weight.data, GRID) for name, linear in block.linears.items()})
    nearest = output_error(block, level=True)
    assert errors["nearest"][1] < 0.9 * errors["nearest"][0]
    assert errors["gptq"][1] < errors["gptq"][0] < nearest


def test_no_learning_at_all_gives_the_start_and_never_something_worse() -> None:
    block = make_block()
    start = {name: item for name, (item, _) in start_block(block, GRID, settings()).items()}
    solved = reconstruct_block(make_block(), GRID, settings(learning_rate=1e-9, scale_learning_rate=0.0))
    assert all(torch.equal(solved[name].codes, item.codes) for name, item in start.items())
    before = output_error(block, level=True)
    wild = make_block()
    reconstruct_block(wild, GRID, settings(learning_rate=1e3))
    assert output_error(wild, level=True) <= before


def test_a_seed_gives_the_same_result_again_and_the_block_is_left_as_it_was_found() -> None:
    results = []
    for seed in (1, 1, 2):
        block = make_block()
        results.append(reconstruct_block(block, GRID, settings(start="nearest", asymmetry=0.0, seed=seed)))
        assert "forward" not in block.linears["blocks.0.down"].__dict__
        assert all(parameter.grad is None for parameter in block.module.parameters())
    assert all(torch.equal(results[0][name].codes, item.codes) for name, item in results[1].items())
    assert any(not torch.equal(results[0][name].codes, item.codes) for name, item in results[2].items())


def test_scales_alone_bring_the_block_closer_once_its_codes_are_decided() -> None:
    for rate in (0.02, 0.0):
        block = make_block()
        chosen = settings(learning_rate=1e-9, scale_learning_rate=rate)
        soft = {name: SoftCodes(start, where, GRID) for name, (start, where) in start_block(block, GRID, chosen).items()}
        before = output_error(block, level=True)
        for item in soft.values():
            item.decide()
        learn_block(block, soft, before, chosen)
        learnt = {name: item.hard() for name, item in soft.items()}
        put(block, learnt)
        assert all(torch.equal(learnt[name].codes, item.start.codes) for name, item in soft.items())
        assert all(torch.equal(learnt[name].scale, item.start.scale) is (rate == 0) for name, item in soft.items())
        assert output_error(block, level=True) < 0.99 * before if rate else output_error(block, level=True) == before


def test_a_huge_token_decides_nothing_where_tokens_are_equal() -> None:
    results = {}
    for level in (True, False):
        errors = []
        for size in (1.0, 100.0):
            block = make_block()
            block.targets = [item.clone() for item in block.targets or []]
            block.targets[0][0, 0] *= size
            errors.append(output_error(block, level=level))
        results[level] = errors[1] / errors[0]
    assert results[True] < 20
    assert results[False] > 1000


def test_padding_has_no_say() -> None:
    results = []
    for padding in (0.0, 50.0):
        block = make_block()
        block.hidden[7] = block.hidden[7].clone()
        block.hidden[7][:, 30:] = padding
        results.append(reconstruct_block(block, GRID, settings(start="nearest", asymmetry=0.0)))
    assert all(torch.equal(results[0][name].codes, item.codes) for name, item in results[1].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size is 0; it must be a number of columns, or -1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"beta_end": 0.0}, "beta_end is 0.0; it must be a positive number"),
        ({"reg_weight": -1.0}, "reg_weight is -1.0; it must be 0 or a positive number"),
        ({"settling": 2.0}, "settling is 2.0; it is a fraction from 0 to 1"),
        ({"asymmetric_reconstruction": -1.0}, "asymmetric_reconstruction is -1.0; it is a fraction from 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BrecqOptions(**options)
