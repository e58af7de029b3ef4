"""Does a requantized merge keep what was learnt, in the format of its base, and is it refused where it would mean nothing?"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import AdapterPlan
from quantkit.adapters import attach_adapter
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError
from quantkit.layers import linear_layers
from quantkit.measure import measure_model
from quantkit.merging.requantize import requantize
from quantkit.merging.requantize_grids import stored_grid
from quantkit.methods import installed_methods
from quantkit.modeling import load_tokenizer
from quantkit.numerics.codebooks import CodebookGrid, quantize_codebook
from tests.bench import difference, load, logits, plan_for

METHODS = installed_methods()
ANSWERS = ("12 because 5+7", "9 because 4+5", "15 because 8+7", "11 because 6+5", "20 because 9+11", "3 because 7-4")
BASES: list[tuple[str, dict[str, Any]]] = [
    ("QLORA", {}),
    ("INT8", {}),
    ("RTN", {"group_size": 64, "symmetric": False}),
    ("FP8", {}),
]


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> Calibration:
    """Conversations in another form than the tiny model has learnt."""
    tokenizer = load_tokenizer(str(tiny_model))
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"What is number {n}?"}, {"role": "assistant", "content": ANSWERS[n % len(ANSWERS)]}],
            tokenize=False,
        )
        for n in range(24)
    ]
    return Calibration(tuple(tuple(tokenizer(text)["input_ids"]) for text in texts), "turned answers")


@torch.no_grad()
def loss(model: Any, rows: Calibration) -> float:
    model.eval()
    return sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in rows.batches(32)) / len(rows.batches(32))


def learnt(tiny_model: Path, plan: Any, rows: Calibration, steps: int = 12) -> tuple[float, float, Any]:
    """Return the loss of a base, that of a slightly trained adapter on it, and the exact merge of the two."""
    model = load(tiny_model, plan)
    before = loss(model, rows)
    model = attach_adapter(METHODS.prepare_model(plan, model), AdapterPlan(r=8, lora_alpha=16), seed=0)
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=3e-4)
    for step in range(steps):
        batches = rows.batches(16)
        batch = batches[step % len(batches)]
        model.train()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, loss(model, rows), METHODS.post_train_merge(plan, model)


@pytest.fixture(scope="module")
def merge(tiny_model: Path, rows: Calibration) -> tuple[float, float, Any]:
    """A merge on a QLORA base."""
    return learnt(tiny_model, plan_for("QLORA"), rows)


def test_most_of_the_gain_is_kept_where_rounding_to_nearest_loses_most(rows, merge):
    before, after, merged = merge
    nearest = copy.deepcopy(merged)
    for layer in linear_layers(nearest).values():
        layer.weight.data = quantize_codebook(layer.weight.data, CodebookGrid(dtype=torch.float32)).nest().dequantize()
    model = requantize(copy.deepcopy(merged), plan_for("QLORA"), METHODS, rows)
    kept, kept_by_nearest = ((before - loss(item, rows)) / (before - after) for item in (model, nearest))
    assert kept > 0.8
    assert kept_by_nearest < 0.5


@pytest.mark.parametrize(("method", "options"), BASES)
def test_the_result_is_what_the_spec_says_and_loads_as_such(method, options, rows, merge, tmp_path):
    from quantkit.modeling import ModelSource, load_source

    plan = plan_for(method, **options)
    model = requantize(copy.deepcopy(merge[2]), plan, METHODS, rows)
    assert measure_model(model, method=method).with_changes(tags=plan.spec.tags) == plan.spec
    in_memory = logits(model)
    assert difference(in_memory, logits(merge[2])) < 4
    model.save_pretrained(tmp_path)
    again = load_source(ModelSource(path=str(tmp_path), spec=plan.spec), METHODS, device="cpu")
    assert difference(logits(again), in_memory) < 1e-4


def test_a_killed_requantization_goes_on_to_the_same_weights(rows, merge, tmp_path):
    plan = plan_for("QLORA")
    seen: list[bool] = []
    work = QuantizationWork(folder=tmp_path / "work", report=lambda report: seen.append(report.resumed))
    one = requantize(copy.deepcopy(merge[2]), plan, METHODS, rows, work)
    two = requantize(copy.deepcopy(merge[2]), plan, METHODS, rows, work)
    assert seen == [False] * 4 + [True] * 4
    assert difference(logits(one), logits(two)) == 0


def test_scales_and_dense_weights_have_the_stored_data_type(rows, merge):
    plan = plan_for("RTN", dtype="bfloat16", group_size=64)
    model = requantize(copy.deepcopy(merge[2]), plan, METHODS, rows)
    assert {item.dtype for item in model.parameters() if item.is_floating_point()} == {torch.bfloat16}


def test_a_dense_base_has_nothing_to_quantize_again(rows, merge):
    with pytest.raises(UsageError, match="NoQuant trains on dense weights; there is nothing to quantize again"):
        requantize(merge[2], plan_for("NoQuant"), METHODS, rows)


def test_rounding_without_rows_is_refused(merge):
    with pytest.raises(UsageError, match="requantizing a QLORA base rounds on rows of the run; none were given"):
        requantize(merge[2], plan_for("QLORA"), METHODS, None)


def test_a_format_that_is_not_known_is_left_to_the_methods_own_hook(rows, merge):
    plan = plan_for("RTN", group_size=64)
    plan = plan.with_changes(spec=plan.spec.with_changes(format="somebodys"))
    asked = []

    class Theirs:
        def quantize_model(self, plan, model, calibration, work):
            asked.append((plan.spec.format, calibration.source))
            raise UsageError("their own refusal")

    assert stored_grid(plan, torch.float32) is None
    with pytest.raises(UsageError, match="their own refusal"):
        requantize(copy.deepcopy(merge[2]), plan, Theirs(), rows)
    assert asked == [("somebodys", "turned answers")]
