"""The table answers everything, says what it rests on, names commands that exist, and stands in the README as it is in code."""

import re
from dataclasses import replace

import pytest

from quantkit import QuantizationSpec, UsageError
from quantkit.exporting import TARGETS, Holding, answer_for
from quantkit.exporting.document import README, render, shipped_rows
from quantkit.headers import StoredWeights
from quantkit.methods import installed_methods

GPTQ = StoredWeights(
    kind="gptq", weights_bits=4, weights_dtype="int4", group_size=128, symmetric=True, lm_head_dtype="bfloat16", layout="gptq"
)
ROWS = shipped_rows()
LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}


def held(**changes: object) -> Holding:
    return Holding(name="Some", stored=replace(GPTQ, **changes), config=LLAMA)  # type: ignore[arg-type]


def test_every_source_has_an_answer_for_every_target():
    assert set(ROWS.table) == {(source, target) for source in ROWS.sources for target in TARGETS}
    assert list(ROWS.sources)[-1] == "other"
    assert ROWS.broken == ()


def test_formats_that_one_methods_library_alone_reads_are_answered_by_its_plugin():
    assert ROWS.owners == {"hqq": "HQQ", "auto-round": "AutoRound"}


def test_every_answer_says_what_it_rests_on():
    for answer in ROWS.table.values():
        assert re.match(r"https://|tested$|measured: |[a-z.-]+ \d|quantkit\.", answer.source), answer
        assert answer.how


def test_routes_are_routes_and_what_is_written_here_is_exact_or_said_to_be_lossy():
    for answer in ROWS.table.values():
        assert (answer.outcome == "as it is") == (answer.step == "none")
        if answer.step in ("repack", "convert"):
            assert answer.outcome == "exact"
        if answer.outcome == "no":
            assert answer.step == "route"


def test_the_commands_in_routes_exist():
    methods = installed_methods()
    asked = {
        found
        for answer in ROWS.table.values()
        for found in re.findall(r"--method (\w+)(?: --bits (\d))?(?: --format (\w+))?", answer.how)
    }
    assert {"AWQ", "GPTQ"} <= {name for name, _, _ in asked}
    for name, bits, storage in asked:
        values = ({"weights_bits": bits} if bits else {}) | ({"format": storage} if storage else {})
        methods.options(name, values)


def test_the_readme_is_the_table():
    assert README.read_text(encoding="utf-8") == render(ROWS), "python -m quantkit.exporting.document writes it anew"


def test_another_target_is_refused():
    with pytest.raises(UsageError, match="nothing is exported to 'onnx'; known: transformers, dense, vllm"):
        answer_for(held(), "onnx")


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, "gptq"),
        ({"kind": "dense", "weights_dtype": "bfloat16", "weights_bits": 16}, "dense"),
        ({"kind": "bitsandbytes-4bit", "weights_dtype": "nf4"}, "bnb-4bit"),
        ({"kind": "bitsandbytes-8bit", "weights_dtype": "int8"}, "bnb-int8"),
        ({"kind": "compressed-tensors"}, "ct-int"),
        ({"kind": "compressed-tensors", "activations_bits": 8}, "ct-int-act"),
        ({"kind": "compressed-tensors", "weights_dtype": "float8_e4m3fn"}, "ct-float8"),
        ({"kind": "compressed-tensors", "weights_dtype": "fp4"}, "other"),
        ({"kind": "gguf", "weights_dtype": "q4_k_m"}, "gguf-quantized"),
        ({"kind": "gguf", "weights_dtype": "bfloat16"}, "gguf-dense"),
        ({"kind": "aqlm"}, "other"),
        ({"kind": "hqq"}, "hqq"),
    ],
)
def test_what_a_folder_holds_picks_its_row(changes, source):
    assert replace(held(**changes), rows=ROWS).source == source


def test_an_adapters_row_depends_on_kind_and_base():
    nf4 = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes")
    assert Holding(name="A", adapter="LoRa").source == "lora"
    assert Holding(name="A", adapter="LoRa", base=nf4).source == "lora-quantized"
    assert Holding(name="A", adapter="DoRa", base=nf4).source == "dora"
    assert Holding(name="A", adapter="IA3").source == "other"
    assert "`quantkit merge A`" in answer_for(Holding(name="A", adapter="VeRa"), "vllm").how


@pytest.mark.parametrize(
    ("changes", "target", "told"),
    [
        ({"weights_bits": 3, "weights_dtype": "int3"}, "awq", "the AWQ format holds 4-bit weights; these have 3"),
        ({"group_size": 256}, "awq", "group_size is 256; in the format awq it is one of"),
        (
            {"kind": "compressed-tensors", "weights_bits": 6, "weights_dtype": "int6"},
            "gptq",
            "holds 2, 3, 4, 8 bits; these have 6",
        ),
        ({"mixed": "int4 in 3 layers; int8 in 2 layers"}, "compressed-tensors", "Its layers differ: int4 in 3 layers"),
        ({"mixed": "int4 in 3 layers; int8 in 2 layers"}, "dense", "Only uniform folders are rewritten"),
    ],
)
def test_a_grid_that_does_not_fit_is_answered_with_the_reason(changes, target, told):
    answer = answer_for(held(**changes), target)
    assert (answer.outcome, answer.step, answer.possible) == ("no", "route", False)
    assert told in answer.how


def test_widths_that_do_not_fill_words_do_not_fit_the_packed_formats():
    answer = answer_for(replace(held(kind="compressed-tensors"), config={"hidden_size": 100}), "gptq")
    assert "hidden_size is 100, and 100 codes of 4 bits do not fill whole 32-bit words" in answer.how


def test_vllms_kernels_are_said_in_notes_and_what_it_refuses_is_no():
    assert answer_for(held(), "vllm").notes == ()
    (layout, kernels) = answer_for(held(symmetric=False), "vllm").notes
    assert "gptq_v2" in layout
    assert "no Marlin kernel" in kernels
    refused = answer_for(held(group_size=256), "vllm")
    assert refused.outcome == "no"
    assert "`--dequantize` is read everywhere" in refused.how
    (note,) = answer_for(held(kind="compressed-tensors", activations_bits=8), "vllm").notes
    assert "vLLM rounds int8 activations beside 8-bit weights" in note
    assert answer_for(held(weights_bits=None), "vllm").notes == ()


def test_a_library_that_is_not_here_is_named(monkeypatch):
    from quantkit.exporting import judging

    monkeypatch.setattr(judging, "_installed", lambda package: package != "optimum")
    assert answer_for(held(), "transformers").notes == ("Not installed here: optimum.",)
