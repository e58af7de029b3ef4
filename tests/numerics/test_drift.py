"""Drift: what a layer should aim at once its inputs are no longer the original model's, from second moments alone."""

import pytest
import torch
from torch import nn

from quantkit.numerics.capture import Block, Calls
from quantkit.numerics.drift import moved_target, original_block, paired_moments


class One(nn.Module):
    """A block of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 12, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.a(hidden)


@pytest.fixture
def block() -> Block:
    """A block whose input in the quantized model differs from the original one's; one batch is padded, one token huge."""
    torch.manual_seed(0)
    reference = [torch.randn(4, 24, 12) @ torch.randn(12, 12) for _ in range(2)]
    reference[0][0, 0] *= 100
    masks = [None, torch.arange(24).expand(4, 24) < 20]
    found = Block("blocks.0", 0, One(), Calls(reference, masks, [[((), {}), ((), {})]]), ignore=(), device="cpu")
    found.reference, found.hidden = reference, [item + 0.1 * torch.randn_like(item) for item in reference]
    return found


def tokens(block: Block) -> list[torch.Tensor]:
    """Return the tokens `[tokens, 12]` that count, of the original and of the quantized stream."""
    keep = [slice(None) if mask is None else mask for mask in block.masks]
    return [
        torch.cat([item[part].reshape(-1, 12) for item, part in zip(stream, keep, strict=True)])
        for stream in (block.reference or [], block.hidden)
    ]


def test_paired_moments_leave_padding_out_and_agree_with_the_blocks_hessian(block: Block) -> None:
    hessian, cross = paired_moments(block, original_block(block), "blocks.0.a")
    assert torch.allclose(hessian, block.hessians([["blocks.0.a"]])[0], rtol=1e-4, atol=1e-4)
    x, moved = tokens(block)
    assert torch.allclose(cross, x.T @ moved * (2 / len(x)), rtol=1e-4, atol=1e-2)


def test_with_level_the_huge_token_counts_as_much_as_any_other_in_both_moments(block: Block) -> None:
    hessian, cross = paired_moments(block, original_block(block), "blocks.0.a", level=True)
    assert torch.allclose(hessian, block.hessians([["blocks.0.a"]], level=True)[0], rtol=1e-4, atol=1e-4)
    assert float(hessian.trace()) == pytest.approx(2 * 12, rel=1e-4)
    x, moved = tokens(block)
    length = moved.norm(dim=1, keepdim=True)
    assert torch.allclose(cross, (x / length).T @ (moved / length) * (2 * 12 / len(x)), rtol=1e-4, atol=1e-4)


def test_a_copy_of_the_block_keeps_the_original_weights(block: Block) -> None:
    twin = original_block(block)
    before = block.linears["blocks.0.a"].weight.detach().clone()
    block.linears["blocks.0.a"].weight.data.zero_()
    assert torch.equal(twin.linears["blocks.0.a"].weight, before)


def test_the_moved_target_minimises_the_error_against_the_original_models_output() -> None:
    torch.manual_seed(0)
    original = torch.randn(400, 12, dtype=torch.float64)
    quantized = original + 0.3 * torch.randn(400, 12, dtype=torch.float64)
    weight = torch.randn(5, 12, dtype=torch.float64)
    hessian, cross = quantized.T @ quantized / 200, original.T @ quantized / 200
    whole, half, none = (
        moved_target(weight.float(), hessian.float(), cross.float(), hessian.float(), asymmetry=share)
        for share in (1.0, 0.5, 0.0)
    )
    expected = torch.linalg.lstsq(quantized, original @ weight.T).solution.T
    assert torch.allclose(whole.double(), expected, atol=1e-4)
    assert torch.allclose(half, (whole + none) / 2, atol=1e-5)
    assert torch.equal(none, weight.float())
