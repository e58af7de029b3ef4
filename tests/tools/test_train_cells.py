"""Every method with every adapter kind it carries: train, save, reload without quantkit, detect, evaluate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.files import verify_manifest
from quantkit.methods import installed_methods
from quantkit_registry.records import read_record

KINDS = ("NoPeft", "LoRa", "DoRa", "VeRa")
CELLS = [(name, kind) for name in ("NoQuant", "INT8", "BNB4BIT", "QLORA") for kind in installed_methods().info(name).adapters]
KEPT = [cell for cell in CELLS if cell[1] != "NoPeft"]


def _evaluate(read_json: Any, artifact: Path, rows: Path) -> dict[str, Any]:
    flags = ["--data", f"openmath:{rows}", "--limit", 4, "--max-new-tokens", 4, "--registry", artifact.parent]
    result = read_json("evaluate", artifact, *flags)["artifacts"][0]
    assert isinstance(result, dict)
    return result


def test_the_cells_are_those_the_design_names() -> None:
    assert set(CELLS) == {
        *(("NoQuant", kind) for kind in KINDS),
        *((name, kind) for name in ("INT8", "BNB4BIT") for kind in KINDS[1:]),
        ("QLORA", "LoRa"),
    }


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_a_merged_run(cell: tuple[str, str], settings: list[object], read_json: Any, rows: Path) -> None:
    method, kind = cell
    made = read_json("train", *settings, "--quant-method", method, "--peft-config", kind)
    artifact = Path(made["artifact"])
    verify_manifest(artifact)
    record = read_record(artifact)
    assert record.kind == "model"
    assert record.quantization.weights_dtype == "bfloat16"
    assert record.recipe.method == method
    assert (record.merge is None) == (kind == "NoPeft")
    assert artifact.name.endswith("_mergedbf16") == (method != "NoQuant")
    if kind == "NoPeft":
        assert record.verification["reload"]["max_abs_logit_difference"] == 0.0
    else:
        assert record.verification["merge"]["layers_changed"] > 0  # folded in tensor by tensor
        assert record.verification["fidelity"]["stored"]["mean_kl"] < 0.01
    result = _evaluate(read_json, artifact, rows)
    assert result["quantization"]["weights_dtype"] == "bfloat16"


@pytest.mark.parametrize("cell", KEPT, ids="-".join)
def test_a_kept_adapter(cell: tuple[str, str], settings: list[object], read_json: Any, rows: Path) -> None:
    method, kind = cell
    flags = ["--quant-method", method, "--peft-config", kind, "--no-merge-after-train"]
    artifact = Path(read_json("train", *settings, *flags)["artifact"])
    record = read_record(artifact)
    assert record.kind == "adapter"
    assert record.quantization == record.recipe.spec
    assert record.base.fingerprint
    assert record.base.fingerprint.startswith("sha256:")
    result = _evaluate(read_json, artifact, rows)
    assert result["kind"] == "adapter"
    assert result["quantization"]["weights_bits"] == record.recipe.spec.weights_bits


def test_rslora_has_a_name_of_its_own(settings: list[object], read_json: Any) -> None:
    artifact = Path(read_json("train", *settings, "--quant-method", "BNB4BIT", "--use-rslora")["artifact"])
    assert "_RsLoRa4_" in artifact.name
    assert read_record(artifact).adapter.use_rslora  # type: ignore[union-attr]


def test_qlora_forces_lora_and_says_so(settings: list[object], quantkit: Any) -> None:
    code, out, err = quantkit("train", *settings, "--quant-method", "QLORA", "--peft-config", "DoRa", "--dry-run", "--json")
    assert code == 0
    assert "QLORA trains LoRa adapters, not DoRa" in err
    assert "use BNB4BIT" in err
    planned = json.loads(out)
    assert planned["recipe"]["adapter"]["kind"] == planned["settings"]["peft_config"] == "LoRa"


@pytest.mark.parametrize("method", ["INT8", "BNB4BIT", "QLORA"])
def test_full_training_of_quantized_weights_is_refused(method: str, settings: list[object], quantkit: Any) -> None:
    code, _, err = quantkit("train", *settings, "--quant-method", method, "--peft-config", "NoPeft")
    assert code == 2
    assert "gradient" in err


def test_the_artifact_loads_without_quantkit(settings: list[object], read_json: Any, tmp_path: Path) -> None:
    """A process that cannot import quantkit gives the logits that the model in memory gave."""
    import torch
    from transformers import AutoModelForCausalLM

    flags = ["--quant-method", "QLORA", "--save-dtype", "float32"]
    artifact = Path(read_json("train", *settings, *flags)["artifact"])
    code = (
        "import sys; sys.modules['quantkit'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(artifact)!r})\n"
        f"torch.save(model(input_ids=torch.tensor([[1, 40, 50, 60, 70]])).logits.float(), {str(tmp_path / 'logits.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(artifact)
    with torch.no_grad():
        here = model(input_ids=torch.tensor([[1, 40, 50, 60, 70]])).logits.float()
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt").detach(), here, rtol=0, atol=1e-4)
    verification = read_record(artifact).verification
    assert verification["fidelity"]["stored"]["max_abs_logit_difference"] <= 1e-4
