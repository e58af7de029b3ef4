"""Any folder is told for what it is; where witnesses disagree, both are named and nothing is chosen."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit.spec import QuantizationSpec
from quantkit_registry import hub
from quantkit_registry.detect import Detection, detect
from quantkit_registry.records import RECORD_FILE, BaseReference
from tests.registry import samples
from tests.registry.records_of import QLORA, commit_adapter, commit_model, plan

CLAIMS = {"dense": "NoQuant", "bitsandbytes-4bit": "BNB4BIT", "bitsandbytes-8bit": "INT8"}


def found(path: Path | str, explicit: str | None = None) -> Detection:
    return detect(path, claims=CLAIMS, explicit=explicit)


def sources(detection: Detection) -> list[str]:
    return [source for source, _ in detection.evidence]


def study(folder: Path, method: str, file: str = "training_metadata.json", **values: Any) -> Path:
    (folder / file).write_text(json.dumps({"model": "x", "quantization": {"method": method} | values}))
    return folder


def test_bare_checkpoints_are_read_by_the_method_that_claims_their_kind(tmp_path: Path) -> None:
    dense = found(samples.dense(tmp_path / "dense"))
    assert (dense.kind, dense.method, dense.format, dense.origin) == ("model", "NoQuant", "dense", "foreign")
    nf4 = found(samples.bnb4(tmp_path / "nf4"))
    assert (nf4.method, nf4.format) == ("BNB4BIT", "bitsandbytes")
    assert nf4.spec == QuantizationSpec(method="BNB4BIT", weights_bits=4, weights_dtype="nf4", format="bitsandbytes")
    assert sources(nf4) == ["config.json quantization_config", "tensors"]
    unclaimed = found(samples.gptq(tmp_path / "gptq"))
    assert (unclaimed.method, unclaimed.format) == ("unknown", "gptq")
    assert ("methods", "no installed method reads gptq checkpoints") in unclaimed.evidence


def test_single_files_are_detected_too(tmp_path: Path) -> None:
    assert found(samples.dense(tmp_path / "m") / "model.safetensors").method == "NoQuant"
    assert found(samples.gguf(tmp_path / "m.gguf")).format == "gguf"
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match="pickled weights are not opened"):
        found(tmp_path / "m.pt")


def test_our_record_says_what_the_tensors_bear_out(tmp_path: Path) -> None:
    merged = found(commit_model(tmp_path))
    assert (merged.kind, merged.method, merged.origin, merged.plan) == ("model", "NoQuant", "quantkit", None)
    assert merged.record is not None
    assert merged.record.recipe.method == "QLORA"
    assert sources(merged) == [RECORD_FILE, "tensors"]


def test_our_adapter_carries_base_and_recipe(tmp_path: Path) -> None:
    kept = found(commit_adapter(tmp_path, base=BaseReference(name_or_path="org/Base", revision="abc")))
    assert (kept.kind, kept.method, kept.base, kept.revision) == ("adapter", "QLORA", "org/Base", "abc")
    assert kept.spec == QLORA
    assert kept.plan == plan()
    assert set(kept.source_fields) == {"path", "kind", "base", "revision", "plan", "spec"}
    assert json.loads(json.dumps(kept.to_dict()))["name"] == kept.path.rpartition("/")[2]


def test_a_record_that_the_tensors_contradict_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = commit_model(tmp_path, said=QLORA)
    message = r"quantization_metadata\.json says weights_bits 4 \(the tensors say 16\); weights_dtype 'nf4' \(.*'bfloat16'\)"
    with pytest.raises(VerificationError, match=message):
        found(path)
    overruled = found(path, explicit="NoQuant")
    assert overruled.method == "NoQuant"
    assert overruled.spec == QuantizationSpec.dense("bfloat16")
    assert any(statement.startswith("overruled:") for _, statement in overruled.evidence)


def test_a_record_of_the_wrong_kind_is_an_error(tmp_path: Path) -> None:
    model = commit_model(tmp_path / "m")
    adapter = commit_adapter(tmp_path / "a")
    (adapter / RECORD_FILE).write_text((model / RECORD_FILE).read_text())
    with pytest.raises(VerificationError, match=r"kind 'model' \(the folder holds an adapter\)"):
        found(adapter)
    record = commit_adapter(tmp_path / "b") / RECORD_FILE
    (model / RECORD_FILE).write_text(record.read_text())
    with pytest.raises(VerificationError, match=r"kind 'adapter' \(the folder holds a model\)"):
        found(model)


def test_an_adapter_whose_files_contradict_its_record_is_an_error(tmp_path: Path) -> None:
    path = commit_adapter(tmp_path)
    samples.adapter(path, base="org/Other", rank=4, config={"use_dora": True})
    with pytest.raises(VerificationError, match=r"adapter\.kind 'LoRa' .*'DoRa'.*adapter\.r 8 .*4.*'org/Base' .*'org/Other'"):
        found(path)


def test_the_studys_label_noquant_over_4_bit_tensors_is_an_error_unless_overruled(tmp_path: Path) -> None:
    folder = study(samples.bnb4(tmp_path / "m"), "NoQuant", weights_bits=16)
    with pytest.raises(VerificationError, match=r"says method 'NoQuant' \(the tensors are nf4 4-bit.*weights_bits 16"):
        found(folder)
    assert found(folder, explicit="BNB4BIT").spec is not None


def test_the_studys_label_of_4_bit_over_16_bit_tensors_is_an_error(tmp_path: Path) -> None:
    folder = study(samples.dense(tmp_path / "m"), "QLORA", RECORD_FILE, weights_bits=4)
    with pytest.raises(
        VerificationError, match=r"quantization_metadata\.json says method 'QLORA' \(the tensors are bfloat16\)"
    ):
        found(folder)
    with pytest.raises(VerificationError, match="backend 'gptq'"):
        found(study(samples.bnb4(tmp_path / "b"), "GPTQ", weights_bits=4, backend="gptq"))


def test_the_studys_true_labels_are_accepted_and_marked(tmp_path: Path) -> None:
    detection = found(study(samples.bnb4(tmp_path / "m"), "QLORA", weights_bits=4, backend="bitsandbytes"))
    assert (detection.method, detection.origin) == ("BNB4BIT", "study")
    assert found(study(samples.dense(tmp_path / "d"), "NoQuant", weights_bits=16)).method == "NoQuant"


def test_an_explicit_choice_never_overrules_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="NoQuant was asked for, but the tensors are nf4 4-bit"):
        found(samples.bnb4(tmp_path / "nf4"), explicit="NoQuant")
    loading = found(samples.dense(tmp_path / "dense"), explicit="QLORA")
    assert (loading.method, loading.spec) == ("QLORA", None)
    assert ("explicit choice", "the weights are dense; QLORA is applied while loading") in loading.evidence
    named = found(samples.bnb4(tmp_path / "nf4"), explicit="QLORA")
    assert named.spec is not None
    assert named.spec.method == "QLORA"


def test_a_foreign_adapters_recipe_is_unknown_and_its_folders_name_only_a_hint(tmp_path: Path) -> None:
    detection = found(samples.adapter(tmp_path / "lora_adapters" / "4bits_r4"))
    assert (detection.kind, detection.method, detection.spec, detection.plan) == ("adapter", "unknown", None, None)
    assert detection.base == "org/Base"
    statements = dict(detection.evidence)
    assert "not recorded" in statements["recipe"]
    assert statements["name"] == "the name looks like training on a quantized base (4 bits); a hint only"
    assert found(tmp_path / "lora_adapters" / "4bits_r4", explicit="QLORA").method == "QLORA"


def test_the_studys_word_on_an_adapter_stays_a_claim(tmp_path: Path) -> None:
    detection = found(study(samples.adapter(tmp_path / "a"), "QLORA", weights_bits=4))
    assert (detection.method, detection.origin) == ("unknown", "study")
    assert "cannot confirm" in detection.evidence[0][1]


def test_a_foreign_adapter_on_a_quantized_local_base_has_that_bases_method(tmp_path: Path) -> None:
    base = samples.bnb4(tmp_path / "base")
    detection = found(samples.adapter(tmp_path / "a", base=str(base)))
    assert (detection.method, detection.format) == ("BNB4BIT", "bitsandbytes")
    dense = samples.dense(tmp_path / "dense")
    assert found(samples.adapter(tmp_path / "b", base=str(dense))).method == "unknown"
    (dense / "config.json").write_text("{")
    assert "not valid JSON" in dict(found(tmp_path / "b").evidence)["base"]


def test_our_adapter_can_be_loaded_otherwise_only_on_explicit_wish(tmp_path: Path) -> None:
    path = commit_adapter(tmp_path)
    other = found(path, explicit="NoQuant")
    assert (other.method, other.plan, other.spec) == ("NoQuant", None, None)
    assert found(path, explicit="QLORA").plan == plan()


def test_suffixes_are_hints_and_never_facts(tmp_path: Path) -> None:
    for name, word in (
        ("L-bnb-4bit", "bitsandbytes"),
        ("L-GPTQ-Int4", "GPTQ weights (4 bits)"),
        ("L-AWQ", "AWQ"),
        ("L.w4a16", "compressed-tensors"),
        ("L-FP8-dynamic", "FP8"),
        ("L-GGUF", "GGUF"),
    ):
        detection = found(samples.dense(tmp_path / name))
        assert detection.method == "NoQuant"
        assert detection.evidence[-1][0] == "name"
        assert word in detection.evidence[-1][1]
    assert "name" not in sources(found(samples.dense(tmp_path / "Llama-3-8B")))


def test_one_folder_is_one_kind(tmp_path: Path) -> None:
    samples.dense(samples.adapter(tmp_path / "m"))
    with pytest.raises(UsageError, match=r"holds an adapter .* and a model \(model\.safetensors\); one folder is one kind"):
        found(tmp_path / "m")


def test_folders_without_anything_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="holds no model and no adapter"):
        found(tmp_path)
    for missing in (str(tmp_path / "gone"), "./gone", "~/gone", "gone.gguf"):
        with pytest.raises(UsageError, match="no such file or folder"):
            found(missing)
    with pytest.raises(UsageError, match="no such file or folder, and no hub id"):
        found("a/b/c")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": 3}, "peft_type is '3'"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 0}, "a rank is a positive number"),
        ({"r": 16}, r"says rank 16, but .*lora_A\.weight has 8 rows"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is '5'"),
        ({"base_model_name_or_path": "a\x1b[2J"}, "a hub id or path is wanted"),
    ],
)
def test_hostile_adapter_configs_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        found(samples.adapter(tmp_path / "a", config=config))


def test_adapters_without_tensors_or_with_pickles_are_refused(tmp_path: Path) -> None:
    folder = samples.adapter(tmp_path / "a")
    samples.write_tensors(folder / "adapter_model.safetensors", {})
    with pytest.raises(UsageError, match="the adapter holds no tensors"):
        found(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="the weights are pickled"):
        found(folder)


def test_hub_ids_are_described_by_their_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = samples.gptq(tmp_path / "0123abc")
    (snapshot / "model.safetensors").unlink()
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, allow_patterns))
        return str(snapshot)

    import huggingface_hub

    monkeypatch.setattr("quantkit.hub._found", [""])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    detection = found("org/Model-GPTQ")
    assert (detection.path, detection.format, detection.revision) == ("org/Model-GPTQ", "gptq", "0123abc")
    assert "the tensors were not read" in detection.evidence[0][1]
    assert asked == [("org/Model-GPTQ", None, list(hub.SMALL_FILES))]
    (snapshot / "config.json").write_text('{"torch_dtype": "float16"}')
    assert found("org/Model-GPTQ").spec == QuantizationSpec.dense("float16")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr("quantkit.hub._found", [""])

    def download(*arguments: object, **settings: object) -> str:
        raise ConnectionError("no\nroute " + "x" * 1000)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        UsageError, match=r"org/M: no such folder here, and not to be had from the hub \(ConnectionError"
    ) as caught:
        found("org/M")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 260


def test_detection_imports_no_torch() -> None:
    import subprocess

    code = "import sys, quantkit_registry.detect, quantkit_registry.verify; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
