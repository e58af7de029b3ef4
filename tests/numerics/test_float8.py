"""Rounding to float8_e4m3fn: the nearest number there is, and compressed-tensors' own arithmetic for activations."""

import pytest
import torch
from torch import nn

from quantkit.errors import UsageError
from quantkit.numerics.float8 import LARGEST, quantize_float8, round_tokens_to_float8


def levels() -> torch.Tensor:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return every[every.isfinite()]


def test_each_weight_becomes_the_nearest_number_of_its_row():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    quantized = quantize_float8(weight, torch.float32)
    reachable = levels() * quantized.scale.unsqueeze(-1)
    best = (weight.unsqueeze(-1) - reachable).abs().amin(-1)
    assert torch.allclose((quantized.dequantize() - weight).abs(), best, atol=1e-7)
    assert float(levels().max()) == LARGEST
    assert quantized.weights_dtype == "float8_e4m3fn"


def test_the_largest_weight_of_a_row_survives_and_an_empty_row_stays_empty():
    weight = torch.tensor([[3.0, -0.5], [0.0, 0.0]])
    found = quantize_float8(weight, torch.float32).dequantize()
    assert torch.equal(found[:, 0], weight[:, 0])
    assert torch.equal(found[1], torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_are_rounded_as_compressed_tensors_rounds_them(dtype):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    values = torch.randn(2, 5, 32).to(dtype)
    values[0, 0] = 0
    args = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    scale, zero_point = compute_dynamic_scales_and_zp(values, args, nn.Linear(1, 1))
    assert torch.equal(round_tokens_to_float8(values), fake_quantize(values, scale, zero_point, args))


def test_weights_that_are_not_finite_are_refused_by_name():
    with pytest.raises(UsageError, match="up_proj holds weights that are not finite"):
        quantize_float8(torch.full((2, 2), torch.nan), torch.bfloat16, layer="up_proj")
