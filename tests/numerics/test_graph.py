"""Where channels can be scaled without changing a block, and what scaling them does to it."""

import pytest
import torch
from torch import nn

from quantkit.numerics.capture import Block, find_blocks, record_calls
from quantkit.numerics.graph import Site, fold, fold_sites

SIZES = {
    "vocab_size": 64,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
Q, K, V, OUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def model_of(family: str, **changes: object) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def block_of(model: nn.Module, index: int = 1, ignore: tuple[str, ...] = ()) -> Block:
    name, modules = find_blocks(model)
    calls = record_calls(model, list(modules), [{"input_ids": torch.arange(3, 51).reshape(2, 24)}])
    block = Block(f"{name}.{index}", index, modules[index], calls, ignore=ignore, device="cpu")
    block.hidden = calls.hidden
    return block


def short(block: Block, sites: list[Site]) -> list[tuple[str, str, tuple[str, ...], float]]:
    cut = len(block.name) + 1
    return [(site.kind, site.producer[cut:], tuple(name[cut:] for name in site.consumers), site.offset) for site in sites]


@pytest.mark.parametrize(("family", "offset"), [("Llama", 0.0), ("Qwen2", 0.0), ("Gemma", 1.0)])
def test_norms_values_and_products_are_found_without_knowing_the_family(family, offset):
    block = block_of(model_of(family, **({"head_dim": 12} if family == "Gemma" else {})))
    assert short(block, fold_sites(block)) == [
        ("norm", "input_layernorm", (Q, K, V), offset),
        ("linear", V, (OUT,), 0.0),
        ("norm", "post_attention_layernorm", (GATE, UP), offset),
        ("linear", UP, (DOWN,), 0.0),
    ]


def test_grouped_queries_repeat_the_channels_of_a_value_head():
    block = block_of(model_of("Llama"))
    channels = next(site.channels for site in fold_sites(block) if site.producer.endswith(V))
    heads = torch.arange(24).reshape(2, 12)
    assert torch.equal(channels, heads.repeat_interleave(3, 0).flatten())


def test_norms_that_write_to_the_residual_stream_have_no_consumers():
    block = block_of(model_of("Olmo2"))
    assert {site.kind for site in fold_sites(block)} == {"linear"}


def test_a_norm_that_something_else_reads_is_left_alone():
    block = block_of(model_of("Llama"))
    block.module.mlp.register_forward_hook(lambda _, args, output: output + args[0])
    assert [site.producer.rsplit(".", 1)[1] for site in fold_sites(block)] == ["input_layernorm", "v_proj", "up_proj"]


def test_layers_on_the_ignore_list_are_still_consumers():
    block = block_of(model_of("Llama"), ignore=("k_proj",))
    assert len(fold_sites(block)[0].consumers) == 3


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma"])
def test_folding_factors_in_changes_nothing_that_the_block_computes(family):
    model = model_of(family, **({"head_dim": 12} if family == "Gemma" else {}))
    block = block_of(model)
    before = block.outputs(block.hidden)[0]
    sites = fold_sites(block)
    assert torch.equal(block.outputs(block.hidden)[0], before)  # looking leaves no trace
    for site in sites:
        count = model.get_submodule(site.producer).weight.shape[0]
        wanted = torch.rand(count) * 3 + 0.2
        assert torch.allclose(fold(model, site, wanted), wanted, rtol=1e-4)
    after = block.outputs(block.hidden)[0]
    assert float((after - before).norm() / before.norm()) < 1e-5


def test_what_rounding_a_norm_adds_is_taken_out_of_the_columns():
    model = model_of("Llama").bfloat16()
    block = block_of(model)
    site = fold_sites(block)[0]
    norm, layer = model.get_submodule(site.producer), model.get_submodule(site.consumers[0])
    weight, columns = norm.weight.detach().float(), layer.weight.detach().float()
    applied = fold(model, site, torch.rand(72) + 0.5)
    assert torch.allclose(norm.weight.float() * applied, weight, rtol=1e-6)
    assert torch.equal(layer.weight, (columns * applied).bfloat16())


def test_a_channel_that_the_norm_switches_off_is_not_scaled():
    model = model_of("Llama")
    block = block_of(model)
    model.get_submodule("model.layers.1.input_layernorm").weight.data[3] = 0
    site = fold_sites(block)[0]
    assert float(fold(model, site, torch.full((72,), 2.0))[3]) == 1
