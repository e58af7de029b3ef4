"""`quantkit registry adopt`: a plain PEFT folder becomes an artifact with the recipe its user states."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.files import sha256_of
from quantkit_registry.records import read_record

NAME = "Tiny-Llama-money_SFT_LoRa4_QLORA_w4_headbf16"


@pytest.fixture
def foreign(kept: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """The adapter as the finance study leaves it: two files, in a folder whose name alone speaks of 4 bits."""
    folder = tmp_path / "lora_adapters" / "4bits_r4"
    folder.mkdir(parents=True)
    shutil.copy(kept / "adapter_model.safetensors", folder)
    config = json.loads((kept / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tiny_model)}))
    return folder


def test_an_adopted_adapter_is_recorded_merged_and_evaluated_like_our_own(
    foreign: Path, tiny_model: Path, held_out: Path, quantkit: Any, tmp_path: Path
) -> None:
    before = {path.name: sha256_of(path) for path in foreign.iterdir()}
    root = tmp_path / "artifacts"
    flags = ["--base", tiny_model, "--method", "QLORA", "--dataset", "money", "--root", root, "--data", f"openmath:{held_out}"]
    code, out, err = quantkit("registry", "adopt", foreign, *flags, "--dry-run")
    assert code == 0, err
    assert "training on a quantized base (4 bits)" in out
    assert not root.exists()
    code, out, err = quantkit("registry", "adopt", foreign, *flags, "--json")
    assert code == 0, err
    made = json.loads(out)
    artifact = Path(made["artifact"])
    assert artifact.name == NAME
    assert {path.name: sha256_of(path) for path in foreign.iterdir()} == before
    record = read_record(artifact)
    assert (record.kind, record.recipe.method) == ("adapter", "QLORA")
    adopted = record.verification["adopted"]
    assert adopted == made["adopted"]
    assert adopted["files"] == before
    assert adopted["loss_adapter"] < adopted["loss_base"]
    assert adopted["largest_logit_change"] > 0
    assert quantkit("registry", "verify", artifact, "--root", root)[0] == 0
    code, _, err = quantkit("registry", "adopt", foreign, *flags)
    assert code == 2
    assert "exists; choose another output folder or pass --overwrite" in err
    code, out, err = quantkit("merge", NAME, "--dst", root, "--data", f"openmath:{held_out}", "--json")
    assert code == 0, err
    assert json.loads(out)["fidelity"]["gain_kept"] == pytest.approx(1, abs=0.01)
    code, out, err = quantkit("registry", "tree", "--root", root)
    assert f"  └ {NAME}: LoRa4 on QLORA weights, kept as adapter" in out
    assert f"    └ {NAME}_mergedbf16" in out


def test_a_hint_is_asked_about_and_not_believed(foreign: Path, tiny_model: Path, quantkit: Any) -> None:
    code, _, err = quantkit("registry", "adopt", foreign)
    assert code == 2
    assert f"if so, confirm it with quantkit registry adopt {foreign} --base {tiny_model} --method QLORA" in err
    foreign = foreign.rename(foreign.with_name("plain"))
    assert "say it with quantkit registry adopt" in quantkit("registry", "adopt", foreign)[2]


def _changed(foreign: Path, **settings: Any) -> None:
    path = foreign / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        ({"peft_type": "IA3"}, [], "adapters of type IA3 cannot be folded in"),
        ({"bias": "all"}, [], "trained biases cannot be folded in"),
        ({"rank_pattern": {"q_proj": 8}}, [], "has a rank_pattern; a recipe has one rank"),
        ({"target_modules": ".*q_proj"}, [], "target_modules is the expression"),
        ({"use_dora": True}, [], "is a DoRa4 adapter, and QLORA carries LoRa4"),
        ({"base_model_name_or_path": None}, [], "names no base model; --base names the one"),
        ({}, ["--method", "GPTQ"], "quantizes a base into a folder of its own"),
        ({}, ["--method", "QLRA"], "no method is called 'QLRA'"),
        ({}, ["--group-size", "64"], "group_size is no option of QLORA"),
        ({}, ["--base", "./nowhere"], "no such folder"),
        ({}, ["--quant-method", "QLORA"], "both set method"),
        ({}, ["--basis", "x"], "no flag is called --basis"),
        ({}, ["--data", "./none.jsonl"], "there is no such file"),
    ],
)
def test_what_cannot_be_recorded_truly_is_refused(
    settings: dict[str, Any], flags: list[str], said: str, foreign: Path, quantkit: Any
) -> None:
    _changed(foreign, **settings)
    method = [] if "--method" in flags else ["--method", "QLORA"]
    code, _, err = quantkit("registry", "adopt", foreign, *method, *flags, "--root", foreign.parent / "r")
    assert code == 2, err
    assert said in err
    assert not (foreign.parent / "r").exists()


def test_an_adapter_that_does_not_fit_or_does_nothing_is_refused(foreign: Path, quantkit: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = foreign / "adapter_model.safetensors"
    good = load_file(weights)
    spoilt = {
        "do not fit its configuration and base": {key.replace("layers.0", "layers.9"): good[key] for key in good},
        "was never trained": {key: value * ("lora_B" not in key) for key, value in good.items()},
        "not finite": {key: value / 0 for key, value in good.items()},
        "changes no logit": {key: value * (1 if "lora_B" in key else 0) for key, value in good.items()},
    }
    for said, tensors in spoilt.items():
        save_file(tensors, weights)
        code, _, err = quantkit("registry", "adopt", foreign, "--method", "QLORA", "--root", foreign.parent / "r")
        assert code == 3, err
        assert said in err
    assert not list((foreign.parent / "r").glob("*"))


def test_what_is_ours_or_no_adapter_needs_no_adoption(kept: Path, tiny_model: Path, quantkit: Any) -> None:
    for arguments, said in (
        ([kept, "--method", "QLORA"], "is an artifact of quantkit, which has its recipe"),
        ([tiny_model, "--method", "QLORA"], "no adapter_config.json"),
        ([], "no adapter is named; quantkit registry adopt FOLDER"),
        ([kept, "--quant-type", "nf4"], "--quant-type is an option of a method; name it with --method"),
    ):
        code, _, err = quantkit("registry", "adopt", *arguments)
        assert code == 2
        assert said in err


def test_an_adapter_that_does_not_help_is_questioned(foreign: Path, quantkit: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = foreign / "adapter_model.safetensors"
    save_file({key: -3 * value if "lora_B" in key else value for key, value in load_file(weights).items()}, weights)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 3 + 4?", "answer": "3+4=7"}\n')
    code, _, err = quantkit("registry", "adopt", foreign, "--method", "QLORA", "--root", tmp_path / "r", "--data", rows)
    assert code == 0
    assert "is the stated recipe the one it was trained with?" in err
