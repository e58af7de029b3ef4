"""Is the folded model the dense one that computes what base and adapter did, and are adapters that cannot be folded refused?"""

from dataclasses import replace

import pytest
import torch

from quantkit import AdapterPlan
from quantkit.adapters import attach_adapter
from quantkit.errors import UsageError, VerificationError
from quantkit.merging import fold_adapters
from tests.bench import difference, load, logits, plan_for, train_step
from tests.tiny import tiny_config


def fresh(**changes):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=1, **changes))


def adapted(model, **changes):
    model = attach_adapter(model, replace(AdapterPlan(r=4, lora_alpha=8, target_modules=("q_proj",)), **changes), seed=0)
    for name, item in model.named_parameters():
        if ".lora_B." in name or "lambda_b" in name:
            item.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def test_lora_is_the_base_plus_the_scaled_product():
    model = adapted(fresh())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    wanted = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(fold_adapters(model).model.layers[0].self_attn.q_proj.weight, wanted)


def test_dora_scales_each_row_to_its_magnitude():
    model = adapted(fresh(), kind="DoRa")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    direction = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    wanted = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(fold_adapters(model).model.layers[0].self_attn.q_proj.weight, wanted, atol=1e-6)


def test_vera_scales_the_shared_projections():
    model = adapted(fresh(), kind="VeRa")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    down = layer.vera_lambda_d["default"][:, None] * layer.vera_A["default"]
    wanted = layer.base_layer.weight + layer.vera_lambda_b["default"][:, None] * layer.vera_B["default"] @ down
    assert torch.allclose(fold_adapters(model).model.layers[0].self_attn.q_proj.weight, wanted)


def test_a_16_bit_base_is_folded_in_float32():
    model = adapted(fresh().bfloat16())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    base, update = layer.base_layer.weight.float(), layer.get_delta_weight("default")
    folded = fold_adapters(model).model.layers[0].self_attn.q_proj.weight
    assert folded.dtype == torch.float32
    assert torch.equal(folded, base + update)


@pytest.mark.parametrize("method", ["NoQuant", "QLORA"])
def test_the_default_compute_type_bfloat16_merges_within_its_own_rounding(method, tiny_model):
    plan = plan_for(method, dtype="bfloat16")
    model = attach_adapter(load(tiny_model, plan), plan.adapter, seed=0)
    assert train_step(model) == []
    before = logits(model)
    assert difference(logits(fold_adapters(model)), before) < 0.25


def test_a_trained_copy_of_a_tied_head_survives_saving(tmp_path):
    from transformers import AutoModelForCausalLM

    model = adapted(fresh(), modules_to_save=("lm_head",))
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    before = logits(model)
    folded = fold_adapters(model)
    assert difference(logits(folded), before) < 1e-5
    assert folded.config.tie_word_embeddings is False
    folded.save_pretrained(tmp_path)
    assert difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), before) < 1e-5


def test_an_adapter_on_a_tied_head_leaves_the_embeddings_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    base = fresh()
    embeddings = base.model.embed_tokens.weight.detach().clone()
    model = adapted(base, target_modules=("lm_head",))
    before = logits(model)
    folded = fold_adapters(model)
    assert torch.equal(folded.model.embed_tokens.weight, embeddings)
    folded.save_pretrained(tmp_path)
    assert difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), before) < 1e-4


def test_gpt2_layers_keep_their_orientation(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=512, bos_token_id=1, eos_token_id=2))
    model = adapted(model, target_modules=("all-linear",))
    before = logits(model)
    folded = fold_adapters(model)
    folded.save_pretrained(tmp_path)
    assert difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), before) < 1e-4


@pytest.mark.parametrize("method", ["INT8", "QLORA"])
def test_a_quantized_gpt2_becomes_a_plain_one(method, tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    source = tmp_path / "source"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=512, bos_token_id=1, eos_token_id=2)).save_pretrained(
        source
    )
    model = adapted(load(source, plan_for(method)), target_modules=("all-linear",))
    model.train()  # LLM.int8 multiplies with dequantized weights in training mode; GPT-2's dropout is switched off by hand
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        from tests.bench import token_batch

        before = model(input_ids=token_batch()).logits.float()
    fold_adapters(model).save_pretrained(tmp_path / "merged")
    assert difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), before) < 1e-4


def test_an_adapter_that_never_learnt_anything_is_refused():
    model = attach_adapter(fresh(), AdapterPlan(r=4), seed=0)
    with pytest.raises(VerificationError, match="changed no weight; it was never trained"):
        fold_adapters(model)


def test_an_adapter_with_nan_is_refused_by_layer():
    model = adapted(fresh())
    next(item for name, item in model.named_parameters() if "lora_B" in name).data[0, 0] = float("nan")
    with pytest.raises(VerificationError, match=r"model.layers.0.self_attn.q_proj: the folded weight is not finite"):
        fold_adapters(model)


def test_several_adapters_are_refused():
    from peft import LoraConfig

    model = adapted(fresh())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    with pytest.raises(UsageError, match="carries the adapters default, other; exactly one can be folded in"):
        fold_adapters(model)


def test_other_kinds_of_adapters_are_refused():
    from peft import LoHaConfig, get_peft_model

    model = get_peft_model(fresh(), LoHaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match="adapters of type LOHA cannot be folded in; LoRA, DoRA and VeRA can"):
        fold_adapters(model)


def test_an_adapter_on_embeddings_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(fresh(tie_word_embeddings=False), LoraConfig(r=2, target_modules=["embed_tokens"]))
    with pytest.raises(UsageError, match=r"model.embed_tokens: adapters on a Embedding cannot be folded in"):
        fold_adapters(model)


def test_an_adapter_with_a_bias_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(fresh(), LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(UsageError, match="with a bias of their own"):
        fold_adapters(model)
