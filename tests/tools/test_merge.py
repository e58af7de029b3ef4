"""`quantkit merge`: three policies, one report, and refusals that name what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.merging.report import MergeReport
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import BaseReference, read_record
from quantkit_registry.store import Registry
from quantkit_tools.merging.planning import target_of
from tests.registry.records_of import commit_adapter, plan
from tests.registry.samples import dense

BARE = "Tiny-Llama-openmath_SFT_LoRa4_QLORA_w4_headbf16"


def test_the_plan_is_printed_and_nothing_written(kept: Path, quantkit: Any, tmp_path: Path) -> None:
    code, out, err = quantkit("merge", kept, "--dst", tmp_path / "made", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["name"] == f"{BARE}_mergedbf16"
    assert "into the dequantized base that the adapter was trained on" in err
    assert not (tmp_path / "made").exists()


def test_a_merge_equals_the_adapter_on_its_base_and_is_made_once(kept: Path, quantkit: Any, tmp_path: Path) -> None:
    flags = ["merge", kept, "--dst", tmp_path, "--save-dtype", "fp32", "--json"]
    code, out, err = quantkit(*flags)
    assert code == 0, err
    said = json.loads(out)
    artifact = Path(said["artifact"])
    assert artifact.name == f"{BARE}_mergedfp32"
    assert "of the gain kept" in err
    record = read_record(artifact)
    fidelity = record.verification["fidelity"]
    assert fidelity == said["fidelity"]
    assert fidelity["stored"]["max_abs_logit_difference"] <= 1e-4
    assert fidelity["arithmetic"]["max_abs_logit_difference"] == 0
    assert fidelity["rows"]["held_out"]
    assert fidelity["perplexity"]["adapter"] < fidelity["perplexity"]["base"]
    assert fidelity["gain_kept"] == pytest.approx(1, abs=1e-3)
    assert record.merge is not None
    assert (record.merge.policy, record.merge.dtype) == ("dequantized", "float32")
    assert (record.parents[0].name, record.parents[0].artifact) == (BARE, Registry(kept.parent).find(BARE).hash)
    assert {stage["stage"] for stage in record.memory["stages"]} == {"merge", "observe adapter", "compare"}
    assert "fidelity.gain_kept" in (artifact / "README.md").read_text()
    assert quantkit("registry", "verify", artifact, "--root", tmp_path)[0] == 0

    made = artifact.stat().st_mtime_ns
    code, out, err = quantkit(*flags)
    assert code == 0
    assert "exists: the same adapter, merged into the same base in the same way" in err
    assert json.loads(out)["made"] is False
    assert artifact.stat().st_mtime_ns == made


def test_storage_is_told_apart_from_arithmetic_in_bfloat16(kept: Path, read_json: Any, tmp_path: Path) -> None:
    fidelity = read_json("merge", kept, "--dst", tmp_path)["fidelity"]
    assert 0 < fidelity["stored"]["mean_kl"] < fidelity["as_loaded"]["mean_kl"]
    assert fidelity["arithmetic"]["mean_kl"] > 0


def test_a_merge_into_the_original_base_has_a_name_of_its_own(
    kept: Path, read_json: Any, quantkit: Any, tmp_path: Path
) -> None:
    made = read_json("merge", kept, "--policy", "base", "--dst", tmp_path)
    artifact = Path(made["artifact"])
    assert artifact.name == f"{BARE}_mergedbasebf16"
    assert made["fidelity"]["stored"]["mean_kl"] > 1e-4
    assert "not into those it was trained on" in (artifact / "README.md").read_text()
    assert quantkit("registry", "verify", artifact, "--root", tmp_path)[0] == 0


def test_a_merge_that_lost_too_much_is_marked_and_exits_3(
    kept: Path, quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MergeReport, "judge", lambda _, limit: [f"all is lost, more than {limit:.0%}"])
    code, _, err = quantkit("merge", kept, "--dst", tmp_path, "--max-lost-gain", "0.25")
    assert code == 3
    assert "is marked: all is lost, more than 25%" in err
    assert quantkit("merge", kept, "--dst", tmp_path)[0] == 3
    assert "failed its gate: all is lost" in quantkit("registry", "ls", "--root", tmp_path)[1]
    assert "**Marked**: all is lost" in next(tmp_path.glob("*_mergedbf16/README.md")).read_text()


def test_too_little_memory_to_compare_is_recorded(
    kept: Path, quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit_tools.merging.making.free_bytes", lambda _: 1)
    code, _, err = quantkit("merge", kept, "--dst", tmp_path)
    assert code == 0
    assert "fidelity of the merge not measured: loading the base needs" in err
    assert read_record(next(tmp_path.glob("*_mergedbf16"))).verification["gate"]["outcome"] == "not judged"


def test_another_base_is_refused_unless_its_fingerprint_is_typed(
    kept: Path, tiny_model: Path, quantkit: Any, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "Other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2e-5}))
    flags = ["merge", kept, "--dst", tmp_path / "made", "--into", other]
    code, _, err = quantkit(*flags)
    assert code == 3
    assert "was trained on another base than" in err
    code, _, err = quantkit(*flags, "--force-base", "sha256:0000")
    assert code == 3
    assert "--force-base was sha256:0000…, which is not its fingerprint" in err
    code, _, err = quantkit(*flags, "--force-base", fingerprint_base(other))
    assert code == 0, err
    assert "it was forced by its fingerprint" in err
    record = read_record(next((tmp_path / "made").glob("*_mergedbf16")))
    assert record.verification["forced_base"] == record.base.fingerprint == fingerprint_base(other)
    code, _, err = quantkit("merge", kept, "--dst", tmp_path / "made")
    assert code == 2
    assert "exists and is not this merge" in err
    code, _, err = quantkit("merge", kept, "--dst", tmp_path / "new", "--force-base", fingerprint_base(other))
    assert code == 3
    assert "has the fingerprint" in err


def test_a_base_that_was_moved_is_asked_for(quantkit: Any, tmp_path: Path) -> None:
    adapter = commit_adapter(tmp_path, base=BaseReference(name_or_path=str(tmp_path / "Moved")))
    code, _, err = quantkit("merge", adapter)
    assert code == 2
    assert f"its base {tmp_path / 'Moved'} is not there; --base FOLDER says where it is now" in err


def test_rows_that_have_changed_since_training_must_be_replaced(
    tiny_model: Path, kept: Path, rows: Path, quantkit: Any, tmp_path: Path
) -> None:
    text = rows.read_text()
    try:
        rows.write_text("\n".join(text.splitlines()[:9]))
        code, _, err = quantkit("merge", kept, "--dst", tmp_path)
        assert code == 2
        assert "are not those the model was trained on" in err
        assert "name a file with --data FILE" in err
        code, out, _ = quantkit("merge", kept, "--dst", tmp_path, "--data", rows)
        assert code == 0
        assert f"compared on: 9 held-out rows of {rows}" in out
    finally:
        rows.write_text(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no adapter is named, and it stands first; quantkit merge ADAPTER"),
        (["nowhere"], "nowhere: no such folder, and no artifact of this name under"),
        (["KEPT", "--polcy", "base"], "no flag is called --polcy. Did you mean --policy?"),
        (["KEPT", "--policy", "exact"], "policy"),
        (["KEPT", "--policy", "base", "--merge", "base"], "both set policy"),
        (["KEPT", "--calib", "sft"], "--calib is for --policy requantized"),
        (["KEPT", "--max-lost-gain", "2"], "a share between 0 and 1"),
        (["KEPT", "--calib-rows", "1"], "calib_rows is 1; it must be at least 2"),
        (["KEPT", "--policy", "requantized", "--save-dtype", "fp32"], "keeps the recipe's bfloat16"),
        (["KEPT", "--policy", "requantized", "--calib-min-tokens", "99999"], "at least 99999 are needed"),
        (["MODEL"], "is a whole model; an adapter is wanted"),
        (["FOREIGN"], "quantkit registry adopt"),
        (["EMPTY"], "holds no model and no adapter"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], said: str, places: dict[str, Path], quantkit: Any) -> None:
    code, _, err = quantkit("merge", *(places.get(word, word) for word in arguments))
    assert code == 2, err
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert said in error[0]


@pytest.fixture
def places(kept: Path, tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """What the words in capitals stand for."""
    foreign, empty = tmp_path / "4bits_r4", tmp_path / "empty"
    empty.mkdir()
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(kept / name, foreign)
    return {"KEPT": kept, "MODEL": tiny_model, "FOREIGN": foreign, "EMPTY": empty}


def test_a_merged_model_cannot_be_merged_again(tmp_path: Path, quantkit: Any) -> None:
    from tests.registry.records_of import commit_model

    merged = commit_model(tmp_path, merge=_merge_record())
    code, _, err = quantkit("merge", merged)
    assert code == 2
    assert "its adapter is folded in already" in err


def _merge_record() -> Any:
    from quantkit_registry.records import MergeRecord

    return MergeRecord(policy="dequantized", dtype="bfloat16")


def test_names_tell_the_merge_from_the_kept_adapter(tmp_path: Path) -> None:
    from quantkit.spec import QuantizationSpec

    quantized = read_record(commit_adapter(tmp_path))
    folder = tmp_path / quantized.name
    names = {
        policy: target_of(tmp_path, folder, quantized, policy, "bfloat16")[1].removeprefix(quantized.name)
        for policy in ("dequantized", "base", "requantized")
    }
    assert names == {"dequantized": "_mergedbf16", "base": "_mergedbasebf16", "requantized": "_merged"}
    assert target_of(tmp_path / "b", folder, quantized, "requantized", "bfloat16")[1] == quantized.name
    spec = QuantizationSpec.dense("bfloat16")
    name = "Base-d_SFT_LoRa8_NoQuant"
    kept = read_record(commit_adapter(tmp_path, name=name, quantization=spec, recipe=plan(spec)))
    assert target_of(tmp_path, tmp_path / name, kept, "dequantized", "bfloat16")[1] == f"{name}_mergedbf16"
    assert target_of(tmp_path / "b", tmp_path / name, kept, "dequantized", "bfloat16")[1] == name
    assert target_of(tmp_path / "b", tmp_path / name, kept, "dequantized", "float32")[1] == f"{name}_mergedfp32"
    own = tmp_path / "c" / f"{name}_mergedfp32"
    assert target_of(own, tmp_path / name, kept, "dequantized", "float32")[0] == own


def test_a_dense_base_has_nothing_to_quantize_again(tmp_path: Path, quantkit: Any) -> None:
    from quantkit.spec import QuantizationSpec
    from quantkit_registry.records import BaseReference

    dense(tmp_path / "base")
    spec = QuantizationSpec.dense("bfloat16")
    base = BaseReference(name_or_path=str(tmp_path / "base"))
    kept = commit_adapter(tmp_path, name="Base-d_SFT_LoRa8_NoQuant", quantization=spec, recipe=plan(spec), base=base)
    code, _, err = quantkit("merge", kept, "--policy", "requantized")
    assert code == 2
    assert "was trained on dense weights; there is nothing to quantize again" in err


def test_a_requantized_merge_stays_four_bit_and_keeps_the_gain(kept: Path, quantkit: Any, tmp_path: Path) -> None:
    code, out, err = quantkit(
        "merge", kept, "--policy", "requantized", "--dst", tmp_path, "--calib-length", 64, "--calib-min-tokens", 256, "--json"
    )
    assert code == 0, err
    made = json.loads(out)
    artifact = Path(made["artifact"])
    assert artifact.name == BARE
    record = read_record(artifact)
    assert record.quantization == record.recipe.spec
    assert made["fidelity"]["gain_kept"] > 0.8
    assert record.data["requantized_on"]["source"].startswith("training rows of ")
    assert "quantized again" in (artifact / "README.md").read_text()
    assert quantkit("registry", "verify", artifact, "--root", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("policy", "tag"), [("base", "_mergedbasebf16"), ("requantized", "")], ids=["into the original", "quantized again"]
)
def test_a_run_merges_by_its_policy(policy: str, tag: str, settings: list[object], held_out: Path, quantkit: Any) -> None:
    flags = ["--quant-method", "QLORA", "--merge", policy, "--eval-dataset-name", held_out, "--calib-length", 64]
    code, out, err = quantkit("train", *settings, *flags, "--json")
    assert code in (0, 3), err
    artifact = Path(json.loads(out)["artifact"])
    assert artifact.name == f"{BARE}{tag}"
    record = read_record(artifact)
    assert record.merge is not None
    assert record.merge.policy == policy
    assert record.verification["fidelity"]["policy"] == policy
    assert (record.verification["gate"]["outcome"] == "failed") == (code == 3)
    assert quantkit("registry", "verify", artifact, "--root", artifact.parent)[0] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--merge", "requantized"], "NoQuant trains on dense weights"),
        (["--merge", "base", "--no-merge-after-train"], "but no adapter is folded in: merge_after_train is False"),
    ],
)
def test_a_policy_that_cannot_be_carried_out_is_refused_before_training(
    flags: list[str], said: str, settings: list[object], quantkit: Any
) -> None:
    code, _, err = quantkit("train", *settings, *flags)
    assert code == 2
    assert said in err
