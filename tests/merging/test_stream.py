"""Is the streaming merge the merge in memory, bit for bit, for every base and every kind of adapter?"""

import json

import pytest
import torch

from quantkit.merging import merge_streaming
from tests.bench import difference, logits, plan_for
from tests.merging.folders import differing, in_memory, model_folder, read_tensors, saved_adapter, simple, streamed

RECIPES = {
    "dense": ("NoQuant", {}),
    "bf16": ("NoQuant", {"dtype": "bfloat16"}),
    "nf4": ("BNB4BIT", {}),
    "nf4-dq-bf16": ("BNB4BIT", {"double_quant": True, "dtype": "bfloat16"}),
    "fp4": ("BNB4BIT", {"quant_type": "fp4"}),
    "int8": ("INT8", {}),
}


@pytest.mark.parametrize("kind", ["LoRa", "RsLoRa", "DoRa", "VeRa"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_in_float32_it_is_bit_equal_to_the_merge_in_memory(tmp_path, recipe, kind):
    method, options = RECIPES[recipe]
    plan = plan_for(method, kind, **options)
    base = model_folder(tmp_path / "base")
    adapter, model = saved_adapter(base, tmp_path / "adapter", plan)
    found = streamed(base, adapter, tmp_path / "out", plan)
    assert differing(found, in_memory(model)) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bit_it_is_that_merge_rounded(tmp_path, dtype):
    base = model_folder(tmp_path / "base")
    plan = plan_for("QLORA")
    adapter, model = saved_adapter(base, tmp_path / "adapter", plan)
    found = streamed(base, adapter, tmp_path / "out", plan, dtype=dtype)
    wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in in_memory(model).items()}
    assert differing(found, wanted) == []


@pytest.mark.parametrize("method", ["NoQuant", "QLORA", "INT8"])
@pytest.mark.parametrize("kind", ["LoRa", "DoRa"])
def test_gpt2_keeps_its_transposed_layers(tmp_path, method, kind):
    base = model_folder(tmp_path / "base", family="gpt2")
    plan = plan_for("BNB4BIT" if (method, kind) == ("QLORA", "DoRa") else method, kind)
    adapter, model = saved_adapter(base, tmp_path / "adapter", plan)
    found = streamed(base, adapter, tmp_path / "out", plan)
    assert differing(found, in_memory(model)) == []


def test_vera_without_stored_projections_draws_them_as_peft_does(tmp_path):
    from peft import VeraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = model_folder(tmp_path / "base")
    config = VeraConfig(r=8, target_modules=["q_proj", "down_proj"], save_projection=False, projection_prng_key=7)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, item in model.named_parameters():
        if "lambda_b" in name:
            item.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    found = streamed(base, tmp_path / "adapter", tmp_path / "out", plan_for("NoQuant"))
    assert differing(found, in_memory(model)) == []


def test_ranks_and_alphas_by_pattern(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = model_folder(tmp_path / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*\.(q|v|up)_proj",
        rank_pattern={"v_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
        alpha_pattern={"up_proj": 5},
        use_rslora=True,
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter")
    found = streamed(base, tmp_path / "adapter", tmp_path / "out", plan_for("NoQuant"))
    assert differing(found, in_memory(model)) == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("change", ["saved head", "saved embeddings", "saved both", "head adapted"])
def test_heads_and_embeddings_part_where_the_adapter_parts_them(tmp_path, change, tied):
    base = model_folder(tmp_path / "base", tie_word_embeddings=tied)
    adapter = {
        "saved head": {"modules_to_save": ("lm_head",)},
        "saved embeddings": {"modules_to_save": ("embed_tokens",)},
        "saved both": {"modules_to_save": ("embed_tokens", "lm_head")},
        "head adapted": {"target_modules": ("q_proj", "lm_head")},
    }[change]
    plan = plan_for("QLORA")
    folder, model = saved_adapter(base, tmp_path / "adapter", plan, **adapter)
    before = logits(model)
    found = streamed(base, folder, tmp_path / "out", plan)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in found
    from transformers import AutoModelForCausalLM

    assert difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), before) < 1e-4
    assert differing(found, in_memory(model)) == []


def test_added_tokens_resize_the_embeddings_and_stay_tied(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = model_folder(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(520, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    before = logits(model)
    found = streamed(base, tmp_path / "adapter", tmp_path / "out", plan_for("NoQuant"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.config.vocab_size == 520
    assert merged.config.tie_word_embeddings
    assert found["model.embed_tokens.weight"].shape[0] == 520
    assert difference(logits(merged), before) < 1e-5


def test_shards_are_read_and_written(tmp_path):
    base = model_folder(tmp_path / "base", max_shard_size="200KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    plan = plan_for("QLORA")
    adapter, model = saved_adapter(base, tmp_path / "adapter", plan)
    found = streamed(base, adapter, tmp_path / "out", plan, max_shard_bytes=300_000)
    written = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(written) > 2
    assert written[0] == f"model-00001-of-{len(written):05d}.safetensors"
    assert differing(found, in_memory(model)) == []
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def test_policy_base_folds_into_the_weights_as_they_are_stored(tmp_path):
    base, adapter, plan = simple(tmp_path, "QLORA")
    found = streamed(base, adapter, tmp_path / "out", plan, policy="base")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dense = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    assert differing(found, in_memory(dense)) == []


def test_the_head_may_have_a_data_type_of_its_own(tmp_path):
    base = model_folder(tmp_path / "base", tie_word_embeddings=False)
    plan = plan_for("NoQuant")
    adapter, _ = saved_adapter(base, tmp_path / "adapter", plan)
    found = streamed(base, adapter, tmp_path / "out", plan, dtype="bfloat16", lm_head_dtype="float32")
    assert {tensor.dtype for name, tensor in found.items() if name != "lm_head.weight"} == {torch.bfloat16}
    assert found["lm_head.weight"].dtype == torch.float32


def test_what_was_done_is_returned_and_finish_sees_the_folder_before_it_appears(tmp_path):
    base, adapter, plan = simple(tmp_path, "QLORA")
    seen = []

    def finish(folder, merged):
        assert not (tmp_path / "out").exists()
        seen.append(sorted(path.name for path in folder.iterdir()))

    merged = merge_streaming(
        base, adapter, tmp_path / "out", fingerprint="sha256:1", recipe=plan, progress=False, finish=finish
    )
    assert seen == [["config.json", "generation_config.json", "model.safetensors"]]
    assert (merged.policy, merged.base_format, merged.layers_changed, merged.tied) == (
        "dequantized",
        "nf4 (bitsandbytes)",
        14,
        True,
    )
    assert merged.to_dict()["computed_in"] == "float32"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(read_tensors(tmp_path / "out")) == merged.tensors
