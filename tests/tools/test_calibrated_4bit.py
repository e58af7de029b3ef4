"""Calibrated 4-bit bases from the command: the base is an artifact of its own, adapters stand on it, finished models too."""

from pathlib import Path
from typing import Any

from quantkit.files import verify_manifest
from quantkit_registry.records import read_record

CALIBRATED = ["--quant-method", "QLORA", "--calibrated", "--calib-rows", 8, "--calib-length", 64]
BASE = "Tiny-Llama-base_QLORA_w4_cal_headbf16"


def test_qlora_on_a_calibrated_base(settings: list[object], read_json: Any, rows: Path, tmp_path: Path) -> None:
    kept = Path(read_json("train", *settings, *CALIBRATED, "--no-merge-after-train")["artifact"])
    base = tmp_path / "artifacts" / BASE
    assert kept.name == "Tiny-Llama-openmath_SFT_LoRa4_QLORA_w4_cal_headbf16"
    made, record = read_record(base), read_record(kept)
    assert (made.quantization.weights_dtype, made.quantization.double_quant, made.quantization.format) == (
        "nf4",
        True,
        "bitsandbytes",
    )
    assert made.data["calibration"]["rows"] == 8
    assert record.base.name_or_path == str(base)
    assert [parent.name for parent in record.parents] == [BASE]
    before = verify_manifest(base)
    flags = ["--data", f"openmath:{rows}", "--limit", 4, "--max-new-tokens", 4, "--registry", kept.parent]
    found = read_json("evaluate", kept, *flags)["artifacts"][0]
    assert found["quantization"]["weights_dtype"] == "nf4"
    merged = Path(read_json("train", *settings, *CALIBRATED)["artifact"])
    assert merged.name == f"{kept.name}_mergedbf16"
    assert read_record(merged).verification["fidelity"]["stored"]["mean_kl"] < 1e-2
    assert verify_manifest(base) == before


def test_a_finished_model_is_stored_in_calibrated_4_bit(
    tiny_model: Path, rows: Path, read_json: Any, quantkit: Any, tmp_path: Path
) -> None:
    flags = ["--src", tiny_model, "--method", "BNB4BIT", "--calib", rows, "--dst", tmp_path]
    few = ["--calib-rows", 8, "--calib-length", 64, "--calib-min-tokens", 256]
    made = read_json("quantize", *flags, *few, "--calibrated", "--double-quant")
    assert made["name"] == "Tiny-Llama-base_BNB4BIT_w4_dq_cal_headbf16"
    assert made["gate"]["outcome"] == "passed"
    assert read_record(Path(made["artifact"])).verification["reload"]["mean_kl"] == 0
    code, _, err = quantkit("quantize", *flags, *few)
    assert code == 2
    assert "BNB4BIT uses no calibration text with these options" in err


def test_a_finished_model_is_stored_in_plain_4_bit(tiny_model: Path, read_json: Any, tmp_path: Path) -> None:
    made = read_json("quantize", "--src", tiny_model, "--method", "BNB4BIT", "--dst", tmp_path, "--gate-tokens", 512)
    assert made["name"] == "Tiny-Llama-base_BNB4BIT_w4_headbf16"
    assert "calibration" not in read_record(Path(made["artifact"])).data
