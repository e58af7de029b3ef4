"""Is the weight that we say a bitsandbytes layer holds the one that it holds, bit for bit?"""

import pytest
import torch
from bitsandbytes import functional, nn

from quantkit.backends.bitsandbytes import dense_weight
from quantkit.merging.round_trip import held_in_4bit, held_in_int8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight(rows, columns):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    values[0] = 0.0
    values[1, :8] = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.25, 1e-3, -1e-3, 1e-30])
    return values.bfloat16()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bit_weights_are_those_of_the_layer(name, double_quant, dtype):
    for shape in ((192, 576), (70, 64), (3, 128), (10, 96), (3, 50)):
        codes, state = functional.quantize_4bit(
            weight(*shape).to(dtype), quant_type=name, compress_statistics=double_quant, blocksize=64
        )
        wanted = functional.dequantize_4bit(codes, state).float()
        assert torch.equal(held_in_4bit(weight(*shape), name, double_quant=double_quant, dtype=dtype), wanted), shape


def test_values_halfway_between_two_codes_go_where_bitsandbytes_puts_them():
    from quantkit.numerics.codebooks import codebook

    for name in ("nf4", "fp4"):
        values = codebook(name).sort().values
        middle = (values[:-1] + values[1:]) / 2
        row = torch.cat([torch.tensor([1.0]), middle, torch.nextafter(middle, torch.tensor(9.0)), torch.zeros(33)]).reshape(
            1, 64
        )
        codes, state = functional.quantize_4bit(row, quant_type=name, blocksize=64)
        wanted = functional.dequantize_4bit(codes, state)
        assert torch.equal(held_in_4bit(row, name, double_quant=False, dtype=torch.float32), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_weights_are_those_of_the_layer(dtype):
    layer = nn.Linear8bitLt(96, 70, bias=False, has_fp16_weights=False)
    layer.weight = nn.Int8Params(weight(70, 96).to(dtype), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    assert torch.equal(held_in_int8(weight(70, 96), dtype=dtype), dense_weight(layer))
