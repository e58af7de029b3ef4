"""What vLLM cannot serve is refused or said before anything is computed."""

from typing import Any

import pytest

from quantkit import QuantizationSpec, UsageError
from quantkit.backends.vllm_rules import check_servable, split_fusions

LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}


def spec(**changes: Any) -> QuantizationSpec:
    settings = {"method": "GPTQ", "weights_bits": 4, "format": "gptq", "group_size": 128, "symmetric": True} | changes
    return QuantizationSpec(weights_dtype=f"int{settings['weights_bits']}", **settings)


@pytest.mark.parametrize(
    "changes", [{}, {"weights_bits": 8, "group_size": -1}, {"format": "compressed-tensors", "symmetric": False}]
)
def test_what_marlin_takes_needs_no_note(changes):
    assert check_servable(spec(**changes), LLAMA) == ()


def test_group_sizes_without_kernels_are_refused_where_the_format_lives_off_them():
    with pytest.raises(UsageError, match="group_size is 256; in the format gptq it is one of -1, 32, 64, 128"):
        check_servable(spec(group_size=256), LLAMA)
    (note,) = check_servable(spec(group_size=256, format="compressed-tensors"), LLAMA)
    assert "vLLM reads compressed-tensors integers of 4 and 8 bits in groups of -1, 32, 64 or 128" in note


def test_widths_that_do_not_fill_words_are_refused():
    with pytest.raises(UsageError, match="hidden_size is 100, and 100 codes of 4 bits do not fill whole 32-bit words"):
        check_servable(spec(), {"hidden_size": 100})


def test_awq_is_4_bits_with_zero_points():
    with pytest.raises(UsageError, match="weights_bits is 8; the AWQ format holds 4 bits"):
        check_servable(spec(format="awq", weights_bits=8, symmetric=False), LLAMA)
    with pytest.raises(UsageError, match="symmetric is True; the AWQ format's kernels read weights with zero points"):
        check_servable(spec(format="awq"), LLAMA)
    (note,) = check_servable(spec(format="awq", symmetric=False), LLAMA)
    assert "--dtype float16" in note


def test_slower_kernels_are_said():
    assert "no Marlin kernel for this grid" in check_servable(spec(weights_bits=3), LLAMA)[0]
    layout, kernels = check_servable(spec(symmetric=False), LLAMA)
    assert "gptq_v2" in layout
    assert "those with `auto_gptq.py` refuse it" in kernels
    (note,) = check_servable(spec(), {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9})
    assert "do not take hidden_size 576 (no multiple of 128)" in note


def test_an_unknown_or_odd_configuration_is_no_obstacle():
    assert check_servable(spec(), {}) == ()
    assert check_servable(spec(), {"hidden_size": "wide", "num_attention_heads": 0}) == ()


def test_layers_that_vllm_fuses_must_be_quantized_together():
    block = "model.layers.3.self_attn"
    whole = [f"{block}.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert split_fusions(whole, ["model.layers.3.mlp.down_proj"]) == ()
    (note,) = split_fusions([name for name in whole if "k_proj" not in name], [f"{block}.k_proj"])
    assert f"in {block}, k_proj would stay dense. Ignore all of them, or none" in note
    (note,) = split_fusions(["model.layers.0.mlp.up_proj"], ["model.layers.0.mlp.gate_proj"])
    assert "gate_proj would stay dense" in note
    assert split_fusions(["model.layers.0.mlp.up_proj"], []) == ()  # a model without gates
