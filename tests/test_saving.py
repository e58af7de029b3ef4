"""Saving: what is written is whole, true and loads plainly; what is wrong is refused and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, QuantizationSpec
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import artifact_hash, verify_manifest
from quantkit.methods import installed_methods
from quantkit.modeling import attach_adapter, load_base, load_tokenizer
from quantkit.saving import remove_leftovers, require_space, save_artifact
from quantkit.storable import store_dense_as

METHODS = installed_methods()
ROWS = torch.tensor([[1, 75, 80, 85, 90, 2]])


def plan_of(method: str, kind: Any = "NoPeft", **options: Any) -> QuantizationPlan:
    adapter = AdapterPlan(kind=kind, r=4, lora_alpha=8, target_modules=("q_proj", "down_proj"))
    return METHODS.plan(method, options, PlanContext(adapter=adapter, compute_dtype="float32", dense_dtype="float32"))


def record_of(plan: QuantizationPlan, base: Path, kind: str = "model", spec: QuantizationSpec | None = None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "quantkit_version": "0.1.0",
        "name": "Tiny-Llama-demo_SFT_LoRa4_QLORA_w4_headfp32",
        "kind": kind,
        "created_at": "2026-01-01T00:00:00+00:00",
        "quantization": (spec or plan.spec).to_dict(),
        "recipe": plan.to_dict(),
        "adapter": plan.adapter.to_dict(),
        "merge": None,
        "base": {"name_or_path": str(base), "revision": None, "fingerprint": None},
        "parents": [],
        "training": {},
        "data": {},
        "memory": {},
        "environment": {},
        "verification": {},
    }


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def dense(tiny_model: Path) -> tuple[Any, dict[str, Any]]:
    plan = plan_of("NoQuant")
    return load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu"), record_of(plan, tiny_model)


@pytest.fixture
def adapter(tiny_model: Path) -> tuple[Any, dict[str, Any]]:
    plan = plan_of("QLORA", "LoRa")
    base = METHODS.prepare_model(plan, load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu"))
    model = attach_adapter(base, plan.adapter, seed=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02)
    return model.eval(), record_of(plan, tiny_model, "adapter")


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ROWS).logits.float()


def test_a_dense_model_loads_plainly_with_the_same_logits(dense: Any, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, record = dense
    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record, max_shard_size="1MB")
    verify_manifest(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "quantization_metadata.json",
        "quantkit_manifest.json",
        "tokenizer.json",
    }
    assert json.loads((tmp_path / "out" / "quantization_metadata.json").read_text()) == saved
    assert saved["verification"]["read_back"] == "float32"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(again), logits_of(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("method", "options"), [("QLORA", {}), ("BNB4BIT", {"quant_type": "fp4"}), ("INT8", {})])
def test_a_bitsandbytes_model_is_saved_quantized_and_loads_plainly(
    tiny_model: Path, tokenizer: Any, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    plan = plan_of(method, "LoRa", **options)
    model = load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu")
    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record_of(plan, tiny_model))
    assert plan.spec.weights_dtype in saved["verification"]["read_back"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for module in again.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it rounds the scales; measured here as 0.006 on the logits
    assert torch.allclose(logits_of(again), logits_of(model), atol=1e-4)


def test_an_adapter_keeps_its_base_as_given_and_loads_with_peft(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    model, record = adapter
    before = logits_of(model)
    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == record["base"]["name_or_path"]
    assert not list((tmp_path / "out").glob("model*.safetensors"))
    assert saved["verification"]["tensors"] == 2 * 2 * 4
    plan = QuantizationPlan.from_dict(record["recipe"])
    base = load_base(record["base"]["name_or_path"], plan=plan, methods=METHODS, device="cpu")
    assert torch.equal(logits_of(PeftModel.from_pretrained(base, tmp_path / "out")), before)


def test_the_callers_check_sees_the_folder_and_stands_in_record_and_card(dense: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = dense

    def verify(folder: Path) -> dict[str, Any]:
        assert folder.name.startswith(".writing-")
        assert (folder / "config.json").is_file()
        return {"reload": {"max_abs_logit_difference": 0.0}}

    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record, verify=verify)
    assert saved["verification"]["reload"] == {"max_abs_logit_difference": 0.0}
    assert "reload.max_abs_logit_difference | 0" in (tmp_path / "out" / "README.md").read_text()


def test_dense_weights_are_stored_in_the_type_asked_for(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    plan = plan_of("NoQuant")
    model = load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu")
    spec = QuantizationSpec.dense("bfloat16")
    record = record_of(plan, tiny_model, spec=spec)
    with pytest.raises(VerificationError, match="weights_dtype is 'float32', not 'bfloat16'"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    store_dense_as(model, "bfloat16")
    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert saved["verification"]["read_back"] == "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_dense_in_a_4_bit_model_is_cast_and_its_codes_are_not(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    plan = plan_of("QLORA", "LoRa")
    model = load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu")
    codes = model.model.layers[0].mlp.up_proj.weight.data.clone()
    store_dense_as(model, "bfloat16")
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.data, codes)
    assert model.model.norm.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16
    record = record_of(plan, tiny_model, spec=plan.spec.with_changes(lm_head_dtype="bfloat16"))
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)


def test_a_tied_head_takes_the_embeddings_along(dense: Any) -> None:
    model = store_dense_as(dense[0], "bfloat16", lm_head_dtype="float16")
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == torch.float16
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_of_its_own_type_is_stored_and_the_model_still_loads_in_the_type_of_its_layers(
    dense: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from quantkit.headers import read_stored_weights

    model, record = dense
    store_dense_as(model, "bfloat16", lm_head_dtype="float16")
    record["quantization"] = QuantizationSpec.dense("bfloat16", lm_head_dtype="float16").to_dict()
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    stored = read_stored_weights(tmp_path / "out")
    assert (stored.weights_dtype, stored.lm_head_dtype) == ("bfloat16", "float16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def broken_nan(model: Any, _record: dict[str, Any]) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")


def broken_spec(_model: Any, record: dict[str, Any]) -> None:
    record["quantization"] = QuantizationSpec.dense("float16").to_dict()


def broken_kind(_model: Any, record: dict[str, Any]) -> None:
    record["kind"] = "adapter"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            broken_nan,
            (VerificationError, "model.layers.1.mlp.up_proj.weight holds values that are not finite; nothing was saved"),
        ),
        (broken_spec, (VerificationError, "the model in memory is not what its NoQuant spec says: weights_bits is 32, not 16")),
        (broken_kind, (UsageError, "the record says kind 'adapter', but the model carries no adapter; one folder is one kind")),
    ],
)
def test_a_model_that_is_not_what_the_record_says_is_refused(
    dense: Any, tokenizer: Any, tmp_path: Path, fault: Callable[..., None], expected: tuple[type[Exception], str]
) -> None:
    model, record = dense
    error, said = expected
    fault(model, record)
    with pytest.raises(error) as caught:
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert str(caught.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_was_never_trained_is_refused(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = adapter
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
    with pytest.raises(VerificationError, match="adapter to be saved: all B matrices are zero; the adapter was never trained"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_not_saved_as_a_model(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = adapter
    with pytest.raises(UsageError, match="the record says kind 'model', but the model carries an adapter"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record | {"kind": "model"})


@pytest.mark.parametrize(
    "fault",
    [
        ("tensor", "adapter as written: .* differs from the one in memory"),
        ("name", "adapter as written: the adapter's tensors do not fit its configuration and base: 1 missing"),
        ("base", "adapter as written: base_model_name_or_path is 'elsewhere', the record says"),
        ("pickle", r"extra\.bin is a pickle, which can run code when read; artifacts hold safetensors only"),
    ],
)
def test_what_was_written_is_read_back(
    adapter: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str]
) -> None:
    from safetensors.torch import load_file, save_file

    (damage, said), (model, record) = fault, adapter
    save = model.save_pretrained

    def damaged(folder: Path, **options: Any) -> None:
        save(folder, **options)
        tensors = load_file(folder / "adapter_model.safetensors")
        first = next(iter(tensors))
        if damage == "tensor":
            tensors[first][0, 0] += 1
        elif damage == "name":
            tensors["other"] = tensors.pop(first)
        elif damage == "base":
            config = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
        else:
            (folder / "extra.bin").write_bytes(b"")
        save_file(tensors, folder / "adapter_model.safetensors")

    monkeypatch.setattr(model, "save_pretrained", damaged)
    with pytest.raises(VerificationError, match=said):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_reach_the_disk_otherwise_than_in_memory_are_refused(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = dense
    save = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder, **options: (model.half(), save(folder, **options)))
    with pytest.raises(VerificationError, match="the weights as written are not what the record says: weights_bits 32"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_artifact_is_not_replaced_unless_asked_for(dense: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = dense
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    before = artifact_hash(tmp_path / "out")
    with pytest.raises(UsageError, match=r"out exists; choose another output folder or pass --overwrite"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert artifact_hash(tmp_path / "out") == before
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record | {"data": {"rows": 1}}, overwrite=True)
    assert artifact_hash(tmp_path / "out") != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_space_is_known_before_writing(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(UsageError, match=r"new: the artifact needs 6\d MiB, 1.0 MiB are free; free some space or choose"):
        save_artifact(tmp_path / "new" / "out", model=dense[0], tokenizer=tokenizer, record=dense[1])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    require_space(tmp_path / "not" / "there", 1)


def test_a_disk_that_fills_up_while_writing_leaves_the_old_artifact_and_nothing_else(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = dense
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    before = artifact_hash(tmp_path / "out")

    def full(folder: Path, **_options: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(QuantkitError, match="out: could not be written: No space left on device; nothing was left behind"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert artifact_hash(tmp_path / "out") == before


def test_sampling_settings_without_effect_do_not_keep_a_model_from_being_saved(
    dense: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, record = dense
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    saved = save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert saved["verification"]["generation_config_without_effect"] == ["temperature", "top_p"]
    assert "temperature" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())


def test_a_generation_config_that_cannot_be_saved_is_known_before_writing(dense: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = dense
    model.generation_config.num_return_sequences = 4
    with pytest.raises(UsageError, match="the model's generation_config cannot be saved: "):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from tests.test_saving import METHODS, load_base, load_tokenizer, plan_of, record_of, save_artifact
base, target = Path(sys.argv[1]), Path(sys.argv[2])
plan = plan_of("NoQuant")
model = load_base(str(base), plan=plan, methods=METHODS, device="cpu")
save_artifact(target, model=model, tokenizer=load_tokenizer(str(base)), record=record_of(plan, base),
              verify=lambda folder: os.kill(os.getpid(), 9))
"""


def test_a_killed_run_leaves_no_artifact_and_its_leftovers_are_cleared_later(
    tiny_model: Path, dense: Any, tokenizer: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    root = Path(__file__).parent.parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_model), str(target)], cwd=root, capture_output=True, check=False
    )
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-")
    assert (left / "model.safetensors").is_file()
    assert remove_leftovers(tmp_path) == []
    two_days_ago = time.time() - 2 * 86_400
    for path in (*left.iterdir(), left):
        os.utime(path, (two_days_ago, two_days_ago))
    save_artifact(target, model=dense[0], tokenizer=tokenizer, record=dense[1])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_artifact_moved_aside_by_a_killed_run_is_put_back(tmp_path: Path) -> None:
    aside = tmp_path / ".replaced-x" / "artifact"
    aside.mkdir(parents=True)
    assert remove_leftovers(tmp_path, older_than_s=-1) == ["put artifact back"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    (tmp_path / ".replaced-y" / "artifact").mkdir(parents=True)
    assert remove_leftovers(tmp_path, older_than_s=-1) == []
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
