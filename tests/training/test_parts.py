"""Are order, data types and guards what they say?"""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import VerificationError
from quantkit.training import precision
from quantkit.training.guards import check_gradients, check_learned
from quantkit.training.order import RowOrder
from quantkit.training.precision import arithmetic_dtype, faster_dtype, training_dtypes
from tests.training.helpers import adapted, config

LENGTHS = [(37 * index) % 101 + 1 for index in range(250)]


@pytest.mark.parametrize("group", [None, 8])
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(group: int | None) -> None:
    order = RowOrder(LENGTHS, seed=3, group=group)
    first = list(order)
    torch.manual_seed(9)
    again = list(RowOrder(LENGTHS, seed=3, group=group))
    order.set_epoch(1)
    assert sorted(first) == list(range(250)) == sorted(order)
    assert len(order) == 250
    assert first == again
    assert list(order) != first
    assert list(RowOrder(LENGTHS, seed=4, group=group)) != first


def test_grouping_puts_rows_of_similar_length_together_and_the_longest_first() -> None:
    def padding(rows: list[int]) -> int:
        batches = [[LENGTHS[row] for row in rows[at : at + 8]] for at in range(0, len(rows), 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    grouped, free = list(RowOrder(LENGTHS, seed=0, group=8)), list(RowOrder(LENGTHS, seed=0))
    assert padding(grouped) < padding(free) / 8
    assert LENGTHS[grouped[0]] == max(LENGTHS)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert sorted(RowOrder([3, 1, 2], seed=0, group=8)) == [0, 1, 2]
    assert list(RowOrder([], seed=0, group=8)) == []


def test_the_faster_data_type_is_found_by_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_product_s", lambda dtype: 1.0 if dtype is torch.bfloat16 else 2.0)
    assert faster_dtype("cpu") == "bfloat16"
    monkeypatch.setattr(precision, "_product_s", lambda dtype: 2.0 if dtype is torch.bfloat16 else 1.0)
    assert faster_dtype("cpu") == "float32"
    monkeypatch.undo()
    assert faster_dtype("cpu") in ("bfloat16", "float32")


def test_float32_is_not_chosen_where_it_would_fill_the_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    model = adapted(tiny_model, dtype=torch.bfloat16)
    monkeypatch.setattr(precision, "faster_dtype", lambda _: "float32")
    assert arithmetic_dtype(model, config(compute_dtype="auto"), "cpu") == "float32"
    assert arithmetic_dtype(model, config(compute_dtype="bfloat16"), "cpu") == "bfloat16"

    class Little:
        available = 1_000_000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    assert arithmetic_dtype(model, config(compute_dtype="auto"), "cpu") == "bfloat16"


def test_4_bit_layers_compute_in_float32_while_training_and_as_before_afterwards(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=four_bit, dtype=torch.bfloat16).train()
    layer = model.model.layers[0].mlp.down_proj
    codes = layer.weight.data.clone()
    with training_dtypes(model, "float32"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
        assert layer.compute_dtype is torch.float32
        assert model.lm_head.weight.dtype is torch.float32
    assert layer.compute_dtype is torch.bfloat16
    assert model.lm_head.weight.dtype is torch.bfloat16
    assert torch.equal(layer.weight.data, codes)


def test_for_bfloat16_weights_that_were_stored_so_are_held_so_and_the_sum_of_blocks_stays_float32(tiny_model: Path) -> None:
    model = adapted(tiny_model, dtype=torch.float32)
    inner = model.base_model.model.model
    first, last = inner.layers[0].mlp.down_proj.base_layer, inner.layers[1].mlp.up_proj.base_layer
    for item in (first, inner.embed_tokens):
        item.weight.data = item.weight.data.bfloat16().float()
    last.weight.data[0, 0] = 1 + 2**-20
    kept = {name: item.detach().clone() for name, item in model.named_parameters()}
    with training_dtypes(model, "bfloat16"):
        assert first.weight.dtype is inner.embed_tokens.weight.dtype is torch.bfloat16
        assert last.weight.dtype is inner.norm.weight.dtype is torch.float32
        assert inner.embed_tokens(torch.tensor([1])).dtype is torch.float32
    assert inner.embed_tokens(torch.tensor([1])).dtype is torch.float32
    for name, item in model.named_parameters():
        assert item.dtype is torch.float32
        assert torch.equal(item, kept[name])


class Adapter(torch.nn.Module):
    """Two parameters under the names PEFT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.ones(2, 2))})
        self.lora_B = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.zeros(2, 2))})


def layer_with(a_gradient: float | None, b_gradient: float | None) -> Any:
    layer = torch.nn.ModuleDict({"q_proj": Adapter()})
    for parameter, value in zip(layer.parameters(), (a_gradient, b_gradient), strict=True):
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    return layer


def test_gradients_of_a_first_step_pass() -> None:
    check_gradients(layer_with(0.0, 0.5))


@pytest.mark.parametrize(
    ("a_gradient", "b_gradient", "message"),
    [
        (None, 1.0, r"of 2 trainable parameters 1 \(q_proj.lora_A.default\) got no gradient"),
        (float("nan"), 1.0, r"1 \(q_proj.lora_A.default\) got a non-finite one"),
        (0.0, 0.0, r"1 \(q_proj.lora_B.default\) got one of zeros only"),
        (None, 0.0, r"lora_A.default\) got no gradient; 1 \(q_proj.lora_B.default\) got one of zeros"),
    ],
)
def test_gradients_at_fault_are_named(a_gradient: float | None, b_gradient: float | None, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        check_gradients(layer_with(a_gradient, b_gradient))


def test_many_faults_are_counted_and_the_first_named() -> None:
    layers = torch.nn.ModuleDict({f"layer{index}": Adapter() for index in range(4)})
    with pytest.raises(VerificationError, match=r"8 \(layer0.lora_A.default, .*, layer1.lora_A.default and 5 more\)"):
        check_gradients(layers)


def test_trained_weights_that_are_not_finite_or_still_zero_are_refused() -> None:
    layer = layer_with(1.0, 1.0)
    with pytest.raises(VerificationError, match="after 5 steps all 1 adapters are still zero"):
        check_learned(layer, steps=5)
    with torch.no_grad():
        layer["q_proj"].lora_B["default"].fill_(1.0)
    check_learned(layer, steps=5)
    with torch.no_grad():
        layer["q_proj"].lora_A["default"][0, 0] = float("inf")
    with pytest.raises(VerificationError, match=r"1 \(q_proj.lora_A.default\) hold non-finite values; nothing is saved"):
        check_learned(layer, steps=5)
