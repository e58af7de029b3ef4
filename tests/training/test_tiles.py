"""Is the loss in tiles the loss, with the same gradients and without all logits at once?"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CohereConfig, GraniteConfig

from quantkit.adapters import attach_adapter
from quantkit.plan import AdapterPlan
from quantkit.training import tiles
from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only
from quantkit.training.tiles import logits_tail
from tests.training.families import CONFIGS, HEADS, ROWS, SMALL, Collator, family

CONFIGS |= {
    "Cohere with scaled logits": CohereConfig(**SMALL, **HEADS, logit_scale=0.25),
    "Granite with divided logits": GraniteConfig(**SMALL, **HEADS, logits_scaling=3.0),
}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles of three positions."""
    monkeypatch.setattr("quantkit.training.supervised.tile_rows", lambda *_: 3)
    monkeypatch.setattr(tiles, "tile_rows", lambda *_: 3)


def loss_and_gradients(model: Any, tail: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = Collator(0)(ROWS)
    labels = batch.pop("labels")
    model.zero_grad()
    with supervised_positions_only(output_head(model), labels, tail) as kept:
        loss = supervised_loss(model(**batch, use_cache=False), labels, kept=kept) * 1.5
    loss.backward()
    return loss.detach(), {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-6, atol=0)
    assert left[1].keys() == right[1].keys()
    for name, gradient in right[1].items():
        assert float((left[1][name] - gradient).norm() / gradient.norm()) < 5e-6, name


@pytest.mark.parametrize(
    "name", ["Llama", "Gemma 2 with soft caps", "Cohere with scaled logits", "Granite with divided logits", "GPT-2"]
)
@pytest.mark.usefixtures("small_tiles")
def test_loss_and_gradients_are_those_without_tiles(name: str) -> None:
    model = family(name, torch.float32)
    tail = logits_tail(model, output_head(model), token_id=5, device="cpu")
    assert tail is not None
    assert_same(loss_and_gradients(model, tail), loss_and_gradients(model, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_forms_its_gradient_in_place(dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiles, "tile_rows", lambda *_: 3)
    head = torch.nn.Linear(8, 32, bias=bias, dtype=dtype).requires_grad_(False)
    calls: list[int] = []
    head.register_forward_hook(lambda *_: calls.append(1))
    hidden = (torch.randn(7, 8) * 40).to(dtype).requires_grad_()
    targets = torch.randint(0, 32, (7,))
    expected = torch.nn.functional.cross_entropy(tiles.full_precision(head(hidden)), targets, reduction="sum") * 2
    (wanted,) = torch.autograd.grad(expected, hidden)
    calls.clear()
    loss = tiles.tiled_cross_entropy(head, tiles.unchanged, hidden, targets) * 2
    (found,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, wanted)
    assert bool(calls) == (dtype is torch.bfloat16)


@pytest.mark.usefixtures("small_tiles")
def test_an_adapter_on_the_head_learns_in_tiles_too() -> None:
    model = attach_adapter(
        family("Llama", torch.float32), AdapterPlan(r=2, lora_alpha=4, target_modules=("lm_head", "q_proj")), seed=1
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    tail = logits_tail(model, output_head(model), token_id=5, device="cpu")
    found = loss_and_gradients(model, tail)
    assert any("lm_head" in name for name in found[1])
    assert_same(found, loss_and_gradients(model, None))


@pytest.mark.usefixtures("small_tiles")
def test_no_more_than_a_tile_passes_the_head_at_once() -> None:
    model = family("Llama", torch.float32)
    tail = logits_tail(model, output_head(model), token_id=5, device="cpu")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    loss_and_gradients(model, tail)
    assert seen == [1, 3, 3, 3, 1]


@pytest.mark.usefixtures("small_tiles")
def test_a_loss_that_is_only_measured_forms_no_gradient() -> None:
    model = family("Llama", torch.float32)
    batch = Collator(0)(ROWS)
    labels = batch.pop("labels")
    head = output_head(model)
    tail = logits_tail(model, head, token_id=5, device="cpu")
    with torch.no_grad(), supervised_positions_only(head, labels, tail) as kept:
        loss = supervised_loss(model(**batch), labels, kept=kept)
    assert not loss.requires_grad
    torch.testing.assert_close(loss * 1.5, loss_and_gradients(model, None)[0])


def test_what_a_model_does_to_its_logits_is_found_by_running_it_or_not_at_all() -> None:
    model = family("Llama", torch.float32)
    head = output_head(model)
    forward = model.forward
    model.forward = lambda *arguments, **named: SimpleNamespace(logits=forward(*arguments, **named).logits + 1)
    assert logits_tail(model, head, token_id=5, device="cpu") is None
    model.forward = lambda **_: 1 / 0
    assert logits_tail(model, head, token_id=5, device="cpu") is None
    assert not head._forward_hooks


def test_the_loss_over_a_large_vocabulary_is_nearer_to_float64_than_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = (torch.randn(24, 49_152, generator=generator, dtype=torch.float64) * 2.5).float().double().requires_grad_()
    targets = torch.randint(49_152, (24,), generator=generator)
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    torch.testing.assert_close(tiles.summed_cross_entropy(exact, targets), expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(3 * tiles.summed_cross_entropy(exact, targets), exact)
    (theirs,) = torch.autograd.grad(3 * expected, exact)
    torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-15)
    single = exact.detach().float().requires_grad_()
    loss = tiles.summed_cross_entropy(single, targets)
    assert abs(float(loss - expected)) < 2e-7 * float(expected)
    (gradient,) = torch.autograd.grad(3 * loss, single)
    assert float((gradient - theirs).norm() / theirs.norm()) < 3e-7
