"""A name says exactly the fields it was made from, and nothing else is a name."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan
from quantkit.spec import NAME_TAG, QuantizationSpec
from quantkit_registry.names import ArtifactName, base_name, format_name, parse_name

EXAMPLES = {
    "Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16": ("Qwen3-0.6B", "openmath", "LoRa256", "QLORA", 4, None),
    "Qwen3-0.6B-base": ("Qwen3-0.6B", None, "NoPeft", "NoQuant", 16, None),
    "Qwen3-0.6B-openmath_SFT_NoPeft_NoQuant": ("Qwen3-0.6B", "openmath", "NoPeft", "NoQuant", 16, None),
    "M-openmath_SFT_LoRa64_GPTQ_w4_g64_headbf16": ("M", "openmath", "LoRa64", "GPTQ", 4, 64),
    "M_x-d_SFT_RsDoRa16_SmoothQuant_w8_gch_a8_headfp16": ("M_x", "d", "RsDoRa16", "SmoothQuant", 8, -1),
    "M-base_BNB4BIT_w4_fp4_dq_headbf16": ("M", None, "NoPeft", "BNB4BIT", 4, None),
    "M-d_SFT_VeRa256_QuaRot_w4_g64_a4_kv4_headint8_mergedfp32": ("M", "d", "VeRa256", "QuaRot", 4, 64),
    "M-d_SFT_LoRa8_QLORA_w4_headbf16_mergedbasebf16": ("M", "d", "LoRa8", "QLORA", 4, None),
    "M-d_SFT_LoRa8_QLORA_w4_headbf16_merged": ("M", "d", "LoRa8", "QLORA", 4, None),
    "M-d_SFT_LoRa8_NoQuant_mergedbf16": ("M", "d", "LoRa8", "NoQuant", 16, None),
    "M-d_SFT_NoPeft_NoQuant_w32_headfp32": ("M", "d", "NoPeft", "NoQuant", 32, None),
}


@pytest.mark.parametrize(("text", "fields"), EXAMPLES.items())
def test_published_names_parse_and_format_back(text: str, fields: tuple[object, ...]) -> None:
    name = parse_name(text)
    assert (name.base, name.dataset, name.adapter, name.method, name.weights_bits, name.group_size) == fields
    assert format_name(name) == text


words = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9.]{0,8}[A-Za-z0-9])?", fullmatch=True).filter(lambda w: ".." not in w)
bases = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True).filter(lambda w: ".." not in w)
ranks = st.integers(1, 65536)
adapters = st.one_of(
    st.just("NoPeft"),
    st.builds("{}{}{}".format, st.sampled_from(["", "Rs"]), st.sampled_from(["LoRa", "DoRa"]), ranks),
    st.builds("VeRa{}".format, ranks),
)
widths = st.none() | st.integers(1, 64)
trained = st.tuples(words.filter(lambda w: w.lower() != "base"), st.sampled_from(["SFT", "DPO", "RL2"]), adapters)


@st.composite
def names(draw: st.DrawFn) -> ArtifactName:
    dataset, finetuning, adapter = draw(st.just((None, None, "NoPeft")) | trained)
    merged = draw(st.sampled_from([None, "bfloat16", "float16", "float32"]))
    try:
        return ArtifactName(
            base=draw(bases),
            dataset=dataset,
            finetuning=finetuning,
            adapter=adapter,
            method=draw(st.sampled_from(["NoQuant", "NoQuant", "QLORA", "GPTQ", "RTN", "w4", "base"])),
            weights_bits=draw(st.sampled_from([16, 16, 32]) | st.integers(1, 64)),
            group_size=draw(st.none() | st.just(-1) | st.integers(1, 999_999)),
            activations_bits=draw(widths),
            kv_cache_bits=draw(widths),
            tags=tuple(draw(st.lists(st.from_regex(NAME_TAG, fullmatch=True), max_size=3))),
            lm_head_dtype=draw(st.sampled_from(["bfloat16", "bfloat16", "float16", "float32", "nf4", "int8", "float8_e4m3fn"])),
            merged_dtype=merged,
            merge_policy=draw(st.sampled_from([None, "base" if merged else "requantized"])),
        )
    except UsageError as error:
        if re.search(r"at most 255 bytes|device name", str(error)):
            return ArtifactName(base="M")
        raise


@settings(max_examples=500, deadline=None)
@given(names())
def test_parsing_undoes_formatting(name: ArtifactName) -> None:
    text = format_name(name)
    assert parse_name(text) == name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
    assert len(text.encode()) <= 255


LOOKALIKES = """
    M base d SFT DPO NoPeft LoRa8 LoRa08 VeRa1 NoQuant QLORA w4 w16 w04 g64 gch g-1 a8 kv8 kv fp4 dq headbf16 headfp16 head
    mergedbf16 mergedbasebf16 mergedbase merged mergedx con NUL é / .. \\
"""
WORDS = (*LOOKALIKES.split(), "", "\n", "\x00")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12), st.text(alphabet="-_. ", min_size=1, max_size=3))
def test_formatting_undoes_parsing_and_everything_else_is_a_usage_error(parts: list[str], glue: str) -> None:
    text = f"M-{'_'.join(parts)}" if len(glue) > 1 else glue.join(parts)
    try:
        name = parse_name(text)
    except UsageError:
        return
    assert format_name(name) == text


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        name = parse_name(text)
    except UsageError:
        return
    assert format_name(name) == text


@settings(max_examples=300, deadline=None)
@given(names(), names())
def test_two_names_are_written_alike_only_if_they_are_equal(one: ArtifactName, other: ArtifactName) -> None:
    assert (format_name(one) == format_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no '-'"),
        ("Qwen3", "there is no '-'"),
        ("../x-base", "base of an artifact's name"),
        ("/etc/x-base", "base of an artifact's name"),
        ("a..b-base", "base of an artifact's name"),
        ("C:x-base", "base of an artifact's name"),
        ("a\x07-base", "base of an artifact's name"),
        ("é-base", "base of an artifact's name"),
        ("CON.1-base", "no device name of Windows"),
        ("nul.x-base", "no device name of Windows"),
        ("M-d_SFT", "stand 2 words, at least 4 are needed"),
        ("M-Base_SFT_NoPeft_NoQuant", "dataset of an artifact's name"),
        ("M-d_sft_NoPeft_NoQuant", "finetuning of an artifact's name"),
        ("M-d_SFT_LoRa016_QLORA_w4_headbf16", "adapter of an artifact's name"),
        ("M-d_SFT_LoRa65537_QLORA_w4_headbf16", "adapter of an artifact's name"),
        ("M-d_SFT_LoRa16_4bit_w4_headbf16", "method of an artifact's name"),
        ("M-d_SFT_NoPeft_NoQuant_w16_headbf16", "it would be written 'M-d_SFT_NoPeft_NoQuant'"),
        ("M-base_NoQuant", "it would be written 'M-base'"),
        ("M-d_SFT_LoRa16_QLORA", "it would be written"),
        ("M-d_SFT_LoRa16_QLORA_headbf16", "are no tags"),
        ("M-d_SFT_LoRa16_QLORA_w4", "are no tags"),
        ("M-d_SFT_LoRa16_QLORA_g64_w4_headbf16", "are no tags"),
        ("M-d_SFT_LoRa16_QLORA_w4_headbf8", "are no tags"),
        ("M-d_SFT_LoRa16_QLORA_w4_headbf16_mergedint8", "merged_dtype of an artifact's name"),
        ("M-d_SFT_LoRa16_QLORA_w4_a8_g64_headbf16", "tags of an artifact's name is 'g64'"),
        ("M-d_SFT_LoRa16_QLORA_w0_headbf16", "weights_bits of an artifact's name"),
        ("x" * 256 + "-base", "longer than 255 bytes"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        parse_name(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": "a/b"},
        {"base": "M", "dataset": "d"},
        {"base": "M", "adapter": "LoRa8"},
        {"base": "M", "group_size": 0},
        {"base": "M", "tags": ("w4",)},
        {"base": "M", "tags": ("headx",)},
        {"base": "M", "lm_head_dtype": "float64"},
        {"base": "M", "merge_policy": "base"},
        {"base": "M", "merge_policy": "requantized", "merged_dtype": "bfloat16"},
        {"base": "M" * 255},
    ],
)
def test_fields_that_no_name_can_carry_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="of an artifact's name is"):
        ArtifactName(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("/models/My Model (v2)/", "My-Model-v2"),
        ("x/Größe..1", "Gr-e.1"),
        ("/c/models--Qwen--Qwen3-0.6B/snapshots/0123abc", "Qwen3-0.6B"),
        (Path("a") / "b_c", "b_c"),
    ],
)
def test_the_base_part_comes_from_the_last_component(source: str | Path, base: str) -> None:
    assert base_name(source) == base


def test_a_base_without_a_usable_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="gives no name for the base"):
        base_name("日本語")
    (tmp_path / "Here").mkdir()
    monkeypatch.chdir(tmp_path / "Here")
    assert base_name(".") == "Here"


def spec(**changes: object) -> QuantizationSpec:
    values = {"method": "QLORA", "weights_bits": 4, "weights_dtype": "nf4", "format": "bitsandbytes"}
    return QuantizationSpec(**(values | changes))  # type: ignore[arg-type]


def test_names_come_from_plans() -> None:
    adapter = AdapterPlan(kind="LoRa", r=16, use_rslora=True)
    name = ArtifactName.of(base="o/M", dataset="arc", adapter=adapter, recipe=spec(), merged_dtype="bfloat16")
    assert format_name(name) == "M-arc_SFT_RsLoRa16_QLORA_w4_headbf16_mergedbf16"
    none = AdapterPlan(kind="NoPeft")
    snapshot = ArtifactName.of(base="o/M", dataset=None, adapter=none, recipe=QuantizationSpec.dense("bfloat16"))
    assert format_name(snapshot) == "M-base"
    quantized = snapshot.quantized(spec(method="GPTQ", weights_dtype="int4", group_size=128, tags=("sym",)))
    assert format_name(quantized) == "M-base_GPTQ_w4_g128_sym_headbf16"


def test_dense_types_of_the_same_width_have_different_names() -> None:
    found = {}
    for dtype in ("bfloat16", "float16", "float32"):
        for head in ("bfloat16", "float16", "float32"):
            recipe = QuantizationSpec.dense(dtype, lm_head_dtype=head)
            name = ArtifactName.of(base="M", dataset="d", adapter=AdapterPlan(kind="NoPeft"), recipe=recipe)
            found[format_name(name)] = (dtype, head)
    assert len(found) == 9
    assert found["M-d_SFT_NoPeft_NoQuant"] == ("bfloat16", "bfloat16")
    assert found["M-d_SFT_NoPeft_NoQuant_w16_headfp16"] == ("bfloat16", "float16")
    assert found["M-d_SFT_NoPeft_NoQuant_w16_fp16_headfp16"] == ("float16", "float16")
    assert found["M-d_SFT_NoPeft_NoQuant_w32_headfp32"] == ("float32", "float32")
