"""Do int8 codes that are not the nearest ones live in LLM.int8 layers, and come back from a plain load?"""

import torch

from quantkit.backends import dense_layer
from quantkit.backends.int8_rows import store_int8
from quantkit.layers import linear_layers
from quantkit.measure import measure_model
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize
from tests.bench import difference, load, logits, plan_for


def test_codes_of_our_own_survive_saving_and_loading(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load(tiny_model, plan_for("NoQuant"))
    grid = UniformGrid(8, -1, scale_dtype=torch.float32)
    layers = {}
    for name, layer in linear_layers(model).items():
        found = quantize(layer.weight.data, grid)
        codes = torch.where(found.codes % 7 == 3, found.codes - 1, found.codes)
        layers[name] = QuantizedWeight(codes, found.scale, None, 8, -1)
    model = store_int8(model, layers, threshold=6.0)
    assert measure_model(model, method="INT8") == plan_for("INT8").spec
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, layer in linear_layers(again).items():
        assert torch.allclose(dense_layer(layer).weight, layers[name].dequantize(), rtol=1e-6)
    assert difference(logits(again), logits(model)) == 0
    assert again.config.quantization_config.llm_int8_threshold == 6.0
