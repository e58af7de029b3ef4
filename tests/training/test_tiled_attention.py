"""Is attention in tiles of several rows or some queries attention, as near to float64 as torch's own?"""

import pytest
import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from quantkit.training import tiled_attention as module
from quantkit.training.attention import BlockMasks, rows_apart
from quantkit.training.layouts import Block, Layout
from quantkit.training.padded_rows import padded_rows
from quantkit.training.tiled_attention import fits, tiled_attention
from tests.training.families import family, loss_and_gradients

HEADS, GROUPS, DIM = 6, 2, 16
LAYOUTS = {
    "one row": Layout((Block(1, 40),), 40),
    "rows of equal length": Layout((Block(3, 20),), 60),
    "rows of many lengths": Layout((Block(1, 1), Block(2, 7), Block(1, 9), Block(1, 33), Block(1, 40)), 97),
    "shared beginnings": Layout((Block(1, 5), Block(1, 4, (0,), 5), Block(1, 6, (0,), 5), Block(2, 7, (0, 1), 9)), 53),
}


def states(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, key and value as a model hands them over: heads out of one matrix, not contiguous."""
    generator = torch.Generator().manual_seed(length)
    drawn = [torch.randn(1, length, heads, DIM, generator=generator).to(dtype) for heads in (HEADS, GROUPS, GROUPS)]
    return [item.transpose(1, 2).detach().requires_grad_() for item in drawn]


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    outer = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [item.detach().double() for item in (output, *torch.autograd.grad(output, inputs, outer))]


def seen(layout: Layout, window: int) -> torch.Tensor:
    """Return which tokens [length, length] of the sequence a token may see, the last `window` of its row."""
    visible, spans = torch.zeros(layout.length, layout.length, dtype=torch.bool), []
    for block in layout.blocks:
        first = spans[-1][-1].stop if spans else 0
        spans.append([range(first + at * block.length, first + (at + 1) * block.length) for at in range(block.rows)])
        for row in spans[-1]:
            tokens = [token for number in block.ancestors for token in spans[number][0]] + list(row)
            for place, token in enumerate(tokens):
                if token in row:
                    visible[token, tokens[max(place + 1 - window, 0) : place + 1]] = True
    return visible


def fused(inputs: list[torch.Tensor], visible: torch.Tensor) -> torch.Tensor:
    output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=visible, scale=0.3, enable_gqa=True)
    return output.transpose(1, 2)


def apart(left: list[torch.Tensor], right: list[torch.Tensor]) -> list[float]:
    return [float((one - other).norm() / other.norm()) for one, other in zip(left, right, strict=True)]


@pytest.mark.parametrize("kept", [0, 1, 100])
@pytest.mark.parametrize("tile", [1, 900, 2**18])
@pytest.mark.parametrize("window", [12, 1000])
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients_are_those_of_float64_and_about_as_near_as_torch_s(
    name: str, window: int, tile: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "KEPT", kept)
    layout = LAYOUTS[name]
    rows, visible = BlockMasks(layout, sliding_window_causal_mask_function(window), "cpu").together, seen(layout, window)
    assert all(piece.causal for piece in rows.pieces)
    inputs = states(layout.length, torch.bfloat16)
    exact = [item.detach().double().requires_grad_() for item in inputs]
    expected = with_gradients(fused(exact, visible), exact)
    theirs = apart(with_gradients(fused(inputs, visible), inputs), expected)
    ours = apart(with_gradients(tiled_attention(*inputs, rows, scale=0.3), inputs), expected)
    assert all(mine < 1.5 * other for mine, other in zip(ours, theirs, strict=True))
    single = [item.detach().float().requires_grad_() for item in inputs]
    in_float32 = with_gradients(tiled_attention(*single, rows, scale=0.3), single)
    assert max(apart(in_float32, expected)) < 2e-6


def test_tokens_may_see_later_ones_where_the_mask_says_so() -> None:
    layout = Layout((Block(1, 9), Block(1, 6)), 15)
    rows = padded_rows(layout, lambda block: torch.zeros(block.length, block.length))
    assert not any(piece.causal for piece in rows.pieces)
    assert [piece.rows for piece in rows.pieces] == [1, 1]  # a row that is padded would see its padding
    visible = torch.block_diag(torch.ones(9, 9), torch.ones(6, 6)).bool()
    inputs = [item.detach().double().float().requires_grad_() for item in states(15, torch.float32)]
    expected = with_gradients(fused(inputs, visible), inputs)
    assert max(apart(with_gradients(tiled_attention(*inputs, rows, scale=0.3), inputs), expected)) < 2e-6


def test_a_row_is_padded_to_one_that_is_nearly_as_long_with_the_same_ancestors() -> None:
    rows = BlockMasks(LAYOUTS["rows of many lengths"], causal_mask_function, "cpu").together
    assert [(piece.rows, piece.length, len(piece.beyond)) for piece in rows.pieces] == [(2, 40, 7), (3, 9, 4), (1, 1, 0)]
    rows = BlockMasks(LAYOUTS["shared beginnings"], causal_mask_function, "cpu").together
    assert [(piece.rows, piece.length, len(piece.before)) for piece in rows.pieces] == [
        (1, 5, 0),
        (1, 6, 1),
        (1, 4, 1),
        (2, 7, 2),
    ]


def test_autocast_decides_in_which_type_it_computes() -> None:
    inputs = states(8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rows = BlockMasks(Layout((Block(1, 8),), 8), causal_mask_function, "cpu").together
        output = tiled_attention(*inputs, rows, scale=0.3)
    assert output.dtype is torch.bfloat16
    assert {item.dtype for item in torch.autograd.grad(output.float().sum(), inputs)} == {torch.float32}


def test_products_of_float32_numbers_are_exact_again_afterwards() -> None:
    """Elsewhere they must not be rounded to bfloat16."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    rows = BlockMasks(Layout((Block(1, 8),), 8), causal_mask_function, "cpu").together
    inputs = [item.detach() for item in states(8, torch.bfloat16)]
    tiled_attention(*inputs, rows, scale=0.3)
    with pytest.raises(TypeError):
        tiled_attention(*inputs, rows, scale="of no number")  # type: ignore[arg-type]
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_it_is_for_bfloat16_on_cpus_without_units_for_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = states(2, torch.bfloat16)[0], states(2, torch.float32)[0]
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
