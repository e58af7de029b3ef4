"""A base that is stored quantized: is the merge the one in memory, whatever the format, and what cannot be decoded refused?"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit import AdapterPlan
from quantkit.adapters import attach_adapter
from quantkit.backends.awq_format import store_awq
from quantkit.backends.compressed_tensors import compress_model
from quantkit.backends.gptq_format import store_gptq
from quantkit.backends.unpacked import unpack_model
from quantkit.errors import UsageError, VerificationError
from quantkit.headers import read_stored_weights
from quantkit.layers import linear_layers
from quantkit.merging import merge_streaming
from quantkit.methods import installed_methods
from quantkit.modeling import load_base
from quantkit.numerics.grids import UniformGrid, quantize
from tests.bench import plan_for
from tests.merging.folders import differing, in_memory, model_folder, read_tensors, saved_adapter


def stored(folder, family="llama", **how):
    """Save a small model quantized in some format; return its folder."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = model_folder(folder.parent / "source", family=family)
    if "bnb" in how:
        config = BitsAndBytesConfig(**how["bnb"])
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=config).save_pretrained(folder)
        return folder
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    layers = {name: quantize(layer.weight.data, how["grid"]) for name, layer in linear_layers(model).items()}
    how["store"](model, layers).save_pretrained(folder)
    return folder


FORMATS = {
    "nf4": {"bnb": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}},
    "fp4": {"bnb": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}},
    "int8": {"bnb": {"load_in_8bit": True}},
    "packed": {"grid": UniformGrid(4, 64, True, torch.bfloat16), "store": compress_model},
    "packed, zero points": {"grid": UniformGrid(3, 32, False, torch.bfloat16), "store": compress_model},
    "w8a8": {
        "grid": UniformGrid(8, -1, True, torch.bfloat16),
        "store": lambda model, layers: compress_model(model, layers, activations_bits=8),
    },
    "gptq": {"grid": UniformGrid(4, 64, True, torch.bfloat16), "store": store_gptq},
    "gptq_v2": {"grid": UniformGrid(4, 32, False, torch.bfloat16), "store": store_gptq},
    "awq": {"grid": UniformGrid(4, 64, False, torch.bfloat16), "store": store_awq},
}


def adapted(base, folder, dtype="bfloat16"):
    """Put an adapter on a stored base, as a run does; return the `PeftModel` and the recipe that names the computing type."""
    plan = plan_for("NoQuant", dtype=dtype)
    spec = read_stored_weights(base).to_spec("any").with_changes(lm_head_dtype=dtype)
    model = unpack_model(load_base(str(base), plan=plan.with_changes(spec=spec), methods=installed_methods(), device="cpu"))
    model = attach_adapter(model, AdapterPlan(r=4, lora_alpha=8), seed=0)
    for name, item in model.named_parameters():
        if ".lora_B." in name:
            item.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder, save_embedding_layers=False)
    return model, plan


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", FORMATS)
def test_the_merge_is_bit_equal_to_the_one_in_memory(tmp_path, form, dtype):
    base = stored(tmp_path / "base", **FORMATS[form])
    model, plan = adapted(base, tmp_path / "adapter", dtype)
    merge_streaming(
        base, tmp_path / "adapter", tmp_path / "out", fingerprint=None, recipe=plan, dtype="float32", progress=False
    )
    assert differing(read_tensors(tmp_path / "out"), in_memory(model)) == []
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_stored_quantized_gpt2_becomes_a_plain_one(tmp_path):
    base = stored(tmp_path / "base", family="gpt2", **FORMATS["nf4"])
    model, plan = adapted(base, tmp_path / "adapter")
    merge_streaming(
        base, tmp_path / "adapter", tmp_path / "out", fingerprint=None, recipe=plan, dtype="float32", progress=False
    )
    assert differing(read_tensors(tmp_path / "out"), in_memory(model)) == []


def test_blockwise_float8_is_decoded(tmp_path):
    base = model_folder(tmp_path / "base")
    _adapter(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    weight = tensors[f"{name}.weight"].float()
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.25]])
    codes = (weight * 8).to(torch.float8_e4m3fn)
    save_file(tensors | {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}, base / "model.safetensors")
    _quantized_config(base, {"quant_method": "fp8", "weight_block_size": [64, 64]})
    adapter, plan = tmp_path / "adapter", plan_for("NoQuant")
    from quantkit.merging.held import held_tensors
    from quantkit.merging.model_facts import read_base_folder

    held = {item.name: item for item in held_tensors(read_base_folder(base), computed_in="float32")}
    wanted = codes.float() * scale.repeat_interleave(64, 0).repeat_interleave(64, 1)
    assert torch.equal(held[f"{name}.weight"].value(), wanted)
    merge_streaming(base, adapter, tmp_path / "out", fingerprint=None, recipe=plan, dtype="float32", progress=False)
    assert f"{name}.weight_scale_inv" not in read_tensors(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"quant_method": "hqq"}, "weights stored as hqq cannot be decoded here; bitsandbytes, compressed-tensors, gptq"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "0 groups of layers, strategy None",
        ),
    ],
)
def test_formats_that_cannot_be_decoded(tmp_path, config, text):
    base = stored(tmp_path / "base", **FORMATS["packed"])
    _adapter(tmp_path / "source", tmp_path / "adapter")
    _quantized_config(base, config)
    _refused(base, tmp_path, UsageError, text)


def test_a_layer_with_a_tensor_missing(tmp_path):
    base = stored(tmp_path / "base", **FORMATS["packed"])
    _adapter(tmp_path / "source", tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_shape"]
    save_file(tensors, base / "model.safetensors")
    _refused(base, tmp_path, VerificationError, "model.layers.1.mlp.up_proj: weight_shape is missing beside weight_packed")


def test_policy_base_wants_the_original(tmp_path):
    base = stored(tmp_path / "base", **FORMATS["packed"])
    _adapter(tmp_path / "source", tmp_path / "adapter")
    text = "is stored as compressed-tensors; policy 'base' folds into the original 16-bit base"
    _refused(base, tmp_path, UsageError, text, policy="base")


def _adapter(base, folder):
    return saved_adapter(base, folder, plan_for("NoQuant"))


def _quantized_config(base, config):
    data = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(data | {"quantization_config": config}))


def _refused(base, tmp_path, kind, text, **more):
    plan = plan_for("NoQuant")
    with pytest.raises(kind, match=text):
        merge_streaming(base, tmp_path / "adapter", tmp_path / "out", fingerprint=None, recipe=plan, progress=False, **more)
    assert not (tmp_path / "out").exists()
