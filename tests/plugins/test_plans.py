"""Do the shipped plugins plan what they say, without importing anything heavy?"""

import subprocess
import sys

import pytest

from quantkit import AdapterPlan, PlanContext, QuantizationSpec
from quantkit.errors import UsageError
from quantkit.methods import installed_methods


def plan(method, options=None, **context):
    return installed_methods().plan(method, options or {}, PlanContext(**context))


def test_plans_are_made_without_torch():
    code = (
        "import sys; from quantkit import PlanContext; from quantkit.methods import installed_methods as m\n"
        "[m().plan(name, {}, PlanContext()) for name in ('NoQuant', 'INT8', 'BNB4BIT', 'QLORA')]\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'bitsandbytes', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_noquant_stores_the_dense_data_type_and_computes_in_the_compute_data_type():
    made = plan("NoQuant", compute_dtype="float32", dense_dtype="bfloat16")
    assert made.spec == QuantizationSpec.dense("bfloat16")
    assert made.compute_dtype == "float32"


def test_qlora_is_nf4_with_double_quantization_and_no_tags():
    spec = plan("QLORA").spec
    assert (spec.weights_dtype, spec.weights_bits, spec.double_quant, spec.tags) == ("nf4", 4, True, ())


@pytest.mark.parametrize("kind", ["DoRa", "VeRa"])
def test_qlora_trains_lora_and_says_so_when_something_else_was_asked_for(kind):
    made = plan("QLORA", adapter=AdapterPlan(kind=kind, r=8))
    assert made.adapter.kind == "LoRa"
    assert made.notes == (f"QLORA trains LoRa adapters, not {kind}; for {kind} on a 4-bit base use BNB4BIT.",)


def test_qlora_asks_for_the_paged_optimizer_on_cuda_only():
    assert plan("QLORA", device="cuda").optim == "paged_adamw_32bit"
    assert plan("QLORA", device="cpu").optim is None


@pytest.mark.parametrize(
    ("options", "dtype", "tags"),
    [
        ({}, "nf4", ()),
        ({"quant_type": "fp4"}, "fp4", ("fp4",)),
        ({"double_quant": True}, "nf4", ("dq",)),
        ({"quant_type": "fp4", "double_quant": "true"}, "fp4", ("fp4", "dq")),
    ],
)
def test_the_variants_of_bnb4bit_differ_in_their_tags(options, dtype, tags):
    spec = plan("BNB4BIT", options).spec
    assert (spec.weights_dtype, spec.double_quant, spec.tags) == (dtype, "dq" in tags, tags)


def test_int8_quantizes_activations_too():
    made = plan("INT8", {"llm_int8_threshold": 5})
    assert (made.spec.weights_dtype, made.spec.activations_bits, made.spec.group_size) == ("int8", 8, None)
    assert made.options == {"llm_int8_threshold": 5.0}


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("INT8", {"llm_int8_threshold": -1}, "llm_int8_threshold is -1.0; it must be 0 or a positive number"),
        ("BNB4BIT", {"quant_type": "int4"}, "quant_type is 'int4'"),
        ("QLORA", {"quant_type": "fp4"}, "unknown option 'quant_type'"),
    ],
)
def test_options_that_do_not_fit_are_refused(method, options, text):
    with pytest.raises(UsageError, match=text):
        plan(method, options)


def test_vera_says_that_alpha_has_no_effect():
    assert any("lora_alpha has no effect" in note for note in plan("BNB4BIT", adapter=AdapterPlan(kind="VeRa")).notes)


def test_bare_checkpoints_are_claimed_once():
    claims = installed_methods().claims()
    assert (claims["dense"], claims["bitsandbytes-8bit"], claims["bitsandbytes-4bit"]) == ("NoQuant", "INT8", "BNB4BIT")


@pytest.mark.parametrize("method", installed_methods().names)
def test_every_method_says_what_it_takes_who_reads_it_and_where_it_lost(method):
    notes = installed_methods().info(method).notes
    assert all(text.endswith(".") for text in (notes.takes, notes.served, notes.limits))
    assert notes.paper.startswith(("arXiv:", "https://")) == (method not in ("NoQuant", "RTN", "DynamicINT8", "TorchAO"))
