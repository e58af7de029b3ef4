"""Is what a model in memory holds read off its weights, and is every difference from the spec named?"""

import pytest
import torch

from quantkit import QuantizationSpec
from quantkit.errors import VerificationError
from quantkit.layers import features, linear_layers, output_head
from quantkit.measure import check_model, loaded_spec, measure_model
from quantkit.modeling import attach_adapter
from tests.bench import load, plan_for
from tests.tiny import tiny_config


def small(**changes):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(tiny_config(num_hidden_layers=1, hidden_size=64, intermediate_size=64, **changes))


@pytest.mark.parametrize(
    ("method", "options"),
    [("NoQuant", {}), ("INT8", {}), ("BNB4BIT", {"quant_type": "fp4"}), ("BNB4BIT", {"double_quant": True}), ("QLORA", {})],
)
def test_what_is_measured_is_what_was_planned(method, options, tiny_model):
    plan = plan_for(method, dtype="bfloat16", **options)
    measured = measure_model(load(tiny_model, plan), method=method)
    assert measured.with_changes(tags=plan.spec.tags) == plan.spec


def test_adapters_are_looked_through():
    model = small().bfloat16()
    plan = plan_for("NoQuant", "DoRa", dtype="bfloat16")
    wrapped = attach_adapter(model, plan.adapter, seed=0)
    assert measure_model(wrapped, method="NoQuant") == QuantizationSpec.dense("bfloat16")
    assert list(linear_layers(wrapped)) == list(linear_layers(small()))


def test_the_trained_copy_of_the_head_is_the_head():
    from dataclasses import replace

    adapter = replace(plan_for("NoQuant").adapter, modules_to_save=("lm_head",))
    wrapped = attach_adapter(small(tie_word_embeddings=False), adapter, seed=0)
    name, head = output_head(wrapped)
    assert name == "lm_head"
    assert head.weight.requires_grad


def test_a_head_in_another_data_type_is_seen():
    model = small(tie_word_embeddings=False).bfloat16()
    model.lm_head.float()
    assert measure_model(model, method="NoQuant").lm_head_dtype == "float32"


def test_a_4_bit_request_that_was_ignored_is_found():
    with pytest.raises(VerificationError, match=r"not what its QLORA spec says: weights_bits is 16, not 4; weights_dtype is"):
        check_model(small().bfloat16(), plan_for("QLORA").spec)


def test_layers_that_differ_are_named():
    model = small().bfloat16()
    model.model.layers[0].mlp.up_proj.float()
    with pytest.raises(
        VerificationError, match=r"not alike: 6 of 7 are bfloat16 dense, but not model.layers.0.mlp.up_proj \(float32 dense\)"
    ):
        measure_model(model, method="NoQuant")


def test_many_odd_layers_are_counted():
    model = small().bfloat16()
    model.model.layers[0].self_attn.float()
    with pytest.raises(VerificationError, match="not alike"):
        measure_model(model, method="NoQuant")


def test_an_unknown_kind_of_layer_is_not_guessed():
    class Mystery(torch.nn.Linear):
        pass

    model = small()
    model.model.layers[0].mlp.up_proj = Mystery(64, 64, bias=False)
    with pytest.raises(VerificationError, match=r"model.layers.0.mlp.up_proj: layers of type .*Mystery cannot be measured yet"):
        measure_model(model, method="NoQuant")


def test_weights_in_a_data_type_that_is_no_dense_one_are_not_guessed():
    model = small()
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(64, 64, dtype=torch.float64)
    with pytest.raises(VerificationError, match="holds Parameter of float64; it cannot be measured"):
        measure_model(model, method="NoQuant")


def test_a_model_without_linear_layers_cannot_be_measured():
    class Empty(torch.nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(VerificationError, match="Empty has no linear layers"):
        measure_model(Empty(), method="NoQuant")


def test_a_model_without_a_head_cannot_be_measured():
    class Headless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def get_output_embeddings(self):
            return None

    with pytest.raises(VerificationError, match="Headless has no output head"):
        measure_model(Headless(), method="NoQuant")


def test_in_memory_a_stored_bfloat16_model_may_be_computed_in_float32():
    from dataclasses import replace

    plan = replace(plan_for("NoQuant", dtype="bfloat16"), compute_dtype="float32")
    assert loaded_spec(plan) == QuantizationSpec.dense("float32")
    four_bit = replace(plan_for("QLORA", dtype="bfloat16"), compute_dtype="float32")
    assert loaded_spec(four_bit) == four_bit.spec.with_changes(lm_head_dtype="float32")


def test_gpt2_layers_count_as_linear():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))
    layers = linear_layers(model)
    assert list(layers) == [f"transformer.h.0.{end}" for end in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert features(layers["transformer.h.0.attn.c_attn"]) == (32, 96)
