"""Do target lists name the layers people mean, and does a gradient that went missing get noticed?"""

from dataclasses import replace

import pytest
import torch

from quantkit import AdapterPlan
from quantkit.adapters import (
    attach_adapter,
    check_adapter_tensors,
    recommend_rank,
    resolve_targets,
)
from quantkit.errors import UsageError, VerificationError
from tests.bench import train_step
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(tiny_config(num_hidden_layers=2, tie_word_embeddings=False))


def endings(names):
    return sorted({name.rpartition(".")[2] for name in names})


def family(name):
    """Return a model of one layer of this family."""
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if name == "GPT2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))
    if name == "Phi3":
        sizes["pad_token_id"] = 0
    if name == "Gemma":
        sizes["head_dim"] = 16
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        ("Llama", ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]),
        ("Qwen3", ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]),
        ("Mistral", ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]),
        ("Gemma", ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]),
        ("Phi3", ["o_proj", "qkv_proj"], ["down_proj", "gate_up_proj"]),
        ("GPTNeoX", ["dense", "query_key_value"], ["dense_4h_to_h", "dense_h_to_4h"]),
        ("GPT2", ["c_attn", "c_proj"], ["c_fc", "c_proj"]),
    ],
)
def test_presets_find_attention_and_mlp_in_every_family(name, attention, mlp):
    model = family(name)
    assert endings(resolve_targets(model, ("attention",))) == attention
    everything = resolve_targets(model, ("attention+mlp",))
    assert endings(everything) == sorted({*attention, *mlp})
    assert resolve_targets(model, ("all-linear",)) == everything


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        ("q_proj", 2),
        ("self_attn.q_proj", 2),
        ("model.layers.1.mlp.up_proj", 1),
        ("model.layers.*.self_attn.q_proj", 2),
        ("layers.0.mlp.*", 3),
        ("lm_head", 1),
        ("all-linear", 14),
    ],
)
def test_an_entry_is_an_ending_a_full_name_or_a_wildcard(llama, entry, count):
    assert len(resolve_targets(llama, (entry,))) == count


def test_entries_add_up_in_the_models_order(llama):
    assert resolve_targets(llama, ("layers.0.mlp.up_proj", "layers.0.self_attn.v_proj")) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.up_proj",
    ]


def test_one_entry_that_matches_nothing_is_an_error_among_others(llama):
    with pytest.raises(
        UsageError,
        match=r"'q_prj' matches no linear layer of this llama model. Did you mean 'q_proj'\? Layers end in down_proj",
    ):
        resolve_targets(llama, ("v_proj", "q_prj"))


def test_an_embedding_is_no_linear_layer(llama):
    with pytest.raises(UsageError, match="'embed_tokens' matches no linear layer"):
        resolve_targets(llama, ("embed_tokens",))


def test_an_empty_list_of_targets_is_an_error(llama):
    with pytest.raises(UsageError, match="target_modules is empty"):
        resolve_targets(llama, ())


def fresh():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=1)).bfloat16()


def trainable(model):
    return {name: item.detach().clone() for name, item in model.named_parameters() if item.requires_grad}


@pytest.mark.parametrize("kind", ["LoRa", "DoRa", "VeRa"])
def test_the_same_seed_gives_the_same_float32_adapters_and_leaves_the_global_generator_alone(kind):
    adapter = AdapterPlan(kind=kind, r=4)
    base = fresh()
    state = torch.get_rng_state()
    one = attach_adapter(base, adapter, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    other = attach_adapter(fresh(), adapter, seed=5)
    assert {item.dtype for item in trainable(one).values()} == {torch.float32}
    assert all(torch.equal(value, trainable(other)[name]) for name, value in trainable(one).items())


def test_another_seed_gives_other_adapters():
    one, other = (trainable(attach_adapter(fresh(), AdapterPlan(r=4), seed=seed)) for seed in (1, 2))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_rank_stabilized_adapters_scale_by_alpha_over_the_root_of_r():
    adapter = AdapterPlan(r=16, lora_alpha=8, use_rslora=True, target_modules=("q_proj",))
    layer = attach_adapter(fresh(), adapter, seed=0).base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2.0


def test_vera_saves_its_projections():
    from peft import get_peft_model_state_dict

    model = attach_adapter(fresh(), AdapterPlan(kind="VeRa", r=4), seed=3)
    names = set(get_peft_model_state_dict(model))
    assert {"base_model.vera_A", "base_model.vera_B"} <= names
    assert model.peft_config["default"].projection_prng_key == 3


def test_a_module_to_save_that_does_not_exist_is_an_error():
    with pytest.raises(UsageError, match=r"modules_to_save: the model has no module 'lm_heads'. Did you mean 'lm_head'\?"):
        attach_adapter(fresh(), AdapterPlan(modules_to_save=("lm_heads",)), seed=0)


def tensors():
    return {"x.lora_A.weight": torch.ones(2, 2), "x.lora_B.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda stored: stored.clear(), "holds no tensors"),
        (lambda stored: stored.pop("x.lora_A.weight"), "1 missing, e.g. x.lora_A.weight"),
        (lambda stored: stored.update(y=torch.ones(1)), "1 unknown, e.g. y"),
        (lambda stored: stored["x.lora_A.weight"].fill_(float("inf")), "x.lora_A.weight holds values that are not finite"),
        (lambda stored: stored["x.lora_B.weight"].zero_(), "all B matrices are zero"),
    ],
)
def test_a_stored_adapter_that_cannot_be_right_is_refused(change, text):
    stored = tensors()
    change(stored)
    with pytest.raises(VerificationError, match=f"here: .*{text}"):
        check_adapter_tensors(stored, set(tensors()), where="here")


def test_the_share_of_the_adapters_stays_between_one_and_four_percent():
    shapes = {  # hidden, intermediate, key/value width, layers, parameters
        "SmolLM2-135M": (576, 1536, 192, 30, 134_515_008),
        "Llama-3.2-3B": (3072, 8192, 1024, 28, 3_212_749_824),
        "Llama-2-7B": (4096, 11008, 4096, 32, 6_738_415_616),
        "Llama-2-70B": (8192, 28672, 1024, 80, 68_976_648_192),
    }
    for hidden, intermediate, key_value, layers, parameters in shapes.values():
        sides = 2 * (2 * hidden) + 2 * (hidden + key_value) + 3 * (hidden + intermediate)
        assert 0.01 < recommend_rank(parameters) * sides * layers / parameters < 0.04


def test_all_weights_are_trainable_without_an_adapter():
    model = attach_adapter(fresh().requires_grad_(False), replace(AdapterPlan(), kind="NoPeft"), seed=0)
    assert all(item.requires_grad for item in model.parameters())
    assert train_step(model, learning_rate=1e-5) == []
