"""Does a spec refuse what no weights can be, and survive JSON as it is?"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit import QuantizationSpec
from quantkit.errors import UsageError
from quantkit.spec import DENSE_BITS

NF4 = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes", double_quant=True)

specs = st.builds(
    QuantizationSpec,
    method=st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,31}", fullmatch=True),
    weights_bits=st.sampled_from([2, 3, 4, 8]),
    weights_dtype=st.sampled_from(["nf4", "int4", "float8_e4m3fn"]),
    format=st.sampled_from(["dense", "bitsandbytes", "gptq"]),
    group_size=st.sampled_from([None, -1, 32, 128]),
    symmetric=st.sampled_from([None, True, False]),
    double_quant=st.booleans(),
    activations_bits=st.sampled_from([None, 4, 8]),
    kv_cache_bits=st.sampled_from([None, 4, 8]),
    lm_head_dtype=st.sampled_from(["bfloat16", "float32", "int4"]),
    tags=st.lists(st.sampled_from(["fp4", "dq", "mse"]), max_size=2).map(tuple),
    extras=st.dictionaries(st.text(max_size=8), st.booleans() | st.integers(-99, 99) | st.text(max_size=8), max_size=2),
)


@given(specs)
def test_a_spec_survives_json(spec):
    assert QuantizationSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("dtype", DENSE_BITS)
def test_dense_weights_are_as_wide_as_their_data_type(dtype):
    spec = QuantizationSpec.dense(dtype)
    assert (spec.weights_bits, spec.lm_head_dtype, spec.is_quantized) == (DENSE_BITS[dtype], dtype, False)


def test_weights_on_a_grid_are_quantized():
    assert NF4.is_quantized


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "Q-LORA"}, r"quantization\.method is 'Q-LORA'; it must be letters and digits, at most 32"),
        ({"weights_bits": 7}, r"quantization\.weights_bits is 7; it must be 1 to 6, 8, 16 or 32"),
        ({"group_size": 0}, r"quantization\.group_size is 0; it must be a positive number, -1"),
        ({"activations_bits": 5}, r"quantization\.activations_bits is 5"),
        ({"kv_cache_bits": 32}, r"quantization\.kv_cache_bits is 32"),
        ({"tags": ("w4",)}, r"quantization\.tags is \('w4',\); it must be lower-case words that are no other tag"),
        ({"tags": ("headbf16",)}, r"quantization\.tags"),
        ({"tags": ("mergedbf16",)}, r"quantization\.tags"),
        ({"weights_dtype": "bfloat16"}, "weights_bits is 4 but weights_dtype 'bfloat16' has 16; one of the two is wrong"),
    ],
)
def test_a_value_out_of_range_is_named(changes, text):
    with pytest.raises(UsageError, match=text):
        NF4.with_changes(**changes)


def test_only_dense_data_types_are_dense():
    with pytest.raises(UsageError, match="'nf4' is no dense data type; known: bfloat16, float16, float32"):
        QuantizationSpec.dense("nf4")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "quantization is list, not an object"),
        ({"groupsize": 64}, r"quantization has the unknown key 'groupsize'\. Did you mean 'group_size'\?"),
        ({"method": "QLORA"}, "quantization is incomplete: .*weights_bits"),
        ({**NF4.to_dict(), "weights_bits": "4"}, "quantization: weights_bits is '4': Input should be a valid integer"),
        ({**NF4.to_dict(), "weights_bits": True}, "quantization: weights_bits is True"),
        ({**NF4.to_dict(), "double_quant": 1}, "quantization: double_quant is 1"),
        ({**NF4.to_dict(), "extras": {"a": []}}, "quantization: extras is"),
    ],
)
def test_json_of_others_is_read_strictly(data, text):
    with pytest.raises(UsageError, match=text):
        QuantizationSpec.from_dict(data)


def test_a_spec_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        NF4.weights_bits = 8
