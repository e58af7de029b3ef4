"""compressed-tensors checkpoints: a plain load computes what the model computed before saving."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit.backends import LayerFacts, dense_layer, layer_facts
from quantkit.backends.compressed_tensors import PackedLinear, compress_model, repack_model, round_tokens
from quantkit.errors import UsageError, VerificationError
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

pytest.importorskip("compressed_tensors")
hf_logging.disable_progress_bar()
IDS = torch.arange(3, 27).reshape(2, 12)
LAYER = "model.layers.0.mlp.up_proj"


def load(folder, dtype: torch.dtype | str = torch.bfloat16):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def rounded(model: nn.Module, grid: UniformGrid, leave_out: tuple[str, ...] = ("lm_head",)) -> dict[str, QuantizedWeight]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: quantize(item.weight.data, grid) for name, item in linears.items() if not name.endswith(leave_out)}


@pytest.mark.parametrize(
    ("grid", "activations_bits"),
    [
        (UniformGrid(4, 64, True, torch.bfloat16), None),
        (UniformGrid(4, 32, False, torch.bfloat16), None),
        (UniformGrid(4, -1, True, torch.float16), None),
        (UniformGrid(4, 64, False, torch.float32), None),
        (UniformGrid(3, 32, True, torch.bfloat16), None),
        (UniformGrid(2, 32, False, torch.bfloat16), None),
        (UniformGrid(8, -1, False, torch.bfloat16), None),
        (UniformGrid(8, -1, True, torch.bfloat16), 8),
        (UniformGrid(8, -1, True, torch.float32), 8),
        (UniformGrid(8, -1, False, torch.bfloat16), 8),
        (UniformGrid(4, 32, True, torch.bfloat16), 8),
        (UniformGrid(4, -1, True, torch.float32), 8),
        (UniformGrid(8, 64, True, torch.bfloat16), 8),
    ],
)
def test_a_plain_load_gives_the_logits_of_the_model_in_memory(tiny_model, tmp_path, capfd, grid, activations_bits):
    model = load(tiny_model, grid.scale_dtype)
    compress_model(model, rounded(model, grid), activations_bits=activations_bits)
    before = model(IDS).logits
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, "auto")
    assert loaded.dtype == grid.scale_dtype
    assert torch.equal(loaded(IDS).logits, before)


def test_a_process_without_quantkit_loads_it(tiny_model, tmp_path):
    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(4, 64, symmetric=False)))
    model.save_pretrained(tmp_path)
    script = (
        "import sys, torch, transformers; sys.modules['quantkit'] = None; transformers.utils.logging.disable_progress_bar();"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r});"
        "print(float(model(torch.arange(3, 27).reshape(2, 12)).logits.detach().double().sum()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout.splitlines()[-1]) == float(model(IDS).logits.detach().double().sum())


def test_adapters_train_on_a_plain_load(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(4, 64, symmetric=False)))
    model.save_pretrained(tmp_path)
    adapted = get_peft_model(load(tmp_path), LoraConfig(target_modules="all-linear", r=2))
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert trainable
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in trainable)


def test_the_checkpoint_is_the_standard_one(tiny_model, tmp_path):
    from safetensors import safe_open

    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(4, 64, symmetric=False), ("lm_head", "down_proj")))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert set(config["ignore"]) == {"lm_head", *(f"model.layers.{index}.mlp.down_proj" for index in range(4))}
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        shapes = {key.rsplit(".", 1)[1]: tensors.get_slice(key).get_shape() for key in tensors.keys() if key.startswith(LAYER)}  # noqa: SIM118
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118 - tied to the embeddings
    assert shapes == {"weight_packed": [256, 16], "weight_scale": [256, 2], "weight_zero_point": [32, 2], "weight_shape": [2]}


def test_packed_layers_say_what_they_are_in_memory_and_after_repacking(tiny_model, tmp_path):
    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(3, 32, symmetric=False)))
    facts = LayerFacts(3, "int3", "compressed-tensors", group_size=32, symmetric=False)
    assert layer_facts(model.get_submodule(LAYER)) == facts
    before = model(IDS).logits
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert layer_facts(loaded.get_submodule(LAYER)) == LayerFacts(16, "bfloat16")
    repack_model(loaded, tmp_path)
    assert layer_facts(loaded.get_submodule(LAYER)) == facts
    assert loaded.config.quantization_config == model.config.quantization_config
    assert torch.equal(loaded(IDS).logits, before)


def test_layers_that_transformers_loads_packed_say_what_they_are(tiny_model, tmp_path):
    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(8, -1)), activations_bits=8)
    facts = layer_facts(model.get_submodule(LAYER))
    assert facts == LayerFacts(8, "int8", "compressed-tensors", group_size=-1, symmetric=True, activations_bits=8)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert layer_facts(loaded.get_submodule(LAYER)) == facts
    loaded(IDS)  # upon which the library unpacks its layers
    assert layer_facts(loaded.get_submodule(LAYER)) == LayerFacts(16, "bfloat16", activations_bits=8)


def test_repacking_refuses_weights_that_are_not_the_checkpoints(tiny_model, tmp_path):
    model = load(tiny_model)
    compress_model(model, rounded(model, UniformGrid(4, 32)))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    loaded.get_submodule(LAYER).weight.data += 1
    with pytest.raises(VerificationError, match=rf"{LAYER} in memory is not what the folder holds"):
        repack_model(loaded, tmp_path)


def test_a_packed_layer_turns_into_a_dense_one_that_computes_the_same():
    linear = nn.Linear(64, 8).bfloat16()
    packed = PackedLinear(quantize(linear.weight.data, UniformGrid(4, 32, symmetric=False)), linear.bias)
    dense = dense_layer(packed)
    inputs = torch.randn(3, 64)
    assert dense.weight.dtype == torch.float32
    assert torch.allclose(dense(inputs).bfloat16(), packed(inputs.bfloat16()), atol=0.02)
    assert "int4 compressed-tensors group_size 32" in repr(packed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_are_rounded_as_compressed_tensors_rounds_them(dtype):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    values = torch.randn(2, 5, 32).to(dtype)
    values[0, 0] = 0
    args = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    scale, zero_point = compute_dynamic_scales_and_zp(values, args, nn.Linear(1, 1))
    assert torch.equal(round_tokens(values, 8), fake_quantize(values, scale, zero_point, args))


def test_what_the_format_cannot_hold_is_refused_by_name(tiny_model):
    model = load(tiny_model)
    layers = rounded(model, UniformGrid(4, 32))
    good = layers[LAYER]
    with pytest.raises(UsageError, match="no layer was quantized"):
        compress_model(model, {})
    with pytest.raises(UsageError, match="activations_bits is 4; inputs are rounded to 8 bits"):
        compress_model(model, layers, activations_bits=4)
    with pytest.raises(UsageError, match=r"layers\.9 is no linear layer of the model"):
        compress_model(model, {"layers.9": good})
    with pytest.raises(UsageError, match=rf"{LAYER} has the shape \(256, 128\), its codes \(2, 32\)"):
        compress_model(model, {LAYER: quantize(torch.ones(2, 32), UniformGrid(4, 32))})
    with pytest.raises(UsageError, match=rf"{LAYER} is torch.bfloat16 and its scales are torch.float16"):
        compress_model(model, {LAYER: rounded(model, UniformGrid(4, 32, scale_dtype=torch.float16))[LAYER]})
    with pytest.raises(UsageError, match="has 4-bit weights in groups of 32 with zero points; transformers loads such weights"):
        compress_model(model, rounded(model, UniformGrid(4, 32, symmetric=False)), activations_bits=8)
    with pytest.raises(UsageError, match="the layers use 2 different grids"):
        compress_model(model, layers | {LAYER: quantize(torch.ones(256, 128), UniformGrid(8, 32))})
    with pytest.raises(UsageError, match="lm_head shares its weight with the input embeddings"):
        compress_model(model, {"lm_head": quantize(model.lm_head.weight.data, UniformGrid(4, 32))})
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_schemes_that_cannot_be_put_into_words_are_errors():
    from types import SimpleNamespace

    block = SimpleNamespace(strategy="block", group_size=None, type="int", num_bits=4, symmetric=True)
    linear = nn.Linear(2, 2)
    linear.quantization_scheme = SimpleNamespace(weights=block, input_activations=None)
    with pytest.raises(VerificationError, match="compressed-tensors strategy 'block' cannot be measured yet"):
        layer_facts(linear)
    linear.quantization_scheme.weights = None
    with pytest.raises(VerificationError, match="has a scheme without weights"):
        layer_facts(linear)
