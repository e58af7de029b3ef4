"""Codebooks: NF4 and FP4 as bitsandbytes has them, and codes of our own inside its layers."""

import logging

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.numerics.codebooks import CodebookGrid, codebook, double_quantize, linear_4bit, params_4bit, quantize_codebook

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weights(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(24, 192, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
def test_codes_absmax_and_weights_are_those_of_bitsandbytes(name, dtype, double_quant):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weights(dtype), quant_type=name, compress_statistics=double_quant)
    ours = quantize_codebook(weights(dtype), CodebookGrid(name, dtype=dtype))
    parameter = params_4bit(ours, double_quant=double_quant)
    assert torch.equal(parameter.data, packed)
    assert torch.equal(parameter.quant_state.absmax, state.absmax)
    assert torch.equal(codebook(name), state.code)
    assert torch.equal(dequantize_4bit(parameter.data, parameter.quant_state), dequantize_4bit(packed, state))
    if not double_quant:
        assert torch.equal(ours.dequantize(), dequantize_4bit(packed, state))


def test_codes_of_our_own_survive_a_layer_where_quantizing_again_would_change_them():
    grid = CodebookGrid(search="mse")
    ours = quantize_codebook(weights(), grid)
    again = quantize_codebook(ours.dequantize(), CodebookGrid())
    assert not torch.equal(again.dequantize(), ours.dequantize())
    layer = linear_4bit(ours, torch.ones(24).bfloat16(), double_quant=False)
    inputs = torch.randn(3, 192).bfloat16()
    assert torch.equal(layer(inputs), torch.nn.functional.linear(inputs, ours.dequantize(), torch.ones(24).bfloat16()))


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_model_of_such_layers_is_an_ordinary_checkpoint(tiny_model, tmp_path, double_quant):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    grid = CodebookGrid(search="mse", signed=not double_quant)
    for name, linear in [item for item in model.model.named_modules() if isinstance(item[1], torch.nn.Linear)]:
        layer = linear_4bit(quantize_codebook(linear.weight, grid), linear.bias, double_quant=double_quant)
        model.model.set_submodule(name, layer)
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    ids = torch.arange(3, 27).reshape(2, 12)
    before = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, before)


def test_an_absmax_that_has_been_double_quantized_reads_the_same_from_the_layer():
    from bitsandbytes.functional import dequantize_4bit

    grid = CodebookGrid()
    rounded, _ = double_quantize(quantize_codebook(weights(), grid).absmax)
    spread = rounded.unsqueeze(-1)
    codes = grid.encode(weights().float().reshape(24, 3, 64), type(grid.fit(weights()))(spread, None))
    ours = grid.restore({"codes": codes.reshape(24, 192).to(torch.uint8), "absmax": rounded})
    parameter = params_4bit(ours, double_quant=True)
    assert torch.allclose(dequantize_4bit(parameter.data, parameter.quant_state), ours.dequantize(), rtol=0.02)


@pytest.mark.parametrize("signed", [True, False])
def test_searching_absmax_leaves_less_error_and_keeps_signs_when_asked(signed):
    values = weights().float()
    plain, searched = (
        quantize_codebook(values, CodebookGrid(dtype=torch.float32, search=search, signed=signed))
        for search in ("minmax", "mse")
    )
    assert (searched.dequantize() - values).square().sum() < (plain.dequantize() - values).square().sum()
    assert bool((searched.absmax < 0).any()) is signed


def test_all_zero_blocks_stay_zero():
    assert quantize_codebook(torch.zeros(2, 64), CodebookGrid(search="mse")).dequantize().abs().max() == 0


def test_blocks_that_straddle_rows_are_refused():
    with pytest.raises(UsageError, match="blocks of 64 do not divide the 96 input columns of k_proj"):
        quantize_codebook(torch.zeros(2, 96), CodebookGrid(), layer="k_proj")


def test_an_unknown_codebook_is_refused():
    with pytest.raises(UsageError, match="'af4' is no codebook; known: nf4, fp4"):
        codebook("af4")
