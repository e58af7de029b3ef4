"""How do int8 codes of our own get into the layers of LLM.int8?

bitsandbytes takes each row's largest magnitude as 127 and rounds to the nearest code. A weight that was rounded with data has
codes that are not the nearest; handed over dense, it would be rounded a second time. So codes and row scales are put into the
layer as they are; it is stored, loaded and run as one that bitsandbytes quantized.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.numerics.grids import QuantizedWeight

LARGEST = 127.0
"""The layers keep scale·127 of each row: the magnitude that code 127 stands for."""


def int8_linear(weight: QuantizedWeight, bias: Tensor | None, *, threshold: float) -> Any:
    """Return a `bitsandbytes.nn.Linear8bitLt` that holds these codes `[out, in]` and row scales `[out, 1]`.

    Input columns with a value beyond `threshold` are multiplied in 16 bit while it runs.
    """
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    outputs, inputs = weight.codes.shape
    layer = Linear8bitLt(
        inputs, outputs, bias=bias is not None, has_fp16_weights=False, threshold=threshold, device=torch.device("meta")
    )
    codes = weight.codes.contiguous()
    scales = weight.scale.float().flatten() * LARGEST
    layer.weight = Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def store_int8(model: Any, layers: Mapping[str, QuantizedWeight], *, threshold: float) -> Any:
    """Put int8 weights into the model's layers, in place, and let the model say so as transformers and PEFT expect it."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    from quantkit.backends.bitsandbytes import keep_layout

    kept = [name for name, part in model.named_modules() if type(part) is nn.Linear and name not in layers]
    for name, weight in layers.items():
        linear = model.get_submodule(name)
        layer = int8_linear(weight, linear.bias, threshold=threshold).to(linear.weight.device)
        layer.source_cls = nn.Linear
        model.set_submodule(name, layer.train(linear.training).requires_grad_(False))
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=kept or None)
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model = model.hf_quantizer.postprocess_model(model)
    keep_layout(model)
    return model
