"""Is a base that was unpacked to train on still what it says, and is a changed one found out?"""

import pytest
import torch
from torch import nn

from quantkit.backends import dense_layer, layer_facts
from quantkit.backends.compressed_tensors import compress_model
from quantkit.backends.unpacked import UnpackedLinear, holding_unpacked, mark_unpacked, unpack_model
from quantkit.errors import VerificationError
from quantkit.layers import linear_layers
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

LAYER = "model.layers.1.mlp.up_proj"
IDS = torch.arange(40).reshape(2, 20)
GRIDS = [(2, 32, True), (3, 32, False), (4, 64, True), (8, -1, False), (8, -1, True)]


def load(folder, dtype="bfloat16"):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def packed(tiny_model, bits=4, group_size=32, symmetric=True, activations_bits=None):
    model = load(tiny_model)
    grid = UniformGrid(bits, group_size, symmetric)
    layers = {name: quantize(layer.weight.data, grid) for name, layer in linear_layers(model).items()}
    return compress_model(model, layers, activations_bits=activations_bits)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
@torch.no_grad()
def test_an_unpacked_model_computes_and_measures_as_the_packed_one(bits, group_size, symmetric, tiny_model):
    model = packed(tiny_model, bits, group_size, symmetric)
    facts, before = layer_facts(model.get_submodule(LAYER)), model(IDS).logits
    unpack_model(model)
    assert isinstance(model.get_submodule(LAYER), UnpackedLinear)
    assert layer_facts(model.get_submodule(LAYER)) == facts
    assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_activations_stay_rounded_and_gradients_pass_the_rounding(tiny_model):
    model = packed(tiny_model, 8, -1, activations_bits=8)
    before = model(IDS).logits
    unpack_model(model)
    assert torch.equal(model(IDS).logits, before)
    with torch.enable_grad():
        values = torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
        model.get_submodule(LAYER)(values).sum().backward()
    assert bool(values.grad.all())


@pytest.mark.parametrize("grid", [*GRIDS, (8, -1, True, 8)])
@torch.no_grad()
def test_weights_held_for_a_while_are_unpacked_once_and_change_no_logit(grid, tiny_model, monkeypatch):
    model = packed(tiny_model, *grid)
    before, unpacked, dequantize = model(IDS).logits, [], QuantizedWeight.dequantize
    monkeypatch.setattr(QuantizedWeight, "dequantize", lambda weight: unpacked.append(weight) or dequantize(weight))
    with holding_unpacked(model):
        assert torch.equal(model(IDS).logits, before)
        assert torch.equal(model(IDS).logits, before)
        assert len(unpacked) == len(linear_layers(model))
    assert all(layer.held is None for layer in linear_layers(model).values())
    assert torch.equal(model(IDS).logits, before)
    assert len(unpacked) == 2 * len(linear_layers(model))


@torch.no_grad()
def test_weights_that_memory_does_not_hold_are_unpacked_in_each_pass_and_a_line_says_so(tiny_model, monkeypatch, capsys):
    model = packed(tiny_model)
    before = model(IDS).logits
    monkeypatch.setattr("quantkit.backends.unpacked.free_bytes", lambda _: 1 << 10)
    with holding_unpacked(model):
        assert all(layer.held is None for layer in linear_layers(model).values())
        assert torch.equal(model(IDS).logits, before)
    printed = " ".join(capsys.readouterr().out.split())
    assert "packed weights are unpacked at every token, which is slow: unpacked once they take" in printed
    assert "1.0 KiB are free" in printed


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_plain_load_becomes_layers_that_know_their_grid(dtype, tiny_model, tmp_path):
    model = packed(tiny_model)
    facts = layer_facts(model.get_submodule(LAYER))
    model.save_pretrained(tmp_path)
    loaded = mark_unpacked(load(tmp_path, dtype), tmp_path)
    assert layer_facts(loaded.get_submodule(LAYER)) == facts
    assert type(dense_layer(loaded.get_submodule(LAYER))) is nn.Linear


def test_a_weight_that_left_its_grid_is_found_out(tiny_model, tmp_path):
    model = packed(tiny_model)
    model.save_pretrained(tmp_path)
    unpack_model(model)
    model.get_submodule(LAYER).weight.data[0, 0] += 1e-3
    with pytest.raises(VerificationError, match="no longer stands on its int4 grid"):
        layer_facts(model.get_submodule(LAYER))
    loaded = load(tmp_path)
    loaded.get_submodule(LAYER).weight.data[0, 0] += 1
    with pytest.raises(VerificationError, match=rf"{LAYER} in memory is not what the folder holds"):
        mark_unpacked(loaded, tmp_path)
