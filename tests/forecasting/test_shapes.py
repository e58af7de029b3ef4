"""Is a model described by its configuration alone as transformers would build it?"""

import json
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from quantkit.errors import UsageError
from quantkit.forecasting import read_shape
from quantkit.forecasting.bundled import DESCRIBED
from quantkit.forecasting.families import FAMILIES, known_shape
from quantkit.forecasting.reading import shape_of

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 256,
    "pad_token_id": 0,
}


def built(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "tie_word_embeddings": True}], ids=["plain", "biased"])
def test_a_family_of_the_table_is_what_transformers_builds_name_by_name(family, changes):
    config = CONFIG_MAPPING[family](**SIZES | changes)
    assert known_shape(config.to_dict(), "x") == shape_of(built(config), "x")


def test_sizes_a_file_leaves_out_are_the_familys_own(tmp_path):
    for family in FAMILIES:
        config = CONFIG_MAPPING[family](**{key: SIZES[key] for key in SIZES if key != "num_key_value_heads"})
        said = {**{key: SIZES[key] for key in SIZES if key != "num_key_value_heads"}, "model_type": family}
        known, asked = known_shape(said, "x"), shape_of(built(config), "x")
        assert known is not None
        assert (known.linears, known.tied, known.head_dim) == (asked.linears, asked.tied, asked.head_dim)


def test_any_other_family_is_built_by_transformers(tmp_path):
    config = CONFIG_MAPPING["gpt2"](n_embd=64, n_layer=2, n_head=4, vocab_size=256)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}))
    shape = read_shape(str(tmp_path))
    assert shape.family == "gpt2"
    assert {layer.ending for layer in shape.linears} == {"c_attn", "c_proj", "c_fc"}
    assert shape.parameters == sum(item.numel() for item in built(config).parameters())


def test_a_folder_its_configuration_and_a_described_model_give_the_same(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DESCRIBED["Qwen/Qwen3-8B"]))
    shapes = [read_shape(name) for name in (str(tmp_path), str(file), "Qwen/Qwen3-8B", "qwen3-8b")]
    assert len({replace(shape, name="") for shape in shapes}) == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("huggyllama/llama-65b", 65_285_660_672),
    ],
)
def test_described_models_have_as_many_parameters_as_their_makers_say(name, parameters):
    assert read_shape(name).parameters == parameters


def test_what_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json: not a model folder"):
        read_shape(str(tmp_path))
    broken = tmp_path / "config.json"
    broken.write_text("[1]")
    with pytest.raises(UsageError, match="is list, not an object"):
        read_shape(str(broken))
    with pytest.raises(UsageError, match="no such folder"):
        read_shape("./nowhere")
    with pytest.raises(UsageError, match="neither a folder, a file nor a hub id"):
        read_shape("a b/c d")
