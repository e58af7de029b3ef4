"""Does every method train, evaluate, merge and save with every kind of adapter it carries?"""

import pytest

from quantkit.errors import UsageError
from quantkit.measure import check_model, loaded_spec, measure_model
from quantkit.methods import installed_methods
from quantkit.modeling import attach_adapter
from quantkit.spec import QuantizationSpec
from tests.bench import difference, load, logits, plan_for, train_step

KINDS = ("LoRa", "RsLoRa", "DoRa", "VeRa")
CELLS = [
    *(("NoQuant", kind, {}) for kind in KINDS),
    *(("INT8", kind, {}) for kind in KINDS),
    *(("BNB4BIT", kind, {}) for kind in KINDS),
    ("BNB4BIT", "LoRa", {"quant_type": "fp4", "double_quant": True}),
    ("QLORA", "LoRa", {}),
    ("QLORA", "RsLoRa", {}),
]
TOLERANCE = {"INT8": 0.6}
"""LLM.int8 rounds activations in eval mode, which a dense model cannot repeat; all others are exact up to float32."""


@pytest.mark.parametrize(("method", "kind", "options"), CELLS)
def test_a_method_trains_evaluates_trains_again_merges_and_reloads_plainly(method, kind, options, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    plan = plan_for(method, kind, **options)
    methods = installed_methods()
    model = methods.prepare_model(plan, load(tiny_model, plan))
    before = logits(model)
    model = attach_adapter(model, plan.adapter, seed=7)
    assert {item.dtype for item in model.parameters() if item.requires_grad} == {before.dtype}
    check_model(model, loaded_spec(plan))

    assert train_step(model) == []
    logits(model)  # the evaluation between two training steps is what breaks bitsandbytes on some CPUs
    assert train_step(model) == []
    adapted = logits(model)
    assert difference(adapted, before) > 0.05

    merged = methods.post_train_merge(plan, model)
    assert difference(logits(merged), adapted) < TOLERANCE.get(method, 1e-4)
    assert measure_model(merged, method="NoQuant") == QuantizationSpec.dense("float32")
    assert not hasattr(merged.config, "quantization_config")
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()

    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert difference(logits(again), logits(merged)) == 0


def test_without_an_adapter_all_weights_are_trained(tiny_model):
    plan = plan_for("NoQuant", "NoPeft")
    methods = installed_methods()
    model = attach_adapter(methods.prepare_model(plan, load(tiny_model, plan)), plan.adapter, seed=7)
    assert train_step(model, learning_rate=1e-4) == []
    trained = logits(model)
    assert difference(logits(methods.post_train_merge(plan, model)), trained) == 0


@pytest.mark.parametrize("method", ["INT8", "BNB4BIT", "QLORA"])
def test_training_quantized_weights_without_adapters_is_refused_with_the_reason(method):
    with pytest.raises(UsageError, match="quantized weights carry no gradients; train adapters"):
        plan_for(method, "NoPeft")


@pytest.mark.parametrize("method", ["NoQuant", "INT8", "BNB4BIT", "QLORA"])
def test_gradients_reach_every_adapter_under_gradient_checkpointing(method, tiny_model):
    plan = plan_for(method, dtype="bfloat16")
    model = attach_adapter(installed_methods().prepare_model(plan, load(tiny_model, plan)), plan.adapter, seed=7)
    model.gradient_checkpointing_enable()
    assert train_step(model) == []
