"""Packing: every layout gives back what went in, and says what the format's own library says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.numerics.packing import (
    pack_awq,
    pack_bits,
    pack_compressed_tensors,
    pack_gptq,
    unpack_awq,
    unpack_bits,
    unpack_compressed_tensors,
    unpack_gptq,
)


def random_codes(seed: int, rows: int, columns: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 100), st.integers(0, 2**31))
def test_a_bit_stream_gives_back_its_values_whatever_their_width(bits, rows, count, seed):
    codes = random_codes(seed, rows, count, bits)
    words = pack_bits(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-count * bits // 32))
    assert torch.equal(unpack_bits(words, bits, count), codes)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 40), st.integers(1, 70), st.sampled_from([0, 1]), st.integers(0, 2**31))
def test_compressed_tensors_packs_and_unpacks_the_same_words(bits, rows, columns, dim, seed):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = (random_codes(seed, rows, columns, bits).to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    words = pack_compressed_tensors(codes, bits, dim=dim)
    assert torch.equal(words, helpers.pack_to_int32(codes, bits, packed_dim=dim))
    assert torch.equal(helpers.unpack_from_int32(words, bits, codes.shape, packed_dim=dim), codes)
    assert torch.equal(unpack_compressed_tensors(words, bits, codes.shape[dim], dim=dim), codes)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_gptq_tensors_give_back_codes_scales_and_zero_points(bits, rows, columns, v2, seed):
    codes = random_codes(seed, 32 * rows, 32 * columns, bits)
    zeros, scale = random_codes(seed + 1, 32 * rows, columns, bits), torch.rand(32 * rows, columns).half()
    packed = pack_gptq(codes, scale, zeros, bits=bits, v2=v2)
    assert packed.qweight.shape == (32 * columns * bits // 32, 32 * rows)
    assert packed.g_idx.tolist() == [column // 32 for column in range(32 * columns)]
    for got, wanted in zip(unpack_gptq(packed, bits=bits, v2=v2), (codes, scale, zeros), strict=True):
        assert torch.equal(got, wanted)


def test_gptq_stores_zero_points_minus_one_unless_told_v2():
    codes, scale, zeros = torch.zeros(8, 8, dtype=torch.uint8), torch.ones(8, 1), torch.full((8, 1), 8, dtype=torch.uint8)
    assert pack_gptq(codes, scale, zeros, bits=4).qzeros.tolist() == [[0x77777777]]
    assert pack_gptq(codes, scale, zeros, bits=4, v2=True).qzeros.tolist() == [[0x88888888 - 2**32]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_awq_tensors_give_back_codes_scales_and_zero_points(rows, columns, seed):
    codes, zeros = random_codes(seed, 8 * rows, 16 * columns, 4), random_codes(seed + 1, 8 * rows, columns, 4)
    scale = torch.rand(8 * rows, columns).half()
    for got, wanted in zip(unpack_awq(pack_awq(codes, scale, zeros)), (codes, scale, zeros), strict=True):
        assert torch.equal(got, wanted)


def test_awq_words_hold_eight_outputs_in_the_order_0_2_4_6_1_3_5_7():
    codes = torch.arange(8, dtype=torch.uint8).unsqueeze(1)
    word = pack_awq(codes, torch.ones(8, 1), codes).qweight[0, 0].item()
    assert [(word >> 4 * position) & 15 for position in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_a_width_the_layout_lacks_is_refused():
    with pytest.raises(UsageError, match="the GPTQ format holds codes of 2, 3, 4, 8 bits; 5 were asked for"):
        pack_gptq(torch.zeros(32, 32), torch.ones(32, 1), torch.ones(32, 1), bits=5)
    with pytest.raises(UsageError, match="a bit stream holds codes of 1, 2"):
        pack_bits(torch.zeros(1, 1), 9)


def test_an_axis_that_does_not_fill_whole_words_is_refused():
    with pytest.raises(UsageError, match="AWQ format packs 4-bit codes into whole 32-bit words, which 12 output columns"):
        pack_awq(torch.zeros(12, 8), torch.ones(12, 1), torch.ones(12, 1))
    with pytest.raises(UsageError, match="which 40 input columns do not fill; put the layer on the ignore list"):
        pack_gptq(torch.zeros(32, 40), torch.ones(32, 1), torch.ones(32, 1), bits=3)
