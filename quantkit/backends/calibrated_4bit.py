"""How does a dense model become an ordinary bitsandbytes 4-bit model whose weights were rounded with calibration data?

Block by block, as every calibrated method: inputs as the quantized earlier blocks emit them, Hessians, error feedback over
NF4 or FP4 (`quantkit.numerics.codebook_feedback`), and codes and absmax packed as they are. Handing the dequantized weights to
bitsandbytes instead would quantize them a second time, with another absmax wherever no weight attains the one we chose.
Format, size and speed of the result are those of plain bitsandbytes, which reads it without knowing the difference.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.plan import QuantizationPlan

if TYPE_CHECKING:
    from quantkit.numerics.capture import Block
    from quantkit.numerics.codebooks import CodebookWeight

DAMP_PERCENT = 0.01
"""Share of the mean diagonal of each Hessian that is added to it, as in the paper of the recursion."""


def quantize_calibrated(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Quantize a dense model in place to the plan's 4-bit grid and return it as bitsandbytes would have loaded it.

    Raises:
        UsageError: there is no calibration data, or a layer cannot be quantized (it is named).
    """
    import torch

    from quantkit.backends.bitsandbytes import quiet
    from quantkit.numerics.codebook_feedback import solve_codebook
    from quantkit.numerics.codebooks import CodebookGrid
    from quantkit.quantizing import solve_blocks

    quiet()
    spec = plan.spec
    grid = CodebookGrid(cast(Any, spec.weights_dtype), dtype=getattr(torch, plan.compute_dtype), search="mse")

    def solve(block: "Block") -> dict[str, "CodebookWeight"]:
        groups = block.groups()
        solved = {}
        for names, hessian in zip(groups, block.hessians(groups), strict=True):
            for name in names:
                weight = block.linears[name].weight.data
                solved[name] = solve_codebook(
                    weight, hessian, grid, double_quant=spec.double_quant, damp_percent=DAMP_PERCENT, layer=name
                )
        return solved

    layers = solve_blocks(plan, model, calibration, work, cast(Any, solve), grid=cast(Any, grid))
    return store_layers(plan, model, cast(Any, layers))


def store_layers(plan: QuantizationPlan, model: Any, layers: "Mapping[str, CodebookWeight]") -> Any:
    """Put 4-bit weights into the model's layers, in place, and let the model say so as transformers and PEFT expect it."""
    from torch import nn
    from transformers.quantizers.auto import AutoHfQuantizer

    from quantkit.backends.bitsandbytes import load_kwargs_4bit
    from quantkit.numerics.codebooks import linear_4bit

    config = load_kwargs_4bit(plan)["quantization_config"]
    kept = [name for name, part in model.named_modules() if type(part) is nn.Linear and name not in layers]
    for name, weight in layers.items():
        linear = model.get_submodule(name)
        choices = {"double_quant": plan.spec.double_quant, "storage": config.bnb_4bit_quant_storage}
        layer = linear_4bit(weight.to(linear.weight.device), linear.bias, **choices)
        layer.source_cls = nn.Linear
        model.set_submodule(name, layer.train(linear.training).requires_grad_(False))
    config.llm_int8_skip_modules = kept or None
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    return model.hf_quantizer.postprocess_model(model)
