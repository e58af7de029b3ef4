"""GPTQ and AWQ checkpoints: they hold exactly the weights that were solved, and say so in the keys that loaders read.

No library that loads these formats is installed with the project: an independent reading of the words stands in for it here
(shifts as the libraries write them, not our packing), and a test with gptqmodel runs where that is installed.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit.backends import LayerFacts, dense_layer, layer_facts
from quantkit.backends.awq_format import AwqLinear, store_awq
from quantkit.backends.gptq_format import GptqLinear, store_gptq
from quantkit.backends.packed_checkpoints import is_packed_checkpoint, load_packed_checkpoint
from quantkit.backends.unpacked import unpack_model
from quantkit.errors import UsageError, VerificationError
from quantkit.headers import read_stored_weights
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

hf_logging.disable_progress_bar()
IDS = torch.arange(3, 27).reshape(2, 12)
LAYER = "model.layers.0.mlp.up_proj"
GRIDS = [
    UniformGrid(4, 64, True, torch.bfloat16, "mse"),
    UniformGrid(4, 32, False, torch.float16),
    UniformGrid(2, 32, False, torch.bfloat16),
    UniformGrid(3, 64, True, torch.bfloat16),
    UniformGrid(8, -1, True, torch.float32),
]


def load(folder, dtype: torch.dtype | str = torch.bfloat16):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def reload(folder: Path):
    return load_packed_checkpoint(folder, dtype="auto", device="cpu", trust_remote_code=False)[0]


def rounded(model: nn.Module, grid: UniformGrid, leave_out: tuple[str, ...] = ("lm_head",)) -> dict[str, QuantizedWeight]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: quantize(item.weight.data, grid) for name, item in linears.items() if not name.endswith(leave_out)}


def gptq_weight(tensors: dict[str, torch.Tensor], bits: int, *, v2: bool) -> torch.Tensor:
    """Read a layer `[out, in]` as AutoGPTQ's torch kernel does, bit by bit."""

    def codes(words: torch.Tensor, count: int) -> torch.Tensor:  # [words, n] → [count, n], packed along the first axis
        bit = torch.arange(count).unsqueeze(1) * bits + torch.arange(bits)
        stream = (words.long()[bit // 32] >> (bit % 32).unsqueeze(-1)) & 1
        return (stream << torch.arange(bits).reshape(1, -1, 1)).sum(1)

    scales, group = tensors["scales"], tensors["g_idx"].long()
    zeros = codes(tensors["qzeros"].T, scales.shape[1]).T + (0 if v2 else 1)
    return (scales[group] * (codes(tensors["qweight"], len(group)) - zeros[group]).to(scales.dtype)).T


def awq_weight(tensors: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    """Read a layer `[out, in]` as AutoAWQ's `dequantize_gemm` does."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])

    def codes(words: torch.Tensor) -> torch.Tensor:
        return ((words.unsqueeze(-1) >> (4 * order)) & 15).flatten(1)

    spread = [item.repeat_interleave(group_size, 0) for item in (tensors["scales"], codes(tensors["qzeros"]))]
    return (spread[0] * (codes(tensors["qweight"]) - spread[1]).to(spread[0].dtype)).T


def layer_of(folder: Path) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "model.safetensors")
    return {key.rsplit(".", 1)[1]: value for key, value in stored.items() if key.startswith(f"{LAYER}.")}


@pytest.mark.parametrize("grid", GRIDS)
def test_a_gptq_folder_holds_exactly_the_weights_that_were_solved(tiny_model, tmp_path, grid):
    model = load(tiny_model, grid.scale_dtype)
    layers = rounded(model, grid)
    store_gptq(model, layers)
    before = model(IDS).logits
    model.save_pretrained(tmp_path)
    stored = layer_of(tmp_path)
    assert torch.equal(gptq_weight(stored, grid.bits, v2=not grid.symmetric), layers[LAYER].dequantize())
    said = read_stored_weights(tmp_path)
    facts = (said.format, said.weights_bits, said.group_size, said.symmetric, said.layout)
    assert facts == ("gptq", grid.bits, grid.group_size, grid.symmetric, "gptq" if grid.symmetric else "gptq_v2")
    loaded = reload(tmp_path)
    assert layer_facts(loaded.get_submodule(LAYER)) == layer_facts(model.get_submodule(LAYER))
    assert torch.equal(loaded(IDS).logits, before)


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_an_awq_folder_holds_exactly_the_weights_that_were_solved(tiny_model, tmp_path, group_size):
    grid = UniformGrid(4, group_size, False, torch.float16)
    model = load(tiny_model, torch.float16)
    layers = rounded(model, grid)
    store_awq(model, layers)
    before = model(IDS).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(awq_weight(layer_of(tmp_path), 128 if group_size == -1 else group_size), layers[LAYER].dequantize())
    said = read_stored_weights(tmp_path)
    assert (said.format, said.weights_bits, said.group_size, said.symmetric) == ("awq", 4, group_size, False)
    assert layer_facts(reload(tmp_path).get_submodule(LAYER)) == LayerFacts(4, "int4", "awq", group_size, False)
    assert torch.equal(reload(tmp_path)(IDS).logits, before)


def test_the_configuration_is_as_gptqmodel_writes_it(tiny_model):
    model = load(tiny_model)
    store_gptq(model, rounded(model, UniformGrid(4, 64)), options={"damp_percent": 0.05, "desc_act": True, "symmetric": True})
    stated = model.config.quantization_config
    expected = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 64, "sym": True, "lm_head": False}
    assert expected.items() <= stated.items()
    assert (stated["desc_act"], stated["meta"]["act_order"], stated["damp_percent"]) == (False, True, 0.05)
    assert "dynamic" not in stated
    json.dumps(stated)


def test_layers_left_out_are_named_to_every_loader(tiny_model):
    model = load(tiny_model)
    left = [f"model.layers.{index}.mlp.down_proj" for index in range(4)]
    store_gptq(model, rounded(model, UniformGrid(4, 64), ("lm_head", "down_proj")))
    stated = model.config.quantization_config
    assert stated["modules_to_not_convert"] == left
    patterns = [pattern.removeprefix("-:") for pattern in stated["dynamic"]]
    assert [name for name, _ in model.named_modules() if any(re.match(item, name) for item in patterns)] == left
    assert LAYER in stated["modules_in_block_to_quantize"][0]
    assert not set(left) & set(stated["modules_in_block_to_quantize"][0])
    other = load(tiny_model)
    store_awq(other, rounded(other, UniformGrid(4, 64, False), ("lm_head", "down_proj")))
    assert set(other.config.quantization_config["modules_to_not_convert"]) == {"lm_head", *left}
    expected = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    assert expected.items() <= other.config.quantization_config.items()


def test_layers_left_out_stay_dense_when_the_folder_is_loaded(tiny_model, tmp_path):
    model = load(tiny_model)
    store_gptq(model, rounded(model, UniformGrid(4, 64), ("lm_head", "down_proj")))
    model.save_pretrained(tmp_path)
    loaded = reload(tmp_path)
    assert type(loaded.get_submodule("model.layers.1.mlp.down_proj")) is nn.Linear
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_layers_become_dense_for_merging_and_unpacked_for_training(tiny_model):
    model = load(tiny_model)
    layers = rounded(model, UniformGrid(4, 64, False))
    store_awq(model, layers)
    packed = model.get_submodule(LAYER)
    assert isinstance(packed, AwqLinear)
    assert "int4 awq group_size 64" in repr(packed)
    assert torch.equal(dense_layer(packed).weight, layers[LAYER].dequantize().float())
    before = model(IDS).logits
    assert torch.equal(unpack_model(model)(IDS).logits, before)


def test_what_the_formats_cannot_hold_is_refused_by_name(tiny_model):
    model = load(tiny_model)
    layers = rounded(model, UniformGrid(4, 32, False))
    for store, format in ((store_gptq, "gptq"), (store_awq, "awq")):
        with pytest.raises(UsageError, match=f"no layer was quantized, so there is nothing to store in the {format} format"):
            store(model, {})
        with pytest.raises(UsageError, match=r"layers\.9 is no linear layer of the model"):
            store(model, {"layers.9": layers[LAYER]})
        with pytest.raises(UsageError, match=rf"{LAYER} has the shape \(256, 128\), its codes \(2, 32\)"):
            store(model, {LAYER: quantize(torch.ones(2, 32), UniformGrid(4, 32))})
        with pytest.raises(UsageError, match=rf"{LAYER} is torch.bfloat16 and its scales are torch.float16"):
            store(model, {LAYER: rounded(model, UniformGrid(4, 32, scale_dtype=torch.float16))[LAYER]})
        with pytest.raises(UsageError, match="the layers use 2 different grids"):
            store(model, layers | {LAYER: quantize(torch.ones(256, 128), UniformGrid(8, 32))})
        with pytest.raises(UsageError, match="lm_head shares its weight with the input embeddings"):
            store(model, {"lm_head": quantize(model.lm_head.weight.data, UniformGrid(4, 32))})
    with pytest.raises(UsageError, match="AWQ format holds 4-bit weights with zero points; these have 8 bits and zero points"):
        store_awq(model, rounded(model, UniformGrid(8, 32, False)))
    with pytest.raises(UsageError, match="these have 4 bits and none"):
        store_awq(model, rounded(model, UniformGrid(4, 32, True)))
    assert not any(isinstance(module, GptqLinear | AwqLinear) for module in model.modules())


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    model = load(tiny_model)
    store_gptq(model, rounded(model, UniformGrid(4, 64)))
    model.save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: tensor.clone() for key, tensor in tensors.items() if key != f"{LAYER}.{name}"}
    save_file(tensors | ({} if value is None else {f"{LAYER}.{name}": value}), folder / "model.safetensors")


def test_damaged_or_ambiguous_folders_are_refused_by_layer(folder, tiny_model):
    assert is_packed_checkpoint(folder)
    assert not is_packed_checkpoint(tiny_model)
    change(folder, "g_idx", torch.arange(128).flip(0).to(torch.int32) // 64)
    with pytest.raises(UsageError, match=rf"{LAYER}: its columns are stored in activation order \(g_idx\)"):
        reload(folder)
    change(folder, "g_idx", None)  # older AWQ-like writers leave it out
    reload(folder)
    change(folder, "qzeros", torch.full((2, 32), 0x66666666, dtype=torch.int32))
    with pytest.raises(VerificationError, match="the configuration says sym, but there are zero points beside the middle"):
        reload(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["sym"] = False
    (folder / "config.json").write_text(json.dumps(config))
    change(folder, "qzeros", torch.full((2, 32), -1, dtype=torch.int32))
    with pytest.raises(VerificationError, match="a zero point is stored as 15, which format gptq reads as 0 or as 16"):
        reload(folder)
    change(folder, "scales", None)
    with pytest.raises(UsageError, match=rf"{LAYER} has no scales beside its qweight"):
        reload(folder)


def test_other_awq_layouts_are_refused(tiny_model, tmp_path):
    model = load(tiny_model)
    store_awq(model, rounded(model, UniformGrid(4, 64, False)))
    model.config.quantization_config["version"] = "gemv"
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="AWQ layout 'gemv' cannot be read here; gemm can"):
        reload(tmp_path)


@pytest.mark.skipif(
    not (importlib.util.find_spec("gptqmodel") and importlib.util.find_spec("optimum")),
    reason="transformers reads these formats with gptqmodel and optimum, which are built from source; not installed here",
)
@pytest.mark.parametrize(
    ("store", "grid", "dense"),
    [
        (store_gptq, (4, 64, True), "lm_head"),
        (store_gptq, (4, 32, False), "lm_head"),
        (store_gptq, (3, 64, True), "lm_head"),
        (store_gptq, (2, 32, False), "lm_head"),
        (store_gptq, (8, -1, True), "lm_head"),
        (store_gptq, (4, 64, True), "down_proj"),
        (store_awq, (4, 64, False), "lm_head"),
        (store_awq, (4, -1, False), "lm_head"),
        (store_awq, (4, 64, False), "down_proj"),
    ],
)
def test_transformers_with_gptqmodel_computes_the_same(tiny_model, tmp_path, store, grid, dense):
    model = load(tiny_model, torch.float16)
    store(model, rounded(model, UniformGrid(*grid, torch.float16), ("lm_head", dense)))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, torch.float16)
    with torch.no_grad():
        assert float((loaded(IDS).logits - model(IDS).logits).abs().max()) < 0.02
    left = {name for name, module in loaded.named_modules() if type(module) is nn.Linear}
    assert left == {"lm_head", *(name for name, _ in loaded.named_modules() if name.endswith(dense))}
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
