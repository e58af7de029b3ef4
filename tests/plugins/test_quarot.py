"""QuaRot's solver: rotations are orthogonal, cost nothing before rounding, and models they do not fit are refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage, UsageError
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.methods import installed_methods
from quantkit.numerics.hadamard import rotation
from quantkit_plugins.quarot import QuarotOptions
from quantkit_plugins.quarot.solver import rotate_model

IDS = torch.arange(3, 51).reshape(2, 24)
ODD = {
    "vocab_size": 64,
    "hidden_size": 88,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""Heads of 22, for which no Hadamard matrix exists; two query heads share a value head."""


def odd_model(family: str, **changes: object):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(ODD | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def turns(width: int = 88, head: int = 22):
    return rotation(width, seed=0), rotation(head, seed=1)


@pytest.mark.parametrize("size", [22, 32, 88, 100, 128, 576])
def test_rotations_are_orthogonal(size):
    matrix = rotation(size, seed=3)
    assert float((matrix @ matrix.T - torch.eye(size)).abs().max()) < 1e-6


@torch.no_grad()
def test_a_trained_model_computes_the_same_after_rotation(tiny_model, tmp_path):
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    before, weight = model(IDS).logits, model.model.layers[0].mlp.up_proj.weight.clone()
    assert rotate_model(model, *turns(128, 32))  # untied
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight, weight, atol=0.01)
    assert torch.equal(model.model.layers[0].input_layernorm.weight, torch.ones(128))
    after = model(IDS).logits
    assert float((after - before).abs().max()) <= 1e-4
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, after)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 22}),
        ("Gemma", {"head_dim": 22}),
        ("Granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.3}),
    ],
)
def test_odd_sizes_grouped_queries_biases_and_other_norms_lose_nothing(family, changes):
    model = odd_model(family, **changes)
    before = model(IDS).logits
    rotate_model(model, *turns())
    assert float((model(IDS).logits - before).abs().max()) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_each_rotation_can_stand_alone(which):
    model = odd_model("Llama", tie_word_embeddings=True)
    before = model(IDS).logits
    assert rotate_model(model, *(matrix if index == which else None for index, matrix in enumerate(turns()))) is (which == 0)
    assert float((model(IDS).logits - before).abs().max()) <= 1e-4
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is (which == 1)


@torch.no_grad()
def test_outliers_of_the_residual_stream_are_spread_over_all_channels():
    model = odd_model("Llama")
    model.model.embed_tokens.weight[:, 5] *= 50

    def largest_share() -> float:
        hidden = model(IDS, output_hidden_states=True).hidden_states[0]
        return float((hidden.abs().amax(-1) / hidden.norm(dim=-1)).mean())

    before = largest_share()
    rotate_model(model, *turns())
    assert before > 0.9
    assert largest_share() < 0.4


def test_models_whose_norms_do_not_commute_with_rotations_are_refused():
    residual, values = turns()
    with pytest.raises(UsageError, match="R1 needs RMSNorm before each part of a block and none behind it"):
        rotate_model(odd_model("Gemma2", head_dim=22), residual, values)
    with pytest.raises(UsageError, match=r"k_proj neither reads a norm nor writes to the residual stream"):
        rotate_model(odd_model("Olmo2"), residual, None)
    with pytest.raises(UsageError, match="input_layernorm has a bias; a norm that shifts its output"):
        rotate_model(odd_model("GPTNeoX"), residual, None)
    with pytest.raises(UsageError, match="the output head of OPTForCausalLM reads no norm"):
        rotate_model(odd_model("OPT", word_embed_proj_dim=88, do_layer_norm_before=False), residual, None)
    with pytest.raises(UsageError, match=r"no value projection whose heads of 22 could be rotated was found; switch R2 off"):
        rotate_model(odd_model("GPTNeoX"), None, values)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match="group_size is 0; it must be a number of columns"):
        QuarotOptions(group_size=0)
    with pytest.raises(UsageError, match="damp_percent is 2; it must be between 0 and 1"):
        QuarotOptions(damp_percent=2)
    with pytest.raises(UsageError, match="rounding rtn uses no Hessian"):
        QuarotOptions(rounding="rtn", damp_percent=0.1)
    with pytest.raises(UsageError, match="equal_tokens is off, but rounding rtn counts no tokens"):
        QuarotOptions(rounding="rtn", equal_tokens=False)
    with pytest.raises(UsageError, match="activations_bits is 8 and symmetric false; transformers loads weights with zero"):
        QuarotOptions(activations_bits=8, symmetric=False)
    with pytest.raises(UsageError, match="r1 and r2 are both off"):
        QuarotOptions(r1=False, r2=False)


def test_error_feedback_leaves_less_error_than_rounding_after_the_same_rotation(tiny_model):
    hf_logging.disable_progress_bar()
    methods = installed_methods()
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    rows = torch.randint(3, 500, (16, 24), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tuple(tuple(row.tolist()) for row in rows), "test")
    before = AutoModelForCausalLM.from_pretrained(tiny_model)(rows).logits.float()
    errors = {}
    for rounding in ("rtn", "gptq"):
        plan = methods.plan("QuaRot", {"weights_bits": 3, "group_size": 32, "rounding": rounding}, context)
        assert methods.wants_calibration(plan) is (rounding == "gptq")
        model = methods.quantize_model(plan, AutoModelForCausalLM.from_pretrained(tiny_model), calibration, QuantizationWork())
        errors[rounding] = float((model(rows).logits.float() - before).norm().detach())
    assert errors["gptq"] < 0.9 * errors["rtn"]


def test_untying_is_said_before_the_run_and_tags_tell_variants_apart():
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"), model_config={"tie_word_embeddings": True})
    methods = installed_methods()
    assert "they are untied" in methods.plan("QuaRot", {}, context).notes[0]
    only = methods.plan("QuaRot", {"r1": False, "symmetric": False}, context)
    assert (only.notes, only.spec.tags) == ((), ("asym", "r2"))


def test_a_layout_that_vllm_reads_without_rounding_activations_is_named():
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    methods = installed_methods()
    (note,) = methods.plan("QuaRot", {"activations_bits": 8}, context).notes
    assert "it runs this checkpoint with 16-bit activations" in note
    assert not methods.plan("QuaRot", {"activations_bits": 8, "weights_bits": 8, "group_size": -1}, context).notes
