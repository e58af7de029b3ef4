"""Are the bytes of a layer those that the formats really store?"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from quantkit.forecasting import LinearShape
from quantkit.forecasting.reading import shape_of
from quantkit.forecasting.storage import held_bytes, stored_bytes
from quantkit.layers import linear_layers
from quantkit.numerics.float8 import quantize_float8
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.quantizing import store_in_format
from quantkit.spec import QuantizationSpec

OUT, IN = 96, 256
LAYER = LinearShape("layer", OUT, IN)


def four_bit(double_quant):
    return QuantizationSpec(
        method="BNB4BIT", weights_bits=4, weights_dtype="nf4", format="bitsandbytes", double_quant=double_quant
    )


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("outputs", [96, 1024])
def test_nf4_is_what_bitsandbytes_holds_scales_and_tables_included(double_quant, outputs):
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(
        torch.randn(outputs, IN), blocksize=64, quant_type="nf4", compress_statistics=double_quant
    )
    held = codes.nbytes + state.absmax.nbytes + state.code.nbytes
    if double_quant:
        held += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes
    assert stored_bytes(four_bit(double_quant), LinearShape("layer", outputs, IN)) == held
    assert held_bytes(four_bit(double_quant), LinearShape("layer", outputs, IN), held="float32") == held


def test_llm_int8_is_a_byte_a_weight_and_a_scale_a_row():
    spec = QuantizationSpec(method="INT8", weights_bits=8, weights_dtype="int8", format="bitsandbytes", symmetric=True)
    assert stored_bytes(spec, LAYER) == OUT * IN + 4 * OUT


@pytest.mark.parametrize(
    ("fmt", "bits", "group", "symmetric"),
    [
        ("compressed-tensors", 4, 64, True),
        ("compressed-tensors", 4, 64, False),
        ("compressed-tensors", 8, -1, True),
        ("compressed-tensors", 3, 128, True),
        ("gptq", 4, 64, True),
        ("awq", 4, 128, False),
    ],
)
def test_packed_formats_are_what_their_layers_hold(fmt, bits, group, symmetric):
    spec = QuantizationSpec(
        method="RTN", weights_bits=bits, weights_dtype=f"int{bits}", format=fmt, group_size=group, symmetric=symmetric
    )
    grid = UniformGrid(bits=bits, group_size=group, symmetric=symmetric)
    stored, counted = _stored(spec, lambda weight: quantize(weight, grid), {"desc_act": False} if fmt == "gptq" else {})
    assert counted == stored


def test_float8_is_a_byte_a_weight_and_a_scale_a_row():
    spec = QuantizationSpec(
        method="FP8",
        weights_bits=8,
        weights_dtype="float8_e4m3fn",
        format="compressed-tensors",
        group_size=-1,
        symmetric=True,
    )
    stored, counted = _stored(spec, lambda weight: quantize_float8(weight, torch.bfloat16, layer="layer"), {})
    assert counted == stored


def test_adapters_are_trained_on_unpacked_weights_and_their_scales():
    spec = QuantizationSpec(
        method="HQQ", weights_bits=4, weights_dtype="int4", format="compressed-tensors", group_size=64, symmetric=False
    )
    from quantkit.backends import LayerFacts
    from quantkit.backends.unpacked import UnpackedLinear

    grid = UniformGrid(bits=4, group_size=64, symmetric=False)
    facts = LayerFacts(weights_bits=4, weights_dtype="int4", format="compressed-tensors", group_size=64)
    layer = UnpackedLinear(quantize(torch.randn(OUT, IN), grid), None, facts)
    held = sum(item.nbytes for item in (*layer.parameters(), *layer.buffers()))
    assert held_bytes(spec, LAYER, held="bfloat16") == held


def test_dense_weights_are_their_width():
    assert stored_bytes(QuantizationSpec.dense("float32"), LAYER) == 4 * OUT * IN


def _stored(spec, quantize_layer, options):
    """Return the bytes of a small model's quantized layers, and of what is counted for them."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=384, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shape = shape_of(model, "small")
    plan = QuantizationPlan(
        method=spec.method, stage=Stage.TRAINED, spec=spec, adapter=AdapterPlan(kind="NoPeft"), options=options
    )
    weights = {name: quantize_layer(layer.weight.data) for name, layer in linear_layers(model).items()}
    model = store_in_format(plan, model, weights)
    tensors = [tensor for layer in linear_layers(model).values() for tensor in layer.state_dict().values()]
    return sum(tensor.nbytes for tensor in tensors), sum(stored_bytes(spec, layer) for layer in shape.linears)
