"""What is saved is whole, true and loads plainly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import QuantizationPlan, QuantizationSpec
from quantkit.errors import UsageError, VerificationError
from quantkit.files import verify_manifest
from quantkit.modeling import load_base
from quantkit.saving import save_artifact
from quantkit.storable import store_dense_as
from tests.saving.runs import METHODS, logits_of, plan_of, record_of


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
