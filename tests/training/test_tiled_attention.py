"""Is attention in tiles of queries attention, as near to float64 as torch's own?"""

import pytest
import torch

from quantkit.training import tiled_attention as module
from quantkit.training.attention import rows_apart
from quantkit.training.tiled_attention import fits, tiled_attention
from tests.training.families import family, loss_and_gradients

HEADS, GROUPS, DIM = 6, 2, 16


def states(length: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, key and value of two rows as a model hands them over: heads out of one matrix, not contiguous."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(length, HEADS), (size, GROUPS), (size, GROUPS)]
    drawn = [torch.randn(2, tokens, heads, DIM, generator=generator).to(dtype) for tokens, heads in shapes]
    return [item.transpose(1, 2).detach().requires_grad_() for item in drawn]


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    outer = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [item.detach().double() for item in (output, *torch.autograd.grad(output, inputs, outer))]


def fused(inputs: list[torch.Tensor], visible: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=visible, scale=0.3, enable_gqa=True)


def apart(left: list[torch.Tensor], right: list[torch.Tensor]) -> list[float]:
    return [float((one - other).norm() / other.norm()) for one, other in zip(left, right, strict=True)]


@pytest.mark.parametrize("tile", [1, 500, 2**16])
@pytest.mark.parametrize(("length", "size", "causal"), [(40, 40, True), (40, 55, True), (33, 50, False), (1, 9, True)])
def test_output_and_gradients_are_those_of_float64_and_about_as_near_as_torch_s(
    length: int, size: int, causal: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    visible = torch.ones(length, size, dtype=torch.bool)
    if causal:
        visible = visible.tril(size - length)
    visible[:, 1:3] = False
    visible[0, 0] = True
    added = torch.zeros(length, size).masked_fill_(~visible, -torch.inf)
    inputs = states(length, size, torch.bfloat16)
    exact = [item.detach().double().requires_grad_() for item in inputs]
    expected = with_gradients(fused(exact, visible), exact)
    theirs = apart(with_gradients(fused(inputs, visible), inputs), expected)
    ours = apart(with_gradients(tiled_attention(*inputs, added, scale=0.3, causal=causal), inputs), expected)
    assert all(mine < 1.5 * other for mine, other in zip(ours, theirs, strict=True))
    single = [item.detach().float().requires_grad_() for item in inputs]
    in_float32 = with_gradients(tiled_attention(*single, added, scale=0.3, causal=causal), single)
    assert max(apart(in_float32, expected)) < 2e-6


def test_autocast_decides_in_which_type_it_computes() -> None:
    inputs = states(8, 8, torch.float32)
    added = torch.zeros(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = tiled_attention(*inputs, added, scale=0.3, causal=False)
    assert output.dtype is torch.bfloat16
    assert {item.dtype for item in torch.autograd.grad(output.float().sum(), inputs)} == {torch.float32}


def test_it_is_for_bfloat16_on_cpus_without_units_for_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = states(2, 2, torch.bfloat16)[0], states(2, 2, torch.float32)[0]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert fits(half)
    assert not fits(single)
    with torch.autocast("cpu", torch.bfloat16):
        assert fits(single)
    assert not fits(half.to("meta"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not fits(half)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 with sliding windows and two rotations", "Gemma 2 with soft caps"])
@pytest.mark.parametrize("share", [False, True])
def test_a_step_in_bfloat16_has_the_gradients_of_the_padded_one_in_float32(
    name: str, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = family(name, torch.float32), []
    exact = loss_and_gradients(model, flat=False)[1]
    kept = module.tiled_attention
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("quantkit.training.attention.tiled_attention", lambda *a, **b: calls.append(1) or kept(*a, **b))
    with torch.autocast("cpu", torch.bfloat16), rows_apart(model):
        ours = loss_and_gradients(model, flat=True, share=share)[1]
    assert bool(calls) == ("soft caps" not in name)
    difference = sum(float((ours[key] - exact[key]).square().sum()) for key in exact)
    assert difference < 0.05**2 * sum(float(item.square().sum()) for item in exact.values())
