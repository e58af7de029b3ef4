"""Headers are read as hostile input, and a folder is only what its tensors and its configuration agree on."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit.headers import read_header, read_stored_weights
from tests.registry import samples

KNOWN: list[tuple[str, Callable[[Path], Path], tuple[Any, ...]]] = [
    # kind, folder, (bits, dtype, group_size, symmetric, double_quant, activations_bits)
    ("dense", samples.dense, (16, "bfloat16", None, None, False, None)),
    ("dense", lambda f: samples.dense(f, "F32"), (32, "float32", None, None, False, None)),
    ("bitsandbytes-4bit", samples.bnb4, (4, "nf4", None, None, False, None)),
    ("bitsandbytes-4bit", lambda f: samples.bnb4(f, double=True), (4, "nf4", None, None, True, None)),
    ("bitsandbytes-4bit", lambda f: samples.bnb4(f, quant_type="fp4"), (4, "fp4", None, None, False, None)),
    ("bitsandbytes-8bit", samples.bnb8, (8, "int8", None, True, False, 8)),
    ("gptq", samples.gptq, (4, "int4", 128, True, False, None)),
    ("gptq", lambda f: samples.gptq(f, bits=8, group_size=-1, sym=False), (8, "int8", -1, False, False, None)),
    ("gptq", lambda f: samples.gptq(f, bits=3, group_size=64), (3, "int3", 64, True, False, None)),
    ("awq", samples.awq, (4, "int4", 128, False, False, None)),
    ("compressed-tensors", samples.packed, (4, "int4", 64, True, False, None)),
    ("compressed-tensors", lambda f: samples.packed(f, group_size=None), (4, "int4", -1, True, False, None)),
    ("compressed-tensors", lambda f: samples.packed(f, symmetric=False), (4, "int4", 64, False, False, None)),
    ("compressed-tensors", lambda f: samples.packed(f, bits=3), (3, "int3", 64, True, False, None)),
    ("compressed-tensors", samples.w8a8, (8, "int8", -1, True, False, 8)),
    ("compressed-tensors", lambda f: samples.w8a8(f, floats=True), (8, "float8_e4m3fn", -1, True, False, 8)),
    ("torchao", samples.torchao, (8, "int8", -1, None, False, None)),
]


@pytest.mark.parametrize(("kind", "build", "facts"), KNOWN, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(KNOWN)])
def test_each_known_checkpoint_is_read_as_what_it_is(tmp_path: Path, kind: str, build: Any, facts: tuple[Any, ...]) -> None:
    weights = read_stored_weights(build(tmp_path / "m"))
    assert weights.kind == kind
    found = (weights.weights_bits, weights.weights_dtype, weights.group_size, weights.symmetric, weights.double_quant)
    assert (*found, weights.activations_bits) == facts
    assert weights.lm_head_dtype == "bfloat16"  # tied to the embeddings
    spec = weights.to_spec("X")
    assert spec is not None
    assert weights.contradictions(spec) == []


@pytest.mark.parametrize("build", [build for kind, build, _ in KNOWN if kind != "dense"])
def test_quantized_tensors_under_a_config_without_quantization_are_refused(tmp_path: Path, build: Any) -> None:
    folder = build(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(VerificationError, match=r"config\.json has no quantization_config, the tensors are .*disagree"):
        read_stored_weights(folder)


@pytest.mark.parametrize("build", [build for kind, build, _ in KNOWN if kind != "dense"])
def test_dense_tensors_under_a_quantization_config_are_refused(tmp_path: Path, build: Any) -> None:
    folder = build(tmp_path / "m")
    config = (folder / "config.json").read_text()
    samples.dense(folder)
    (folder / "config.json").write_text(config)
    with pytest.raises(VerificationError, match="the tensors are dense bfloat16; they disagree"):
        read_stored_weights(folder)


def test_every_fact_on_which_config_and_tensors_differ_is_named_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"weights_bits: 8 against 4; weights_dtype: 'int8' against 'int4'"):
        read_stored_weights(samples.gptq(tmp_path / "bits", said_bits=8))
    with pytest.raises(VerificationError, match=r"weights_dtype: 'fp4' against 'nf4'"):
        read_stored_weights(samples.bnb4(tmp_path / "type", config={"bnb_4bit_quant_type": "fp4"}))
    with pytest.raises(VerificationError, match="double_quant: True against False"):
        read_stored_weights(samples.bnb4(tmp_path / "double", config={"bnb_4bit_use_double_quant": True}))


def test_a_group_as_wide_as_the_layer_counts_as_the_group_size_that_the_config_says(tmp_path: Path) -> None:
    weights = read_stored_weights(samples.packed(tmp_path / "m", group_size=samples.COLUMNS))
    assert weights.group_size == samples.COLUMNS


def test_layers_that_differ_from_each_other_are_told(tmp_path: Path) -> None:
    folder = samples.gptq(tmp_path / "m")
    other = samples.gptq(tmp_path / "other", bits=8)
    eight = read_header(other / "model.safetensors").tensors
    tensors: dict[str, samples.Tensor] = {}
    for name, tensor in read_header(folder / "model.safetensors").tensors.items():
        source = eight[name] if "up_proj" in name else tensor
        tensors[name] = (source.dtype, source.shape)
    samples.write_tensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].pop("bits")
    (folder / "config.json").write_text(json.dumps(config))
    weights = read_stored_weights(folder)
    assert "int4" in weights.mixed
    assert "int8" in weights.mixed
    spec = weights.to_spec("X")
    assert spec is not None
    assert any("alike" in text for text in weights.contradictions(spec))


def test_the_config_of_a_composite_model_is_found(tmp_path: Path) -> None:
    folder = samples.gptq(tmp_path / "m")
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma", "text_config": inner}))
    assert read_stored_weights(folder).kind == "gptq"


def test_older_gptq_and_awq_checkpoints_keep_their_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    for build, name in ((samples.gptq, "quantize_config.json"), (samples.awq, "quant_config.json")):
        folder = build(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        stated = config.pop("quantization_config")
        stated.pop("quant_method")
        (folder / "config.json").write_text(json.dumps(config))
        (folder / name).write_text(json.dumps(stated))
        assert read_stored_weights(folder).weights_bits == 4


OTHERS: list[tuple[str, dict[str, samples.Tensor], dict[str, Any], int | None]] = [
    ("hqq", {".W_q": ("U8", (64, 256)), ".nbits": ("I64", (1,), struct.pack("<q", 4))}, {"quant_method": "hqq"}, 4),
    ("fp8", {".weight": ("F8_E4M3", (128, 256)), ".weight_scale_inv": ("F32", (1, 2))}, {"quant_method": "fp8"}, 8),
    ("fp8", {".weight": ("F8_E4M3", (128, 256)), ".weight_scale": ("F32", (128, 1))}, {"quant_method": "fbgemm_fp8"}, 8),
    (
        "eetq",
        {".weight": ("I8", (128, 256)), ".weight_scales": ("F16", (128,))},
        {"quant_method": "eetq", "weights": "int8"},
        8,
    ),
    ("quanto", {".weight._data": ("I8", (128, 256)), ".weight._scale": ("F32", (128, 1))}, {"quant_method": "quanto"}, 8),
    ("higgs", {".weight": ("I16", (128, 64)), ".tables": ("F16", (16, 2))}, {"quant_method": "higgs", "bits": 4}, 4),
    (
        "aqlm",
        {".codes": ("I16", (16, 32, 1)), ".codebooks": ("F16", (1, 256, 1, 8))},
        {"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8},
        2,
    ),
    ("mxfp4", {".down_proj_blocks": ("U8", (4, 8, 16)), ".down_proj_scales": ("U8", (4, 8))}, {"quant_method": "mxfp4"}, 4),
    ("bitnet", {".weight": ("U8", (32, 256)), ".weight_scale": ("BF16", (1,))}, {"quant_method": "bitnet"}, 2),
    ("auto-round", {}, {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, 4),
]


@pytest.mark.parametrize(("kind", "layer", "config", "bits"), OTHERS)
def test_other_formats_are_recognised_by_tensors_and_config(
    tmp_path: Path, kind: str, layer: dict[str, samples.Tensor], config: dict[str, Any], bits: int | None
) -> None:
    folder = samples.write_model(tmp_path / "m", layer, config) if layer else samples.gptq(tmp_path / "m")
    if not layer:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    weights = read_stored_weights(folder)
    assert (weights.kind, weights.weights_bits, weights.is_quantized) == (kind, bits, True)


def test_integer_weights_of_no_known_format_are_never_called_dense(tmp_path: Path) -> None:
    folder = samples.write_model(tmp_path / "m", {".weight": ("U8", (128, 256))})
    with pytest.raises(VerificationError, match="the tensors are unknown"):
        read_stored_weights(folder)
    (folder / "config.json").unlink()
    weights = read_stored_weights(folder)
    assert weights.is_quantized
    assert weights.to_spec("X") is None


def test_what_is_not_weights_at_all_is_said(tmp_path: Path) -> None:
    samples.write_tensors(tmp_path / "model.safetensors", {"a": ("I64", (3,))})
    with pytest.raises(UsageError, match="hold no weights that are known here"):
        read_stored_weights(tmp_path)


def test_parts_of_a_layer_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    folder = samples.packed(tmp_path / "shape")
    bad = {".weight_packed": ("I32", (128, 7)), ".weight_scale": ("BF16", (128, 4))}
    shape: samples.Tensor = ("I64", (2,), struct.pack("<2q", 128, 256))
    samples.write_model(folder, bad | {".weight_shape": shape})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="7 words of 32 bits per row do not hold 256 columns"):
        read_stored_weights(folder)
    samples.write_model(folder, bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weight_packed stands without weight_scale and weight_shape"):
        read_stored_weights(folder)
    samples.write_model(folder, {".qweight": ("I32", (7, 128)), ".scales": ("F16", (2, 128)), ".g_idx": ("I32", (256,))})
    with pytest.raises(UsageError, match="fit no known width"):
        read_stored_weights(folder)
    samples.write_model(folder, {".weight": ("U8", (8, 1)), ".weight.quant_state.bitsandbytes__nf4": ("U8", (2,), b"{}")})
    with pytest.raises(UsageError, match="its name says nf4, its content"):
        read_stored_weights(folder)


def test_reading_headers_imports_no_torch() -> None:
    import subprocess

    code = "import sys, quantkit.headers; sys.exit(int('torch' in sys.modules or 'safetensors' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings_4bit", "expected"),
    [
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            ("bitsandbytes-4bit", "nf4", True),
        ),
        ({"load_in_8bit": True}, ("bitsandbytes-8bit", "int8", False)),
    ],
)
def test_what_transformers_and_bitsandbytes_really_save_is_read_the_same(
    tmp_path: Path, tiny_model: Path, settings_4bit: dict[str, Any], expected: tuple[str, str, bool]
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=BitsAndBytesConfig(**settings_4bit), dtype="bfloat16"
    )
    model.save_pretrained(tmp_path)
    weights = read_stored_weights(tmp_path)
    assert (weights.kind, weights.weights_dtype, weights.double_quant) == expected
    assert weights.quantized_layers == 28
    assert weights.lm_head_dtype == "bfloat16"
