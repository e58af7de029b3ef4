"""Do rows in one sequence see themselves only, whatever the family's attention?"""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.data import EncodedRow
from quantkit.errors import QuantkitError
from quantkit.training.attention import NAME, block_attention, laid_out, rows_apart
from quantkit.training.layouts import Block, FlatCollator, Layout, lay_out
from tests.training.families import CONFIGS, ROWS, family, loss_and_gradients

EXACT = [name for name in CONFIGS if name not in ("Bloom", "gpt-oss with sinks")]


@pytest.fixture
def double_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models that compute norms, rotations and softmax in float32 compute them in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in right)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.usefixtures("double_inside")
def test_loss_and_gradients_are_those_of_the_padded_batch(name: str) -> None:
    model = family(name)
    loss, gradients = loss_and_gradients(model, flat=False)
    for share in (False, True):
        flat_loss, flat_gradients = loss_and_gradients(model, flat=True, share=share)
        torch.testing.assert_close(flat_loss, loss, rtol=1e-12, atol=0)
        assert largest_difference(flat_gradients, gradients) < 1e-10


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "Bloom"])
def test_in_float32_they_differ_by_rounding_only(name: str) -> None:
    model = family(name, torch.float32)
    loss, gradients = loss_and_gradients(model, flat=False)
    flat_loss, flat_gradients = loss_and_gradients(model, flat=True, share=True)
    torch.testing.assert_close(flat_loss, loss, rtol=1e-5, atol=0)
    assert largest_difference(flat_gradients, gradients) < 1e-5


def test_the_rows_of_these_tests_do_share_and_do_not_all_have_a_length_of_their_own() -> None:
    layout = FlatCollator(share=True)(ROWS)["layout"]
    assert layout.length < layout.tokens - 20
    assert {block.rows for block in layout.blocks} == {1, 2}
    assert sum(not block.ancestors for block in layout.blocks) > 2


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 with sliding windows and two rotations", "Gemma 2 with soft caps"])
@pytest.mark.parametrize("share", [False, True])
def test_another_row_changes_no_bit_of_a_row(name: str, share: bool) -> None:
    model = family(name, torch.float32).eval()
    rows = [(row.input_ids, row.labels) for row in ROWS]
    flat = lay_out(rows, share=share)
    ids = torch.tensor([flat.input_ids])

    def logits(input_ids: Any) -> torch.Tensor:
        with torch.no_grad(), rows_apart(model), laid_out(flat.layout):
            positions, mask = torch.tensor([flat.position_ids]), torch.ones_like(input_ids)
            return model(input_ids=input_ids, position_ids=positions, attention_mask=mask).logits[0]

    before = logits(ids)
    for changed in range(len(ROWS)):
        others = {place for number, places in enumerate(flat.places) if number != changed for place in places}
        own = [place for place in flat.places[changed] if place not in others]
        perturbed = ids.clone()
        perturbed[0, own] = (perturbed[0, own] + 17) % 64
        after = logits(perturbed)
        assert torch.equal(after[sorted(others)], before[sorted(others)])
        assert not torch.equal(after[own], before[own])


def test_recomputed_activations_follow_the_layout_of_their_forward_pass() -> None:
    model = family("Mistral with a sliding window").train()
    kept = loss_and_gradients(model, flat=True, share=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = FlatCollator(share=True)(ROWS)
    layout = batch.pop("layout")
    model.zero_grad()
    with rows_apart(model):
        with laid_out(layout):
            loss = model(**batch, use_cache=False, num_items_in_batch=10).loss
        loss.backward()
    found = {name: item.grad for name, item in model.named_parameters()}
    assert largest_difference(found, kept[1]) < 1e-6


def test_accumulated_batches_weigh_every_token_the_same() -> None:
    model = family("Llama")
    items = sum(label != -100 for row in ROWS for label in row.labels[1:])
    whole = loss_and_gradients(model, flat=False)
    halves = [loss_and_gradients(model, part, flat=True, share=True, items=items) for part in (ROWS[:3], ROWS[3:])]
    torch.testing.assert_close(halves[0][0] + halves[1][0], whole[0], rtol=1e-6, atol=0)
    total = {name: sum(half[1][name] for half in halves) for name in whole[1]}
    assert largest_difference(total, whole[1]) < 1e-6  # type: ignore[arg-type]


def test_without_a_layout_attention_is_the_usual_one_and_the_configuration_is_given_back(tmp_path: Path) -> None:
    model = family("Gemma 2 with soft caps", torch.float32)
    before = loss_and_gradients(model, flat=False)
    kind = model.config._attn_implementation
    with rows_apart(model):
        assert model.config._attn_implementation == NAME
        within = loss_and_gradients(model, flat=False)
        model.save_pretrained(tmp_path)  # as a checkpoint of a full fine-tune does
    assert model.config._attn_implementation == kind
    assert NAME not in (tmp_path / "config.json").read_text()
    assert largest_difference(within[1], before[1]) < 1e-5


@pytest.mark.parametrize(
    ("mask", "named", "message"),
    [
        (torch.ones(1, 1, 3, 3), {}, "does not come from transformers' mask functions"),
        (None, {}, "does not come from transformers' mask functions"),
        ("blocks", {"position_bias": torch.ones(1)}, "a bias that depends on the distance"),
    ],
)
def test_attention_that_goes_its_own_way_is_refused(mask: Any, named: dict[str, Any], message: str) -> None:
    from transformers.masking_utils import causal_mask_function

    from quantkit.training.attention import block_masks

    states = torch.ones(1, 2, 3, 4)
    with laid_out(Layout((Block(1, 3),), 3)):
        mask = block_masks(mask_function=causal_mask_function) if isinstance(mask, str) else mask
        with pytest.raises(QuantkitError, match=message):
            block_attention(torch.nn.Identity(), states, states, states, mask, **named)


def test_one_row_alone_is_a_layout_too() -> None:
    rows = [EncodedRow([5, 6, 7], [-100, 6, 7], 1)]
    model = family("Llama")
    assert (
        largest_difference(loss_and_gradients(model, rows, flat=True)[1], loss_and_gradients(model, rows, flat=False)[1]) < 1e-6
    )
