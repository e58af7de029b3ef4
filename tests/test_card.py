"""The model card: true for each kind of artifact, no local paths, loading code that runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, QuantizationSpec
from quantkit.card import base_model_relation, caveats, front_matter, is_hub_id, render_card
from quantkit.card_load import loading_section
from quantkit.methods import installed_methods
from quantkit.saving import save_artifact

METHODS = installed_methods()
HUB = {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac"}
TRAINED = {
    "settings": {"learning_rate": 2e-4, "max_steps": -1, "num_train_epochs": 1.0, "seed": 42, "output_dir": "/home/me/x"},
    "result": {"steps": 50, "final_loss": 0.123456789, "tokens": 51200, "duration_s": 190.5, "interrupted": False},
}
DATA = {
    "name": "openmath",
    "report": {
        "source": "nvidia/OpenMathInstruct-2@train",
        "kind": "question/answer",
        "rows_used": 400,
        "dropped": {"no answer": 2},
        "truncated": 3,
        "duplicates": 0,
        "conversions": ["expected_answer: 400 numbers to text"],
        "overlap": 2,
        "evaluation": {"source": "/home/me/data/test.parquet", "rows_used": 60},
    },
}
STAGE = {
    "stage": "train",
    "duration_s": 190.5,
    "peak_rss_bytes": 3 << 30,
    "peak_allocated_bytes": {},
    "peak_reserved_bytes": {},
    "rss_sampled": False,
    "inside": None,
}


def record_of(method: str = "QLORA", kind: Any = "LoRa", **changes: Any) -> dict[str, Any]:
    adapter = AdapterPlan(kind=kind, r=4, lora_alpha=8)
    plan = METHODS.plan(method, {}, PlanContext(adapter=adapter, compute_dtype="float32", dense_dtype="bfloat16"))
    record = {
        "schema_version": 1,
        "quantkit_version": "0.1.0",
        "name": "SmolLM2-135M-Instruct-openmath_SFT_LoRa4_QLORA_w4_headbf16_mergedbf16",
        "kind": "model",
        "created_at": "2026-01-01T00:00:00+00:00",
        "quantization": QuantizationSpec.dense("bfloat16").to_dict(),
        "recipe": plan.to_dict(),
        "adapter": None if kind == "NoPeft" else plan.adapter.to_dict(),
        "merge": {"policy": "dequantized", "dtype": "bfloat16"},
        "base": {**HUB, "fingerprint": "sha256:abc"},
        "parents": [],
        "training": TRAINED,
        "data": DATA,
        "memory": {"stages": [STAGE]},
        "environment": {"torch": "2.13.0", "transformers": "5.23.0"},
        "verification": {"tensors": 272, "merge_stored": {"mean_kl": 0.000312345678}},
    }
    return record | changes


def adapter_record(method: str = "QLORA", **changes: Any) -> dict[str, Any]:
    record = record_of(method)
    return record | {"kind": "adapter", "merge": None, "quantization": record["recipe"]["spec"]} | changes


def head_of(record: dict[str, Any]) -> dict[str, Any]:
    head = yaml.safe_load(render_card(record).split("---\n")[1])
    assert isinstance(head, dict)
    return head


def test_the_head_of_a_merged_model() -> None:
    assert head_of(record_of()) == {
        "library_name": "transformers",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "pipeline_tag": "text-generation",
        "tags": ["quantkit", "qlora", "lora"],
        "datasets": ["nvidia/OpenMathInstruct-2"],
    }


def test_the_head_of_an_adapter() -> None:
    head = head_of(adapter_record())
    assert (head["library_name"], head["base_model_relation"]) == ("peft", "adapter")
    assert head["tags"] == ["quantkit", "qlora", "lora", "4-bit"]


@pytest.mark.parametrize("path", ["/home/me/models/SmolLM2", "demo/model/SmolLM2", "models/SmolLM2", "SmolLM2"])
def test_a_local_base_is_never_named_as_a_hub_id_and_its_path_stays_private(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not path.startswith("/"):
        (tmp_path / path).mkdir(parents=True)
    record = record_of(base={"name_or_path": path, "revision": None, "fingerprint": "sha256:abc"})
    text = render_card(record)
    assert not is_hub_id(record["base"])
    assert "base_model" not in head_of(record)
    assert "/home/me" not in text
    assert "demo/model" not in text
    assert "The base was read from a local folder, so its name alone does not identify it." in text
    assert "`sha256:abc`" in text


def test_a_hub_id_without_its_commit_is_named_and_the_lack_is_told() -> None:
    record = record_of(base={"name_or_path": "org/Model", "revision": None, "fingerprint": None})
    assert head_of(record)["base_model"] == "org/Model"
    assert "The commit of the base was not recorded; the hub's main branch may have moved on." in render_card(record)


def test_local_data_is_named_by_its_file_only() -> None:
    record = record_of(data={"report": {"source": "/home/me/data/train.jsonl", "rows_used": 400}})
    assert "datasets" not in head_of(record)
    assert "| source | train.jsonl |" in render_card(record)


@pytest.mark.parametrize(
    ("changes", "relation"),
    [
        ({}, "finetune"),
        ({"kind": "adapter"}, "adapter"),
        ({"training": {}, "merge": None}, None),
        ({"training": {}, "merge": None, "quantization": record_of()["recipe"]["spec"]}, "quantized"),
    ],
)
def test_the_relation_to_the_base_is_what_was_done(changes: dict[str, Any], relation: str | None) -> None:
    record = record_of() | changes
    assert base_model_relation(record) == relation
    assert ("base_model_relation" in front_matter(record)) == (relation is not None)


def test_a_merge_into_16_bit_says_that_it_is_not_4_bit() -> None:
    text = render_card(record_of())
    assert "**The stored weights are bfloat16, not 4 bit**: 4 bit is how the base was held while training." in text
    assert "| weights_bits | 16 |" in text
    assert "trained on its weights in 4-bit nf4 with double quantization" not in text


def test_each_kind_of_artifact_is_told_in_its_own_words() -> None:
    quantized = record_of()["recipe"]["spec"]
    assert "A LoRa4 adapter for `HuggingFaceTB/SmolLM2-135M-Instruct`" in render_card(adapter_record())
    full = render_card(record_of("NoQuant", "NoPeft", merge=None))
    assert "all weights fine-tuned, stored as bfloat16." in full
    assert "| trained | all weights |" in full
    snapshot = render_card(record_of("NoQuant", "NoPeft", merge=None, training={}, data={}, verification={}))
    assert "A snapshot of `HuggingFaceTB/SmolLM2-135M-Instruct`, not trained, stored as bfloat16." in snapshot
    assert "## How they were trained" not in snapshot
    stored = render_card(record_of(kind="NoPeft", method="NoQuant", merge=None, training={}, data={}, quantization=quantized))
    assert "quantized to 4-bit nf4 with double quantization" in stored


def test_settings_outcome_data_memory_and_checks_stand_in_tables() -> None:
    text = render_card(record_of())
    for line in (
        "| learning_rate | 0.0002 |",
        "| steps | 50 |",
        "| final_loss | 0.123457 |",
        "| tokens | 51,200 |",
        "| target_modules | all-linear |",
        "| rows_used | 400 |",
        "| dropped no answer | 2 |",
        "| evaluation source | test.parquet |",
        "| train | 3 min 10 s | 3.00 GiB |",
        "| merge_stored.mean_kl | 0.000312346 |",
        "torch 2.13.0, transformers 5.23.0.",
    ):
        assert line in text, line
    assert "max_steps" not in text
    assert "/home/me" not in text


def test_gpu_peaks_have_columns_of_their_own() -> None:
    stage = STAGE | {"peak_allocated_bytes": {"cuda:0": 7 << 30}, "peak_reserved_bytes": {"cuda:0": 11 << 30}}
    text = render_card(record_of(memory={"stages": [STAGE, stage]}))
    assert "| stage | time | cuda:0 allocated | cuda:0 reserved | process resident |" in text
    assert "| train | 3 min 10 s | 7.00 GiB | 11.00 GiB | 3.00 GiB |" in text
    assert "| train | 3 min 10 s | – | – | 3.00 GiB |" in text


def test_limits_name_what_a_user_might_not_expect() -> None:
    said = "\n".join(caveats(record_of(training=TRAINED | {"result": {"interrupted": True}})))
    assert "3 training rows were cut" in said
    assert "2 evaluation questions also stand in the training set" in said
    assert "Training was interrupted before its last step." in said
    change = {"field": "dataset_name", "was": "/home/me/a.jsonl", "is": "/home/me/b.jsonl", "from_step": 4}
    changed = "\n".join(caveats(record_of(training=TRAINED | {"result": {"accepted_changes": [change]}})))
    assert "differences that were accepted: dataset_name (from step 4 on)." in changed
    assert "/home/me" not in changed
    assert "dense weights cannot repeat that" in "\n".join(caveats(record_of("INT8")))
    assert "On the unquantized base the adapter computes something else" in "\n".join(caveats(adapter_record()))
    forced = record_of(kind="DoRa")
    assert forced["recipe"]["notes"][0] in render_card(forced)


def test_values_cannot_break_the_table_or_become_html() -> None:
    record = record_of(data={"report": {"source": "a|b\n<script>.jsonl", "rows_used": 1}})
    assert "| source | a\\|b &lt;script>.jsonl |" in render_card(record)


def test_an_adapter_on_a_format_plain_libraries_cannot_make_points_to_quantkit() -> None:
    record = adapter_record()
    record["recipe"]["spec"] |= {"format": "hqq", "weights_dtype": "int4", "double_quant": False}
    text = loading_section(record, "base")
    assert "quantkit evaluate path/to/SmolLM2" in text
    assert "```python" not in text


def run_python_of(folder: Path, base: Path | None = None) -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace(f"path/to/{folder.name}", str(folder))
    if base:
        code = code.replace(f"path/to/{base.name}", str(base))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["tokenizer"].chat_template
    return scope["model"]


@pytest.mark.parametrize("method", ["QLORA", "INT8", "NoQuant"])
def test_the_loading_code_of_an_adapters_card_runs_and_gives_the_same_logits(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    from quantkit.modeling import attach_adapter, load_base, load_tokenizer

    record = adapter_record(method, base={"name_or_path": str(tiny_model), "revision": None, "fingerprint": None})
    plan = QuantizationPlan.from_dict(record["recipe"])
    base = METHODS.prepare_model(plan, load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu"))
    model = attach_adapter(base, plan.adapter, seed=0).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02)
    folder = tmp_path / record["name"]
    save_artifact(folder, model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record)
    again = run_python_of(folder, tiny_model)
    for module in again.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    rows = torch.tensor([[1, 75, 80, 85, 90, 2]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=rows).logits, again(input_ids=rows).logits, atol=1e-4)


def test_the_loading_code_of_a_models_card_runs(tiny_model: Path, tmp_path: Path) -> None:
    from quantkit.modeling import load_base, load_tokenizer

    record = record_of("NoQuant", "NoPeft", merge=None, quantization=QuantizationSpec.dense("float32").to_dict())
    model = load_base(str(tiny_model), plan=QuantizationPlan.from_dict(record["recipe"]), methods=METHODS, device="cpu")
    folder = tmp_path / record["name"]
    save_artifact(folder, model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record)
    assert run_python_of(folder).num_parameters() == model.num_parameters()
