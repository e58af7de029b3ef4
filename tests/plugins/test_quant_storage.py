"""4-bit codes are the same bytes in any data type that holds them: the container differs, and the spec says nothing of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantkit.adapters import attach_adapter
from quantkit.aliases import canonical
from quantkit.backends import keep_layout
from quantkit.backends.calibrated_4bit import store_layers
from quantkit.errors import UsageError
from quantkit.layers import linear_layers
from quantkit.merging import fold_adapters
from quantkit.methods import installed_methods
from quantkit.numerics.codebooks import CodebookGrid, quantize_codebook
from quantkit.storable import check_before_saving
from quantkit.training.guards import frozen_faults
from tests.bench import difference, load, logits, plan_for, train_step


def codes(model: Any) -> dict[str, torch.Tensor]:
    """Return layer → its codes as bytes."""
    return {name: layer.weight.data.flatten().view(torch.uint8) for name, layer in linear_layers(model).items()}


def held_in(model: Any) -> set[torch.dtype]:
    """Return the data types of the codes."""
    return {layer.weight.dtype for layer in linear_layers(model).values()}


@pytest.mark.parametrize(("method", "storage"), [("QLORA", "bfloat16"), ("BNB4BIT", "float32")])
def test_codes_and_results_are_those_of_bytes(method: str, storage: str, tiny_model: Path) -> None:
    plain, stored = plan_for(method), plan_for(method, quant_storage=storage)
    assert stored.spec == plain.spec
    one, other = load(tiny_model, plain), load(tiny_model, stored)
    assert held_in(other) == {getattr(torch, storage)}
    left, right = codes(one), codes(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(logits(one), logits(other))


def test_adapters_train_and_fold_as_on_bytes(tiny_model: Path) -> None:
    found = []
    for storage in ("uint8", "bfloat16"):
        plan = plan_for("QLORA", quant_storage=storage)
        model = attach_adapter(installed_methods().prepare_model(plan, load(tiny_model, plan)), plan.adapter, 1)
        assert train_step(model) == []
        assert frozen_faults(model) == []
        before = logits(model)
        folded = fold_adapters(model)
        assert difference(logits(folded), before) < 1e-3
        found.append(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_folder_with_codes_in_bfloat16_is_read_by_transformers_alone(
    calibrated: bool, tiny_model: Path, tmp_path: Path
) -> None:
    plan = plan_for("QLORA", quant_storage="bfloat16", calibrated=calibrated)
    if calibrated:
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        grid = CodebookGrid("nf4", dtype=torch.float32)
        store_layers(plan, model, {name: quantize_codebook(layer.weight, grid) for name, layer in linear_layers(model).items()})
    else:
        model = load(tiny_model, plan)
    checked = check_before_saving(model, {"kind": "model", "quantization": plan.spec.to_dict()})
    assert checked["tensors"] > len(linear_layers(model))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", device_map={"": "cpu"})
    keep_layout(again)
    assert held_in(again) == {torch.bfloat16}
    assert difference(logits(again), logits(model)) == 0


def test_the_option_has_the_name_people_type_and_a_fixed_list_of_types() -> None:
    assert canonical("bnb_4bit_quant_storage") == "quant_storage"
    with pytest.raises(UsageError, match="quant_storage is 'int4'"):
        plan_for("QLORA", quant_storage="int4")
