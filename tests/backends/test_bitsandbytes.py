"""Do bitsandbytes layers stay what they were loaded as, and do dense copies of them compute the same?"""

import subprocess
import sys

import bitsandbytes
import pytest
import torch

from quantkit.backends import dense_layer, keep_layout, layer_facts
from quantkit.backends.bitsandbytes import dense_weight, reads_rows
from quantkit.errors import VerificationError
from quantkit.layers import linear_layers
from quantkit.methods import installed_methods
from quantkit.modeling import attach_adapter
from tests.bench import difference, load, logits, plan_for, token_batch, train_step

LIGHT_IMPORT = """
import sys
import torch
from quantkit.backends.bitsandbytes import import_lightly
own = torch.compile
import_lightly()
assert torch.compile is own
assert "bitsandbytes" in sys.modules
print("torch._inductor.compile_fx" in sys.modules)
torch.compile = lambda function, **options: function  # the compiler itself is torch's
from bitsandbytes.backends.default import ops
table, half = torch.arange(256).float(), torch.tensor([0.5])
print(ops._dequantize_blockwise_compute(torch.tensor([2, 4], dtype=torch.uint8), half, table, 2, torch.float32).tolist())
"""


def test_importing_bitsandbytes_imports_no_compiler_and_what_it_compiles_still_computes():
    done = subprocess.run([sys.executable, "-c", LIGHT_IMPORT], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False", "[1.0, 2.0]"], done.stderr


@pytest.fixture
def cpu_with_avx512_bf16(monkeypatch):
    """Layers built here believe that the CPU has AVX512-BF16, whatever it has."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)


def packed(model):
    states = [module.weight.quant_state for module in linear_layers(model).values()]
    return sum(bool(getattr(state, "packing_format_for_cpu", False)) for state in states)


def test_without_the_guard_an_evaluation_repacks_the_weights(cpu_with_avx512_bf16):
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
    with torch.no_grad():
        layer(torch.ones(1, 64))
    assert layer.weight.quant_state.packing_format_for_cpu


@pytest.mark.parametrize("method", ["BNB4BIT", "QLORA"])
def test_an_evaluation_between_training_steps_changes_neither_weights_nor_gradients(method, tiny_model, cpu_with_avx512_bf16):
    plan = plan_for(method, dtype="bfloat16")
    model = installed_methods().prepare_model(plan, load(tiny_model, plan))
    codes = {name: module.weight.data.clone() for name, module in linear_layers(model).items()}
    model = attach_adapter(model, plan.adapter, seed=1)
    logits(model)
    assert packed(model) == 0
    assert train_step(model) == []
    logits(model)
    assert packed(model) == 0
    assert all(torch.equal(codes[name], module.weight.data) for name, module in linear_layers(model).items())


def test_preparing_a_model_that_somebody_else_loaded_switches_the_repacking_off(tiny_model, cpu_with_avx512_bf16):
    from transformers import AutoModelForCausalLM

    plan = plan_for("QLORA", dtype="bfloat16")
    kwargs = installed_methods().load_kwargs(plan)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16, device_map={"": "cpu"}, **kwargs)
    installed_methods().prepare_model(plan, model)
    logits(model)
    assert packed(model) == 0


def test_weights_that_were_repacked_are_neither_trained_on_nor_merged(cpu_with_avx512_bf16):
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
    with torch.no_grad():
        layer(torch.ones(1, 64))
    with pytest.raises(VerificationError, match=r"0: bitsandbytes has repacked its 4-bit weights.*Load the model again"):
        keep_layout(torch.nn.Sequential(layer))
    with pytest.raises(VerificationError, match="has repacked its 4-bit weights"):
        dense_layer(layer)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_dtype", [torch.float32, torch.bfloat16])
def test_a_dense_weight_is_bit_for_bit_the_one_the_forward_pass_uses(loaded_dtype, compute_dtype, quant_type, double_quant):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        128, 96, bias=False, compute_dtype=compute_dtype, quant_type=quant_type, compress_statistics=double_quant
    )
    layer = layer.to(loaded_dtype).to("cpu")
    layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        used = layer(torch.eye(128, dtype=compute_dtype)).T.float()
    assert torch.equal(dense_weight(layer), used)


def test_a_dense_copy_of_llm_int8_differs_only_by_the_rounding_of_activations():
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(128, 96, has_fp16_weights=False, threshold=6.0).to("cpu")
    inputs = torch.randn(16, 128)
    with torch.no_grad():
        exact = dense_layer(layer)(inputs)
        assert difference(layer.train()(inputs), exact) < 1e-5
        assert 1e-4 < difference(layer.eval()(inputs), exact) < 0.02


def test_a_layer_that_was_never_quantized_is_measured_as_dense():
    facts = layer_facts(bitsandbytes.nn.Linear4bit(64, 64, bias=False))
    assert (facts.format, facts.weights_dtype) == ("dense", "float32")


def test_codes_without_a_quantization_state_cannot_be_measured():
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False)
    layer.weight.data = torch.zeros(2048, 1, dtype=torch.uint8)
    with pytest.raises(VerificationError, match="Linear4bit holds uint8 without quantization state"):
        layer_facts(layer)


def test_nothing_is_logged_that_the_user_cannot_act_on(tiny_model, caplog):
    logits(load(tiny_model, plan_for("INT8", dtype="bfloat16")))
    assert [record.message for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_loading_does_not_touch_the_data_types_of_head_and_norms(tiny_model):
    plan = plan_for("QLORA", dtype="bfloat16")
    model = installed_methods().prepare_model(plan, load(tiny_model, plan))
    assert {item.dtype for item in model.parameters() if item.is_floating_point()} == {torch.bfloat16}
    assert model(input_ids=token_batch()).logits.dtype == torch.bfloat16


def test_rows_that_the_cpu_decodes_wrongly_are_refused_by_name():
    from bitsandbytes.nn import Linear4bit

    wrong = next((width for width in (96, 160, 224) if not reads_rows(width, "nf4")), None)
    if wrong is None:
        pytest.skip("this bitsandbytes decodes rows of every width")
    model = torch.nn.Sequential(Linear4bit(wrong, 64, bias=False, quant_type="nf4").to("cpu"))
    with pytest.raises(VerificationError, match=rf"0: bitsandbytes .* decodes 4-bit rows of {wrong} weights wrongly on this"):
        keep_layout(model)
    assert reads_rows(64, "nf4")
