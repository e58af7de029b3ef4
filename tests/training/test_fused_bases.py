"""Adapters computed in place on every kind of quantized base give what PEFT gives on the same base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantkit.backends.awq_format import store_awq
from quantkit.backends.compressed_tensors import compress_model
from quantkit.backends.gptq_format import store_gptq
from quantkit.backends.unpacked import UnpackedLinear, unpack_model
from quantkit.layers import linear_layers
from quantkit.methods import installed_methods
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.training.fused_adapters import fused_adapters
from tests.bench import load, plan_for
from tests.training.adapters import apart, on_a_batch, with_adapters

Base = Callable[[Path], Any]


def of_method(method: str, **options: Any) -> Base:
    """Return a base that a method quantizes while loading."""

    def build(folder: Path) -> Any:
        plan = plan_for(method, **options)
        return installed_methods().prepare_model(plan, load(folder, plan))

    return build


def of_format(store: Callable[..., Any], grid: UniformGrid, **facts: Any) -> Base:
    """Return a base of integer weights as a folder of this format is loaded to train on: unpacked."""

    def build(folder: Path) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        layers = {name: quantize(layer.weight.data, grid) for name, layer in linear_layers(model).items()}
        model = unpack_model(store(model, layers, **facts)).requires_grad_(False)
        assert all(isinstance(layer, UnpackedLinear) for layer in linear_layers(model).values())
        return model

    return build


BASES: dict[str, Base] = {
    "NF4": of_method("BNB4BIT"),
    "NF4 in bfloat16 containers": of_method("QLORA", quant_storage="bfloat16"),
    "FP4, double quantization": of_method("BNB4BIT", quant_type="fp4", double_quant=True),
    "INT8": of_method("INT8"),
    "HQQ": of_method("HQQ"),
    "GPTQ": of_format(store_gptq, UniformGrid(4, 64, True, torch.float32)),
    "GPTQ, 3 bits, asymmetric": of_format(store_gptq, UniformGrid(3, 32, False, torch.float32)),
    "AWQ": of_format(store_awq, UniformGrid(4, 64, False, torch.float32)),
    "compressed-tensors": of_format(compress_model, UniformGrid(4, 32, True, torch.float32)),
    "compressed-tensors, 8-bit activations": of_format(
        compress_model, UniformGrid(8, -1, True, torch.float32), activations_bits=8
    ),
}


ROUNDED = "compressed-tensors, 8-bit activations"
"""The base that rounds what enters its layers: a difference in a value's last bit may become one of a whole step of the grid,
so that in a model of several layers gradients differ by a few hundredths, though a layer's alone do not."""


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize("name", BASES)
def test_loss_and_gradients_are_peft_s_on_this_base(name: str, kind: str, tiny_model: Path) -> None:
    model = with_adapters(BASES[name](tiny_model), kind)
    expected_loss, expected = on_a_batch(model)
    with fused_adapters(model) as count:
        assert count == len(linear_layers(model))
        loss, gradients = on_a_batch(model)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-4 if name == ROUNDED else 1e-6)
    assert apart(gradients, expected) < (0.05 if name == ROUNDED else 1e-4)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_a_layer_that_rounds_its_inputs_passes_gradients_as_peft_s(kind: str, tiny_model: Path) -> None:
    model = with_adapters(BASES[ROUNDED](tiny_model), kind).double()
    layer = next(module for module in model.modules() if hasattr(module, "base_layer"))
    found = []
    for wanted in (False, True):
        with fused_adapters(model, wanted=wanted):
            assert ("forward" in vars(layer)) is wanted
            values = torch.randn(8, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
            outputs = layer(values)
            trained = [item for item in layer.parameters() if item.requires_grad]
            gradients = torch.autograd.grad(outputs.square().sum(), [values, *trained])
        found.append(dict(enumerate((outputs.detach(), *gradients))))
    assert apart(found[1], found[0]) < 1e-12
