"""Does a run on a base that a method of ours quantizes make the base first, train on it, and keep to it afterwards?"""

from pathlib import Path
from typing import Any

import pytest

from quantkit_registry.records import read_record

RTN = ["--quant-method", "RTN", "--group-size", 32]


def test_a_kept_adapter_names_the_quantized_base_and_is_evaluated_on_it(
    settings: list[object], read_json: Any, quantkit: Any, rows: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from quantkit.methods import installed_methods
    from quantkit.modeling import ModelSource, load_source
    from quantkit_registry.detect import detect

    adapter = Path(read_json("train", *settings, *RTN, "--no-merge-after-train")["artifact"])
    base = adapter.parent / "Tiny-Llama-base_RTN_w4_g32_headbf16"
    record = read_record(adapter)
    assert record.base.name_or_path == str(base)
    assert record.parents[0].name == base.name
    assert read_record(base).verification["gate"]["outcome"] == "passed"
    assert quantkit("registry", "verify", "--root", adapter.parent)[0] == 0

    found = detect(adapter, claims=installed_methods().claims())
    ours = load_source(ModelSource(**found.source_fields), installed_methods(), device="cpu")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter).eval()
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert float((ours(input_ids=ids).logits.float() - plain(input_ids=ids).logits).abs().max()) < 0.05

    scored = read_json("evaluate", adapter, "--limit", 2, "--max-new-tokens", 4, "--registry", adapter.parent)
    assert scored["artifacts"][0]["quantization"]["weights_dtype"] == "int4"
    made = base.stat().st_mtime_ns
    merged = read_record(Path(read_json("train", *settings, *RTN)["artifact"]))
    assert base.stat().st_mtime_ns == made  # used again
    assert merged.quantization.weights_dtype == "bfloat16"
    assert merged.merge is not None
    assert merged.base.name_or_path == str(base)


def test_a_calibrated_base_is_made_from_the_training_rows_and_not_taken_for_other_ones(
    settings: list[object], read_json: Any, quantkit: Any
) -> None:
    flags = [*settings, "--quant-method", "GPTQ", "--group-size", 32, "--calib-rows", 8, "--calib-length", 64]
    artifact = Path(read_json("train", *flags)["artifact"])
    base = artifact.parent / "Tiny-Llama-base_GPTQ_w4_g32_headbf16"
    calibration = read_record(base).data["calibration"]
    assert calibration["source"].startswith("training rows of ")
    assert calibration["tokens"] >= 256
    code, _, err = quantkit("train", *flags, "--overwrite", "--trunc-train", 20)
    assert code == 2
    assert "holds a base of the same name that differs in its calibration text" in err


def test_too_few_rows_to_calibrate_on_are_an_error(settings: list[object], quantkit: Any, tmp_path: Path) -> None:
    flags = ["--quant-method", "GPTQ", "--group-size", 32, "--trunc-train", 2]
    code, _, err = quantkit("train", *settings, *flags)
    assert code == 2
    assert "at least 256 are needed" in err
    assert not list((tmp_path / "artifacts").glob("Tiny*"))


@pytest.mark.parametrize(("method", "calibrates"), [("RTN", False), ("GPTQ", True)])
def test_the_plan_says_that_the_base_is_quantized_first(
    method: str, calibrates: bool, settings: list[object], quantkit: Any
) -> None:
    said = quantkit("train", *settings, "--quant-method", method, "--group-size", 32, "--dry-run")[1]
    assert "is quantized first, as an artifact of its own" in said
    assert ("calibrated on training rows" in said) is calibrates


def test_a_group_size_that_does_not_fit_is_refused_by_the_plan(settings: list[object], quantkit: Any) -> None:
    code, _, err = quantkit("train", *settings, "--quant-method", "GPTQ", "--group-size", 48, "--dry-run")
    assert code == 2
    assert "group_size 48 does not divide" in err
    assert "sizes that fit: 128, 64, 32, 16, -1" in err


@pytest.mark.parametrize(
    "how", [[], ["--no-merge-after-train"], ["--merge", "requantized"]], ids=["merged", "kept", "requantized"]
)
def test_who_serves_the_base_is_a_warning_where_the_base_is_what_is_served(
    how: list[str], settings: list[object], quantkit: Any
) -> None:
    code, out, err = quantkit("train", *settings, "--quant-method", "GPTQ", "--group-size", 16, *how, "--dry-run")
    assert code == 0
    said = "vLLM reads compressed-tensors integers of 4 and 8 bits in groups of -1, 32, 64 or 128"
    if how:
        assert f"warning: {said}" in err
    else:
        assert f"note: of the base while it is trained on, not of what is saved: {said}" in out
        assert "vLLM" not in err
