"""Do adapters start where they were told to, and are starts refused that would make a kept adapter mean something else?"""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from quantkit import AdapterPlan
from quantkit.adapters import attach_adapter
from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.layers import linear_layers
from quantkit.merging import fold_adapters
from quantkit.methods import installed_methods
from quantkit.numerics.codebooks import CodebookGrid, quantize_codebook
from quantkit.starts import check_start, held_weight, low_rank, start_from_residual
from tests.bench import difference, load, logits, plan_for

LORA = AdapterPlan(r=16, lora_alpha=32, init_lora_weights="loftq")


def started(tiny_model, method="QLORA", adapter=LORA, **options):
    plan = plan_for(method, **options)
    model = attach_adapter(installed_methods().prepare_model(plan, load(tiny_model, plan)), adapter, seed=0)
    return start_from_residual(model, str(tiny_model))


def lost(tiny_model, model) -> list[float]:
    """Relative distance of each layer's weight from the original's."""
    original = linear_layers(load(tiny_model, plan_for("NoQuant")))
    return [
        float((held_weight(layer) - original[name].weight.data).norm() / original[name].weight.data.norm())
        for name, layer in linear_layers(model).items()
    ]


@pytest.mark.parametrize("method", ["QLORA", "INT8", "RTN"])
def test_loftq_starts_nearer_to_the_original_on_every_kind_of_base(method, tiny_model):
    options = {"group_size": 64} if method == "RTN" else {}
    base = load(tiny_model, plan_for(method, **options))
    folded = fold_adapters(started(tiny_model, method, **options))
    before, after = lost(tiny_model, base), lost(tiny_model, folded)
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_the_product_is_the_best_of_its_rank_with_the_adapters_scale_counted():
    residual = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    down, up = low_rank(residual, 4, 2.0)
    left, values, right = torch.linalg.svd(residual, full_matrices=False)
    assert torch.allclose(2.0 * up @ down, left[:, :4] * values[:4] @ right[:4], atol=1e-4)


@pytest.mark.parametrize("scaling", [{"use_rslora": True}, {"lora_alpha": 1}])
def test_what_is_added_to_the_base_does_not_depend_on_how_adapters_are_scaled(scaling, tiny_model):
    one, other = (fold_adapters(started(tiny_model, adapter=replace(LORA, **more))) for more in ({}, scaling))
    for name, layer in linear_layers(one).items():
        assert torch.allclose(layer.weight, other.get_submodule(name).weight, atol=1e-5)


def test_a_larger_rank_starts_nearer(tiny_model):
    near, nearer = (lost(tiny_model, fold_adapters(started(tiny_model, adapter=replace(LORA, r=r)))) for r in (4, 32))
    assert all(new < old for new, old in zip(nearer, near, strict=True))


def test_each_step_of_the_papers_alternation_lowers_what_is_lost_and_the_first_keeps_the_base():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    grid = CodebookGrid("nf4", dtype=torch.float32)
    added, held = torch.zeros_like(weight), quantize_codebook(weight, grid).dequantize()
    lost = [float((weight - held).norm())]
    for step in range(4):
        base = quantize_codebook(weight - added, grid).dequantize()
        assert torch.equal(base, held) == (step == 0)
        down, up = low_rank(weight - base, 8, 2.0)
        added = 2.0 * up @ down
        lost.append(float((weight - base - added).norm()))
    assert all(new < old for old, new in pairwise(lost))


def test_loftq_leaves_the_base_as_it_is_and_starts_alike_twice(tiny_model):
    one, two = started(tiny_model), started(tiny_model)
    with one.disable_adapter():
        assert difference(logits(one), logits(load(tiny_model, plan_for("QLORA")))) == 0
    assert difference(logits(one), logits(two)) == 0


def test_pissa_starts_at_the_model_itself_and_moves_its_weights_into_the_adapter(tiny_model):
    plan = plan_for("NoQuant")
    before = logits(load(tiny_model, plan))
    model = attach_adapter(load(tiny_model, plan), replace(LORA, init_lora_weights="pissa"), seed=0)
    assert difference(logits(model), before) < 1e-3
    with model.disable_adapter():
        assert difference(logits(model), before) > 0.1
    assert difference(logits(fold_adapters(model)), before) < 1e-3


def test_original_weights_of_another_model_are_refused(tiny_model, tmp_path):
    from transformers import LlamaForCausalLM

    from tests.tiny import tiny_config

    LlamaForCausalLM(tiny_config(intermediate_size=64)).save_pretrained(tmp_path)
    plan = plan_for("QLORA")
    model = attach_adapter(load(tiny_model, plan), LORA, seed=0)
    with pytest.raises(UsageError, match=r"mlp\.gate_proj\.weight is \[64, 128\], the base's \[256, 128\]; another model"):
        start_from_residual(model, str(tmp_path))


def test_original_weights_that_are_not_there_are_named(tiny_model, tmp_path):
    from transformers import LlamaForCausalLM

    from tests.tiny import tiny_config

    LlamaForCausalLM(tiny_config(num_hidden_layers=1)).save_pretrained(tmp_path)
    model = attach_adapter(load(tiny_model, plan_for("QLORA")), LORA, seed=0)
    with pytest.raises(
        UsageError, match=r"has no model\.layers\.1\.self_attn\.q_proj\.weight; init_lora_weights 'loftq' needs"
    ):
        start_from_residual(model, str(tmp_path))


@pytest.mark.parametrize(
    ("start", "facts", "text"),
    [
        ("loftq", {"quantized": False, "keeps_base": False}, "the base is not quantized: there is no loss to start from"),
        ("loftq", {"quantized": True, "keeps_base": False, "original": False}, "the base is stored quantized"),
        ("pissa", {"quantized": True, "keeps_base": False}, "the base is quantized and PiSSA changes it; use 'loftq'"),
        ("pissa", {"quantized": False, "keeps_base": True}, "an adapter that is kept, or folded into the original base"),
    ],
)
def test_starts_that_cannot_keep_their_promise_are_refused(start, facts, text):
    with pytest.raises(UsageError, match=text):
        check_start(replace(LORA, init_lora_weights=start), **facts)


def test_starts_are_for_lora_only():
    with pytest.raises(UsageError, match="init_lora_weights 'loftq' starts LoRa adapters; the adapter is DoRa"):
        AdapterPlan(kind="DoRa", init_lora_weights="loftq")


def test_pefts_word_for_the_usual_start_is_understood():
    assert RunConfig(model_name_or_path="m", init_lora_weights=True).adapter_plan().init_lora_weights == "default"
    with pytest.raises(UsageError, match="init_lora_weights"):
        RunConfig(model_name_or_path="m", init_lora_weights="gaussian")


def test_a_run_names_its_start_and_its_record_keeps_it(tiny_model, tmp_path):
    from quantkit_tools.train import run

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": f"{n + 1}"}) + "\n" for n in range(16)))
    config = RunConfig(
        model_name_or_path=str(tiny_model),
        dataset_name=str(rows),
        quant_method="QLORA",
        init_lora_weights="loftq",
        lora_r=4,
        max_steps=1,
        merge_after_train=False,
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    assert run(config) == 0
    record = json.loads(next((tmp_path / "out").glob("Tiny*/quantization_metadata.json")).read_text())
    assert record["adapter"]["init_lora_weights"] == "loftq"
